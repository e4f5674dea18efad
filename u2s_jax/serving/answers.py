"""Predictions as lines for a terminal, JSON, CSV or subtitles, and as a video with its mask."""

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

from u2s_jax.errors import printable, printable_line, spreadsheet_cell
from u2s_jax.serving.intervals import Gap, Interval
from u2s_jax.serving.predict import Prediction

FRAMES_PER_SECOND = 5  # of an overlay
SHORT_EDGE = 224  # pixels that an overlay has at least
HEADS = {"csv": "path,label,score", "vtt": "WEBVTT\n"}
INTERVAL_HEADS = HEADS | {"csv": "path,start,end,label,score,group"}
# Neighbouring intervals look alike, so a block of a video belongs together: a minute, so that few
# have a neighbour in another block, or a tenth of a video shorter than ten, which would have too
# few blocks for training and validation.
BLOCK_SECONDS, BLOCKS = 60.0, 10


def of_file(file: str, answer: Prediction | str, form: str, details: bool) -> str:
  """Returns what is printed of a file.

  Args:
    file: its path.
    answer: the prediction, or why there is none.
    form: 'text', 'json' (a line) or 'csv' (a row of the best class, which `data.prepare` reads).
    details: whether every fusion of Table I is to be shown, not only the merged score.
  """
  if isinstance(answer, str):
    failed = {"path": file, "error": answer}
    return _json(failed) if form == "json" else printable(f"{file}: {answer}")
  if form == "csv":
    return _row([os.path.abspath(file), answer.label, f"{answer.score:.4f}"])
  if form == "json":
    fields = {"path": file, "best": _guesses(answer.best())}
    if details:
      fields["predictions"] = {name: _guesses(best) for name, best in answer.fusions().items()}
    return _json(fields)
  lines = [file]
  for name, best in answer.fusions().items() if details else [("", answer.best())]:
    lines += [f"  {name.replace('+', ' + ')}"] if name else []
    lines += [f"    {100 * score:5.1f} %  {printable_line(label)}" for label, score in best]
  return printable("\n".join(lines))


def of_interval(
  file: str, interval: Interval | Gap, form: str, seconds: float | None = None
) -> str:
  """Returns what is printed of an interval of a video, or of a part that nothing was seen of.

  Args:
    file: the video's path.
    interval: of it, or a gap.
    form: 'text', 'json' (a line), 'csv' (a row, which `data.prepare` reads; of a gap without label
      and score, which it leaves out) or 'vtt' (a gap is a comment).
    seconds: that the video says it lasts; None: it says nothing.
  """
  start, end = interval.start, interval.end
  is_gap = isinstance(interval, Gap)
  if form == "csv":
    answer = ["", ""] if is_gap else [interval.label, f"{interval.score:.4f}"]
    path = file if "://" in file else os.path.abspath(file)
    block = int(start / min(BLOCK_SECONDS, (seconds or math.inf) / BLOCKS))
    return _row([path, f"{start:.3f}", f"{end:.3f}", *answer, f"{path}, block {block}"])
  if form == "json":
    times = {"start": round(start, 3), "end": round(end, 3)}
    if is_gap:
      return _json({"path": file, **times, "gap": interval.reason})
    return _json({"path": file, **times, **_guess(interval.label, interval.score, "label")})
  if form == "vtt" and is_gap:  # A comment must not hold an arrow.
    return printable(f"NOTE {clock(start)} to {clock(end)}: {interval.reason}\n")
  said = f"{clock(start)} --> {clock(end)}"
  if form == "vtt":
    shown = html.escape(printable_line(interval.label), quote=False)
    return f"{said}\n{shown} ({100 * interval.score:.0f} %)\n"
  if is_gap:
    return printable(f"  {said}           ({interval.reason})")
  return printable(f"  {said}  {100 * interval.score:5.1f} %  {printable_line(interval.label)}")


def progress(seconds: float | None) -> tqdm.tqdm:
  """Returns a bar that shows on a terminal how far a video is.

  Args:
    seconds: that the video says it lasts, which may be wrong; None: it says nothing.
  """
  how_far = "{n:.0f} s of video"
  return tqdm.tqdm(
    total=seconds,
    disable=not sys.stderr.isatty(),
    leave=False,
    bar_format="{l_bar}{bar}| " + f"{how_far} of {seconds:.0f}, {{elapsed}}<{{remaining}}"
    if seconds
    else how_far + ", {elapsed}",
  )


def clock(seconds: float) -> str:
  """Returns a time as hh:mm:ss.mmm."""
  thousandths = round(1000 * seconds)
  minutes, rest = divmod(thousandths, 60_000)
  return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _guesses(best: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
  return [_guess(label, score, "class") for label, score in best]


def _guess(label: str, score: float, key: str) -> dict[str, Any]:
  """Returns a class and its score, without the digits that are noise."""
  return {key: label, "score": round(score, 6)}


def _json(fields: dict[str, Any]) -> str:
  """Returns a line of JSON: readable, or where a name moves a cursor or is no Unicode, escaped."""
  readable = json.dumps(fields, ensure_ascii=False)
  return readable if readable.isprintable() else json.dumps(fields)


def _row(cells: Sequence[str]) -> str:
  """Returns a row of CSV, whose names a program reads as they are; a terminal gets no escapes."""
  file = io.StringIO()
  csv.writer(file, lineterminator="").writerow(map(spreadsheet_cell, cells))
  return printable(file.getvalue()) if sys.stdout.isatty() else file.getvalue()


def write_video(path: pathlib.Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
  """Writes an H.264 video of five frames a second; small frames are enlarged."""
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
