"""Tests of SGD against PyTorch's update rule, and of the initial states of all stages."""

import jax
import jax.numpy as jnp
import numpy as np

from tests import small
from u2s_jax.run import state
from u2s_jax.training import steps


def test_sgd_matches_pytorch():
  tx = steps.sgd(momentum=0.9, weight_decay=0.1)
  params = jnp.array([1.0, -2.0])
  momentum = tx.init(params)
  expected, buffer = np.array([1.0, -2.0]), np.zeros(2)
  for step, (gradient, rate) in enumerate(
    [([1.0, 2.0], 0.5), ([-1.0, 0.5], 0.5), ([2.0, 0.0], 0.05)]
  ):
    direction, momentum = tx.update(jnp.array(gradient), momentum, params)
    params = params - rate * direction
    # torch.optim.SGD: d = g + wd p; buf = d at first, then 0.9 buf + d; p -= lr buf.
    d = np.array(gradient) + 0.1 * expected
    buffer = d if step == 0 else 0.9 * buffer + d
    expected = expected - rate * buffer
    np.testing.assert_allclose(params, expected, rtol=1e-6)


def test_clip_norm_matches_pytorch():
  """Matches torch.nn.utils.clip_grad_norm_, applied before the weight decay."""
  tx = steps.sgd(momentum=0.9, weight_decay=0.1, clip_norm=2.0)
  params = {"a": jnp.array([1.0]), "b": jnp.array([-2.0])}
  long = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
  direction, _ = tx.update(long, tx.init(params), params)
  np.testing.assert_allclose(direction["a"], [3 * 2 / 5 + 0.1], rtol=1e-6)
  np.testing.assert_allclose(direction["b"], [4 * 2 / 5 - 0.2], rtol=1e-6)
  short = {"a": jnp.array([0.3]), "b": jnp.array([0.4])}
  direction, _ = tx.update(short, tx.init(params), params)
  np.testing.assert_allclose(direction["a"], [0.3 + 0.1], rtol=1e-6)


def test_init_stages_has_the_shapes_of_training(trained):
  shape = (1, small.FRAMES, small.SIZE, small.SIZE, 3)
  states = state.init_stages(small.MODEL, small.STAGES, small.TX, shape)
  for stage, abstract in zip(small.STAGES, states, strict=True):
    first = trained[1][stage.name][0]
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, first)
