"""Summaries and tables of a run, computed from its scores alone."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer, Num

from u2s_jax.csm import CategorySimilarity
from u2s_jax.evaluation import metrics
from u2s_jax.evaluation.scores import FUSIONS, Scores, fusions
from u2s_jax.runtime.errors import escape_line

MAX_ROWS = 30  # classes up to which a table shows all
NUM_EXTREMES = 10  # of more classes: how many it shows of the largest gains, and of the losses
NAME_WIDTH = 40  # characters of a class name in a table

UPPER_BOUND = "upper bounds only: the labels select the masks (csm.guide='label')"
PREDICTION_GUIDED = "prediction_guided"  # key of a summary: accuracies without a label's help

Row = dict[str, Any]


def summarize(
  one_pass: Scores, final: Scores, csm: CategorySimilarity, parameters: Mapping[str, int]
) -> dict[str, Any]:
  """Returns accuracies in percent, the CSM's statistics and the numbers of parameters.

  Args:
    csm: the final CSM, as NumPy arrays.
    parameters: number of parameters by subnetwork.
  """
  return {
    "one_pass": metrics.summarize(one_pass.predictions["universal"], one_pass.labels),
    "predictions": fusions(final),
    "csm": {
      "alpha": float(csm.alpha),
      "n": int(csm.n),
      "average_confusing": count_average_confusing(csm.matrix),
    },
    "parameters": {
      "one_pass": parameters["trunk"] + parameters["universal"],
      "u2s": sum(parameters.values()),
    },
  }


def get_merged_accuracies(summary: dict[str, Any]) -> dict[str, float]:
  """Returns the accuracies of the merged prediction from a summary of `summarize`."""
  return list(summary["predictions"].values())[-1]  # the last fusion is of all predictions


def is_upper_bound(config: Mapping[str, Any]) -> bool:
  """Returns whether labels select the masks in a run's evaluation (Table III f)."""
  return config["csm"]["guide"] == "label" and not config["control"]


def get_guided_accuracies(summary: Mapping[str, Any]) -> dict[str, float] | None:
  """Returns the accuracies of the merged prediction with the masks of the predicted classes.

  The summary is that of an upper bound, or its entry for the best checkpoint. Returns None if it
  lacks them, as those of earlier versions do.
  """
  guided = summary.get(PREDICTION_GUIDED)
  return guided and get_merged_accuracies({"predictions": guided})


def count_average_confusing(matrix: Num[np.ndarray, "m m"]) -> float:
  """Returns the mean number of confusing classes per class of a binary CSM."""
  return float((matrix.sum() - len(matrix)) / len(matrix))


def confusion_matrix(scores: Scores) -> Integer[np.ndarray, "m m"]:
  """Returns the number of clips by label (row) and class of the merged prediction (column)."""
  counts = np.zeros((len(scores.class_names),) * 2, int)
  np.add.at(counts, (scores.labels, scores.merged.argmax(1)), 1)
  return counts


def likely_mislabelled(scores: Scores, count: int) -> Integer[np.ndarray, " k"]:
  """Returns the rows of misclassified clips, those first whose label is most likely wrong.

  They are in the order of the merged prediction's score of the label, the self-confidence of
  confident learning (Northcutt et al. 2021), from the lowest. Every clip must have a label.
  """
  merged, rows = scores.merged, np.arange(len(scores.labels))
  self_confidence = merged[rows, scores.labels]
  order = np.argsort(self_confidence, kind="stable")
  return order[(merged.max(1) > self_confidence)[order]][:count]


def per_class(one_pass: Scores, final: Scores, csm: Num[np.ndarray, "m m"]) -> list[Row]:
  """Returns one row of accuracies for each class; both scores are of the same clips.

  Args:
    csm: binary CSM; the 1s of column i are the confusing classes of class i.

  Returns:
    For each class `class` (its name), `clips`, top-1 in percent of `one_pass`, of each prediction
    and of `merged`, their difference `gain`, `confused_with` ('name (clips)' of the class that
    the merged prediction most often mistakes it for) and `csm` (names of its confusing classes,
    joined by ' | '). Accuracies are None for a class without a clip.
  """
  names = final.class_names
  columns = {"one_pass": one_pass.predictions["universal"], **final.predictions}
  columns["merged"] = final.merged
  accuracies = {
    name: metrics.per_class_accuracy(values, final.labels)[0] for name, values in columns.items()
  }
  counts, rows = confusion_matrix(final), []
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


