"""What is said of a run from its scores alone: rows, tables for a terminal, the summary."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, Num

from u2s_jax import metrics
from u2s_jax.csm import CategorySimilarity
from u2s_jax.errors import printable_line
from u2s_jax.evaluation.scores import FUSIONS, Scores, fusions

MAX_TABLE, EXTREMES = 30, 10  # classes that a table shows; beyond that, at each end of the gains
NAME_WIDTH = 40  # letters of a class name in a table

UPPER_BOUND = "upper bounds, no results: the labels select the masks (csm.guide='label')"
PREDICTION_GUIDED = "prediction_guided"  # in a summary: accuracies without a label's help

Row = dict[str, Any]


def summarize(
  one_pass: Scores, final: Scores, csm: CategorySimilarity, parameters: Mapping[str, int]
) -> dict[str, Any]:
  """Returns what `summary.json` holds, but for the config's name; accuracies in percent.

  Args:
    one_pass: scores of the model after stage 1.
    final: scores of the model at the end.
    csm: at the end, NumPy arrays.
    parameters: number of parameters by subnetwork.
  """
  return {
    "one_pass": metrics.summarize(one_pass.predictions["universal"], one_pass.labels),
    "predictions": fusions(final),
    "csm": {
      "alpha": float(csm.alpha),
      "n": int(csm.n),
      "average_confusing": average_confusing(csm.matrix),
    },
    "parameters": {
      "one_pass": parameters["trunk"] + parameters["universal"],
      "u2s": sum(parameters.values()),
    },
  }


def merged(summary: dict[str, Any]) -> dict[str, float]:
  """Returns the accuracies of all predictions together, the last that `summarize` names."""
  return last(summary["predictions"])


def is_upper_bound(config: Mapping[str, Any]) -> bool:
  """Tells whether labels select the masks in a run's evaluation (Table III f)."""
  return config["csm"]["guide"] == "label" and not config["control"]


def prediction_guided(summary: Mapping[str, Any]) -> dict[str, float] | None:
  """Returns `merged` with the masks of the predicted classes, where labels select the run's own.

  Args:
    summary: of a run that is an upper bound, or what it says of the best checkpoint.

  Returns:
    None where they were not evaluated, as by earlier versions.
  """
  guided = summary.get(PREDICTION_GUIDED)
  return guided and last(guided)


def last(fusions: Mapping[str, dict[str, float]]) -> dict[str, float]:
  """Returns the accuracies of all predictions together, of `scores.fusions`."""
  return list(fusions.values())[-1]


def average_confusing(matrix: Num[np.ndarray, "m m"]) -> float:
  """Returns how many other classes a class is confused with on average, by the binary CSM."""
  return float((matrix.sum() - len(matrix)) / len(matrix))


def confusion(scores: Scores) -> Integer[np.ndarray, "m m"]:
  """Counts the clips of a class (row) that the merged prediction takes for a class (column)."""
  counts = np.zeros((len(scores.class_names),) * 2, int)
  np.add.at(counts, (scores.labels, scores.merged.argmax(1)), 1)
  return counts


def confident_mistakes(scores: Scores, count: int) -> Integer[np.ndarray, " k"]:
  """Returns the rows of the clips that the merged prediction gets wrong, the most confident first.

  Where a label is wrong, the prediction leads the label's class by the most.

  Args:
    scores: with a label for every clip.
    count: how many at most.
  """
  merged, rows = scores.merged, np.arange(len(scores.labels))
  lead = merged.max(1) - merged[rows, scores.labels]
  order = np.argsort(-lead, kind="stable")
  return order[lead[order] > 0][:count]


def per_class(one_pass: Scores, final: Scores, csm: Num[np.ndarray, "m m"]) -> list[Row]:
  """Returns how well each class is recognised, a row for each.

  Args:
    one_pass: scores of the model after stage 1.
    final: scores of the model at the end, of the same clips.
    csm: the 1s of column i are what class i is confused with.

  Returns:
    For each class `class` (its name), `clips`, top-1 in percent of `one_pass`, of each prediction
    and of `merged`, their difference `gain`, `confused_with` ('name (clips)' of the class that
    the merged prediction most often takes it for) and `csm` (names of its confusing classes,
    joined by ' | '). Accuracies are None for a class without a clip.
  """
  names = final.class_names
  columns = {"one_pass": one_pass.predictions["universal"], **final.predictions}
  columns["merged"] = final.merged
  accuracies = {
    name: metrics.per_class_accuracy(values, final.labels)[0] for name, values in columns.items()
  }
  counts, rows = confusion(final), []
  for i, name in enumerate(names):
    clips = int(counts[i].sum())
    row = {"class": str(name), "clips": clips}
    row |= {key: 100 * float(values[i]) if clips else None for key, values in accuracies.items()}
    row["gain"] = row["merged"] - row["one_pass"] if clips else None
    wrong = np.where(np.arange(len(names)) == i, 0, counts[i])
    other = wrong.argmax()
    row["confused_with"] = f"{names[other]} ({wrong[other]})" if wrong[other] else ""
    row["csm"] = " | ".join(str(names[j]) for j in np.flatnonzero(csm[:, i]) if j != i)
    rows.append(row)
  return rows


