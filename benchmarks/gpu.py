"""First figures of a GPU: speed, memory, which options to choose, and whether bits repeat.

  python -m benchmarks.gpu --out=gpu.json           # less than ten minutes
  python -m benchmarks.gpu --out=cpu.json --small   # the demo's network, to test it without a GPU

Requires jax, flax and optax, and torch for the comparison; no data and no TensorFlow. The most
important figures come first. Each is written at once, and nothing starts after `--minutes`.
Compared sides take turns; medians of repeats.
"""

import os

# JAX must leave memory for PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# isort: split

import argparse
import functools
import hashlib
import json
import math
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks import conv, train_step
from benchmarks.timing import make_parser, measure_medians
from u2s_jax.models.norm import EPSILON, BatchNorm
from u2s_jax.runtime import devices
from u2s_jax.stages import STAGES

STEPS = 3  # before bits are compared
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
Figures = Iterator[tuple[str, Any]]


def measure_steps(preset: train_step.Preset, batch_size: int, sides: tuple[str, ...]) -> Figures:
  """Yields milliseconds, clips/s and bytes of a training step of every stage, by side."""
  for stage in STAGES:
    made, errors = train_step.make_sides(preset, "preact_resnet", batch_size, stage, sides)
    for name, error in errors.items():
      yield f"{stage}, {name}", {"failed": error[:300]}
    for name, seconds in train_step.measure_sides(preset, made).items():
      yield (
        f"{stage}, {name}",
        {
          "ms": 1e3 * seconds,
          "clips_per_second": batch_size / seconds,
          "bytes": made[name].memory,
          "compile_seconds": made[name].compile_seconds,
          "flops_per_second": made["ours"].flops / seconds if "ours" in made else math.nan,
        },
      )


def convolve(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """Computes a two-dimensional convolution without padding."""
  return jax.lax.conv_general_dilated(
    images, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def multiply(images: jax.Array, kernel: jax.Array, _: int) -> jax.Array:
  """Computes a 1x1 convolution of stride 1 as a matrix product."""
  return (images.reshape(-1, images.shape[-1]) @ kernel[0, 0]).reshape(*images.shape[:-1], -1)


def measure_convolutions(shapes: tuple[tuple[int, ...], ...], clips: int) -> Figures:
  """Yields milliseconds of the methods of convolution, forward and both gradients."""
  for dtype in ("bfloat16", "float32"):
    for frames, size, channels, features, stride, extent in shapes:
      images, kernel = (
        (clips, frames, size, size, channels),
        (3, extent, extent, channels, features),
      )
      yield (
        f"{dtype}, 3x{extent}x{extent}, {size} x {size}, {channels} -> {features} / {stride}",
        conv.measure_gradients(conv.OURS, images, kernel, stride, dtype),
      )
    frames, size, channels, features = shapes[-1][:4]
    methods = {"convolution": convolve, "product": multiply}
    images, kernel = (clips * frames, size, size, channels), (1, 1, channels, features)
    yield (
      f"{dtype}, 1x1, {size} x {size}, {channels} -> {features}",
      conv.measure_gradients(methods, images, kernel, 1, dtype),
    )


def measure_norms(shape: tuple[int, ...]) -> Figures:
  """Yields milliseconds of BN in training, forward and gradients: ours and Linen's."""
  for dtype in ("bfloat16", "float32"):
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    runs = {}
    for name, module, mode in (
      ("ours", BatchNorm(dtype=dtype), {"train": True}),
      ("linen", nn.BatchNorm(epsilon=EPSILON, dtype=dtype), {"use_running_average": False}),
    ):
      variables = module.init(jax.random.key(0), x, **mode)

      def loss(params, x, module=module, mode=mode, variables=variables):
        y, _ = module.apply({**variables, "params": params}, x, mutable=["batch_stats"], **mode)
        return jnp.mean(jnp.square(y.astype(jnp.float32)))

      gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
      runs[name] = functools.partial(gradients, variables["params"], x)
    spent = {name: 1e3 * seconds for name, seconds in measure_medians(runs, conv.REPEATS).items()}
    yield f"{dtype}, {' x '.join(map(str, shape))}", spent


def compare_bits() -> Figures:
  """Yields whether two processes have the same bits after `STEPS` joint steps."""
  for name, flags in (("as it is", ""), ("deterministic", DETERMINISTIC)):
    if flags and jax.default_backend() != "gpu":
      continue
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    command = [sys.executable, "-m", "benchmarks.gpu", "--digest"]
    started = time.perf_counter()
    digests = {
      subprocess.run(command, env=environment, check=True, capture_output=True).stdout
      for _ in range(2)
    }
    yield name, {"equal": len(digests) == 1, "seconds": time.perf_counter() - started}


def compute_digest() -> str:
  """Returns a hash of the state of the demo's network after `STEPS` joint steps."""
  preset = train_step.PRESETS["cpu"]
  lowered, state, arguments = train_step.lower_ours(preset, "preact_resnet", 32, STAGES[-1])
  step = lowered.compile()
  for _ in range(STEPS):
    state, _ = step(state, *arguments)
  leaves = jax.tree.leaves(jax.device_get(state))
  return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("--out", type=pathlib.Path, help="JSON file for the figures")
  parser.add_argument("--small", action="store_true", help="the demo's network")
  parser.add_argument("--minutes", type=float, default=9, help="after which no measurement starts")
  parser.add_argument("--digest", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.digest:
    print(compute_digest())
    return
  if not args.out:
    parser.error("--out: not set; name a JSON file")
  deadline = time.monotonic() + 60 * args.minutes
  preset = train_step.PRESETS["cpu" if args.small else "gpu"]
  shapes = ((4, 8, 16, 16, 2, 3), (4, 8, 16, 16, 1, 1)) if args.small else conv.SHAPES
  batch_size, sweep = (4, (8,)) if args.small else (8, (4, 16, 20, 32, 48))
  pytorch = ("PyTorch eager",) if train_step.torch else ()
  sections = {
    f"step, {batch_size} clips": measure_steps(preset, batch_size, ("ours", *pytorch)),
    "convolution": measure_convolutions(shapes, clips=batch_size),
    "batch norm": measure_norms((batch_size, 4, 8, 8, 16) if args.small else (8, 18, 56, 56, 256)),
    "bits": compare_bits(),
    **{f"step, {size} clips": measure_steps(preset, size, ("ours",)) for size in sweep},
  }
  if pytorch:
    compiled = measure_steps(preset, batch_size, ("ours", "PyTorch compiled"))
    sections[f"step beside torch.compile, {batch_size} clips"] = compiled
  results = {
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "torch": train_step.torch.__version__ if pytorch else None,
    "dtype": preset.dtype,
    "flops_per_second_of_a_product": train_step.measure_matrix_rate(preset),
    "compiler_options": devices.get_compiler_options(),
  }
  print(json.dumps(results), flush=True)
  for section, figures in sections.items():
    while time.monotonic() < deadline and (figure := next(figures, None)):
      name, values = figure
      results.setdefault(section, {})[name] = values
      print(f"{section}: {name}: {json.dumps(values)}", flush=True)
      args.out.write_text(json.dumps(results, indent=1))
  print(f"written: {args.out}")


if __name__ == "__main__":
  main()
