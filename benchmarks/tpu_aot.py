"""Compiles the training and evaluation steps of a config for TPUs, without a TPU.

  pip install libtpu
  python -m benchmarks.tpu_aot --topology=v5e-16 --clips_per_chip=2

Prints, for each chip: its memory and what the program needs of it, FLOPs, and the bytes that go
into collectives. Status 1 where a program needs more memory than a chip has. Minutes a program.
"""

import os

# The programs are for other devices than those at hand.
os.environ["JAX_PLATFORMS"] = "cpu"

# isort: split

import argparse
import importlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.collectives import collective_bytes
from u2s_jax import settings
from u2s_jax import state as state_lib
from u2s_jax.evaluation import inference
from u2s_jax.stages import STAGES
from u2s_jax.training import steps
from u2s_jax.views import VIEWS, mirrored_labels

NUM_CLASSES = 174  # Something-Something V2's


class Topology(NamedTuple):
  """A slice of a TPU pod.

  Attributes:
    name: in XLA.
    gibibytes: a chip's memory, by Google's documentation.
    chip: XLA's name of how a chip's cores are used.
  """

  name: str
  gibibytes: float
  chip: str = "default"


TOPOLOGIES = {
  "v5e-16": Topology("v5e:4x4", 16),
  "v4-32": Topology("v4:2x2x4", 32, "megacore"),  # 32 cores, two of a chip as one device
  "v5e-256": Topology("v5e:16x16", 16),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="sthv2", help="of configs/")
  parser.add_argument("--topology", choices=TOPOLOGIES, nargs="+", default=list(TOPOLOGIES))
  parser.add_argument("--programs", nargs="+", default=[*STAGES, "eval"])
  parser.add_argument("--clips_per_chip", type=int, default=2)
  parser.add_argument("--dtype", choices=settings.DTYPES, default="bfloat16")
  parser.add_argument("--convolution", default="auto", help="as config.model.convolution")
  parser.add_argument("--remat", action="store_true")
  args = parser.parse_args()
  config = importlib.import_module(f"configs.{args.config}").get_config()
  config.model.dtype, config.model.remat = args.dtype, args.remat
  config.model.convolution = args.convolution
  print(
    f"{'topology':9} {'program':10} {'compile':>8} {'needs':>10} {'has':>7} {'TFLOP':>7}"
    f" {'collectives':>12}  of a chip with {args.clips_per_chip} clips, {args.dtype}"
  )
  too_large = [
    f"{name} {program}"
    for name in args.topology
    for program in args.programs
    if not fits(config, name, program, args.clips_per_chip)
  ]
  if too_large:
    sys.exit(f"more memory than a chip has: {', '.join(too_large)}")


def fits(config, name: str, program: str, clips_per_chip: int) -> bool:
  """Compiles one program, prints its row, and says whether a chip's memory holds it."""
  topology = TOPOLOGIES[name]
  description = topologies.get_topology_desc(
    platform="tpu", topology_name=topology.name, chip_config_name=topology.chip
  )
  mesh = topologies.make_mesh(description, (len(description.devices),), ("data",))
  replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
  size = (config.data.num_frames, *[config.data.crop_size] * 2, settings.input_channels(config))
  batch_size = clips_per_chip * mesh.size
  network = settings.build_network(config, NUM_CLASSES)
  tx = state_lib.sgd(config.optimizer.momentum, config.optimizer.weight_decay)

  def array(shape, dtype, sharding=split):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  last = STAGES.index(program) if program in STAGES else len(STAGES) - 1
  stages = settings.schedule(config)[: last + 1]
  state = state_lib.chain(network.model, stages, tx, (1, *size))[-1]
  state = jax.tree.map(lambda x: array(x.shape, x.dtype, replicated), state)
  if program == "eval":
    labels = mirrored_labels(NUM_CLASSES, config.data.flip_label_map)
    mirrors = [labels if mirrored else None for mirrored in VIEWS[config.eval.views]]
    step = inference.make_score_step(network, mirrors)
    batch = {
      "video": array((batch_size, len(mirrors), *size), jnp.uint8),
      "label": array((batch_size,), jnp.int32),
    }
    arguments = (batch,)
    jitted = jax.jit(step, out_shardings=replicated)
  else:
    step = steps.make_train_step(
      network,
      stages[-1],
      tx,
      regularizer_weight=config.regularizer_weight,
      accumulate_steps=config.accumulate_steps,
    )
    batch = {
      "video": array((batch_size, *size), jnp.uint8),
      "label": array((batch_size,), jnp.int32),
      "valid": array((batch_size,), jnp.bool_),
    }
    arguments = batch, array((), jnp.float32, replicated)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(replicated, replicated))
  started = time.perf_counter()
  compiled, reason = None, ""
  try:
    compiled = jitted.lower(state, *arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    reason = " ".join(str(error).split())[:160]
  row = f"{name:9} {program:10} {time.perf_counter() - started:6.0f} s"
  if compiled is None:
    print(f"{row} {reason}", flush=True)
    return False
  needed = compiled.memory_analysis().peak_memory_in_bytes / 2**30
  flops = compiled.cost_analysis()["flops"] / 1e12
  moved = collective_bytes(compiled.as_text()) / 2**20
  print(
    f"{row} {needed:6.2f} GiB {topology.gibibytes:3.0f} GiB {flops:7.2f} {moved:8.1f} MiB",
    flush=True,
  )
  return needed <= topology.gibibytes


if __name__ == "__main__":
  main()
