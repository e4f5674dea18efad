"""Scores the rows of a CSV file of clips, and compares the predictions with their labels."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from u2s_jax.evaluation import metrics, results
from u2s_jax.evaluation.scores import Scores
from u2s_jax.runtime.errors import UserError, describe_disk_error, escape, escape_line
from u2s_jax.serving import formatting
from u2s_jax.serving.model import Model
from u2s_jax.serving.predict import Prediction
from u2s_jax.video import clips_csv
from u2s_jax.video.listing import Entry

MAX_CLASSES = 12  # up to which the whole confusion matrix is printed
MAX_CONFUSIONS = 10  # of more classes: how many pairs are listed


def predict_segments(model: Model, path: pathlib.Path, output_format: str, details: bool) -> bool:
  """Prints the prediction for every row and, if rows have labels, the accuracy.

  Args:
    path: CSV file with the columns of `clips_csv`.
    output_format: 'text', 'json' or 'csv'; of the last, the accuracy goes to the standard error
      stream.

  Returns:
    Whether all clips could be read.

  Raises:
    UserError: if the file is not valid, or a label is not one of the run's classes.
  """
  entries, notes = clips_csv.read_csv(path)
  for note in notes:
    print(escape(f"note: {note}"), file=sys.stderr)
  for entry in entries:
    if entry.name and entry.name not in model.class_names:
      raise UserError(f"{entry.where}: {entry.name!r} is not one of the run's classes")
  if output_format == "csv":
    print(formatting.SEGMENT_HEADER, flush=True)
  scored: list[tuple[Entry, Prediction]] = []
  for entry, prediction in zip(entries, model.predict_entries(entries), strict=True):
    if isinstance(prediction, Exception):
      if describe_disk_error(prediction):
        raise prediction
      reason = getattr(prediction, "strerror", None) or " ".join(str(prediction).split())
      line = formatting.format_error(entry.id, reason, output_format)
      print(line, file=sys.stdout if output_format == "json" else sys.stderr, flush=True)
      continue
    print(formatting.format_segment(entry, prediction, output_format, details), flush=True)
    scored.append((entry, prediction))
  labelled = [(entry, prediction) for entry, prediction in scored if entry.name]
  if labelled:
    summary = summarize(model.class_names, labelled)
    if output_format == "json":
      print(formatting.format_json({"summary": summary}))
    else:
      text = format_summary(summary)
      print(escape(f"\n{text}"), file=sys.stderr if output_format == "csv" else sys.stdout)
  return len(scored) == len(entries)


def summarize(
  class_names: Sequence[str], labelled: Sequence[tuple[Entry, Prediction]]
) -> dict[str, Any]:
  """Returns accuracies in percent with 95 % intervals, and the confusion matrix as counts.

  Args:
    labelled: at least one clip that has a label, with its prediction.
  """
  scores = Scores(
    ids=np.array([entry.id for entry, _ in labelled], str),
    labels=np.array([class_names.index(entry.name) for entry, _ in labelled], np.int32),
    class_names=np.array(class_names, str),
    predictions={"merged": np.stack([prediction.merged for _, prediction in labelled])},
  )
  matrix = results.confusion_matrix(scores)
  per_class = {
    name: _accuracy(int(row[i]), int(row.sum()))
    for i, (name, row) in enumerate(zip(class_names, matrix, strict=True))
    if row.sum()
  }
  return {
    **_accuracy(int(np.trace(matrix)), len(labelled)),
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
