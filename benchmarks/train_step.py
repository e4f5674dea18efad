"""Compares the training steps of every stage with PyTorch's, on synthetic clips.

  python -m benchmarks.train_step --preset=cpu
  python -m benchmarks.train_step --preset=gpu

Requires jax, flax, optax and torch, no data and no TensorFlow. Both sides have the same network,
batch, optimizer and type; they take turns, and the median of the repeats counts. Without torch, and
for backbones that `torch_u2s` does not have, only ours is measured.
"""

import os

# JAX must leave memory for PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

# isort: split

import argparse
import dataclasses
import functools
import math
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import measure_medians
from u2s_jax import stages
from u2s_jax.models import backbones
from u2s_jax.models.layers import Layers
from u2s_jax.models.network import Network
from u2s_jax.models.resnet import DEPTHS
from u2s_jax.models.u2s import U2S
from u2s_jax.run import state as state_lib
from u2s_jax.run.state import TrainState
from u2s_jax.runtime import devices, malloc
from u2s_jax.stages import STAGES
from u2s_jax.training import steps

try:
  import torch

  from benchmarks import torch_u2s
except ImportError:
  torch = None

PAPER = {"temporal": ((3, 3, 3, 3), (3, 3, 3, 1))}
FLAT = {"temporal": ((1, 1, 1, 1), (1, 1, 1, 1))}
# The fields of the other backbones, at their original size.
OTHERS = {"resnet": FLAT, "tsm_resnet": FLAT, "eco_lite": {}, "inception_i3d": {}}
OPTIMIZER = {"momentum": 0.9, "weight_decay": 1e-4}
RATE = 1e-3
REGULARIZER_WEIGHT = 0.5
NEIGHBOURS = 4  # confusing classes per class


@dataclasses.dataclass(frozen=True)
class Preset:
  """Sizes of a comparison.

  Attributes:
    video: frames, rows, columns.
    num_classes: M.
    batches: batch sizes to measure.
    dtype: of the computation.
    backbone: fields of `preact_resnet`.
    repeats: turns of each side.
    steps: per turn.
    matrix: rows of the square matrices whose product measures the machine's speed.
  """

  video: tuple[int, int, int]
  num_classes: int
  batches: tuple[int, ...]
  dtype: str
  backbone: dict[str, Any]
  repeats: int
  steps: int
  matrix: int


PRESETS = {
  # configs/demo.py
  "cpu": Preset(
    (8, 56, 56), 35, (32,), "float32",
    PAPER | {"depth": 14, "width": 8, "strides": (1, 2, 2, 1)}, 9, 5, 2048,
  ),
  # configs/sthv2.py
  "gpu": Preset((18, 224, 224), 174, (4, 8, 16, 20, 32), "bfloat16", PAPER, 5, 5, 8192),
}  # fmt: skip


@dataclasses.dataclass
class Side:
  """An implementation that is measured.

  Attributes:
    name: for the table.
    turn: (number of steps) -> None; waits until they are done.
    compile_seconds: until the first step was done.
    memory: peak, bytes; 0 if it is not known.
    parameters: of the network; in stage 1 ours has trunk and UN only.
  """

  name: str
  turn: Callable[[int], None]
  compile_seconds: float
  memory: int
  parameters: int


def lower_ours(
  preset: Preset, name: str, fields: dict[str, Any], batch_size: int, stage_name: str
) -> tuple[jax.stages.Lowered, TrainState, tuple]:
  """Returns our lowered step, its first state, and its other arguments."""
  dtype = jnp.dtype(preset.dtype)
  model = U2S(
    preset.num_classes, backbones.build_backbone(name, Layers(dtype=dtype), **fields), dtype=dtype
  )
  network = Network(model, pixel_mean=(0.5,) * 3, pixel_std=(0.25,) * 3)
  tx = steps.sgd(**OPTIMIZER)
  durations = dict.fromkeys(STAGES, {"learning_rate": RATE, "epochs": 1.0})
  schedule = stages.make_stages(durations)[: STAGES.index(stage_name) + 1]
  shape = (1, preset.video[0], 32, 32, 3)
  state = state_lib.init_stages(model, schedule, tx, shape, jax.random.key(0))[-1]
  rng = np.random.default_rng(0)
  batch = {
    "video": rng.integers(0, 256, (batch_size, *preset.video, 3), np.uint8),
    "label": rng.integers(0, preset.num_classes, batch_size, np.int32),
    "valid": np.ones(batch_size, bool),
  }
  # Each class is confused with the next ones; PyTorch's regularizer costs the same for any.
  classes = np.arange(preset.num_classes, dtype=np.int32)
  neighbours = (classes[:, None] + np.arange(1, 1 + NEIGHBOURS, dtype=np.int32)) % len(classes)
  arguments = jax.device_put(batch), RATE, neighbours
  step = steps.make_train_step(network, schedule[-1], tx, steps.StepOptions(REGULARIZER_WEIGHT))
  jitted = jax.jit(step, donate_argnums=0, compiler_options=devices.get_compiler_options())
  return jitted.lower(state, *arguments), state, arguments


