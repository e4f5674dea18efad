"""Trains a study: variants of a config over seeds, with controls that train for as long.

  python -m benchmarks.evidence benchmarks/studies/rendered.toml --workdir=/runs/evidence
  python -m benchmarks.evidence benchmarks/studies/rendered.toml  # tables only, no training

A study file (TOML) has the config, the `[overrides]` of all runs, the seeds, the `[variants]` with
their own overrides, and the comparisons. The first variant trains stage 1 once per seed; the others
start from its end, unless they name another. `docs/evidence/<study>.jsonl` records which clips each
run got right: rerun the same command to resume a study, or to write its tables without training.
Intervals are computed by bootstrap over clips and seeds.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
from jaxtyping import Bool

from benchmarks.evidence import effects
from benchmarks.evidence.study import (
  MERGED,
  ONE_PASS,
  ROOT,
  SIMILAR,
  Records,
  Study,
  compute_accuracy,
  pack_bits,
  read_study,
)
from benchmarks.step_cost import count_flops
from benchmarks.timing import make_parser
from u2s_jax import csm
from u2s_jax.evaluation import scores as scores_lib
from u2s_jax.models.backbones import check_trusted
from u2s_jax.models.network import build_network
from u2s_jax.run import saved_config, settings
from u2s_jax.run.workdir import Workdir, read_npz
from u2s_jax.runtime.errors import UserError, one_line_errors
from u2s_jax.training import steps

# Held until a run has its data set, so that one process prepares it for all.
PREPARATION_LOCK = threading.Lock()


def get_run_folder(workdir: pathlib.Path, variant: str, seed: int) -> pathlib.Path:
  """Returns the workdir of a run in the workdir of a study."""
  return workdir / f"{variant}_{seed}"


def make_arguments(
  study: Study, variant: str, seed: int, workdir: pathlib.Path, places: list[str]
) -> list[str]:
  """Returns the arguments of main.py for a variant; `places` are those of `train_variant`."""
  fields = study.fields(variant) | {"seed": seed}
  if start := study.start(variant):
    path = get_run_folder(workdir, start, seed) / "checkpoints" / "universal"
    fields |= {"universal.epochs": 0.0, "universal.warmup_epochs": 0.0, "init_from": str(path)}
  arguments = [f"--config={study.config}", f"--workdir={get_run_folder(workdir, variant, seed)}"]
  for place in places:
    if place.split("=")[0] not in fields:
      arguments.append(f"--config.{place.format(workdir=workdir, seed=seed)}")
  for name, value in fields.items():
    if isinstance(value, list):
      value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if isinstance(value, str):
      value = value.format(workdir=workdir, seed=seed)
    arguments.append(f"--config.{name}={value}")
  return arguments


def train_variant(
  study: Study, variant: str, seed: int, workdir: pathlib.Path, places: list[str]
) -> dict[str, Any]:
  """Trains a variant in another process and returns its record.

  `places` are 'field=path': where the files of the config are on this machine.

  Raises:
    UserError: the run fails.
  """
  folder = get_run_folder(workdir, variant, seed)
  environment = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled"), **os.environ}
  begin = time.monotonic()
  folder.parent.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "main.py", *make_arguments(study, variant, seed, workdir, places)]
  with open(folder.with_suffix(".log"), "a") as log:
    with PREPARATION_LOCK:
      process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
      while process.poll() is None and not Workdir(folder).config.exists():
        time.sleep(0.5)
    if process.wait():
      raise UserError(f"{log.name}: the run failed; see the end of this file")
  return make_record(Workdir(folder)) | {
    "variant": variant,
    "seed": seed,
    "overrides": study.fields(variant),
    "minutes": round((time.monotonic() - begin) / 60, 2),
  }


def make_record(run: Workdir) -> dict[str, Any]:
  """Returns the record of a finished run: its size, and which clips it got right."""
  final = scores_lib.read(run.scores("validation"))
  one_pass = scores_lib.read(run.one_pass_scores("validation"))
  order = np.argsort(final.ids)
  clips = "".join(f"{final.ids[k]} {final.labels[k]}\n" for k in order)
  hits = {ONE_PASS: one_pass.predictions["universal"]} | scores_lib.fuse_all(final)
  hits[MERGED] = final.merged
  summary = json.loads(run.summary.read_text())
  return {
    "parameters": summary["parameters"]["u2s"],
    "flops": count_training_flops(run, len(final.class_names)),
    "clips": len(order),
    "digest": hashlib.sha256(clips.encode()).hexdigest()[:16],
    "similarity": compute_similarities(run),
    "top1": {name: pack_bits(is_correct(s, final.labels, 1)[order]) for name, s in hits.items()},
    "top5": {
      name: pack_bits(is_correct(hits[name], final.labels, 5)[order]) for name in (ONE_PASS, MERGED)
    },
  }


def is_correct(scores: np.ndarray, labels: np.ndarray, k: int) -> Bool[np.ndarray, " n"]:
  """Returns whether each clip's label is among the k highest scores."""
  return np.any(np.argsort(-scores, axis=1, kind="stable")[:, :k] == labels[:, None], axis=1)


