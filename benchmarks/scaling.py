"""Measures how the cost of a step grows, and the cost of the CSM's pass and of 10-crop.

  python -m benchmarks.scaling

Uses the demo's network. First it times the CSM's statistics relative to a forward pass, and ten
views of a batch relative to ten forward passes, in turns. Then it counts the costs of the compiled
joint training step by classes, frames, crop size, and simulated devices; other work on the machine
does not disturb these counts.
"""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import program
from benchmarks.step_cost import DEMO, NEIGHBOURS, OPTIMIZER, build_stages, make_batch_shapes
from benchmarks.timing import measure_medians
from u2s_jax.evaluation import inference
from u2s_jax.models.network import Network
from u2s_jax.run import state as state_lib
from u2s_jax.runtime import devices, malloc
from u2s_jax.stages import PREDICTIONS, Stage
from u2s_jax.training import steps

DEVICES = "U2S_SCALING_DEVICES"  # number of devices that a child process simulates
BASE = {"classes": 174, "frames": 8, "crop": 56}  # of clips
SWEEPS = {"classes": (51, 174, 1000, 10_000), "frames": (4, 8, 16, 32), "crop": (56, 112, 224)}
BATCH_SIZE, VIEWS, REPEATS = 16, 10, 9
TX = steps.sgd(**OPTIMIZER)


def build_last_stage(
  classes: int, frames: int, key: jax.Array | None = None
) -> tuple[Network, Stage, state_lib.TrainState]:
  """Returns the network, the last stage, and its first state (without a key, only its shapes)."""
  network, schedule = build_stages(classes, **DEMO)
  states = state_lib.init_stages(network.model, schedule, TX, (1, frames, 32, 32, 3), key)
  return network, schedule[-1], states[-1]


def measure_ratios() -> tuple[float, float]:
  """Returns the time of the CSM's statistics per forward pass, and of ten views per ten passes."""
  network, _, state = build_last_stage(BASE["classes"], BASE["frames"], jax.random.key(0))
  one_pass_state = state.replace(params={k: state.params[k] for k in ("trunk", "universal")})
  rng = np.random.default_rng(0)
  size = (BASE["frames"], BASE["crop"], BASE["crop"], 3)
  video = jnp.asarray(rng.integers(0, 256, (BATCH_SIZE, VIEWS, *size), np.uint8))
  label = jnp.asarray(rng.integers(0, BASE["classes"], BATCH_SIZE, np.int32))
  batch = {"video": video, "label": label, "valid": jnp.ones(BATCH_SIZE, bool)}

  def jit(step):
    return jax.jit(step, compiler_options=devices.get_compiler_options())

  @jit
  def forward(state, video):
    outputs, _ = network(state.params, state.batch_stats, state.csm, video)
    return [outputs[name] for name in PREDICTIONS if name in outputs]

  sparsity = jit(inference.make_sparsity_step(network))
  views = jit(inference.make_score_step(network, (None,) * VIEWS))
  single = [jnp.asarray(video[:, i]) for i in range(VIEWS)]
  runs = {
    "forward": lambda: forward(one_pass_state, single[0]),
    "csm": lambda: sparsity(one_pass_state, batch | {"video": video[:, :1]}),
    "ten": lambda: [forward(state, clip) for clip in single],
    "views": lambda: views(state, batch),
  }
  spent = measure_medians(runs, REPEATS)
  return spent["csm"] / spent["forward"], spent["views"] / spent["ten"]


def print_costs(field: str, value: int, classes: int, frames: int, crop: int) -> None:
  """Prints GFLOP, MiB of temporary memory and MiB in collectives per device, of a joint step."""
  network, stage, state = build_last_stage(classes, frames)
  mesh = devices.data_mesh()
  replicated, split = devices.replicated_sharding(mesh), devices.batch_sharding(mesh)
  step = steps.make_train_step(network, stage, TX, steps.StepOptions(0.5))
  state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
  batch = make_batch_shapes((BATCH_SIZE, frames, crop, crop, 3), split)
  neighbours = jax.ShapeDtypeStruct((classes, NEIGHBOURS), jnp.int32, sharding=replicated)
  compiled = (
    jax.jit(step, donate_argnums=0, out_shardings=(replicated, replicated))
    .lower(state, batch, 0.1, neighbours)
    .compile()
  )
  temporary, cost = compiled.memory_analysis().temp_size_in_bytes, program.count(compiled)
  print(
    f"{field:8} {value:6} {cost.flops / 1e9:8.1f} {temporary / 2**20:6.0f} MiB"
    f" {cost.collectives / 2**20:8.2f} MiB",
    flush=True,
  )


def main() -> None:
  if DEVICES in os.environ:
    print_costs("devices", int(os.environ[DEVICES]), **BASE)
    return
  malloc.tune_malloc()
  csm, views = measure_ratios()
  print(f"CSM statistics / forward pass: {csm:.3f}")
  print(f"{VIEWS} views / {VIEWS} forward passes: {views:.3f}")
  print(f"joint step, {BATCH_SIZE} clips, otherwise {BASE}; per device:")
  print(f"{'':8} {'':>6} {'GFLOP':>8} {'temporary':>10} {'collectives':>12}", flush=True)
  for field, values in SWEEPS.items():
    for value in values:
      print_costs(field, value, **BASE | {field: value})
  for count in (1, 2, 4, 8, 16):
    environment = os.environ | {
      DEVICES: str(count),
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
      "JAX_PLATFORMS": "cpu",
    }
    subprocess.run([sys.executable, "-m", "benchmarks.scaling"], env=environment, check=True)


if __name__ == "__main__":
  main()
