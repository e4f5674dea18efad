"""Tests of batch normalisation against Flax's, whose gradients are automatic."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.models.norm import BatchNorm

SHAPE = (2, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def video():
  """Returns values far from zero, for which the fast variance formula suffers from cancellation."""
  return 100 + 3 * jax.random.normal(jax.random.key(0), SHAPE)


def flax_norm(scale, dtype=jnp.float32):
  return nn.BatchNorm(
    momentum=0.9, epsilon=1e-5, use_scale=scale, use_fast_variance=False, dtype=dtype
  )


def variables(scale):
  keys = jax.random.split(jax.random.key(1), 4)
  params = {"bias": jax.random.normal(keys[0], (6,))}
  if scale:
    params["scale"] = jax.random.normal(keys[1], (6,))
  stats = {"mean": jax.random.normal(keys[2], (6,)), "var": jax.random.uniform(keys[3], (6,))}
  return {"params": params, "batch_stats": stats}


@pytest.mark.parametrize("scale", [True, False])
def test_equals_flax_in_results_gradients_and_statistics(video, scale):
  weight = jax.random.normal(jax.random.key(2), SHAPE)

  def loss(module, **mode):
    def compute_loss(params, x):
      y, updated = module.apply(
        {**variables(scale), "params": params}, x, mutable="batch_stats", **mode
      )
      return jnp.sum(jnp.sin(y) * weight), (y, updated)

    gradient = jax.value_and_grad(compute_loss, argnums=(0, 1), has_aux=True)
    return gradient(variables(scale)["params"], video)

  (_, actual), gradients = loss(BatchNorm(scale), train=True)
  (_, expected), flax_gradients = loss(flax_norm(scale), use_running_average=False)
  close = functools.partial(np.testing.assert_allclose, atol=2e-5, rtol=2e-5)
  jax.tree.map(close, actual, expected)
  close = functools.partial(np.testing.assert_allclose, atol=5e-5, rtol=5e-5)
  jax.tree.map(close, gradients, flax_gradients)


def test_uses_and_keeps_running_statistics_in_inference(video):
  actual = BatchNorm().apply(variables(True), video, train=False)
  expected = flax_norm(True).apply(variables(True), video, use_running_average=True)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_bfloat16_keeps_statistics_and_sums_in_float32(video):
  actual, updated = BatchNorm(dtype=jnp.bfloat16).apply(
    variables(True), video.astype(jnp.bfloat16), train=True, mutable="batch_stats"
  )
  expected, flax_updated = flax_norm(True, jnp.bfloat16).apply(
    variables(True), video.astype(jnp.bfloat16), use_running_average=False, mutable="batch_stats"
  )
  assert actual.dtype == jnp.bfloat16
  np.testing.assert_array_equal(actual, expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updated, flax_updated)


def test_gradient_has_two_sums_over_the_batch(video):
  def loss(x):
    y, _ = BatchNorm().apply(variables(True), x, train=True, mutable="batch_stats")
    return jnp.sum(jnp.sin(y))

  program = str(jax.make_jaxpr(jax.grad(loss))(video))
  forward = str(jax.make_jaxpr(loss)(video))
  over_batch = "reduce_sum[axes=(0, 1, 2, 3)"
  assert program.count(over_batch) == forward.count(over_batch) + 2