def compute_similarities(run: Workdir) -> dict[str, float]:
  """Returns the mean similarity of two classes' features (Eq. 2) by kind of features (Fig. 4)."""
  path = run.analysis("validation")
  if not path.exists():
    return {}
  arrays, means = read_npz(path), {}
  for name in SIMILAR:
    if f"sparsity_{name}" in arrays:
      similarity = csm.similarity_matrix(arrays[f"sparsity_{name}"])
      means[name] = float(similarity[~np.eye(len(similarity), dtype=bool)].mean())
  return means


def count_training_flops(run: Workdir, num_classes: int) -> float:
  """Returns the FLOPs of a run's training, including stage 1, by XLA's cost analysis."""
  config = saved_config.read(run)
  check_trusted(config.model.backbone.get("name", ""), None)
  network, stages = build_network(config, num_classes), settings.make_schedule(config)
  data = config.data
  shape = (1, data.num_frames, data.crop_size, data.crop_size, settings.count_channels(config))
  flops = count_flops(network, stages, steps.sgd(0.9, 0.0), shape, num_neighbours=1)
  start = Workdir.from_checkpoint_path(pathlib.Path(config.init_from)) if config.init_from else run
  total = 0.0
  for stage in stages:
    checkpoints = (run if stage.epochs else start).checkpoints  # stage 1 may be another run's
    num_steps = max(int(path.name) for path in (checkpoints / stage.name).glob("[0-9]*"))
    total += flops[stage.name] * config.batch_size * num_steps
  return total


def run_all(study: Study, records: Records, jobs: list[tuple[str, int]], args) -> None:
  """Trains the runs (variant, seed) that have no record, each on its share of the cores.

  Raises:
    UserError: a run fails, or stage 1 differs from that of an earlier run of the seed.
  """
  workdir = args.workdir.absolute()
  cores, shares = sorted(os.sched_getaffinity(0)), queue.SimpleQueue()
  for k in range(args.workers):
    shares.put(cores[k :: args.workers])

  def run(variant: str, seed: int, start: concurrent.futures.Future | None) -> None:
    if start is not None:
      start.result()
    share = shares.get()
    try:
      os.sched_setaffinity(0, share)  # of this thread and of the process that it starts
      entry = train_variant(study, variant, seed, workdir, args.places)
    finally:
      shares.put(share)
    before = records.get(variant, seed)
    if before and before["top1"][ONE_PASS] != entry["top1"][ONE_PASS]:
      raise UserError(f"{records.path}: seed {seed}: stage 1 differs; delete its lines")
    records.add(entry)
    percent = compute_accuracy(entry, MERGED)
    print(f"{variant:24} seed {seed:3} {percent:6.2f} % {entry['minutes']:6.1f} min", flush=True)

  futures = {}
  with concurrent.futures.ThreadPoolExecutor(args.workers) as pool:
    missing = {job for job in jobs if not records.get(*job)}
    # Records of another machine come without its checkpoints: stage 1 has to be trained again.
    starts = {(study.start(variant), seed) for variant, seed in missing if study.start(variant)}
    missing |= {
      (name, k) for name, k in starts if not (get_run_folder(workdir, name, k) / "scores").exists()
    }
    # All runs that train stage 1 come first, so that no worker waits long for another.
    names = sorted(study.variants, key=lambda name: study.start(name) != "")
    for variant, seed in sorted(missing, key=lambda job: (names.index(job[0]), job[1])):
      start = futures.get((study.start(variant), seed))
      futures[variant, seed] = pool.submit(run, variant, seed, start)
    for future in futures.values():
      future.result()


@one_line_errors()
def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("study", type=pathlib.Path)
  parser.add_argument(
    "--workdir", type=pathlib.Path, help="directory of the runs; without it, nothing is trained"
  )
  parser.add_argument("--seeds", type=int, nargs="*", help="seeds to train; default: all")
  parser.add_argument("--variants", nargs="*", help="variants to train; default: all")
  parser.add_argument(
    "--places", nargs="*", default=[], help="field=path: where the files that runs read are"
  )
  parser.add_argument("--workers", type=int, default=1, help="runs at a time; they share the cores")
  args = parser.parse_args()
  study = read_study(args.study)
  records = Records(study)
  if args.workdir:
    variants = args.variants or study.variants
    jobs = [(name, seed) for name in variants for seed in args.seeds or study.seeds]
    run_all(study, records, jobs, args)
  effects.write_page(study, records)
