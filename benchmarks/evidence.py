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
import base64
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time
import tomllib
from typing import Any

import numpy as np
from jaxtyping import Bool
from matplotlib.figure import Figure
from scipy import stats

from u2s_jax.errors import UserError
from u2s_jax.evaluation import scores as scores_lib
from u2s_jax.workdir import Workdir, read_npz, whole_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "evidence"
ONE_PASS, MERGED = "one-pass", "merged"
RESAMPLES = 2000
PREPARING = threading.Lock()  # held until a run has its data set: one process prepares it for all
SIMILAR = ("one_pass", "universal", "specific")  # kinds of features, Fig. 4


@dataclasses.dataclass(frozen=True)
class Study:
  """A study file.

  Attributes:
    name: of its files.
    config: file of the config.
    seeds: of the runs; each gives every variant once.
    overrides: of the config's fields, by dotted name, for all runs. '{workdir}' and '{seed}' in
      them stand for the study's folder and the run's seed.
    variants: further overrides by the variant's name. Beside them `from` names the variant whose
      stage 1 it goes on from, '' for none; without, the study's first.
    comparisons: what is compared: `name`, `of` and `over`, each 'variant/prediction', `measure`
      ('top1' or 'top5') and, where the paper has it, `paper`, its effect in points.
  """

  name: str
  config: str
  seeds: tuple[int, ...]
  overrides: dict[str, Any]
  variants: dict[str, dict[str, Any]]
  comparisons: list[dict[str, Any]]

  def fields(self, variant: str) -> dict[str, Any]:
    """Returns what a variant overrides."""
    own = {name: value for name, value in self.variants[variant].items() if name != "from"}
    return self.overrides | own

  def start(self, variant: str) -> str:
    """Returns the variant whose stage 1 a variant goes on from, '' where it trains its own."""
    first = next(iter(self.variants))
    return self.variants[variant].get("from", "" if variant == first else first)


def read_study(path: pathlib.Path) -> Study:
  """Reads a study file."""
  content = tomllib.loads(path.read_text())
  content["seeds"] = tuple(content["seeds"])
  return Study(name=path.stem, **content)


# Runs.


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


def packed(bits: Bool[np.ndarray, " n"]) -> str:
  """Returns bits as text; `unpacked` reads it."""
  return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpacked(text: str, count: int) -> Bool[np.ndarray, " n"]:
  """Returns the bits that `packed` was given."""
  return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


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

  from u2s_jax import settings, state
  from u2s_jax.training import steps

  config = settings.config_of_run(run)
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


class Records:
  """The records of a study's runs, one line of JSON each, by variant and seed.

  Args:
    study: whose they are.

  Raises:
    UserError: a record of a run with other overrides.
  """

  def __init__(self, study: Study):
    self.path = DOCS / f"{study.name}.jsonl"
    self._lock = threading.Lock()
    lines = self.path.read_text().splitlines() if self.path.exists() else []
    self._by_run = {}
    for line in map(json.loads, lines):
      variant = line["variant"]
      if variant in study.variants and line["overrides"] != study.fields(variant):
        raise UserError(
          f"{self.path}: {variant} ran with other overrides; rename the variant or delete its lines"
        )
      self._by_run[variant, line["seed"]] = line

  def get(self, variant: str, seed: int) -> dict[str, Any] | None:
    """Returns the record of a run, None where it has not come to its end."""
    return self._by_run.get((variant, seed))

  def add(self, entry: dict[str, Any]) -> None:
    """Adds a record, and writes all."""
    with self._lock:
      self._by_run[entry["variant"], entry["seed"]] = entry
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with whole_file(self.path) as file:
        for key in sorted(self._by_run):
          file.write(json.dumps(self._by_run[key]) + "\n")


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
    accuracy = 100 * unpacked(entry["top1"][MERGED], entry["clips"]).mean()
    print(f"{variant:24} seed {seed:3} {accuracy:6.2f} % {entry['minutes']:6.1f} min", flush=True)

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


# Tables.


def interval(differences: list[np.ndarray]) -> tuple[float, float, float]:
  """Returns a mean in percent with its 95 % interval, by bootstrap over clips and seeds.

  Args:
    differences: for each seed the difference of what is compared, clip by clip; of clips that are
      the same for all seeds, or, as folds have them, of others for each.
  """
  if len({len(d) for d in differences}) > 1 or len(differences) == 1:
    pooled = np.concatenate(differences)
    resample = (np.arange(len(pooled)),)
    statistic = lambda clips: pooled[clips].mean()  # noqa: E731
  else:
    table = np.stack(differences)
    resample = tuple(map(np.arange, table.shape))
    statistic = lambda seeds, clips: table[np.ix_(seeds, clips)].mean()  # noqa: E731
  mean = float(np.mean(np.concatenate(differences)))
  if not np.any(np.concatenate(differences)):
    return 0.0, 0.0, 0.0
  found = stats.bootstrap(
    resample, statistic, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=0
  ).confidence_interval
  return 100 * mean, 100 * float(found.low), 100 * float(found.high)


def verdict(low: float, high: float, paper: float | None) -> str:
  """Says what an interval means for the paper's effect.

  'reproduced': all of it on the paper's side of 0; 'not reproduced': all on the other side, or it
  holds 0 and not the paper's effect; 'undecided': it holds both.
  """
  if paper is None:
    return "positive" if low > 0 else "negative" if high < 0 else "undecided"
  if (low > 0 and paper > 0) or (high < 0 and paper < 0):
    return "reproduced"
  return "undecided" if low <= 0 <= high and low <= paper <= high else "not reproduced"


