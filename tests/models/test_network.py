"""Tests of the forward pass from bytes to the input of the networks."""

import jax.numpy as jnp
import numpy as np

from u2s_jax.models.network import normalize


def test_normalize_by_hand():
  pixel = jnp.array([[[255, 0, 51]]], jnp.uint8)
  out = normalize(pixel, (0.5, 0.4, 0.3), (0.2, 0.4, 0.1))
  np.testing.assert_allclose(out[0, 0], [2.5, -1.0, -1.0], rtol=1e-5)


def test_normalize_ten_channels_with_one_mean():
  pixels = jnp.arange(0, 250, 25, jnp.uint8).reshape(1, 1, 1, 10)  # optical flow
  out = normalize(pixels, (0.5,), (0.25,))
  assert out.shape == (1, 1, 1, 10)
  np.testing.assert_allclose(out[0, 0, 0, :3], [-2, 4 * 25 / 255 - 2, 4 * 50 / 255 - 2], rtol=1e-5)
