"""Formats predictions as text, JSON, CSV or subtitles, and writes videos with their masks."""

import csv
import html
import io
import json
import math
import os
import pathlib
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import tqdm
from jaxtyping import UInt8

from u2s_jax.runtime.errors import describe_disk_error, escape, escape_cell, escape_line
from u2s_jax.serving.intervals import Gap, Interval, ScoredWindow
from u2s_jax.serving.predict import Prediction
from u2s_jax.video.listing import Entry

FRAMES_PER_SECOND = 5  # of a video with its mask
SHORT_EDGE = 224  # least pixels of a video with its mask
HEADERS = {"csv": "path,label,score", "vtt": "WEBVTT\n"}
SEGMENT_HEADER = "path,start,end,x,y,width,height,label,score,expected"
INTERVAL_HEADERS = HEADERS | {"csv": "path,start,end,label,score,group"}
# The CSV groups intervals by blocks of a video, because neighbouring intervals look alike and must
# be in one split. A block is a minute, so that few intervals have a neighbour in another block; for
# videos of less than ten minutes a tenth, as fewer blocks would be too few to split.
BLOCK_SECONDS, BLOCKS = 60.0, 10


def format_prediction(
  file: str, prediction: Prediction, output_format: str, details: bool = False
) -> str:
  """Formats the prediction for a file.

  Args:
    output_format: 'text', 'json' (a line) or 'csv' (a row with the best class, which `data.prepare`
      reads).
    details: whether to show every fusion of Table I, not only the mean of all predictions.
  """
  if output_format == "csv":
    return format_row([os.path.abspath(file), prediction.label, f"{prediction.score:.4f}"])
  if output_format == "json":
    fields = {"path": file, "best": _json_classes(prediction.best())}
    if details:
      fusions = prediction.fusions()
      fields["predictions"] = {name: _json_classes(best) for name, best in fusions.items()}
    return format_json(fields)
  lines = [file]
  for name, best in prediction.fusions().items() if details else [("", prediction.best())]:
    lines += [f"  {name.replace('+', ' + ')}"] if name else []
    lines += [f"    {100 * score:5.1f} %  {escape_line(label)}" for label, score in best]
  return escape("\n".join(lines))


def format_segment(
  entry: Entry, prediction: Prediction, output_format: str, details: bool = False
) -> str:
  """Formats the prediction for a row of a CSV file; `output_format` as in `format_prediction`."""
  if output_format == "csv":
    cells = [os.path.abspath(entry.file), *(entry.span or ("", "")), *(entry.region or [""] * 4)]
    return format_row([*map(str, cells), prediction.label, f"{prediction.score:.4f}", entry.name])
  text = format_prediction(entry.id, prediction, output_format, details)
  if not entry.name:
    return text
  if output_format == "json":
    return format_json({**json.loads(text), "expected": entry.name})
  mark = "" if entry.name == prediction.label else "  (wrong)"
  first, _, rest = text.partition("\n")
  return f"{first}  label: {escape_line(entry.name)}{mark}\n{rest}"


def format_window(file: str, window: ScoredWindow | Gap, output_format: str) -> str:
  """Formats the scores of a window of a video; 'json' and 'csv' have those of all classes."""
  start, end = window.start, window.end
  if isinstance(window, Gap):
    if output_format == "csv":
      return format_row([os.path.abspath(file), f"{start:.3f}", f"{end:.3f}"])
    return format_interval(file, window, output_format)
  merged = window.prediction.merged.tolist()
  if output_format == "csv":
    path = file if "://" in file else os.path.abspath(file)
    return format_row([path, f"{start:.3f}", f"{end:.3f}", *(f"{score:.6f}" for score in merged)])
  if output_format == "json":
    scores = {
      name: round(score, 6)
      for name, score in zip(window.prediction.class_names, merged, strict=True)
    }
    fields = {"path": file, "start": round(start, 3), "end": round(end, 3), "scores": scores}
    return format_json(fields)
  best = ", ".join(
    f"{escape_line(label)} {100 * score:.1f} %" for label, score in window.prediction.best()
  )
  return escape(f"  {format_time(start)} --> {format_time(end)}  {best}")