def effects(study: Study, records: Records) -> list[dict[str, Any]]:
  """Returns for each comparison its effect, interval, seeds and verdict; without runs, no row."""
  rows = []
  for comparison in study.comparisons:
    measure = comparison.get("measure", "top1")
    sides = [comparison[key].split("/", 1) for key in ("of", "over")]
    differences = []
    for seed in study.seeds:
      pair = [records.get(variant, seed) for variant, _ in sides]
      if None in pair:
        continue
      if pair[0]["digest"] != pair[1]["digest"]:
        raise UserError(f"{records.path}: seed {seed}: the variants saw other clips")
      one, other = (
        unpacked(entry[measure][prediction], entry["clips"]).astype(float)
        for entry, (_, prediction) in zip(pair, sides, strict=True)
      )
      differences.append(one - other)
    if not differences:
      continue
    mean, low, high = interval(differences)
    paper = comparison.get("paper")
    rows.append(
      {
        "name": comparison["name"],
        "measure": measure,
        "paper": paper,
        "seeds": len(differences),
        "mean": mean,
        "low": low,
        "high": high,
        "verdict": verdict(low, high, paper),
      }
    )
  return rows


def accuracies(study: Study, records: Records, measure: str) -> list[dict[str, Any]]:
  """Returns for each variant that ran the mean accuracy of each prediction over the seeds."""
  rows = []
  for variant in study.variants:
    runs = [run for seed in study.seeds if (run := records.get(variant, seed))]
    if not runs:
      continue
    names = (ONE_PASS, "universal", "bridge", "specific", MERGED)
    values = {
      name: [100 * unpacked(run[measure][name], run["clips"]).mean() for run in runs]
      for name in names
      if name in runs[0][measure]
    }
    rows.append(
      {
        "variant": variant,
        "seeds": len(runs),
        **{name: float(np.mean(v)) for name, v in values.items()},
        "deviation": float(np.std(values[MERGED], ddof=1)) if len(runs) > 1 else None,
        "parameters": runs[0]["parameters"],
        "flops": runs[0]["flops"],
        "minutes": sum(run["minutes"] for run in runs),
      }
    )
  return rows


def similarities(study: Study, records: Records) -> list[str]:
  """Returns lines of a table: mean similarity of two classes' features, for runs that have it."""
  lines = []
  for variant in study.variants:
    runs = [run for seed in study.seeds if (run := records.get(variant, seed))]
    for run in runs:
      if means := run["similarity"]:
        cells = " | ".join(f"{means[kind]:.4f}" for kind in SIMILAR if kind in means)
        lines.append(f"| {variant}, seed {run['seed']} | {cells} |")
  return lines


def page(study: Study, records: Records, compared: list[dict[str, Any]]) -> str:
  """Returns the tables of a study as Markdown; `compared` is of `effects`."""
  lines = [
    f"# {study.name}",
    "",
    f"By `python -m benchmarks.evidence benchmarks/studies/{study.name}.toml`, which writes this"
    " page anew; with `--workdir` it trains what has no record yet. Top-1 in percent, means over"
    " seeds; stage 1 is shared by the variants of a seed.",
    "",
    "| variant | seeds | one-pass | universal | bridge | specific | merged (deviation) |"
    " parameters | training | minutes |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in accuracies(study, records, "top1"):
    cells = [f"{row[k]:.1f}" if k in row else "" for k in (ONE_PASS, "universal", "bridge")]
    cells.append(f"{row['specific']:.1f}" if "specific" in row else "")
    deviation = "" if row["deviation"] is None else f" ({row['deviation']:.1f})"
    lines.append(
      f"| {row['variant']} | {row['seeds']} | {' | '.join(cells)} | {row[MERGED]:.1f}{deviation} |"
      f" {row['parameters'] / 1e6:.2f} M | {row['flops'] / 1e12:.1f} TFLOP | {row['minutes']:.0f} |"
    )
  lines += [
    "",
    "Differences in points, the 95 % interval by bootstrap over clips and seeds beside.",
    "",
    "| | seeds | paper | here | interval | |",
    "|---|---|---|---|---|---|",
  ]
  for row in compared:
    paper = "" if row["paper"] is None else f"{row['paper']:+.2f}"
    top5 = ", top-5" if row["measure"] == "top5" else ""
    lines.append(
      f"| {row['name']}{top5} | {row['seeds']} | {paper} | {row['mean']:+.1f} |"
      f" {row['low']:+.1f} to {row['high']:+.1f} | {row['verdict']} |"
    )
  if known := similarities(study, records):
    lines += [
      "",
      "Mean similarity (Eq. 2) of two classes' features, as in Fig. 4.",
      "",
      f"| | {' | '.join(SIMILAR)} |",
      "|---|---|---|---|",
      *known,
    ]
  return "\n".join(lines) + "\n"


def draw(compared: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Draws what `effects` returned with their intervals, and the paper's where it has them."""
  rows = compared[::-1]
  figure = Figure(figsize=(8, 0.8 + 0.32 * len(rows)), layout="constrained")
  axes = figure.subplots()
  for y, row in enumerate(rows):
    axes.plot([row["low"], row["high"]], [y, y], color="C0", linewidth=2)
    axes.plot(row["mean"], y, "o", color="C0")
    if row["paper"] is not None:
      axes.plot(row["paper"], y, "x", color="C1")
  axes.axvline(0, color="grey", linewidth=0.8)
  axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
  axes.set_xlabel("points (cross: the paper's, on its data)")
  figure.savefig(path)


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
    write_page(study, records)
  except UserError as error:
    sys.exit(str(error))


def write_page(study: Study, records: Records) -> None:
  """Writes a study's page and figure, and prints the page."""
  compared = effects(study, records)
  text = page(study, records, compared)
  with whole_file(DOCS / f"{study.name}.md") as file:
    file.write(text)
  draw(compared, DOCS / f"{study.name}.svg")
  print(text)


if __name__ == "__main__":
  main()