def printable(row: Row) -> Row:
  """Returns a row of `per_class` with its accuracies cut to two digits, for a CSV file."""
  return {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in row.items()}


def per_class_table(rows: list[Row]) -> str:
  """Returns the rows of `per_class` as text for a terminal.

  Up to 30 classes are all shown; of more the 10 that gain most and the 10 that lose most, from the
  largest gain to the largest loss.
  """
  if len(rows) > MAX_TABLE:
    moved = sorted((row for row in rows if row["gain"]), key=lambda row: -row["gain"])
    gains = [row for row in moved if row["gain"] > 0]
    rows = gains[:EXTREMES] + moved[len(gains) :][-EXTREMES:]
  header = ["Class", "Clips", "One-pass (%)", "Merged (%)", "Gain", "Most confused with"]
  cells = []
  for row in rows:
    other, _, count = row["confused_with"].rpartition(" ")
    cells.append(
      [
        _cut(row["class"]),
        str(row["clips"]),
        *(f"{row[key]:.2f}" if row["clips"] else "-" for key in ("one_pass", "merged")),
        f"{row['gain']:+.2f}" if row["clips"] else "-",
        f"{_cut(other)} {count}".strip(),
      ]
    )
  return aligned(header, cells, [str.ljust] + [str.rjust] * 4 + [str.ljust])


def gains_table(rows: list[Row], class_names: Sequence[str]) -> str:
  """Returns Table IV of the paper as text for a terminal: one-pass, U2S and the gain.

  Args:
    rows: of `per_class`.
    class_names: of the classes to show, in this order.
  """
  by_name = {row["class"]: row for row in rows}
  cells = []
  for name in class_names:
    row = by_name[name]
    figures = [row["one_pass"], row["merged"], row["gain"]]
    forms = ("{:.2f}", "{:.2f}", "{:+.2f}")
    cells.append(
      [_cut(name)]
      + ["-" if x is None else form.format(x) for form, x in zip(forms, figures, strict=True)]
    )
  header = ["Action", "One-pass", "U2S", "Improved"]
  return aligned(header, cells, [str.ljust] + [str.rjust] * 3)


def fusions_table(
  one_pass: Mapping[str, float] | None, fused: Mapping[str, Mapping[str, float]]
) -> str:
  """Returns Table I as text for a terminal: a mark for each prediction in a fusion, and accuracies.

  Args:
    one_pass: accuracies of the one-pass model as of `metrics.summarize`; None leaves its row out.
    fused: of `scores.fusions`. Rows follow Table I; fusions that it does not have are left out.

  Returns:
    Lines of equal width, ASCII, without a newline at the end.
  """
  predictions = FUSIONS[-1]
  header = [name.capitalize() for name in predictions]
  header += ["Top-1 (%)", "Top-5 (%)", "Mean class (%)"]
  label = "One-pass".ljust(len(header[0]))
  rows = [] if one_pass is None else [[label, "", ""] + accuracy_cells(one_pass)]
  for names in FUSIONS:
    if (key := "+".join(names)) in fused:
      marks = ["x" if name in names else "" for name in predictions]
      rows.append(marks + accuracy_cells(fused[key]))
  return aligned(header, rows, [str.center] * len(predictions) + [str.rjust] * 3)


def accuracy_cells(summary: Mapping[str, float]) -> list[str]:
  """Returns top-1, top-5 and mean class accuracy of `metrics.summarize` as cells of a table."""
  return [f"{summary[name]:.2f}" for name in ("top1", "top5", "mean_class")]


def aligned(
  header: Sequence[str],
  rows: Sequence[Sequence[str]],
  align: Sequence[Callable[[str, int], str]],
) -> str:
  """Returns a table as text for a terminal.

  Args:
    header: names of the columns.
    rows: a cell for each column.
    align: `str.ljust`, `str.center` or `str.rjust` for each column.

  Returns:
    Lines of equal width: header, rule, rows; without a newline at the end.
  """
  widths = [max(map(_columns, column)) for column in zip(header, *rows, strict=True)]
  rule = ["-" * width for width in widths]
  return "\n".join(
    "  ".join(
      put(cell, width - _columns(cell) + len(cell))
      for put, cell, width in zip(align, row, widths, strict=True)
    )
    for row in [header, rule, *rows]
  )


def _columns(text: str) -> int:
  """Returns the columns of a terminal that text takes: Chinese characters two, accents none."""
  return sum(
    0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
    for character in text
  )


def _cut(name: str) -> str:
  """Returns a class name on one line, shortened to the width of a table's column."""
  name = printable_line(name)
  return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."
