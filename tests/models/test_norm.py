"""Batch normalisation beside Flax's own, whose gradients are derived."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.models.norm import BatchNorm

SHAPE = (2, 3, 4, 5, 6)


@pytest.fixture(scope="module")
def video():
  """Far from zero, where the fast formula of the variance loses what there is."""
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
def test_result_gradients_and_running_statistics_are_flax_s(video, scale):
  weight = jax.random.normal(jax.random.key(2), SHAPE)

  def loss(module, **how):
    def of(params, x):
      y, updated = module.apply(
        {**variables(scale), "params": params}, x, mutable="batch_stats", **how
      )
      return jnp.sum(jnp.sin(y) * weight), (y, updated)

    return jax.value_and_grad(of, argnums=(0, 1), has_aux=True)(variables(scale)["params"], video)

  (_, ours), our_gradients = loss(BatchNorm(scale), train=True)
  (_, theirs), their_gradients = loss(flax_norm(scale), use_running_average=False)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), ours, theirs)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5, rtol=5e-5),
    our_gradients,
    their_gradients,
  )


def test_running_statistics_are_used_and_kept_where_it_does_not_train(video):
  ours = BatchNorm().apply(variables(True), video, train=False)
  theirs = flax_norm(True).apply(variables(True), video, use_running_average=True)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_bfloat16_keeps_statistics_and_sums_in_float32(video):
  ours, updated = BatchNorm(dtype=jnp.bfloat16).apply(
    variables(True), video.astype(jnp.bfloat16), train=True, mutable="batch_stats"
  )
  theirs, flax_updated = flax_norm(True, jnp.bfloat16).apply(
    variables(True), video.astype(jnp.bfloat16), use_running_average=False, mutable="batch_stats"
  )
  assert ours.dtype == jnp.bfloat16
  np.testing.assert_array_equal(ours, theirs)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updated, flax_updated)


def test_the_gradient_takes_two_sums_over_the_batch(video):
  def loss(x):
    y, _ = BatchNorm().apply(variables(True), x, train=True, mutable="batch_stats")
    return jnp.sum(jnp.sin(y))

  program = str(jax.make_jaxpr(jax.grad(loss))(video))
  forward = str(jax.make_jaxpr(loss)(video))
  over_batch = "reduce_sum[axes=(0, 1, 2, 3)"
  assert program.count(over_batch) == forward.count(over_batch) + 2
