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
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import conv, train_step
from benchmarks.timing import measure_medians
from u2s_jax.models.conv import METHODS, conv3d
from u2s_jax.models.norm import EPSILON, BatchNorm
from u2s_jax.runtime import devices
from u2s_jax.stages import STAGES

REPEATS = 5
STEPS = 3  # before bits are compared
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
Figures = Iterator[tuple[str, Any]]


def measure_steps(preset: train_step.Preset, batch_size: int, sides: tuple[str, ...]) -> Figures:
  """Yields milliseconds, clips/s and bytes of a training step of every stage, by side."""
  for stage in STAGES:
    made, flops = {}, math.nan
    for side in sides:
      try:
        if side == "ours":
          one, flops = train_step.make_ours(
            preset, "preact_resnet", preset.backbone, batch_size, stage
          )
        else:
          one = train_step.make_torch(preset, batch_size, stage, side == "torch compiled")
        one.turn(1)  # this may run out of memory, compiling does not
        made[side] = one
      except Exception as error:  # such as out of memory; the other figures still count
        yield f"{stage}, {side}", {"failed": " ".join(str(error).split())[:300]}
    turns = {name: functools.partial(side.turn, preset.steps) for name, side in made.items()}
    for name, seconds in measure_medians(turns, preset.repeats).items():
      seconds /= preset.steps
      yield (
        f"{stage}, {name}",
        {
          "ms": 1e3 * seconds,
          "clips_per_second": batch_size / seconds,
          "bytes": made[name].memory,
          "compile_seconds": made[name].compile_seconds,
          "flops_per_second": flops / seconds,
        },
      )


def measure_convolutions(shapes: tuple[tuple[int, ...], ...], clips: int) -> Figures:
  """Yields milliseconds of the methods of convolution, forward and both gradients."""
  for dtype in ("bfloat16", "float32"):
    for frames, size, channels, features, stride, extent in shapes:
      video = jax.random.normal(jax.random.key(0), (clips, frames, size, size, channels), dtype)
      kernel = jax.random.normal(jax.random.key(1), (3, extent, extent, channels, features), dtype)
      methods = {name: functools.partial(conv3d, method=name) for name in METHODS if name != "auto"}
      yield (
        f"{dtype}, 3x{extent}x{extent}, {size} x {size}, {channels} -> {features} / {stride}",
        measure_milliseconds(
          {
            name: functools.partial(conv.make_gradients(method, stride), video, kernel)
            for name, method in methods.items()
          }
        ),
      )
    # 1x1 in one frame: as a convolution and as a matrix product.
    frames, size, channels, features = shapes[-1][:4]
    images = jax.random.normal(jax.random.key(0), (clips * frames, size, size, channels), dtype)
    kernel = jax.random.normal(jax.random.key(1), (1, 1, channels, features), dtype)
    methods = {
      "convolution": lambda x, k, _: jax.lax.conv_general_dilated(
        x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
      ),
      "product": lambda x, k, _: (x.reshape(-1, x.shape[-1]) @ k[0, 0]).reshape(*x.shape[:-1], -1),
    }
    yield (
      f"{dtype}, 1x1, {size} x {size}, {channels} -> {features}",
      measure_milliseconds(
        {
          name: functools.partial(conv.make_gradients(method, 1), images, kernel)
          for name, method in methods.items()
        }
      ),
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
    yield f"{dtype}, {' x '.join(map(str, shape))}", measure_milliseconds(runs)


def measure_milliseconds(runs: dict[str, Callable]) -> dict[str, float]:
  """Returns the median milliseconds of runs that take turns."""
  return {name: 1e3 * seconds for name, seconds in measure_medians(runs, REPEATS).items()}


def compare_bits() -> Figures:
  """Yields whether two processes have the same bits after `STEPS` joint steps."""
  for name, flags in (("as it is", ""), ("deterministic", DETERMINISTIC)):
    if flags and jax.default_backend() != "gpu":
      continue
    environment = dict(os.environ)
    if flags:
      environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
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
  lowered, state, arguments = train_step.lower_ours(
    preset, "preact_resnet", preset.backbone, 32, STAGES[-1]
  )
  step = lowered.compile()
  for _ in range(STEPS):
    state, _ = step(state, *arguments)
  state_hash = hashlib.sha256()
  for leaf in jax.tree.leaves(jax.device_get(state)):
    state_hash.update(np.ascontiguousarray(leaf).tobytes())
  return state_hash.hexdigest()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
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
  pytorch = ("torch eager",) if train_step.torch else ()
  sections = {
    f"step, {batch_size} clips": measure_steps(preset, batch_size, ("ours", *pytorch)),
    "convolution": measure_convolutions(shapes, clips=batch_size),
    "batch norm": measure_norms((batch_size, 4, 8, 8, 16) if args.small else (8, 18, 56, 56, 256)),
    "bits": compare_bits(),
    **{f"step, {size} clips": measure_steps(preset, size, ("ours",)) for size in sweep},
  }
  if pytorch:
    compiled = measure_steps(preset, batch_size, ("ours", "torch compiled"))
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
