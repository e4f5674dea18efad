"""Measures the methods of `models.conv.conv3d`, forward and backward.

  python -m benchmarks.conv

Shapes of ResNet-50's groups 2 and 3 at 18 frames of 224 x 224, one clip. Medians of repeats; the
methods take turns. The last column is XLA's 3D convolution with default compiler options.
"""

import functools
from collections.abc import Callable

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


def make_gradients(conv: Callable, stride: int, options: dict[str, str] | None = None) -> Callable:
  """Returns a jitted function that computes both gradients."""
  gradients = jax.grad(lambda v, k: (conv(v, k, stride) ** 2).mean(), argnums=(0, 1))
  return jax.jit(gradients, compiler_options=options)


def main() -> None:
  names = [name for name in METHODS if name != "auto"]
  print(f"{'milliseconds':38} " + " ".join(f"{name:>13}" for name in (*names, "XLA's own")))
  for frames, size, channels, features, stride, extent in SHAPES:
    video = jax.random.normal(jax.random.key(0), (1, frames, size, size, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, extent, extent, channels, features))
    steps = {
      name: make_gradients(
        functools.partial(conv3d, method=name), stride, devices.get_compiler_options()
      )
      for name in names
    }
    steps["XLA's own"] = make_gradients(native, stride, None)
    runs = {name: functools.partial(step, video, kernel) for name, step in steps.items()}
    spent = measure_medians(runs, REPEATS)
    name = f"3x{extent}x{extent}, {frames} x {size} x {size}, {channels} -> {features} / {stride}"
    print(f"{name:38} " + " ".join(f"{s * 1e3:13.0f}" for s in spent.values()), flush=True)


if __name__ == "__main__":
  main()
