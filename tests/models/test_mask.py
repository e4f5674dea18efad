"""Tests of the mask network and of the selection and combination of its masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.models import mask

CSM = np.array([[1, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]])


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_select_averages_the_confusing_classes(dtype):
  weights = mask.select(jnp.asarray(CSM.astype(dtype)), jnp.array([0, 1, 3]))
  third = 1 / 3
  np.testing.assert_allclose(
    weights, [[third, third, 0, third], [0.5, 0.5, 0, 0], [0.5, 0, 0, 0.5]], rtol=1e-6
  )
  assert weights.dtype == jnp.float32


def test_select_without_confusing_classes_is_self_attention():
  np.testing.assert_array_equal(mask.select(CSM, jnp.array([2])), [[0, 0, 1, 0]])


def test_select_takes_columns():
  # The masks j with CSM[j, i] = 1; only an asymmetric matrix distinguishes columns from rows.
  csm = np.array([[1, 1], [0, 1]])
  np.testing.assert_array_equal(mask.select(csm, jnp.array([0, 1])), [[1, 0], [0.5, 0.5]])


def test_select_with_a_soft_csm():
  soft = np.array([[1, 0.6, 0.4], [0.6, 1, 0.9], [0.4, 0.9, 1]])
  weights = mask.select(soft, jnp.array([0, 2]))
  np.testing.assert_allclose(weights[0], [0.5, 0.3, 0.2], rtol=1e-6)
  np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-6)


def test_combine_averages_the_selected_masks():
  masks = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 4)).astype(np.float32)
  weights = mask.select(CSM, jnp.array([0, 2]))
  combined = mask.combine(jnp.asarray(masks), weights)
  assert combined.shape == (2, 3, 2, 2, 1)
  np.testing.assert_allclose(
    combined[0, ..., 0], (masks[0, ..., 0] + masks[0, ..., 1] + masks[0, ..., 3]) / 3, atol=1e-6
  )
  np.testing.assert_array_equal(combined[1, ..., 0], masks[1, ..., 2])


def test_combine_keeps_the_dtype_of_the_masks():
  masks = jnp.ones((1, 1, 2, 2, 2), jnp.bfloat16)
  combined = mask.combine(masks, jnp.array([[0.5, 0.5]]))
  assert combined.dtype == jnp.bfloat16
  np.testing.assert_array_equal(combined.astype(jnp.float32), np.ones((1, 1, 2, 2, 1)))


def test_combine_passes_gradients_to_the_selected_masks_only():
  gradient = jax.grad(lambda m: mask.combine(m, mask.select(CSM, jnp.array([1]))).sum())(
    jnp.ones((1, 1, 1, 2, 4))
  )
  np.testing.assert_array_equal(gradient[0, 0, 0], [[0.5, 0.5, 0, 0]] * 2)


def test_mask_network_is_a_convolution_without_bias():
  rng = np.random.default_rng(1)
  features = rng.normal(size=(2, 2, 3, 1, 5)).astype(np.float32)
  weights = jnp.asarray(rng.uniform(size=(2, 3)), jnp.float32)
  module = mask.MaskNetwork(num_classes=3)
  variables = module.init(jax.random.key(0), jnp.asarray(features), weights)
  assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (5, 3)}}
  kernel = variables["params"]["kernel"]
  bridge, combined = module.apply(variables, jnp.asarray(features), weights)
  masks = np.zeros((2, 2, 3, 1, 3))
  for index in np.ndindex(masks.shape):
    masks[index] = sum(features[index[:4]][c] * kernel[c, index[4]] for c in range(5))
  np.testing.assert_allclose(mask.class_masks(jnp.asarray(features), kernel), masks, atol=1e-6)
  np.testing.assert_allclose(bridge, masks.mean((1, 2, 3)), atol=1e-6)
  expected = mask.combine(jnp.asarray(masks, jnp.float32), weights)
  np.testing.assert_allclose(combined, expected, atol=1e-6)


def test_mask_network_initial_scale():
  module = mask.MaskNetwork(num_classes=50)
  kernel = module.init(jax.random.key(0), jnp.ones((1, 1, 1, 1, 400)), jnp.ones((1, 50)))["params"][
    "kernel"
  ]
  assert float(jnp.std(kernel)) == pytest.approx(0.01, rel=0.05)
  assert abs(float(jnp.mean(kernel))) < 3e-4


@pytest.mark.parametrize(
  ("dtype", "input_dtype", "expected"),
  [
    (None, jnp.float32, jnp.float32),
    (None, jnp.bfloat16, jnp.bfloat16),
    (jnp.bfloat16, jnp.float32, jnp.bfloat16),
    ("float32", jnp.bfloat16, jnp.float32),
  ],
)
def test_mask_network_dtypes(dtype, input_dtype, expected):
  module = mask.MaskNetwork(num_classes=2, dtype=dtype)
  inputs = jnp.ones((1, 1, 1, 1, 3), input_dtype), jnp.ones((1, 2))
  (bridge, combined), variables = module.init_with_output(jax.random.key(0), *inputs)
  assert combined.dtype == expected and bridge.dtype == jnp.float32
  assert variables["params"]["kernel"].dtype == jnp.float32


def test_limit_rms_keeps_sign_and_shape():
  rng = np.random.default_rng(0)
  raw = np.stack([rng.normal(2, 7, (3, 2, 2, 1)), rng.normal(0, 0.1, (3, 2, 2, 1))])
  limited = np.asarray(mask.limit_rms(jnp.asarray(raw, jnp.float32), 1.5))
  rms = np.sqrt((raw**2).mean((1, 2, 3, 4)))
  np.testing.assert_allclose(limited[0], raw[0] * 1.5 / rms[0], rtol=1e-5)
  np.testing.assert_allclose(limited[1], raw[1], rtol=1e-5)  # below the limit


def test_limit_rms_has_finite_gradients_of_at_most_one():
  for raw in (jnp.zeros((1, 1, 2, 2, 1)), 9 * jnp.ones((1, 1, 2, 2, 1))):
    gradient = jax.vjp(lambda x: mask.limit_rms(x, 1.0), raw)[1](jnp.ones_like(raw))[0]
    assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient) <= 1)
