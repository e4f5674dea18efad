"""How the cost of a step grows, and what the CSM's pass and a 10-crop evaluation cost.

  python -m benchmarks.scaling

The demo's network. First times: the CSM's statistics and ten views of a batch, over a forward pass
and ten of them, in turns. Then counts of compiled programs, that no other work disturbs: of the
joint training step, by classes, frames, crop size, and simulated devices.
"""

import os
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.collectives import collective_bytes
from data import memory
from u2s_jax import compiling, optimizer, sharding, stages, steps
from u2s_jax import state as state_lib
from u2s_jax.models import backbones
from u2s_jax.models.u2s import U2S

FIELDS = {
  "depth": 14,
  "width": 8,
  "strides": (1, 2, 2, 1),
  "temporal": ((3, 3, 3, 3), (3, 3, 3, 1)),
}
DEVICES = "U2S_SCALING_DEVICES"  # set in the processes that simulate as many
BASE = {"classes": 174, "frames": 8, "crop": 56}  # of clips
SWEEPS = {
  "classes": (51, 174, 1000, 10_000),
  "frames": (4, 8, 16, 32),
  "crop": (56, 112, 224),
}
BATCH_SIZE, VIEWS, REPEATS = 16, 10, 9
PIXELS = {"pixel_mean": (0.5,) * 3, "pixel_std": (0.25,) * 3}


def begin(classes: int, frames: int) -> tuple[U2S, list[stages.Stage], Any]:
  """Model, stages, and the first state of the last stage by name of the stage."""
  model = U2S(classes, backbones.build("preact_resnet", **FIELDS))
  durations = dict.fromkeys(("universal", "specific", "joint"), {"learning_rate": 1, "epochs": 1})
  schedule = stages.schedule(durations, attention="mask", specific_init="universal", control=False)
  tx = optimizer.sgd(momentum=0.9, weight_decay=1e-4)
  state = None
  for stage in schedule:
    first = lambda previous, stage=stage: state_lib.begin(  # noqa: E731
      model, stage, tx, jax.random.key(0), (1, frames, 32, 32, 3), previous
    )
    state = jax.jit(first)(state)
  return model, schedule, state


def ratios() -> tuple[float, float]:
  """Time of the CSM's statistics over a forward pass, and of ten views over ten forward passes."""
  model, schedule, state = begin(BASE["classes"], BASE["frames"])
  rng = np.random.default_rng(0)
  size = (BASE["frames"], BASE["crop"], BASE["crop"], 3)
  video = jnp.asarray(rng.integers(0, 256, (BATCH_SIZE, VIEWS, *size), np.uint8))
  label = jnp.asarray(rng.integers(0, BASE["classes"], BATCH_SIZE, np.int32))
  batch = {"video": video[:, :1], "label": label, "mask": jnp.ones(BATCH_SIZE, bool)}

  def jit(step):
    return jax.jit(step, compiler_options=compiling.options())

  def one_pass(state, video):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    video = steps.normalize(video, *PIXELS.values())
    return model.apply(variables, video, method=U2S.one_pass)["universal"]

  def whole(state, video):
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    video = steps.normalize(video, *PIXELS.values())
    outputs = model.apply(variables, video, state.csm.matrix)
    return [outputs[name] for name in steps.PREDICTIONS]

  one_pass, whole = jit(one_pass), jit(whole)
  sparsity = jit(steps.make_sparsity_step(model, **PIXELS))
  views = jit(steps.make_eval_step(model, schedule[-1], mirror_columns=(None,) * VIEWS, **PIXELS))
  single = [jnp.asarray(video[:, i]) for i in range(VIEWS)]
  runs = {
    "forward": lambda: one_pass(state, single[0]),
    "csm": lambda: sparsity(state, batch),
    "ten": lambda: [whole(state, clip) for clip in single],
    "views": lambda: views(state, video, label),
  }
  times = {name: [] for name in runs}
  for repeat in range(REPEATS + 1):
    for name, run in runs.items():
      started = time.perf_counter()
      jax.block_until_ready(run())
      if repeat:
        times[name].append(time.perf_counter() - started)
  medians = {name: statistics.median(taken) for name, taken in times.items()}
  return medians["csm"] / medians["forward"], medians["views"] / medians["ten"]


def counts(classes: int, frames: int, crop: int) -> tuple[float, float, float]:
  """GFLOP, MiB of temporary memory and MiB in collectives, on a device, of a joint step."""
  model, schedule, state = begin(classes, frames)
  mesh = sharding.data_mesh()
  replicated, split = sharding.replicated(mesh), sharding.batched(mesh)
  step = steps.make_train_step(
    model, schedule[-1], optimizer.sgd(0.9, 1e-4), regularizer_weight=0.5, **PIXELS
  )
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
  shapes = {
    "video": ((BATCH_SIZE, frames, crop, crop, 3), jnp.uint8),
    "label": ((BATCH_SIZE,), jnp.int32),
    "mask": ((BATCH_SIZE,), jnp.bool_),
  }
  batch = {k: jax.ShapeDtypeStruct(*shape, sharding=split) for k, shape in shapes.items()}
  program = (
    jax.jit(step, donate_argnums=0, out_shardings=(replicated, replicated))
    .lower(state, batch, 0.1)
    .compile()
  )
  temporary = program.memory_analysis().temp_size_in_bytes
  moved = collective_bytes(program.as_text())
  return program.cost_analysis()["flops"] / 1e9, temporary / 2**20, moved / 2**20


def main() -> None:
  if DEVICES in os.environ:
    row("devices", int(os.environ[DEVICES]), counts(**BASE))
    return
  memory.keep_freed()
  csm, views = ratios()
  print(f"CSM's statistics over a forward pass: {csm:.3f}")
  print(f"{VIEWS} views over {VIEWS} forward passes: {views:.3f}")
  print(f"joint step, {BATCH_SIZE} clips, else {BASE}; of one device:")
  print(f"{'':8} {'':>6} {'GFLOP':>8} {'temporary':>10} {'collectives':>12}", flush=True)
  for field, values in SWEEPS.items():
    for value in values:
      row(field, value, counts(**{**BASE, field: value}))
  for devices in (1, 2, 4, 8, 16):
    environment = os.environ | {
      DEVICES: str(devices),
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-m", "benchmarks.scaling"], env=environment, check=True)


def row(field: str, value: int, figures: tuple[float, float, float]) -> None:
  flops, temporary, moved = figures
  print(f"{field:8} {value:6} {flops:8.1f} {temporary:6.0f} MiB {moved:8.2f} MiB", flush=True)


if __name__ == "__main__":
  main()
