"""Evaluates the records of a study: effects with intervals, tables, a page and a figure."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.evidence import study as study_lib
from benchmarks.evidence.study import (
  MERGED,
  ONE_PASS,
  SIMILAR,
  Records,
  Study,
  compute_accuracy,
  read_study,
  unpack_bits,
)
from u2s_jax.report import figures
from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.files import atomic_open

RESAMPLES = 2000
# On a study's page, the text above this line is written by hand and stays.
GENERATED = "<!-- generated from here on: edit the text above -->"
CLAIMED_ON = ("rendered", "ablations", "letters", "cars", "fights")  # studies of the paper's claims
# Top-1 in percent on Something-Something V2, the paper's Table I.
PAPER_FUSIONS = {
  "universal": 57.67,
  "bridge": 57.58,
  "specific": 55.95,
  "universal+bridge": 57.87,
  "bridge+specific": 58.33,
  "universal+specific": 58.17,
  "universal+bridge+specific": 58.47,
}


def bootstrap_interval(
  differences: list[np.ndarray], same_clips: bool = True
) -> tuple[float, float, float]:
  """Returns a mean in percent with its 95 % interval, by bootstrap over seeds and clips.

  With one seed, the bootstrap is over its clips only. Folds do not have the same clips: clips are
  then resampled within every resampled fold.
  """
  seeds, mean = len(differences), np.concatenate(differences).mean()
  if not np.any(np.concatenate(differences)):
    return 0.0, 0.0, 0.0
  if same_clips and seeds > 1:
    table = np.stack(differences)
    means = stats.bootstrap(
      tuple(map(np.arange, table.shape)),
      lambda seeds, clips: table[np.ix_(seeds, clips)].mean(),
      n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=0,
    ).bootstrap_distribution  # fmt: skip
  else:
    rng = np.random.default_rng(0)
    drawn = [
      [differences[k] for k in folds] for folds in rng.integers(seeds, size=(RESAMPLES, seeds))
    ]
    means = [np.concatenate([rng.choice(d, len(d)) for d in folds]).mean() for folds in drawn]
  low, high = np.percentile(means, (2.5, 97.5))
  return 100 * float(mean), 100 * float(low), 100 * float(high)


def judge_interval(low: float, high: float, paper: float | None) -> str:
  """Returns what an interval says about the paper's effect.

  'reproduced': it is on the paper's side of 0. 'not reproduced': it is on the other side, or
  contains 0 but not the paper's effect. 'undecided': it contains both, or no clip differs. Without
  an effect in the paper: 'positive', 'negative' or 'undecided'.
  """
  if low == high == 0:
    return "undecided"
  if paper is None:
    return "positive" if low > 0 else "negative" if high < 0 else "undecided"
  if (low > 0 and paper > 0) or (high < 0 and paper < 0):
    return "reproduced"
  return "undecided" if low <= 0 <= high and low <= paper <= high else "not reproduced"


def compare(study: Study, records: Records) -> list[dict[str, Any]]:
  """Returns effect, interval, seeds and verdict of each comparison that has runs.

  Raises:
    UserError: the compared variants of a seed have different clips.
  """
  rows = []
  defaults = {"measure": "top1", "series": None, "dose": None, "paper": None}
  for comparison in study.comparisons:
    comparison = defaults | comparison
    sides = [comparison[key].split("/", 1) for key in ("of", "over")]
    differences, digests = [], set()
    for seed in study.seeds:
      pair = [records.get(variant, seed) for variant, _ in sides]
      if None in pair:
        continue
      if pair[0]["digest"] != pair[1]["digest"]:
        names = " and ".join(variant for variant, _ in sides)
        raise UserError(
          f"{records.path}: seed {seed}: clips of {names} differ; delete the lines of one and train"
          " it again"
        )
      digests.add(pair[0]["digest"])
      one, other = (
        unpack_bits(entry[comparison["measure"]][prediction], entry["clips"]).astype(float)
        for entry, (_, prediction) in zip(pair, sides, strict=True)
      )
      differences.append(one - other)
    if not differences:
      continue
    mean, low, high = bootstrap_interval(differences, same_clips=len(digests) == 1)
    rows.append(
      comparison
      | {
        "seeds": len(differences),
        "unit": "seeds" if len(digests) == 1 else "folds",
        "mean": mean,
        "low": low,
        "high": high,
        "verdict": judge_interval(low, high, comparison["paper"]),
      }
    )
  return rows


def format_accuracies(runs: list[dict[str, Any]]) -> str:
  """Returns a variant's line of the table: means over its runs, weighted by their clips."""
  names = (ONE_PASS, "universal", "bridge", "specific", MERGED)
  values = {
    name: [compute_accuracy(run, name) for run in runs] if name in runs[0]["top1"] else []
    for name in names
  }
  clips = [run["clips"] for run in runs]
  cells = [f"{np.average(v, weights=clips):.1f}" if v else "" for v in values.values()]
  if len(runs) > 1:
    cells[-1] += f" ({np.std(values[MERGED], ddof=1):.1f})"
  minutes = sum(run["minutes"] for run in runs)
  return (
    f"| {runs[0]['variant']} | {len(runs)} | {' | '.join(cells)} |"
    f" {runs[0]['parameters'] / 1e6:.2f} M | {runs[0]['flops'] / 1e12:.1f} TFLOP | {minutes:.0f} |"
  )


