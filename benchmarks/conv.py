"""Measures the methods of `models.conv.conv3d`, forward and backward.

  python -m benchmarks.conv

Shapes of ResNet-50's groups 2 and 3 at 18 frames of 224 x 224, one clip. Medians of repeats; the
methods take turns. The last column is XLA's 3D convolution with default compiler options.
"""

import functools
from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array, Float

from benchmarks.timing import measure_medians
from u2s_jax.models.conv import METHODS, conv3d
from u2s_jax.runtime import devices

REPEATS = 5
# Frames, pixels, channels in, channels out, stride, rows and columns of the kernel.
SHAPES = (
  (18, 28, 256, 256, 2, 3),
  (18, 14, 256, 256, 1, 3),
  (18, 7, 512, 512, 1, 3),
  (18, 14, 1024, 256, 1, 1),
  (18, 14, 256, 1024, 1, 1),
)
OURS = {name: functools.partial(conv3d, method=name) for name in METHODS if name != "auto"}


def native(
  video: Float[Array, "n t h w c"], kernel: Float[Array, "kt kh kw c d"], stride: int
) -> Float[Array, "n t h2 w2 d"]:
  """Computes XLA's 3D convolution with the same padding."""
  return jax.lax.conv_general_dilated(
    video,
    kernel,
    (1, stride, stride),
    [(k // 2, k // 2) for k in kernel.shape[:3]],
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


def measure_gradients(
  convs: Mapping[str, Callable],
  images: tuple[int, ...],
  kernel: tuple[int, ...],
  stride: int,
  dtype: str = "float32",
  options: Mapping[str, dict[str, str] | None] | None = None,
) -> dict[str, float]:
  """Returns the median milliseconds of convolutions with both gradients, by name.

  `images` and `kernel` are shapes, `options` those of the compiler for some of the names.
  """
  arrays = [jax.random.normal(jax.random.key(k), s, dtype) for k, s in enumerate((images, kernel))]
  runs = {}
  for name, conv in convs.items():
    gradients = jax.grad(lambda x, k, conv=conv: (conv(x, k, stride) ** 2).mean(), argnums=(0, 1))
    step = jax.jit(gradients, compiler_options=(options or {}).get(name))
    runs[name] = functools.partial(step, *arrays)
  return {name: 1e3 * seconds for name, seconds in measure_medians(runs, REPEATS).items()}


def main() -> None:
  convs = {**OURS, "XLA's own": native}
  options = dict.fromkeys(OURS, devices.get_compiler_options())
  print(f"{'milliseconds':38} " + " ".join(f"{name:>13}" for name in convs))
  for frames, size, channels, features, stride, extent in SHAPES:
    images, kernel = (1, frames, size, size, channels), (3, extent, extent, channels, features)
    spent = measure_gradients(convs, images, kernel, stride, options=options)
    name = f"3x{extent}x{extent}, {frames} x {size} x {size}, {channels} -> {features} / {stride}"
    print(f"{name:38} " + " ".join(f"{ms:13.0f}" for ms in spent.values()), flush=True)


if __name__ == "__main__":
  main()
