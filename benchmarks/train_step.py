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

import dataclasses
import functools
import math
import platform
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.step_cost import DEMO, OPTIMIZER, RATE, TEMPORAL, build_stages
from benchmarks.timing import make_parser, measure_medians
from u2s_jax.models.resnet import DEPTHS
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

PAPER = {"temporal": TEMPORAL}
FLAT = {"temporal": ((1, 1, 1, 1), (1, 1, 1, 1))}
# The fields of the other backbones, at their original size.
OTHERS = {"resnet": FLAT, "tsm_resnet": FLAT, "eco_lite": {}, "inception_i3d": {}}
SIDES = ("ours", "PyTorch eager", "PyTorch compiled")
NEIGHBOURS = 4  # confusing classes per class


@dataclasses.dataclass(frozen=True)
class Preset:
  """Sizes of a comparison.

  Attributes:
    video: frames, rows, columns.
    batches: batch sizes to measure.
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
  "cpu": Preset((8, 56, 56), 35, (32,), "float32", DEMO, 9, 5, 2048),
  # configs/sthv2.py
  "gpu": Preset((18, 224, 224), 174, (4, 8, 16, 20, 32), "bfloat16", PAPER, 5, 5, 8192),
}


@dataclasses.dataclass
class Side:
  """An implementation that is measured.

  Attributes:
    turn: (number of steps) -> None; waits until they are done.
    compile_seconds: until the first step was done.
    memory: peak, bytes; 0 if it is not known.
    parameters: of the network; in stage 1 ours has trunk and UN only.
    flops: of a step by XLA's count before optimisation; only of ours.
  """

  turn: Callable[[int], None]
  compile_seconds: float
  memory: int
  parameters: int
  flops: float = math.nan


def lower_ours(
  preset: Preset, name: str, batch_size: int, stage_name: str
) -> tuple[jax.stages.Lowered, TrainState, tuple]:
  """Returns our lowered step, its first state, and its other arguments."""
  fields = preset.backbone if name == "preact_resnet" else OTHERS[name]
  network, schedule = build_stages(preset.num_classes, name, preset.dtype, **fields)
  schedule, tx = schedule[: STAGES.index(stage_name) + 1], steps.sgd(**OPTIMIZER)
  shape = (1, preset.video[0], 32, 32, 3)
  state = state_lib.init_stages(network.model, schedule, tx, shape, jax.random.key(0))[-1]
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
  step = steps.make_train_step(network, schedule[-1], tx, steps.StepOptions(0.5))
  jitted = jax.jit(step, donate_argnums=0, compiler_options=devices.get_compiler_options())
  return jitted.lower(state, *arguments), state, arguments


def make_ours(preset: Preset, name: str, batch_size: int, stage_name: str) -> Side:
  lowered, state, arguments = lower_ours(preset, name, batch_size, stage_name)
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
  return Side(turn, seconds, peak, parameters, flops.get("flops", math.nan))


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
  return Side(turn, seconds, memory, sum(p.numel() for p in model.parameters()))


def make_sides(
  preset: Preset, backbone: str, batch_size: int, stage: str, names: Iterable[str]
) -> tuple[dict[str, Side], dict[str, str]]:
  """Returns the sides that can take a step, and why the others cannot, by name (`SIDES`)."""
  sides, errors = {}, {}
  for name in names:
    try:
      if name == "ours":
        side = make_ours(preset, backbone, batch_size, stage)
      else:
        side = make_torch(preset, batch_size, stage, name == "PyTorch compiled")
      side.turn(1)  # this may run out of memory, compiling does not
      sides[name] = side
    except Exception as error:  # the other figures still count
      # The text only: the error keeps arrays on the device.
      errors[name] = " ".join(str(error).split())
  return sides, errors


def measure_sides(preset: Preset, sides: dict[str, Side]) -> dict[str, float]:
  """Returns the median seconds of a step of each side."""
  turns = {name: functools.partial(side.turn, preset.steps) for name, side in sides.items()}
  return {name: s / preset.steps for name, s in measure_medians(turns, preset.repeats).items()}


def measure_matrix_rate(preset: Preset) -> float:
  """Returns the FLOP/s of a product of square matrices, as a reference."""
  n = preset.matrix
  x = jnp.ones((n, n), jnp.dtype(preset.dtype))
  product = jax.jit(jnp.matmul)
  return 2 * n**3 / measure_medians({"product": lambda: product(x, x)}, 10)["product"]


def main() -> None:
  parser = make_parser(__doc__)
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
  names = SIDES if torch and args.backbone == "preact_resnet" else ("ours",)
  for batch_size in args.batches or preset.batches:
    for stage in STAGES:
      start = f"{stage:10} {batch_size:5} "
      sides, errors = make_sides(preset, args.backbone, batch_size, stage, names)
      if "ours" in errors:
        raise RuntimeError(f"{start} ours: {errors['ours']}")
      for name, error in errors.items():
        print(f"{start} {name}: failed ({error[:80]})")
      parameters = [side.parameters for side in sides.values()]
      if stage != "universal" and len(set(parameters)) > 1:
        raise AssertionError(f"not the same network: {parameters}")
      spent, flops = measure_sides(preset, sides), sides["ours"].flops
      for name, side in sides.items():
        median = spent[name]
        peak = f"{side.memory / 2**30:6.2f} GiB" if side.memory else "-"
        print(
          f"{start} {name:16} {side.compile_seconds:6.1f} s"
          f" {median * 1e3:7.1f} ms {batch_size / median:8.1f} {flops / median / 1e12:8.3f}"
          f" {flops / median / rate:7.2f} {peak:>9} {median / spent['ours']:6.2f}",
          flush=True,
        )


if __name__ == "__main__":
  main()