def make_ours(
  preset: Preset, name: str, fields: dict[str, Any], batch_size: int, stage_name: str
) -> tuple[Side, float]:
  """Returns our side, and the FLOPs of a step by XLA's count before optimisation."""
  lowered, state, arguments = lower_ours(preset, name, fields, batch_size, stage_name)
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  started = time.perf_counter()
  step = lowered.compile()
  seconds = time.perf_counter() - started
  memory = step.memory_analysis()
  peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes

  def turn(count):
    nonlocal state
    for _ in range(count):
      state, metrics = step(state, *arguments)
    jax.block_until_ready(metrics)

  flops = lowered.cost_analysis() or {}  # not available on every platform
  return Side("ours", turn, seconds, peak, parameters), flops.get("flops", math.nan)


def make_torch(preset: Preset, batch_size: int, stage_name: str, compiled: bool) -> Side:
  """Returns PyTorch's side, eager or compiled, on a GPU if there is one."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.manual_seed(0)
  fields = dict(preset.backbone)
  _, blocks = DEPTHS[fields.pop("depth", 50)]
  model = torch_u2s.U2S(preset.num_classes, blocks=blocks, **fields).to(device)
  for module in model.modules():
    if isinstance(module, torch.nn.Conv2d):
      module.to(memory_format=torch.channels_last)
    if isinstance(module, torch.nn.Conv3d):
      module.to(memory_format=torch.channels_last_3d)
  frames, rows, columns = preset.video
  video = torch.randint(0, 256, (batch_size, frames, 3, rows, columns), dtype=torch.uint8)
  video = video.to(device)
  label = torch.randint(0, preset.num_classes, (batch_size,), device=device)
  csm = torch.eye(preset.num_classes, device=device)
  trained = torch_u2s.set_stage(model, stage_name)
  sgd = torch.optim.SGD(trained, RATE, **OPTIMIZER)
  mixed = preset.dtype == "bfloat16"

  def loss():
    with torch.autocast(device, torch.bfloat16, enabled=mixed):
      return torch_u2s.compute_loss(model, stage_name, (video / 255 - 0.5) / 0.25, label, csm)

  if compiled:
    loss = torch.compile(loss)

  def turn(count):
    for _ in range(count):
      sgd.zero_grad(set_to_none=True)
      loss().backward()
      sgd.step()
    if device == "cuda":
      torch.cuda.synchronize()

  if device == "cuda":
    torch.cuda.reset_peak_memory_stats()
  started = time.perf_counter()
  turn(1)
  seconds = time.perf_counter() - started
  memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
  name = "PyTorch compiled" if compiled else "PyTorch eager"
  return Side(name, turn, seconds, memory, sum(p.numel() for p in model.parameters()))


def measure_matrix_rate(preset: Preset) -> float:
  """Returns the FLOP/s of a product of square matrices, as a reference."""
  n = preset.matrix
  x = jnp.ones((n, n), jnp.dtype(preset.dtype))
  product = jax.jit(jnp.matmul)
  return 2 * n**3 / measure_medians({"product": lambda: product(x, x)}, 10)["product"]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--preset", choices=PRESETS, required=True)
  parser.add_argument(
    "--backbone", choices=("preact_resnet", *OTHERS), default="preact_resnet", help="of our side"
  )
  parser.add_argument("--batches", type=int, nargs="+", help="batch sizes, instead of the preset's")
  args = parser.parse_args()
  malloc.tune_malloc()  # as in main.py; it affects both sides
  preset = PRESETS[args.preset]
  rate = measure_matrix_rate(preset)
  device = jax.devices()[0].device_kind
  versions = f"jax {jax.__version__}" + (f", torch {torch.__version__}" if torch else "")
  print(f"{device} ({platform.machine()}, {os.cpu_count()} CPUs), {versions}, {preset.dtype}")
  print(f"product of {preset.matrix} x {preset.matrix} matrices: {rate / 1e12:.3f} TFLOP/s")
  print(f"{args.backbone}, clips of {' x '.join(map(str, preset.video))}")
  print(
    f"{'stage':10} {'batch':>5}  {'side':16} {'compile':>8} {'step':>10} {'clips/s':>8}"
    f" {'TFLOP/s':>8} {'of peak':>7} {'memory':>9} {'ratio':>6}"
  )
  for batch_size in args.batches or preset.batches:
    for stage in STAGES:
      fields = preset.backbone if args.backbone == "preact_resnet" else OTHERS[args.backbone]
      ours, flops = make_ours(preset, args.backbone, fields, batch_size, stage)
      sides = [ours]
      if torch and args.backbone == "preact_resnet":
        for compiled in (False, True):
          try:
            sides.append(make_torch(preset, batch_size, stage, compiled))
          except Exception as error:
            reason = " ".join(str(error).split())[:80]
            print(f"{stage:10} {batch_size:5}  PyTorch, compiled={compiled}: failed ({reason})")
      if stage != "universal" and len({side.parameters for side in sides}) > 1:
        raise AssertionError(f"not the same network: {[side.parameters for side in sides]}")
      turns = {side.name: functools.partial(side.turn, preset.steps) for side in sides}
      spent = {name: s / preset.steps for name, s in measure_medians(turns, preset.repeats).items()}
      for side in sides:
        median = spent[side.name]
        peak = f"{side.memory / 2**30:6.2f} GiB" if side.memory else "-"
        print(
          f"{stage:10} {batch_size:5}  {side.name:16} {side.compile_seconds:6.1f} s"
          f" {median * 1e3:7.1f} ms {batch_size / median:8.1f} {flops / median / 1e12:8.3f}"
          f" {flops / median / rate:7.2f} {peak:>9} {median / spent['ours']:6.2f}",
          flush=True,
        )


if __name__ == "__main__":
  main()
