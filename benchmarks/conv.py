"""`models.conv.conv3d` beside XLA's own 3D convolution, forward and backward.

  python -m benchmarks.conv

Shapes of ResNet-50's groups 2 and 3 at 18 frames of 224 x 224, one clip. Median of repeats.
"""

import statistics
import time
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from u2s_jax.models.conv import conv3d

REPEATS = 5
# Frames, pixels, channels in, channels out, stride.
SHAPES = ((18, 28, 256, 256, 2), (18, 14, 256, 256, 1), (18, 7, 512, 512, 1))


def native(
  video: Float[Array, "n t h w c"], kernel: Float[Array, "kt kh kw c d"], stride: int
) -> Float[Array, "n t h2 w2 d"]:
  """XLA's 3D convolution with the same padding."""
  return jax.lax.conv_general_dilated(
    video,
    kernel,
    (1, stride, stride),
    [(k // 2, k // 2) for k in kernel.shape[:3]],
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )


def seconds(conv: Callable, video: jax.Array, kernel: jax.Array, stride: int) -> float:
  """Median time of a forward and backward pass, after one that compiles."""
  step = jax.jit(jax.grad(lambda v, k: (conv(v, k, stride) ** 2).mean(), argnums=(0, 1)))
  jax.block_until_ready(step(video, kernel))
  times = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready(step(video, kernel))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def main() -> None:
  print(f"{'3x3x3 convolution':32} {'XLA 3D':>10} {'conv3d':>10} {'ratio':>7}")
  for frames, size, channels, features, stride in SHAPES:
    video = jax.random.normal(jax.random.key(0), (1, frames, size, size, channels))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, channels, features))
    theirs, ours = (seconds(conv, video, kernel, stride) for conv in (native, conv3d))
    name = f"{frames} x {size} x {size}, {channels} -> {features} / {stride}"
    print(f"{name:32} {theirs * 1e3:7.0f} ms {ours * 1e3:7.0f} ms {theirs / ours:6.1f}x")


if __name__ == "__main__":
  main()
