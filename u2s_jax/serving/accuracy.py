"""The accuracy of predictions for labelled clips."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from u2s_jax.evaluation import metrics, results
from u2s_jax.evaluation.scores import Scores
from u2s_jax.runtime.errors import escape_line
from u2s_jax.serving.predict import Prediction

MAX_CLASSES = 12  # up to which the whole confusion matrix is printed
MAX_CONFUSIONS = 10  # of more classes: how many pairs are listed


def summarize(labels: Sequence[str], predictions: Sequence[Prediction]) -> dict[str, Any]:
  """Returns accuracies in percent with 95 % intervals, and the confusion matrix as counts.

  Args:
    labels: names of the classes of at least one clip.
    predictions: of these clips.

  Returns:
    `clips`, `top1` with its interval `low` and `high`, `mean_class`; `per_class`, the first four of
    these by class; and `confusion`: for each label the clips of each predicted class.
  """
  class_names = predictions[0].class_names
  scores = Scores(
    ids=np.arange(len(labels)).astype(str),
    labels=np.array([class_names.index(label) for label in labels], np.int32),
    class_names=np.array(class_names, str),
    predictions={"merged": np.stack([prediction.merged for prediction in predictions])},
  )
  matrix = results.confusion_matrix(scores)
  per_class = {
    name: _accuracy(int(row[i]), int(row.sum()))
    for i, (name, row) in enumerate(zip(class_names, matrix, strict=True))
    if row.sum()
  }
  return {
    **_accuracy(int(np.trace(matrix)), len(labels)),
    "mean_class": float(np.mean([row["top1"] for row in per_class.values()])),
    "per_class": per_class,
    "confusion": {
      name: {class_names[j]: int(row[j]) for j in np.flatnonzero(row)}
      for name, row in zip(class_names, matrix, strict=True)
      if row.sum()
    },
  }


def format_summary(summary: dict[str, Any]) -> str:
  """Formats a result of `summarize` for a terminal."""
  per_class, confusion = summary["per_class"], summary["confusion"]
  cells = [
    [escape_line(name), str(row["clips"]), f"{row['top1']:.1f}", _format_interval(row)]
    for name, row in per_class.items()
  ]
  header = ["Class", "Clips", "Top-1 (%)", "95 % interval"]
  lines = [
    f"accuracy: {summary['top1']:.1f} % (95 % interval {_format_interval(summary)}) of"
    f" {summary['clips']} clips; mean over classes {summary['mean_class']:.1f} %",
    "",
    results.format_table(header, cells, [str.ljust, str.rjust, str.rjust, str.rjust]),
    "",
  ]
  names = sorted({*confusion, *(name for row in confusion.values() for name in row)})
  if len(names) <= MAX_CLASSES:
    rows = [
      [escape_line(name), *(str(confusion[name].get(other, 0)) for other in names)]
      for name in confusion
    ]
    header = ["Label \\ prediction", *map(escape_line, names)]
    lines += [results.format_table(header, rows, [str.ljust] + [str.rjust] * len(names))]
    return "\n".join(lines)
  pairs = [
    (count, name, other)
    for name, row in confusion.items()
    for other, count in row.items()
    if other != name
  ]
  lines += ["most frequent confusions (label, prediction):"]
  for count, name, other in sorted(pairs, key=lambda pair: -pair[0])[:MAX_CONFUSIONS]:
    lines.append(f"  {count:4}  {escape_line(name)} -> {escape_line(other)}")
  return "\n".join(lines)


def _accuracy(hits: int, clips: int) -> dict[str, Any]:
  low, high = metrics.wilson_interval(hits / clips, clips)
  return {"clips": clips, "top1": 100 * hits / clips, "low": 100 * low, "high": 100 * high}


def _format_interval(row: dict[str, Any]) -> str:
  return f"{row['low']:.1f} to {row['high']:.1f}"
