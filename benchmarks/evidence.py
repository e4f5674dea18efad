"""A study: variants of a config over seeds, paired with controls that train as long.

  python -m benchmarks.evidence benchmarks/studies/rendered.toml --workdir=/runs/evidence
  python -m benchmarks.evidence benchmarks/studies/rendered.toml  # the tables again, no training

A study file (TOML) names the config, the `[overrides]` of all runs, the seeds, the `[variants]` as
overrides of their own, and the comparisons. The first variant trains stage 1, once a seed; the
others go on from its end, but for those that name another. What a run got right, clip by clip, is
kept in `docs/evidence/<study>.jsonl`: started again, the study goes on, and its tables can be made
anew without training. Intervals are of a bootstrap over clips and seeds.
"""

import argparse
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

from benchmarks import effects
from benchmarks.study import (
  MERGED,
  ONE_PASS,
  ROOT,
  SIMILAR,
  Records,
  Study,
  accuracy,
  packed,
  read_study,
)
from u2s_jax.errors import UserError
from u2s_jax.evaluation import scores as scores_lib
from u2s_jax.workdir import Workdir, read_npz

PREPARING = threading.Lock()  # held until a run has its data set: one process prepares it for all


def train(
  study: Study, variant: str, seed: int, workdir: pathlib.Path, places: list[str]
) -> dict[str, Any]:
  """Trains one variant to its end, in a process of its own; returns its record.

  Args:
    study: the study.
    variant: one of its.
    seed: one of its.
    workdir: folder of its runs.
    places: 'field=path', where this machine has what the config reads.
  """
  folder, start = workdir / f"{variant}_{seed}", study.start(variant)
  fields = study.fields(variant) | {"seed": seed}
  if start:
    path = workdir / f"{start}_{seed}" / "checkpoints" / "universal"
    fields |= {"universal.epochs": 0.0, "init_from": str(path)}
  arguments = [f"--config={study.config}", f"--workdir={folder}"]
  for place in places:
    if place.split("=")[0] not in fields:
      arguments.append(f"--config.{place.format(workdir=workdir, seed=seed)}")
  for name, value in fields.items():
    if isinstance(value, list):
      value = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if isinstance(value, str):
      value = value.format(workdir=workdir, seed=seed)
    arguments.append(f"--config.{name}={value}")
  environment = {"JAX_COMPILATION_CACHE_DIR": str(workdir / "compiled"), **os.environ}
  begin = time.monotonic()
  folder.parent.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "main.py", *arguments]
  with open(folder.with_suffix(".log"), "a") as log:
    with PREPARING:
      process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
      while process.poll() is None and not Workdir(folder).config.exists():
        time.sleep(0.5)
    if process.wait():
      raise UserError(f"{log.name}: the run failed, see its end")
  return record(Workdir(folder)) | {
    "variant": variant,
    "seed": seed,
    "overrides": study.fields(variant),
    "minutes": round((time.monotonic() - begin) / 60, 2),
  }


def record(run: Workdir) -> dict[str, Any]:
  """Returns what is kept of a finished run: its size, and which clips it got right."""
  final = scores_lib.read(run.scores("validation"))
  one_pass = scores_lib.read(run.one_pass_scores("validation"))
  order = np.argsort(final.ids)
  clips = "".join(f"{final.ids[k]} {final.labels[k]}\n" for k in order)
  hits = {ONE_PASS: one_pass.predictions["universal"]} | scores_lib.fused(final)
  hits[MERGED] = final.merged
  summary = json.loads(run.summary.read_text())
  return {
    "parameters": summary["parameters"]["u2s"],
    "flops": training_flops(run, len(final.class_names)),
    "clips": len(order),
    "digest": hashlib.sha256(clips.encode()).hexdigest()[:16],
    "similarity": mean_similarities(run),
    "top1": {name: packed(right(s, final.labels, 1)[order]) for name, s in hits.items()},
    "top5": {
      name: packed(right(hits[name], final.labels, 5)[order]) for name in (ONE_PASS, MERGED)
    },
  }


def right(scores: np.ndarray, labels: np.ndarray, k: int) -> Bool[np.ndarray, " n"]:
  """Tells for each clip whether its label is among the k highest scores."""
  return np.any(np.argsort(-scores, axis=1, kind="stable")[:, :k] == labels[:, None], axis=1)


def mean_similarities(run: Workdir) -> dict[str, float]:
  """Returns the mean similarity of two classes' features (Eq. 2) by kind of features, Fig. 4."""
  path = run.analysis("validation")
  if not path.exists():
    return {}
  from u2s_jax import csm

  arrays, means = read_npz(path), {}
  for name in SIMILAR:
    if f"sparsity_{name}" in arrays:
      similarity = csm.similarity_matrix(arrays[f"sparsity_{name}"])
      means[name] = float(similarity[~np.eye(len(similarity), dtype=bool)].mean())
  return means


