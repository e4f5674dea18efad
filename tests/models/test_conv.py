"""Tests that all methods compute the 3D convolution, and tests of max pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.conv import native
from u2s_jax.models.conv import METHODS, Conv, conv3d, max_pool


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("extent", [(1, 1, 1), (3, 1, 1), (1, 3, 3), (3, 3, 3), (1, 7, 7)])
def test_equals_the_3d_convolution_with_gradients(extent, stride, method):
  shape = (2, 3, 8, 7, 3)
  keys = jax.random.split(jax.random.key(0), 3)
  video = jax.random.normal(keys[0], shape)
  kernel = jax.random.normal(keys[1], (*extent, 3, 4))
  expected, expected_vjp = jax.vjp(lambda v, k: native(v, k, stride), video, kernel)
  out, vjp = jax.vjp(lambda v, k: conv3d(v, k, stride, method=method), video, kernel)
  np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
  cotangent = jax.random.normal(keys[2], out.shape)
  for got, wanted in zip(vjp(cotangent), expected_vjp(cotangent), strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("extent", [(3, 1, 1), (7, 7, 7)])
@pytest.mark.parametrize("strides", [(1, 2), (2, 1), (2, 2)])  # spatial, temporal
@pytest.mark.parametrize("padding", ["symmetric", "same"])
def test_temporal_strides_and_paddings(extent, strides, padding, method):
  keys = jax.random.split(jax.random.key(0), 2)
  video = jax.random.normal(keys[0], (1, 6, 9, 8, 3))
  kernel = jax.random.normal(keys[1], (*extent, 3, 4))
  expected = jax.lax.conv_general_dilated(
    video,
    kernel,
    (strides[1], strides[0], strides[0]),
    "SAME" if padding == "same" else [(k // 2, k // 2) for k in extent],
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )
  out = conv3d(video, kernel, *strides, padding, method)
  np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("extent", [3, 5, 7])
@pytest.mark.parametrize("channels", [(3, 4), (2, 12)])  # RGB and flow; outputs
@pytest.mark.parametrize("stride,padding", [(2, "symmetric"), (2, "same"), (3, "symmetric")])
def test_folded_stem_of_few_channels(extent, channels, stride, padding):
  keys = jax.random.split(jax.random.key(0), 3)
  images = jax.random.normal(keys[0], (2, 7, 24, channels[0]))
  kernel = jax.random.normal(keys[1], (extent, extent, *channels))
  expected, expected_vjp = jax.vjp(
    lambda x, k: jax.lax.conv_general_dilated(
      x,
      k,
      (stride, stride),
      "SAME" if padding == "same" else [(extent // 2, extent // 2)] * 2,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    images,
    kernel,
  )
  out, vjp = jax.vjp(
    lambda x, k: conv3d(x[None], k[None], stride, padding=padding)[0], images, kernel
  )
  np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())
  cotangent = jax.random.normal(keys[2], out.shape)
  for got, wanted in zip(vjp(cotangent), expected_vjp(cotangent), strict=True):
    np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_clips_of_one_frame():
  video = jax.random.normal(jax.random.key(0), (1, 1, 5, 5, 3))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 4))
  for method in METHODS:
    out = conv3d(video, kernel, method=method)
    np.testing.assert_allclose(out, native(video, kernel, 1), atol=1e-4)


def test_parameters_are_float32_in_bfloat16():
  conv = Conv(4, (3, 3, 3), dtype=jnp.bfloat16)
  out, variables = conv.init_with_output(jax.random.key(0), jnp.ones((1, 2, 4, 4, 3)))
  assert variables["params"]["kernel"].shape == (3, 3, 3, 3, 4)
  assert variables["params"]["kernel"].dtype == jnp.float32
  assert out.dtype == jnp.bfloat16


@pytest.mark.parametrize("size", [(6, 7), (5, 4), (1, 1)])
def test_max_pool_equals_the_windowed_maximum(size):
  video = jax.random.normal(jax.random.key(0), (2, 3, *size, 2))
  pool = lambda v: nn.max_pool(v, (1, 3, 3), (1, 2, 2), ((0, 0), (1, 1), (1, 1)))  # noqa: E731
  np.testing.assert_array_equal(max_pool(video), pool(video))
  got, wanted = (jax.grad(lambda v, f=f: jnp.sum(f(v) ** 2))(video) for f in (max_pool, pool))
  np.testing.assert_allclose(got, wanted, atol=1e-6)