def format_similarities(study: Study, records: Records) -> list[str]:
  """Returns lines of a table: the mean similarity of two classes' features, if it is known."""
  lines = []
  for variant in study.variants:
    for run in records.list_runs(variant, study.seeds):
      if means := run["similarity"]:
        cells = " | ".join(f"{means[kind]:.4f}" for kind in SIMILAR if kind in means)
        lines.append(f"| {variant}, seed {run['seed']} | {cells} |")
  return lines


def format_fusions(study: Study, records: Records) -> list[str]:
  """Returns lines that compare the study's first variant with the paper's Table I."""
  variant = next(iter(study.variants))
  runs = records.list_runs(variant, study.seeds)
  if not runs or not PAPER_FUSIONS.keys() <= runs[0]["top1"].keys():
    return []
  means = {name: np.mean([compute_accuracy(run, name) for run in runs]) for name in PAPER_FUSIONS}
  lines = [f"| {name} | {PAPER_FUSIONS[name]:.2f} | {means[name]:.2f} |" for name in means]
  order = stats.spearmanr(list(PAPER_FUSIONS.values()), list(means.values())).statistic
  return [
    f"Fusions of {variant} (Table I), top-1; rank correlation with the paper's {order:.2f}.",
    "",
    "| | paper | here |",
    "|---|---|---|",
    *lines,
  ]