def training_flops(run: Workdir, num_classes: int) -> float:
  """Returns the FLOPs of a run's training, stage 1 included, by XLA's cost analysis."""
  import jax
  import jax.numpy as jnp

  from u2s_jax import saved_config, settings, state
  from u2s_jax.training import steps

  config = saved_config.read(run)
  network, stages = settings.build_network(config, num_classes), settings.schedule(config)
  data, tx = config.data, state.sgd(0.9, 0.0)
  shape = (1, data.num_frames, data.crop_size, data.crop_size, settings.input_channels(config))
  batch = {
    "video": jax.ShapeDtypeStruct(shape, jnp.uint8),
    "label": jax.ShapeDtypeStruct((1,), jnp.int32),
    "valid": jax.ShapeDtypeStruct((1,), jnp.bool_),
  }
  neighbours = jax.ShapeDtypeStruct((num_classes, 1), jnp.int32)
  start = Workdir.holding(pathlib.Path(config.init_from)) if config.init_from else run
  total = 0.0
  for stage, first in zip(stages, state.chain(network.model, stages, tx, shape), strict=True):
    step = steps.make_train_step(network, stage, tx, regularizer_weight=0.5)
    cost = jax.jit(step).lower(first, batch, 1e-3, neighbours).cost_analysis()["flops"]
    trained = run if stage.epochs else start  # stage 1 of another run
    total += cost * config.batch_size * last_step(trained, stage.name)
  return total


def last_step(run: Workdir, stage: str) -> int:
  """Returns the number of a stage's steps, by its last checkpoint."""
  return max(int(path.name) for path in (run.checkpoints / stage).glob("[0-9]*"))


def run_all(study: Study, records: Records, jobs: list[tuple[str, int]], known) -> None:
  """Trains what has no record yet, several runs at a time, each on its share of the cores.

  Args:
    study: the study.
    records: takes those of the runs.
    jobs: variants and seeds.
    known: the command line.
  """
  workdir = known.workdir.absolute()
  cores, shares = sorted(os.sched_getaffinity(0)), queue.SimpleQueue()
  for k in range(known.workers):
    shares.put(cores[k :: known.workers])

  def run(variant: str, seed: int, start: concurrent.futures.Future | None) -> None:
    if start is not None:
      start.result()
    share = shares.get()
    try:
      os.sched_setaffinity(0, share)  # of this thread, and of the process that it starts
      entry = train(study, variant, seed, workdir, known.places)
    finally:
      shares.put(share)
    before = records.get(variant, seed)
    if before and before["top1"][ONE_PASS] != entry["top1"][ONE_PASS]:
      raise UserError(f"{records.path}: seed {seed}: stage 1 came out otherwise; delete its lines")
    records.add(entry)
    percent = accuracy(entry, MERGED)
    print(f"{variant:24} seed {seed:3} {percent:6.2f} % {entry['minutes']:6.1f} min", flush=True)

  futures = {}
  with concurrent.futures.ThreadPoolExecutor(known.workers) as pool:
    missing = {job for job in jobs if not records.get(*job)}
    # Another machine has no stage 1 to go on from.
    starts = {(study.start(variant), seed) for variant, seed in missing if study.start(variant)}
    missing |= {
      (name, k) for name, k in starts if not (workdir / f"{name}_{k}" / "scores").exists()
    }
    # All of stage 1 first, so that no worker waits long for another.
    names = sorted(study.variants, key=lambda name: study.start(name) != "")
    for variant, seed in sorted(missing, key=lambda job: (names.index(job[0]), job[1])):
      start = futures.get((study.start(variant), seed))
      futures[variant, seed] = pool.submit(run, variant, seed, start)
    for future in futures.values():
      future.result()


def main() -> None:
  """Reads the command line, trains what is missing, and writes tables and figure."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("study", type=pathlib.Path)
  parser.add_argument("--workdir", type=pathlib.Path, help="folder of the runs; without, none")
  parser.add_argument("--seeds", type=int, nargs="*", help="of the study's, to train now")
  parser.add_argument("--variants", nargs="*", help="of the study's, to train now")
  parser.add_argument(
    "--places", nargs="*", default=[], help="field=path, where this machine has what runs read"
  )
  parser.add_argument("--workers", type=int, default=1, help="runs at a time, that share the cores")
  known = parser.parse_args()
  try:
    study = read_study(known.study)
    records = Records(study)
    if known.workdir:
      variants = known.variants or study.variants
      jobs = [(name, seed) for name in variants for seed in known.seeds or study.seeds]
      run_all(study, records, jobs, known)
    effects.write_page(study, records)
  except UserError as error:
    sys.exit(str(error))


if __name__ == "__main__":
  main()