def print_error(file: str, error: Exception, output_format: str) -> None:
  """Prints the error of a file that cannot be scored; raises it if a disk caused it."""
  if describe_disk_error(error):
    raise error
  reason = getattr(error, "strerror", None) or " ".join(str(error).split())
  line = format_error(file, reason, output_format)
  print(line, file=sys.stdout if output_format == "json" else sys.stderr, flush=True)


def format_error(file: str, reason: str, output_format: str) -> str:
  """Formats the error of a file that cannot be scored."""
  if output_format == "json":
    return format_json({"path": file, "error": reason})
  return escape(f"{file}: {reason}")


def format_interval(
  file: str, interval: Interval | Gap, output_format: str, seconds: float | None = None
) -> str:
  """Formats an interval of a video, or a gap.

  Args:
    output_format: 'text', 'json' (a line), 'csv' (a row, which `data.prepare` reads; a gap has no
      label and score, and is skipped there) or 'vtt' (a gap is a comment).
    seconds: declared duration of the video; None if it is unknown.
  """
  start, end = interval.start, interval.end
  is_gap = isinstance(interval, Gap)
  if output_format == "csv":
    cells = ["", ""] if is_gap else [interval.label, f"{interval.score:.4f}"]
    path = file if "://" in file else os.path.abspath(file)
    block = int(start / min(BLOCK_SECONDS, (seconds or math.inf) / BLOCKS))
    return format_row([path, f"{start:.3f}", f"{end:.3f}", *cells, f"{path}, block {block}"])
  if output_format == "json":
    fields = {"path": file, "start": round(start, 3), "end": round(end, 3)}
    if is_gap:
      return format_json(fields | {"gap": interval.reason})
    return format_json(fields | {"label": interval.label, "score": round(interval.score, 6)})
  if output_format == "vtt" and is_gap:  # a comment must not contain an arrow
    return escape(f"NOTE {format_time(start)} to {format_time(end)}: {interval.reason}\n")
  times = f"{format_time(start)} --> {format_time(end)}"
  if output_format == "vtt":
    label = html.escape(escape_line(interval.label), quote=False)
    return f"{times}\n{label} ({100 * interval.score:.0f} %)\n"
  if is_gap:
    return escape(f"  {times}           ({interval.reason})")
  return escape(f"  {times}  {100 * interval.score:5.1f} %  {escape_line(interval.label)}")


def progress_bar(seconds: float | None) -> "tqdm.tqdm[Any]":
  """Returns a progress bar for a video's declared duration, if known; shown on terminals only."""
  progress = "{n:.0f} s of video"
  return tqdm.tqdm(
    total=seconds,
    disable=not sys.stderr.isatty(),
    leave=False,
    bar_format="{l_bar}{bar}| " + f"{progress} of {seconds:.0f}, {{elapsed}}<{{remaining}}"
    if seconds
    else progress + ", {elapsed}",
  )


def format_time(seconds: float) -> str:
  """Formats a time as hh:mm:ss.mmm."""
  thousandths = round(1000 * seconds)
  minutes, rest = divmod(thousandths, 60_000)
  return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _json_classes(best: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
  return [{"class": label, "score": round(score, 6)} for label, score in best]


def format_json(fields: dict[str, Any]) -> str:
  """Returns a line of JSON, escaped if a name holds control characters or is not UTF-8."""
  readable = json.dumps(fields, ensure_ascii=False)
  return readable if readable.isprintable() else json.dumps(fields)


def format_row(cells: Sequence[str]) -> str:
  """Returns a row of CSV; on a terminal control characters are escaped."""
  file = io.StringIO()
  csv.writer(file, lineterminator="").writerow(map(escape_cell, cells))
  return escape(file.getvalue()) if sys.stdout.isatty() else file.getvalue()


def write_video(path: pathlib.Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
  """Writes an H.264 video of `FRAMES_PER_SECOND`; small frames are enlarged."""
  factor = max(1, -(-SHORT_EDGE // min(frames.shape[1:3])))
  frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
  frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": "18"}
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
