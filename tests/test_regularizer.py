"""Tests of the category regularization: values by hand and by loops, gradients at hard points."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax import csm, regularizer


def test_weight_similarity_by_hand():
  # Columns at 0, 90, 180 and 45 degrees, of different lengths.
  kernel = jnp.array([[2.0, 0, -0.1, 3], [0, 5, 0, 3]])
  c = math.sqrt(0.5)
  cosine = np.array([[1, 0, -1, c], [0, 1, 0, c], [-1, 0, 1, -c], [c, c, -c, 1]])
  similarity = regularizer.weight_similarity(kernel)
  np.testing.assert_allclose(similarity, (1 + cosine) / 2, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1, 1e9])
def test_weight_similarity_is_in_range_and_ignores_length(scale):
  kernel = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
  kernel[:, 1] = kernel[:, 0]  # cos may exceed 1 by rounding
  similarity = regularizer.weight_similarity(jnp.asarray(kernel * np.float32(scale)))
  assert similarity.shape == (6, 6)
  assert similarity.min() >= 0 and similarity.max() <= 1
  np.testing.assert_allclose(similarity, regularizer.weight_similarity(kernel), atol=1e-6)


def test_weight_similarity_of_zero_columns():
  similarity = regularizer.weight_similarity(jnp.array([[0.0, 1, 0], [0, 1, 0]]))
  np.testing.assert_array_equal(similarity, [[0.5, 0.5, 0.5], [0.5, 1, 0.5], [0.5, 0.5, 0.5]])


def test_weight_similarity_of_bfloat16_is_computed_in_float32():
  kernel = jnp.array([[1.0, 1], [0, 0.25]], jnp.bfloat16)
  similarity = regularizer.weight_similarity(kernel)
  assert similarity.dtype == jnp.float32
  assert float(similarity[0, 1]) == pytest.approx((1 + 1 / math.hypot(1, 0.25)) / 2, abs=1e-6)


def test_regularizer_by_hand():
  # cos(w0, w1) = 0, cos(w0, w2) = 0.6, cos(w1, w2) = 0.8.
  kernel = jnp.array([[1.0, 0, 3], [0, 1, 4]])
  one_pair = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
  two_pairs = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1]])
  assert float(regularizer.category_regularizer(kernel, one_pair)) == pytest.approx(0.8)
  assert float(regularizer.category_regularizer(kernel, two_pairs)) == pytest.approx(0.85)
  everything = np.ones((3, 3), np.float32)
  expected = (0.5 + 0.8 + 0.9) / 3
  assert float(regularizer.category_regularizer(kernel, everything)) == pytest.approx(expected)


def test_regularizer_against_loops():
  rng = np.random.default_rng(1)
  kernel = rng.normal(size=(7, 5))
  csm = np.maximum(np.eye(5), rng.random((5, 5)) < 0.4)
  csm = np.maximum(csm, csm.T)
  total, pairs = 0.0, 0
  for i in range(5):
    for j in range(5):
      if i != j and csm[i, j] == 1:
        a, b = kernel[:, i], kernel[:, j]
        total += (1 + a @ b / math.sqrt((a @ a) * (b @ b))) / 2
        pairs += 1
  got = regularizer.category_regularizer(jnp.asarray(kernel, jnp.float32), jnp.asarray(csm))
  assert pairs > 0
  assert got.shape == ()
  assert float(got) == pytest.approx(total / pairs, abs=1e-6)


def test_selects_all_pairs_of_a_soft_csm():
  kernel = jnp.array([[1.0, 0, 3], [0, 1, 4]])
  soft = np.array([[1, 0.6, 0.7], [0.6, 1, 0.8], [0.7, 0.8, 1]])
  assert float(regularizer.category_regularizer(kernel, soft)) == pytest.approx(2.2 / 3)


@pytest.mark.parametrize("size", [1, 4])
def test_is_zero_without_confusing_classes(size):
  value, gradient = jax.value_and_grad(regularizer.category_regularizer)(
    jnp.ones((3, size)), np.eye(size)
  )
  assert float(value) == 0
  np.testing.assert_array_equal(gradient, np.zeros((3, size)))


@pytest.mark.parametrize("length", [0, 1e-30, 1.1e-12, 1, 1e15])
@pytest.mark.parametrize("jit", [False, True])
def test_gradient_is_finite_for_any_length(length, jit):
  kernel = jnp.array([[1.0, 0.6, 1], [2, 0.8, 2]]) * jnp.array([[1.0, length, 1]])
  function = jax.value_and_grad(regularizer.category_regularizer)
  value, gradient = (jax.jit(function) if jit else function)(kernel, jnp.ones((3, 3)))
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


def test_gradient_is_finite_for_zero_kernel():
  gradient = jax.grad(regularizer.category_regularizer)(jnp.zeros((3, 4)), jnp.ones((4, 4)))
  np.testing.assert_array_equal(gradient, np.zeros((3, 4)))


def test_gradient_against_finite_differences():
  rng = np.random.default_rng(2)
  kernel = rng.normal(size=(4, 3))
  csm = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]])

  def reference(w):  # in float64
    unit = w / np.linalg.norm(w, axis=0)
    return ((1 + unit.T @ unit) / 2)[(csm - np.eye(3)) == 1].mean()

  gradient = jax.grad(regularizer.category_regularizer)(jnp.asarray(kernel, jnp.float32), csm)
  for index in np.ndindex(4, 3):
    step = np.zeros((4, 3))
    step[index] = 1e-5
    slope = (reference(kernel + step) - reference(kernel - step)) / 2e-5
    assert float(gradient[index]) == pytest.approx(slope, abs=1e-5)


def test_descent_pushes_only_confusing_columns_apart():
  kernel = jnp.array([[1.0, 1.0, 1.0], [0.1, -0.1, 0.0]])
  csm = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
  gradient = jax.grad(regularizer.category_regularizer)(kernel, csm)
  moved = regularizer.category_regularizer(kernel - gradient, csm)
  assert moved < regularizer.category_regularizer(kernel, csm)
  np.testing.assert_array_equal(gradient[:, 2], [0, 0])


@pytest.mark.parametrize("classes, block", [(5, 2**22), (23, 2**22), (23, 4 * 6 * 7), (23, 1)])
def test_pairs_regularizer_equals_category_regularizer(classes, block, monkeypatch):
  # One block, blocks with a remainder, and one class at a time; class 3 has no pair.
  monkeypatch.setattr(regularizer, "BLOCK", block)
  rng = np.random.default_rng(classes)
  kernel = jnp.asarray(rng.normal(size=(7, classes)), jnp.float32).at[:, 2].set(0)
  similarity = rng.random((classes, classes)) < 0.2
  matrix = np.maximum(np.eye(classes), similarity | similarity.T)
  matrix[3] = matrix[:, 3] = np.eye(classes)[3]
  dense = jax.value_and_grad(regularizer.category_regularizer)(kernel, matrix)
  pairs = jax.value_and_grad(regularizer.pairs_regularizer)(kernel, csm.confusing_classes(matrix))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), dense, pairs)


def test_is_zero_without_pairs():
  value, gradient = jax.value_and_grad(regularizer.pairs_regularizer)(
    jnp.ones((3, 4)), csm.confusing_classes(np.eye(4))
  )
  assert float(value) == 0
  np.testing.assert_array_equal(gradient, np.zeros((3, 4)))
