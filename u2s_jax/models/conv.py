"""The one place that knows how a `kt x kh x kw` convolution over video is computed.

Three ways, one result; `benchmarks/conv.py` measures them. Parameters keep the usual
five-dimensional kernel, whatever computes with it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# He initialisation over the fan-out, as the reference ResNets use it.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
METHODS = ("auto", "direct", "concatenated", "shifted")


def conv3d(
  video: Float[Array, "n t h w c"],
  kernel: Float[Array, "kt kh kw c d"],
  stride: int = 1,
  temporal_stride: int = 1,
  padding: str = "symmetric",
  method: str = "auto",
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
    method: how a kernel of several frames is computed. 'direct': as a 3D convolution;
      'concatenated': one 2D convolution of the neighbouring frames concatenated in channels;
      'shifted': one 2D convolution with the outputs of all kernel frames, whose shifted sum is
      taken; 'auto': the one of the last two that makes fewer numbers, by measurement the faster one
      (benchmarks/README.md). Where a kernel sees one frame all are the same.

  Returns:
    `h2 = ceil(h / stride)`, likewise `w2` and `t2`.
  """
  kt, kh, kw, c, d = kernel.shape
  border = _border(video.shape[1], kt, temporal_stride, padding)
  if kt == 1:
    return _conv2d(video[:, ::temporal_stride], kernel[0], stride, padding)
  if kh == kw == 1:  # before neighbouring frames make more of what it leaves out
    video, stride = video[:, :, ::stride, ::stride], 1
  if method == "direct":
    borders = (border, *_borders(video, kernel[0], stride, padding))
    return jax.lax.conv_general_dilated(
      video,
      kernel,
      window_strides=(temporal_stride, stride, stride),
      padding=borders,
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
  if method == "auto":
    method = "concatenated" if c * stride**2 <= d * temporal_stride else "shifted"
  frames = functools.partial(_frames, extent=kt, stride=temporal_stride, border=border)
  if method == "concatenated":
    video = jnp.concatenate([frames(video, k) for k in range(kt)], axis=-1)
    return _conv2d(video, jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, d), stride, padding)
  out = _conv2d(video, jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, c, kt * d), stride, padding)
  return sum(frames(out[..., k * d : (k + 1) * d], k) for k in range(kt))


def _frames(
  video: Float[Array, "n t h w c"], k: int, *, extent: int, stride: int, border: tuple[int, int]
) -> Float[Array, "n t2 h w c"]:
  """The frame that the kernel's frame `k` meets, for each output frame; zeros behind the ends."""
  padded = jnp.pad(video, ((0, 0), border, (0, 0), (0, 0), (0, 0)))
  last = padded.shape[1] - extent + 1
  return padded[:, k : last + k : stride]


def _conv2d(
  video: Float[Array, "n t h w c"], kernel: Float[Array, "kh kw c d"], stride: int, padding: str
) -> Float[Array, "n t h2 w2 d"]:
  """The same 2D convolution of every frame."""
  n, t = video.shape[:2]
  images = video.reshape(n * t, *video.shape[2:])
  borders = _borders(video, kernel, stride, padding)
  width, c = images.shape[2:]
  if kernel.shape[:2] == (1, 1):
    # XLA's GPU compiler dies of a strided slice before a product, and finds no tiles for some
    # others (openxla/xla#47381); as convolutions they compile. CPUs and TPUs like products better.
    convolution = functools.partial(_plain, strides=(stride, stride), borders=borders)
    out = jax.lax.platform_dependent(  # of the platform compiled for, not the one at hand
      images,
      kernel,
      cuda=convolution,
      rocm=convolution,
      default=functools.partial(_product, stride=stride),
    )
    return out.reshape(n, t, *out.shape[1:])
  # Few channels leave a CPU nothing to vectorise over; up to 8 outputs are as few.
  columns = stride * (4 if kernel.shape[-1] <= 8 else 1)
  if c <= 3 and stride > 1 and width % columns == 0:
    out = _few_channels(images, kernel, stride, borders, columns)
  else:
    out = _plain(images, kernel, (stride, stride), borders)
  return out.reshape(n, t, *out.shape[1:])


def _product(images, kernel, stride):
  """`_plain` where the kernel sees one pixel."""
  images = images[:, ::stride, ::stride]
  # Two dimensions, not four: XLA's CPU compiler would transpose the gradient once more.
  out = images.reshape(-1, images.shape[-1]) @ kernel[0, 0]
  return out.reshape(*images.shape[:-1], -1)


def _plain(images, kernel, strides, borders):
  """XLA's 2D convolution of images."""
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    window_strides=strides,
    padding=borders,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _few_channels(images, kernel, stride, borders, columns):
  """`_plain`, computed as `_folded` on a CPU; gradients, which folding slows, are `_plain`'s."""
  return jax.lax.platform_dependent(
    images,
    kernel,
    cpu=functools.partial(_folded, stride=stride, borders=borders, columns=columns),
    default=functools.partial(_plain, strides=(stride, stride), borders=borders),
  )


def _few_channels_forward(images, kernel, stride, borders, columns):
  return _few_channels(images, kernel, stride, borders, columns), (images, kernel)


def _few_channels_backward(stride, borders, columns, operands, gradient):
  del columns
  plain = functools.partial(_plain, strides=(stride, stride), borders=borders)
  return jax.vjp(plain, *operands)[1](gradient)


_few_channels.defvjp(_few_channels_forward, _few_channels_backward)


def _folded(
  images: Float[Array, "n h w c"],
  kernel: Float[Array, "kh kw c d"],
  stride: int,
  borders: tuple[tuple[int, int], tuple[int, int]],
  columns: int,
) -> Float[Array, "n h2 w2 d"]:
  """`_plain` with `columns` neighbouring columns, and the outputs that start there, as channels.

  Each output has a copy of the kernel, at its place among zeros: more products, in less time
  (benchmarks/README.md).
  """
  (n, _, width, c), (kh, kw, _, d) = images.shape, kernel.shape
  outputs = columns // stride
  blocks = -(-(kw + columns - stride) // columns)
  before = borders[1][0]
  behind = (blocks - 1) * columns - before  # may crop what no window reaches
  kernels = [
    jnp.pad(kernel, ((0, 0), (i * stride, blocks * columns - kw - i * stride), (0, 0), (0, 0)))
    for i in range(outputs)
  ]
  zero = jnp.zeros((), images.dtype)
  images = jax.lax.pad(images, zero, [(0, 0, 0), (0, 0, 0), (before, behind, 0), (0, 0, 0)])
  out = _plain(
    images.reshape(n, -1, width // columns + blocks - 1, columns * c),
    jnp.stack(kernels, 3).reshape(kh, blocks, columns * c, outputs * d),
    (stride, 1),
    (borders[0], (0, 0)),
  )
  return out.reshape(n, -1, width // stride, d)


def _borders(video, kernel, stride, padding):
  """Zeros before and behind rows and columns."""
  return tuple(_border(video.shape[i + 2], kernel.shape[i], stride, padding) for i in (0, 1))


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
    method: see `conv3d`.
    dtype: of the computation; parameters are float32.
  """

  features: int
  extent: tuple[int, int, int]
  stride: int = 1
  temporal_stride: int = 1
  padding: str = "symmetric"
  method: str = "auto"
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
      self.method,
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
