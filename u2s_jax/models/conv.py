"""Convolution of videos with `kt x kh x kw` kernels, by three equivalent methods.

`benchmarks/conv.py` measures the methods. All of them take the same five-dimensional kernel.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# He initialisation over the fan-out, as the reference ResNets use it.
conv_init: nn.initializers.Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
METHODS = ("auto", "direct", "concatenated", "shifted")


def conv3d(
  video: Float[Array, "n t h w c"],
  kernel: Float[Array, "kt kh kw c d"],
  stride: int = 1,
  temporal_stride: int = 1,
  padding: str = "symmetric",
  method: str = "auto",
) -> Float[Array, "n t2 h2 w2 d"]:
  """Convolves over frames and pixels, with zero padding.

  Args:
    kernel: `kt` frames by `kh x kw` pixels, all odd.
    stride: spatial stride.
    temporal_stride: in frames.
    padding: 'symmetric', `k // 2` on both sides, as in PyTorch; 'same', as in TensorFlow: with a
      stride it can be one less at the start than at the end. Pretrained weights require the padding
      that they were trained with.
    method: how a kernel of several frames is computed. 'direct': as a 3D convolution;
      'concatenated': as one 2D convolution of adjacent frames concatenated along the channels;
      'shifted': as one 2D convolution to the outputs of all kernel frames, which are shifted and
      summed; 'auto': the one of the last two with the smaller intermediate array, which measures
      faster (benchmarks/README.md). For a kernel of one frame all are the same.
  """
  kt, kh, kw, c, d = kernel.shape
  time_pads = _get_axis_pads(video.shape[1], kt, temporal_stride, padding)
  if kt == 1:
    return _conv2d(video[:, ::temporal_stride], kernel[0], stride, padding)
  if kh == kw == 1:
    # Before frames are concatenated, so that the pixels that the stride skips are never copied.
    video, stride = video[:, :, ::stride, ::stride], 1
  if method == "direct":
    pads = (time_pads, *_get_pads(video, kernel[0], stride, padding))
    return jax.lax.conv_general_dilated(
      video,
      kernel,
      window_strides=(temporal_stride, stride, stride),
      padding=pads,
      dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
  if method == "auto":
    method = "concatenated" if c * stride**2 <= d * temporal_stride else "shifted"
  frames = functools.partial(_slice_frames, extent=kt, stride=temporal_stride, time_pads=time_pads)
  if method == "concatenated":
    video = jnp.concatenate([frames(video, k) for k in range(kt)], axis=-1)
    return _conv2d(video, jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, d), stride, padding)
  out = _conv2d(video, jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, c, kt * d), stride, padding)
  return sum(frames(out[..., k * d : (k + 1) * d], k) for k in range(kt))


def _slice_frames(
  video: Float[Array, "n t h w c"], k: int, *, extent: int, stride: int, time_pads: tuple[int, int]
) -> Float[Array, "n t2 h w c"]:
  """Returns for each output frame the input frame under frame `k` of the kernel, zero-padded."""
  padded = jnp.pad(video, ((0, 0), time_pads, (0, 0), (0, 0), (0, 0)))
  last = padded.shape[1] - extent + 1
  return padded[:, k : last + k : stride]


def _conv2d(
  video: Float[Array, "n t h w c"], kernel: Float[Array, "kh kw c d"], stride: int, padding: str
) -> Float[Array, "n t h2 w2 d"]:
  n, t = video.shape[:2]
  images = video.reshape(n * t, *video.shape[2:])
  pads = _get_pads(video, kernel, stride, padding)
  width, c = images.shape[2:]
  if kernel.shape[:2] == (1, 1):
    # XLA's GPU compiler crashes on a strided slice before a matrix product and finds no tiling for
    # some other products (openxla/xla#47381), but compiles convolutions. CPUs and TPUs compute
    # products faster.
    convolution = functools.partial(_convolve, strides=(stride, stride), pads=pads)
    out = jax.lax.platform_dependent(  # the target of the compilation, not the local platform
      images,
      kernel,
      cuda=convolution,
      rocm=convolution,
      default=functools.partial(_multiply, stride=stride),
    )
    return out.reshape(n, t, *out.shape[1:])
  # With few channels a CPU has nothing to vectorise over; up to 8 output channels are few as well.
  columns = stride * (4 if kernel.shape[-1] <= 8 else 1)
  if c <= 3 and stride > 1 and width % columns == 0:
    out = _convolve_few_channels(images, kernel, stride, pads, columns)
  else:
    out = _convolve(images, kernel, (stride, stride), pads)
  return out.reshape(n, t, *out.shape[1:])


def _multiply(images, kernel, stride):
  """Computes `_convolve` with a 1x1 kernel as a matrix product."""
  images = images[:, ::stride, ::stride]
  # In two dimensions: with four, XLA's CPU compiler transposes the gradient once more.
  out = images.reshape(-1, images.shape[-1]) @ kernel[0, 0]
  return out.reshape(*images.shape[:-1], -1)


def _convolve(images, kernel, strides, pads):
  return jax.lax.conv_general_dilated(
    images,
    kernel,
    window_strides=strides,
    padding=pads,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve_few_channels(images, kernel, stride, pads, columns):
  """Computes `_convolve`, on a CPU as `_convolve_folded`.

  The gradients are those of `_convolve`, which are faster.
  """
  return jax.lax.platform_dependent(
    images,
    kernel,
    cpu=functools.partial(_convolve_folded, stride=stride, pads=pads, columns=columns),
    default=functools.partial(_convolve, strides=(stride, stride), pads=pads),
  )


def _convolve_few_channels_forward(images, kernel, stride, pads, columns):
  return _convolve_few_channels(images, kernel, stride, pads, columns), (images, kernel)


def _convolve_few_channels_backward(stride, pads, columns, operands, gradient):
  del columns
  convolve = functools.partial(_convolve, strides=(stride, stride), pads=pads)
  return jax.vjp(convolve, *operands)[1](gradient)


_convolve_few_channels.defvjp(_convolve_few_channels_forward, _convolve_few_channels_backward)


def _convolve_folded(
  images: Float[Array, "n h w c"],
  kernel: Float[Array, "kh kw c d"],
  stride: int,
  pads: tuple[tuple[int, int], tuple[int, int]],
  columns: int,
) -> Float[Array, "n h2 w2 d"]:
  """Computes `_convolve` with blocks of `columns` adjacent columns folded into the channels.

  The outputs of a block are output channels, each with its own zero-padded copy of the kernel: more
  products, in less time (benchmarks/README.md).
  """
  (n, _, width, c), (kh, kw, _, d) = images.shape, kernel.shape
  outputs = columns // stride
  blocks = -(-(kw + columns - stride) // columns)
  before = pads[1][0]
  after = (blocks - 1) * columns - before  # negative: crops columns that no window reaches
  kernels = [
    jnp.pad(kernel, ((0, 0), (i * stride, blocks * columns - kw - i * stride), (0, 0), (0, 0)))
    for i in range(outputs)
  ]
  zero = jnp.zeros((), images.dtype)
  images = jax.lax.pad(images, zero, [(0, 0, 0), (0, 0, 0), (before, after, 0), (0, 0, 0)])
  out = _convolve(
    images.reshape(n, -1, width // columns + blocks - 1, columns * c),
    jnp.stack(kernels, 3).reshape(kh, blocks, columns * c, outputs * d),
    (stride, 1),
    (pads[0], (0, 0)),
  )
  return out.reshape(n, -1, width // stride, d)


def _get_pads(video, kernel, stride, padding):
  return tuple(_get_axis_pads(video.shape[i + 2], kernel.shape[i], stride, padding) for i in (0, 1))


def _get_axis_pads(size: int, extent: int, stride: int, padding: str) -> tuple[int, int]:
  """Returns the number of zeros before and after one axis."""
  if padding == "symmetric":
    return extent // 2, extent // 2
  total = max((-(-size // stride) - 1) * stride + extent - size, 0)
  return total // 2, total - total // 2


class Conv(nn.Module):
  """Convolution layer without bias, see `conv3d`; computes in `dtype`, with float32 parameters.

  Attributes:
    extent: frames, rows and columns of the kernel, all odd.
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
  """Applies 3x3 max pooling with stride 2 and padding 1 to each frame.

  Tied values share the gradient.
  """
  # Rows first, then columns, as maxima of shifted slices: the gradient of XLA's windowed maximum is
  # a scatter, which is five times slower on a CPU.
  edge = (1, 1)
  padded = jnp.pad(video, ((0, 0), (0, 0), edge, edge, (0, 0)), constant_values=-jnp.inf)
  last = padded.shape[2] - 2
  rows = functools.reduce(jnp.maximum, [padded[:, :, k : last + k : 2] for k in range(3)])
  last = padded.shape[3] - 2
  return functools.reduce(jnp.maximum, [rows[:, :, :, k : last + k : 2] for k in range(3)])
