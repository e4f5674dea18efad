"""Compiles every step of configs for GPUs or TPUs, without one, and counts their costs.

  pip install "jax[cuda13]"    # of the installed jax's version
  python -m benchmarks.aot --platform=gpu --chip h100 --config sthv2
  pip install libtpu
  python -m benchmarks.aot --platform=tpu

For each program: memory per chip, FLOPs, bytes through memory, a lower bound on its time
(`benchmarks/program.py`; nothing is measured), the hours of the stage on Something-Something V2 by
that bound, and the bytes of collectives. Below: convolutions and products by kind, and operations
that only move data. Programs are compiled in other processes, because a compiler may abort. The
exit status is 1 if a program does not compile or does not fit. Takes half a minute to minutes per
program.
"""

import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import pathlib
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import program
from benchmarks.chips import GIB, TARGETS
from benchmarks.step_cost import NEIGHBOURS, make_batch_shapes
from benchmarks.timing import make_parser
from u2s_jax.evaluation import inference
from u2s_jax.models.network import DTYPES, build_network
from u2s_jax.run import settings
from u2s_jax.run import state as state_lib
from u2s_jax.stages import STAGES
from u2s_jax.training import steps
from u2s_jax.views import make_mirror_maps

NUM_CLASSES = 174  # Something-Something V2's
TRAINING_CLIPS, VALIDATION_CLIPS = 168_913, 24_777  # Something-Something V2's
# One of these packages must be installed.
PLUGINS = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
PROGRAMS = (*STAGES, "statistics", "evaluation", "analysis", "prediction")


@dataclasses.dataclass(frozen=True)
class Row:
  """A program to compile.

  Attributes:
    chip: a key of `TARGETS`.
    config: name in `configs/`, with its variant after a colon.
    name: one of `PROGRAMS`.
    clips: per chip.
  """

  chip: str
  config: str
  dtype: str
  name: str
  clips: int
  convolution: str
  remat: bool
  classes: int = NUM_CLASSES


def load_config(name: str) -> ml_collections.ConfigDict:
  """Returns a config of `configs/` by its name, for example 'sthv2_tsm:16f'."""
  stem, _, argument = name.partition(":")
  return importlib.import_module(f"configs.{stem}").get_config(*[argument] * bool(argument))


def distinct_configs() -> list[str]:
  """Returns one config for each distinct network of the configs."""
  folder = pathlib.Path(importlib.import_module("configs").__file__).parent
  names = {path.stem for path in folder.glob("[!_]*.py")} - {"default"}
  names |= {"sthv2_tsm:16f", "ucf101:flow", "hmdb51:flow"}
  first = {}
  for name in sorted(names, key=lambda name: (not name.startswith("sthv2"), name)):
    config = load_config(name)
    network = [config.model.to_dict(), settings.count_channels(config), config.data.num_frames]
    first.setdefault(json.dumps([*network, config.data.crop_size]), name)
  return list(first.values())


def build_program(row: Row) -> tuple[Callable, tuple, jax.sharding.Mesh]:
  """Returns a row's jitted program, the shapes of its arguments, and the mesh of its devices."""
  config = load_config(row.config)
  config.model.dtype, config.model.remat = row.dtype, row.remat
  config.model.convolution = row.convolution
  for field in settings.PIXEL_FIELDS:
    config.model[field] = config.model[field] or (0.5,)  # () stands for those of the weights
  target = TARGETS[row.chip]
  description = topologies.get_topology_desc(**target.topology)
  mesh = topologies.make_mesh(description, (len(description.devices),), ("data",))
  replicated, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
  size = (config.data.num_frames, *[config.data.crop_size] * 2, settings.count_channels(config))
  network = build_network(config, row.classes)
  tx = steps.sgd(**config.optimizer)
  replicate = functools.partial(jax.ShapeDtypeStruct, sharding=replicated)

  def clips(*views):
    return make_batch_shapes((row.clips * mesh.size, *views, *size), split)

  # The statistics are of the one-pass model, all other passes of all networks.
  trained = STAGES[0] if row.name == "statistics" else STAGES[-1]
  last = STAGES.index(row.name if row.name in STAGES else trained)
  stages = settings.make_schedule(config)[: last + 1]
  state = state_lib.init_stages(network.model, stages, tx, (1, *size))[-1]
  state = jax.tree.map(lambda x: replicate(x.shape, x.dtype), state)
  if row.name in STAGES:
    options = steps.StepOptions(
      regularizer_weight=config.regularizer_weight,
      label_smoothing=config.label_smoothing,
      seed=config.seed,
      accumulate_steps=config.accumulate_steps,
    )
    step = steps.make_train_step(network, stages[-1], tx, options)
    rate = replicate((), jnp.float32)
    neighbours = replicate((row.classes, NEIGHBOURS), jnp.int32)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(replicated, replicated))
    return jitted, (state, clips(), rate, neighbours), mesh
  if row.name == "evaluation":
    mirrored = make_mirror_maps(config.eval.views, row.classes, config.data.flip_label_map)
    step, batch = inference.make_score_step(network, mirrored), clips(mirrored.count(None))
  elif row.name == "statistics":
    step, batch = inference.make_sparsity_step(network), clips(1)
  elif row.name == "analysis":
    step, batch = inference.make_analysis_step(network), clips(1)
    return jax.jit(step, out_shardings=(replicated, split)), (state, batch), mesh
  else:
    step, batch = inference.make_predict_step(network), clips()["video"]
  return jax.jit(step, out_shardings=replicated), (state, batch), mesh


