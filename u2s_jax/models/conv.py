"""The one place that knows how a `kt x k x k` convolution over video is computed.

XLA's gradient of a 3D convolution is far slower than that of a 2D one (`benchmarks/conv.py`), so a
convolution over `kt` frames runs as ONE 2D convolution over those frames concatenated in channels.
Parameters keep the usual five-dimensional kernel, whatever computes with it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# He initialisation over the fan-out, as the reference ResNets use it.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def conv3d(
  video: Float[Array, "n t h w c"],
  kernel: Float[Array, "kt kh kw c d"],
  stride: int = 1,
  temporal_stride: int = 1,
  padding: str = "symmetric",
) -> Float[Array, "n t2 h2 w2 d"]:
  """Convolution over frames and pixels, with zeros around the clip.

  Args:
    video: input.
    kernel: odd extents; `kt` frames by `kh x kw` pixels.
    stride: spatial stride.
    temporal_stride: in frames.
    padding: 'symmetric', `k // 2` on both sides, as in PyTorch; 'same', as in TensorFlow: under a
      stride possibly one less before than behind. Weights keep their alignment only under the
      padding that they were trained with.

  Returns:
    `h2 = ceil(h / stride)`, likewise `w2` and `t2`.
  """
  n, t, h, w, c = video.shape
  kt, kh, kw, _, d = kernel.shape
  if kt > 1:
    before, behind = _border(t, kt, temporal_stride, padding)
    video = jnp.pad(video, ((0, 0), (before, behind), (0, 0), (0, 0), (0, 0)))
    last = video.shape[1] - kt + 1
    frames = [video[:, k : last + k : temporal_stride] for k in range(kt)]
    video = jnp.concatenate(frames, axis=-1)
  else:
    video = video[:, ::temporal_stride]
  t = video.shape[1]
  kernel = kernel.transpose(1, 2, 0, 3, 4).reshape(kh, kw, kt * c, d)
  if kh == kw == 1:
    # A plain matrix product, whose gradients are matrix products too: on the CPU four times faster
    # than a 1x1 convolution forward, up to twice backward.
    return jnp.einsum("nthwc,cd->nthwd", video[:, :, ::stride, ::stride], kernel[0, 0])
  out = jax.lax.conv_general_dilated(
    video.reshape(n * t, h, w, kt * c),
    kernel,
    window_strides=(stride, stride),
    padding=(_border(h, kh, stride, padding), _border(w, kw, stride, padding)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return out.reshape(n, t, *out.shape[1:])


def _border(size: int, extent: int, stride: int, padding: str) -> tuple[int, int]:
  """Zeros before and behind one axis."""
  if padding == "symmetric":
    return extent // 2, extent // 2
  total = max((-(-size // stride) - 1) * stride + extent - size, 0)
  return total // 2, total - total // 2


class Conv(nn.Module):
  """`conv3d` with its parameters.

  Attributes:
    features: output channels.
    extent: frames, rows and columns of the kernel, all odd.
    stride: spatial stride.
    temporal_stride: in frames.
    padding: see `conv3d`.
    dtype: of the computation; parameters are float32.
  """

  features: int
  extent: tuple[int, int, int]
  stride: int = 1
  temporal_stride: int = 1
  padding: str = "symmetric"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, video: Float[Array, "n t h w c"]) -> Float[Array, "n t2 h2 w2 d"]:
    shape = (*self.extent, video.shape[-1], self.features)
    kernel = self.param("kernel", conv_init, shape, jnp.float32)
    return conv3d(
      video.astype(self.dtype),
      kernel.astype(self.dtype),
      self.stride,
      self.temporal_stride,
      self.padding,
    )


def max_pool(video: Float[Array, "n t h w c"]) -> Float[Array, "n t h2 w2 c"]:
  """3x3 maximum with stride 2 and a border of one, each frame alone.

  Rows first, then columns, as maxima of shifted slices: the gradient of XLA's windowed maximum is a
  scatter, five times slower on the CPU. Where values tie their gradient is shared.
  """
  edge = (1, 1)
  padded = jnp.pad(video, ((0, 0), (0, 0), edge, edge, (0, 0)), constant_values=-jnp.inf)
  last = padded.shape[2] - 2
  rows = functools.reduce(jnp.maximum, [padded[:, :, k : last + k : 2] for k in range(3)])
  last = padded.shape[3] - 2
  return functools.reduce(jnp.maximum, [rows[:, :, :, k : last + k : 2] for k in range(3)])