def format_row(row: Row) -> Row:
  """Returns a row of `per_class` with its accuracies rounded to two digits, for a CSV file."""
  return {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in row.items()}


def format_per_class(rows: list[Row]) -> str:
  """Returns the rows of `per_class` as a table for a terminal.

  Shows all classes if there are at most 30, otherwise the 10 largest gains and the 10 largest
  losses, in the order of their gain.
  """
  if len(rows) > MAX_ROWS:
    changed = sorted((row for row in rows if row["gain"]), key=lambda row: -row["gain"])
    gains = [row for row in changed if row["gain"] > 0]
    rows = gains[:NUM_EXTREMES] + changed[len(gains) :][-NUM_EXTREMES:]
  header = ["Class", "Clips", "One-pass (%)", "Merged (%)", "Gain", "Most confused with"]
  cells = []
  for row in rows:
    other, _, count = row["confused_with"].rpartition(" ")
    cells.append(
      [
        _shorten(row["class"]),
        str(row["clips"]),
        *_accuracy_cells(row),
        f"{_shorten(other)} {count}".strip(),
      ]
    )
  return format_table(header, cells, [str.ljust] + [str.rjust] * 4 + [str.ljust])


def _accuracy_cells(row: Row) -> list[str]:
  """Returns one-pass and merged accuracy and the gain, dashes for a class without a clip."""
  if not row["clips"]:
    return ["-"] * 3
  return [f"{row['one_pass']:.2f}", f"{row['merged']:.2f}", f"{row['gain']:+.2f}"]


def format_gains(rows: list[Row], class_names: Sequence[str]) -> str:
  """Returns Table IV of the paper for a terminal: one-pass, U2S and the gain of some classes."""
  by_name = {row["class"]: row for row in rows}
  cells = [[_shorten(name), *_accuracy_cells(by_name[name])] for name in class_names]
  header = ["Action", "One-pass", "U2S", "Improved"]
  return format_table(header, cells, [str.ljust] + [str.rjust] * 3)


def format_fusions(
  one_pass: Mapping[str, float] | None, fused: Mapping[str, Mapping[str, float]]
) -> str:
  """Returns Table I for a terminal: marks of the predictions in each fusion, and its accuracies.

  Args:
    one_pass: accuracies of the one-pass model from `metrics.summarize`; None omits its row.
    fused: accuracies from `scores.fusions`; rows follow Table I, missing fusions are omitted.
  """
  predictions = FUSIONS[-1]
  header = [name.capitalize() for name in predictions]
  header += ["Top-1 (%)", "Top-5 (%)", "Mean class (%)"]
  label = "One-pass".ljust(len(header[0]))
  rows = [] if one_pass is None else [[label, "", ""] + format_accuracies(one_pass)]
  for names in FUSIONS:
    if (key := "+".join(names)) in fused:
      marks = ["x" if name in names else "" for name in predictions]
      rows.append(marks + format_accuracies(fused[key]))
  return format_table(header, rows, [str.center] * len(predictions) + [str.rjust] * 3)


def format_accuracies(summary: Mapping[str, Any]) -> list[str]:
  """Returns top-1, top-5 and mean class accuracy of `metrics.summarize` as table cells."""
  return [f"{summary[name]:.2f}" for name in ("top1", "top5", "mean_class")]


def format_table(
  header: Sequence[str],
  rows: Sequence[Sequence[str]],
  align: Sequence[Callable[[str, int], str]],
) -> str:
  """Returns a table for a terminal: header, rule and rows of equal width, no trailing newline.

  Args:
    align: `str.ljust`, `str.center` or `str.rjust` for each column.
  """
  widths = [max(map(_display_width, column)) for column in zip(header, *rows, strict=True)]
  rule = ["-" * width for width in widths]
  return "\n".join(
    "  ".join(
      justify(cell, width - _display_width(cell) + len(cell))
      for justify, cell, width in zip(align, row, widths, strict=True)
    )
    for row in [header, rule, *rows]
  )


def _display_width(text: str) -> int:
  """Returns the columns that text takes in a terminal: 2 for a wide character, 0 for an accent."""
  return sum(
    0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
    for character in text
  )


def _shorten(name: str) -> str:
  """Returns a class name on one line, shortened to the width of a table's column."""
  name = escape_line(name)
  return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."