def compile_row(row: Row) -> dict[str, Any]:
  """Compiles a program and returns its figures per device, or an `error`."""
  jitted, arguments, mesh = build_program(row)
  lowered = jitted.lower(*arguments)
  started = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return {"error": " ".join(str(error).split())}
  seconds = time.perf_counter() - started
  target = TARGETS[row.chip]
  memory = compiled.memory_analysis()
  if target.platform == "tpu":
    needed = memory.peak_memory_in_bytes
  else:
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes
    needed += memory.temp_size_in_bytes - memory.alias_size_in_bytes
  cost = program.count(compiled, target.chip)
  if row.name in STAGES:
    clips = TRAINING_CLIPS * load_config(row.config)[row.name].epochs
  else:
    clips = TRAINING_CLIPS if row.name == "statistics" else VALIDATION_CLIPS
  return {
    "compile_seconds": seconds,
    "memory": needed,
    "fits": needed <= target.memory,
    "hours": clips / (row.clips * mesh.size) * cost.seconds / 3600,
    **vars(cost),
  }


def compile_in_process(row: Row, workers: threading.local) -> dict[str, Any]:
  """Calls `compile_row` in a process of this thread: the compiler may abort."""
  if not hasattr(workers, "pool"):
    workers.log = tempfile.NamedTemporaryFile(suffix=".log")  # deleted when it is closed
    workers.pool = futures.ProcessPoolExecutor(
      1,
      multiprocessing.get_context("spawn"),
      initializer=_redirect_errors,
      initargs=(workers.log.name,),
    )
  try:
    return workers.pool.submit(compile_row, row).result()
  except futures.process.BrokenProcessPool:
    text = pathlib.Path(workers.log.name).read_text(errors="replace")
    reason = re.search(r"\S+:\d+\] (Check failed.*)|\w*Error: .*", text)
    del workers.pool  # the next program gets another process
    return {"error": f"the compiler died: {reason[0] if reason else text[-300:]}"}


def _redirect_errors(log: str) -> None:
  """Redirects the standard error stream, which has the reason if the compiler aborts."""
  with open(log, "w") as file:
    os.dup2(file.fileno(), 2)


def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("--platform", choices=("gpu", "tpu"), required=True)
  parser.add_argument("--chip", choices=TARGETS, nargs="+", help="default: all of the platform")
  parser.add_argument("--config", nargs="+", default=["sthv2"], help="of configs/, or 'all'")
  parser.add_argument("--program", choices=PROGRAMS, nargs="+", default=PROGRAMS)
  parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16"])
  parser.add_argument("--clips", type=int, nargs="+", help="per chip (default: gpu 8, tpu 2)")
  parser.add_argument("--convolution", default="auto", help="see config.model.convolution")
  parser.add_argument("--remat", action="store_true")
  parser.add_argument("--classes", type=int, default=NUM_CLASSES)
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="programs at a time")
  parser.add_argument("--json", type=pathlib.Path, help="file for all figures")
  args = parser.parse_args()
  # The programs are for devices that this machine lacks; child processes inherit this.
  os.environ["JAX_PLATFORMS"] = "cpu"
  # Several processes compile at a time; none uses a TPU.
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  if not any(map(importlib.util.find_spec, PLUGINS[args.platform])):
    parser.error(
      f"--platform={args.platform}: requires {' or '.join(PLUGINS[args.platform])}; see -h"
    )
  platform_chips = [name for name, target in TARGETS.items() if target.platform == args.platform]
  chips = args.chip or platform_chips
  if set(chips) - set(platform_chips):
    parser.error(f"--chip: must be one of {', '.join(platform_chips)} for {args.platform}")
  configs = distinct_configs() if args.config == ["all"] else args.config
  rows = [
    Row(chip, config, dtype, name, clips, args.convolution, args.remat, args.classes)
    for chip in chips
    for config in configs
    for dtype in args.dtype
    for clips in args.clips or [{"gpu": 8, "tpu": 2}[args.platform]]
    for name in args.program
  ]
  print(
    f"{'chip':8} {'config':12} {'dtype':9} {'program':11} {'clips':>5} {'compile':>7}"
    f" {'memory':>10} {'TFLOP':>7} {'GB':>7} {'bound':>9} {'hours':>7} {'collectives':>11}"
  )
  failed, figures = 0, []
  workers = threading.local()
  with futures.ThreadPoolExecutor(args.workers) as threads:
    results = threads.map(lambda row: compile_in_process(row, workers), rows)
    for row, result in zip(rows, results, strict=True):
      print(format_row(row, result), flush=True)
      failed += not result.get("fits")
      figures.append(dataclasses.asdict(row) | result)
      if args.json:
        args.json.write_text(json.dumps(figures, indent=1))
  print(f"{len(rows) - failed} of {len(rows)} programs compile and fit")
  sys.exit(failed > 0)


def format_row(row: Row, result: dict[str, Any]) -> str:
  """Formats the figures of a program for the terminal."""
  start = f"{row.chip:8} {row.config:12} {row.dtype:9} {row.name:11} {row.clips:5}"
  if "error" in result:
    return f"{start} {result['error'][:300]}"
  products = ", ".join(f"{n} {kind}" for kind, n in sorted(result["products"].items()))
  moved = ", ".join(
    f"{result['rearranged'][kind]} {kind} ({size / 1e6:.0f} MB)"
    for kind, size in result["rearranged_bytes"].items()
  )
  fits = "" if result["fits"] else f" more than {row.chip} has"
  return (
    f"{start} {result['compile_seconds']:5.0f} s {result['memory'] / GIB:6.2f} GiB"
    f" {result['flops'] / 1e12:7.2f} {result['bytes'] / 1e9:7.1f} {result['seconds'] * 1e3:6.1f} ms"
    f" {result['hours']:7.2f} {result['collectives'] / 1e6:8.1f} MB{fits}\n"
    f"{'':9}{products}; {moved}"
  )


if __name__ == "__main__":
  main()