def format_page(study: Study, records: Records, compared: list[dict[str, Any]]) -> str:
  """Returns the generated part of a study's page; `compared` is the result of `compare`."""
  _, *own = [variant for variant in study.variants if not study.start(variant)]
  but = f", except {', '.join(own)}, each with its own" if own else ""
  lines = [
    GENERATED,
    "",
    "## All results",
    "",
    f"`python -m benchmarks.evidence benchmarks/studies/{study.name}.toml` writes the tables again;"
    " with `--workdir` it also trains runs that have no record. Top-1 in percent, means over seeds,"
    f" of folds over their clips; stage 1 is shared by the variants of a seed{but}. Minutes: of all"
    " seeds; of an interrupted run, since it was resumed.",
    "",
    "| variant | seeds | one-pass | universal | bridge | specific | merged (deviation) |"
    " parameters | training | minutes |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  by_variant = [records.list_runs(variant, study.seeds) for variant in study.variants]
  lines += [format_accuracies(runs) for runs in by_variant if runs]
  lines += [
    "",
    "Differences in points with the 95 % interval by bootstrap over seeds, or folds, and clips; of"
    " a single seed, over its clips only.",
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
  lines += ["", f"![The differences and their intervals]({study.name}.svg)"]
  if known := format_fusions(study, records):
    lines += ["", *known]
  if known := format_similarities(study, records):
    lines += [
      "",
      "Mean similarity (Eq. 2) of two classes' features, as in Fig. 4.",
      "",
      f"| | {' | '.join(SIMILAR)} |",
      "|---|---|---|---|",
      *known,
    ]
  return "\n".join(lines) + "\n"


def format_claims(study: Study, found: dict[str, list[dict[str, Any]]]) -> str:
  """Returns the paper's claims as Markdown, with the verdict of each study.

  The claims are the comparisons of `study`; `found` has the results of `compare` by study.
  """
  by_name = [{row["name"]: row for row in rows} for rows in found.values()]
  lines = [
    "# The paper's claims",
    "",
    "By `python -m benchmarks.evidence benchmarks/studies/<column>.toml`. Effects in points, top-1,"
    " with 95 % intervals; the paper's are of Something-Something V2. *Reproduced*: the interval"
    " is on the paper's side of 0, though the size may differ; *not reproduced*: it contains 0 but"
    " not the paper's effect, or is on the other side; *undecided*: it contains both. Where the"
    " paper has no such row: positive, negative or undecided. All variants train at one learning"
    " rate, except in the rows that say otherwise.",
    "",
    f"| | paper | {' | '.join(found)} |",
    f"|---|---|{'---|' * len(found)}",
  ]
  for comparison in study.comparisons:
    name, paper = comparison["name"], comparison.get("paper")
    cells = []
    for rows in by_name:
      row = rows.get(name)
      text = row and f"{row['mean']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"
      cells.append(f"{text}: {row['verdict']}, {row['seeds']} {row['unit']}" if row else "not run")
    if set(cells) != {"not run"} or paper is not None:
      lines.append(f"| {name} | {'' if paper is None else f'{paper:+.2f}'} | {' | '.join(cells)} |")
  return "\n".join(lines) + "\n"


def draw(compared: list[dict[str, Any]], path: pathlib.Path) -> None:
  """Draws effects with their intervals, and the paper's effects.

  If all comparisons have a dose, the figure has one curve over the dose per series.
  """
  if compared and all(row["dose"] is not None for row in compared):
    figure = draw_doses(compared, path.stem)
  else:
    figure = draw_rows(compared)
  path.write_text(figures.render_svg(figure, path.name, transparent=False), encoding="utf-8")


def draw_rows(compared: list[dict[str, Any]]) -> Figure:
  """Returns a figure with one row per effect."""
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
  return figure


def draw_doses(compared: list[dict[str, Any]], name: str) -> Figure:
  """Returns a figure of effects over the dose, one curve per series."""
  figure = Figure(figsize=(7, 4), layout="constrained")
  axes = figure.subplots()
  last = max(row["dose"] for row in compared)
  for i, series in enumerate(dict.fromkeys(row["series"] for row in compared)):
    rows = sorted((r for r in compared if r["series"] == series), key=lambda r: r["dose"])
    means = np.array([row["mean"] for row in rows])
    errors = [means - [row["low"] for row in rows], [row["high"] for row in rows] - means]
    doses = [row["dose"] + 0.01 * last * i for row in rows]  # shifted, so that none hides another
    axes.errorbar(doses, means, np.abs(errors), marker="o", label=series)
  axes.axhline(0, color="grey", linewidth=0.8)
  axes.set_xlabel(f"dose of {name}")
  axes.set_ylabel("points gained")
  figure.legend(loc="outside upper center", ncols=2)
  return figure


def write_page(study: Study, records: Records) -> None:
  """Writes a study's page and figure, and the claims if it has some; prints the tables."""
  compared = compare(study, records)
  text = format_page(study, records, compared)
  path = study_lib.DOCS / f"{study.name}.md"
  notes = path.read_text().partition(GENERATED)[0] if path.exists() else f"# {study.name}\n\n"
  with atomic_open(path) as file:
    file.write(notes + text)
  draw(compared, study_lib.DOCS / f"{study.name}.svg")
  if study.name in CLAIMED_ON:
    studies = {name: read_study(study_lib.STUDIES / f"{name}.toml") for name in CLAIMED_ON}
    found = {name: compare(other, Records(other)) for name, other in studies.items()}
    with atomic_open(study_lib.DOCS / "claims.md") as file:
      file.write(format_claims(studies[CLAIMED_ON[0]], found))
  print(text)
