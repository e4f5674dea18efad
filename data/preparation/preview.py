"""Draws a sheet of frames as the networks will see them, before anything is prepared."""

import contextlib
import dataclasses
import functools
import io
import math
import os
import pathlib
import sys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from data.preparation import shard_writer
from data.preparation.shard_writer import Job
from data.preparation.workers import Decoded, Skipped
from u2s_jax.runtime import files
from u2s_jax.runtime.errors import UserError, escape, escape_line
from u2s_jax.video import sampling
from u2s_jax.video.decode import Storage
from u2s_jax.video.listing import Clip, Listing

MAX_ROWS = 20  # clips; of every class at least one, while there are enough rows
FRAMES = 6  # of a clip
EDGE = 112  # pixels of a frame's short edge
TEXT_WIDTH, MARGIN = 220, 4  # pixels
COMMENT = b"u2s_jax preview"  # marks our own files, which may be replaced


def write_preview(path: str, listing: Listing, storage: Storage, num_workers: int) -> None:
  """Writes a sheet: a row for a clip, with its class and file, by class.

  Frames are the middle ones of equal segments, with the data set's region. What the centre crop of
  an evaluation leaves out is dark; at most a thin margin inside of it is cut off as well.

  Raises:
    UserError: if the file exists and is not a sheet, or cannot be written.
  """
  out = _check_path(files.parse_local_path(path))
  storage = dataclasses.replace(storage, modality="rgb", flow_algorithm=None)
  chosen = choose_clips(listing)
  job = Job(out, tuple(listing.names), listing.images, storage, num_shards={})
  with contextlib.closing(
    shard_writer.decode_clips(job, ([clip] for clip in chosen), num_workers)
  ) as answers:
    rows = []
    for clip, (answer, _) in zip(chosen, answers, strict=True):
      if isinstance(answer, Skipped):  # a row may be too short for the reason
        print(escape(f"skipped {clip.path}: {answer.reason}"), file=sys.stderr)
      rows.append(_draw_row(listing, clip, answer))
  sheet = Image.new(
    "RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white"
  )
  top = 0
  for row in rows:
    sheet.paste(row, (0, top))
    top += row.height
  with files.atomic_path(out) as temp_path:
    sheet.save(temp_path, "JPEG", quality=90, comment=COMMENT)


def choose_clips(listing: Listing) -> list[Clip]:
  """Returns clips of all classes in turns, evenly from each, sorted by class."""
  by_class: dict[int, list[Clip]] = {}
  for clips in listing.splits.values():
    for clip in clips:
      by_class.setdefault(clip.label, []).append(clip)
  labels = sorted(by_class)[:: math.ceil(len(by_class) / MAX_ROWS)]
  count = max(1, min(3, MAX_ROWS // len(labels)))
  chosen = []
  for clips in map(by_class.get, labels):
    shown = min(count, len(clips))
    chosen += [clips[k * len(clips) // shown] for k in range(shown)]
  return chosen


def _check_path(path: pathlib.Path) -> pathlib.Path:
  if path.suffix.lower() not in (".jpg", ".jpeg"):
    raise UserError(f"--preview {path}: must be a .jpg file")
  if not path.parent.is_dir():
    raise UserError(f"--preview {path}: no directory {path.parent}")
  if path.exists():
    comment = None
    with contextlib.suppress(OSError), Image.open(path) as picture:
      comment = picture.info.get("comment")
    if comment != COMMENT:
      raise UserError(f"--preview {path}: already exists; choose another file")
  return path


def _draw_row(listing: Listing, clip: Clip, answer: Decoded | Skipped) -> Image.Image:
  name = listing.names[clip.label] if clip.label >= 0 else "(no label)"
  lines, tiles = [name, os.path.basename(clip.path)], []
  if isinstance(answer, Skipped):
    lines.append(answer.reason)
  else:
    count = len(answer.frames)
    with Image.open(io.BytesIO(answer.frames[0])) as first:
      lines.append(f"{count} frames" if count > 1 else "1 frame")
      lines.append(f"stored as {first.width} x {first.height}")
    chosen: Sequence[int] = [0] if count == 1 else sampling.segment_indices(count, FRAMES, 0.5)
    tiles = [_draw_frame(answer.frames[i]) for i in chosen]
  height = MARGIN + max([EDGE, *(tile.height for tile in tiles)])
  width = TEXT_WIDTH + sum(tile.width + MARGIN for tile in tiles)
  row = Image.new("RGB", (width, height), "white")
  draw, left = ImageDraw.Draw(row), TEXT_WIDTH
  for k, line in enumerate(lines):
    draw.text((MARGIN, MARGIN + 17 * k), _fit(escape_line(line)), "black", _font())
  for tile in tiles:
    row.paste(tile, (left, 0))
    left += tile.width + MARGIN
  return row


def _draw_frame(jpeg: bytes) -> Image.Image:
  with Image.open(io.BytesIO(jpeg)) as picture:
    frame = picture.convert("RGB")
  scale = EDGE / min(frame.size)
  width, height = (max(EDGE, round(scale * edge)) for edge in frame.size)
  frame = frame.resize((width, height), Image.Resampling.BILINEAR)
  left, top = (width - EDGE) // 2, (height - EDGE) // 2
  tile = ImageEnhance.Brightness(frame).enhance(0.35)
  tile.paste(frame.crop((left, top, left + EDGE, top + EDGE)), (left, top))
  return tile


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
  import matplotlib  # has a font with more letters than Pillow's Latin ones

  path = os.path.join(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
  return ImageFont.truetype(path, 12)


def _fit(text: str) -> str:
  """Shortens a line to the width of the text column."""
  font = _font()
  while font.getlength(text) > TEXT_WIDTH - 2 * MARGIN:
    text = text[:-2] + "…"
  return text
