"""Scores the rows of a CSV file of clips, and compares the predictions with their labels."""

import pathlib
import sys

from u2s_jax.runtime.errors import UserError, escape
from u2s_jax.serving import accuracy, formatting
from u2s_jax.serving.model import Model
from u2s_jax.serving.predict import Prediction
from u2s_jax.video import clips_csv
from u2s_jax.video.listing import Entry


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
      formatting.print_error(entry.id, prediction, output_format)
      continue
    print(formatting.format_segment(entry, prediction, output_format, details), flush=True)
    scored.append((entry, prediction))
  labelled = [(entry.name, prediction) for entry, prediction in scored if entry.name]
  if labelled:
    labels, predictions = zip(*labelled, strict=True)
    summary = accuracy.summarize(labels, predictions)
    if output_format == "json":
      print(formatting.format_json({"summary": summary}))
    else:
      text = accuracy.format_summary(summary)
      print(escape(f"\n{text}"), file=sys.stderr if output_format == "csv" else sys.stdout)
  return len(scored) == len(entries)
