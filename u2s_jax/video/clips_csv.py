"""Reads the CSV file that lists a data set's clips.

The first line is the header `path,label,split`; each further line is a clip. The columns may have
any order, and unknown ones are ignored.

  path: absolute, or relative to the folder of the CSV file.
  label: name of the class; empty if it is unknown, which only the split `test` allows.
  split: `train`, `val` or `test`; without this column validation clips are held out.
  start, end: make the clip a segment of a video: seconds, or hh:mm:ss.mmm.
  x, y, width, height: make the clip a region of the frame, see `region.Region`.
  group: what belongs together (a person, a camera) and is never in two splits. Without groups the
    segments and regions of a video are one.
"""

import csv
import dataclasses
import io
import math
import os
import pathlib
import re
from collections.abc import Collection, Iterator, Sequence

from u2s_jax.runtime.errors import UserError, parse_cell
from u2s_jax.video import region, splits
from u2s_jax.video.listing import Entry, part_suffix

COLUMNS = ("path", "label", "split", "start", "end", "group")
# Only if all four exist: a list of videos may have their width and height.
REGION_COLUMNS = region.FIELDS
HEADER = "path,label (more columns: split, start, end, group)"
TIME = r"\d+(\.\d*)?|\.\d+"


def read_csv(path: pathlib.Path) -> tuple[list[Entry], list[str]]:
  """Reads a CSV file.

  Returns:
    The clips, with the segments of each video next to each other in the order of their starts, and
    notes for the user. Whether the files of the clips exist is not checked.

  Raises:
    UserError: if the file is not valid; one line, which names the file and the line.
  """
  header, entries, lines = None, [], {}
  for number, row in _iterate_rows(path):
    where = f"{path}, line {number}"
    if header is None:
      header = [field.lower() for field in row]
      _check_header(header, where)
    elif entry := _parse_row(header, row, where, path.parent):
      if entry.id in lines:
        raise UserError(
          f"{where}: {entry.id} is already in line {lines[entry.id]}; delete one of the two lines"
        )
      lines[entry.id] = number
      entries.append(entry)
  if not entries:
    raise UserError(
      f"{path}: no clips; the first line must be {HEADER}, and each further line a clip"
    )
  entries = _group_segments(entries)
  # A video's segments are next to each other, so that it is decoded once.
  order = {file: k for k, file in enumerate(dict.fromkeys(entry.file for entry in entries))}
  entries.sort(key=lambda entry: (order[entry.file], entry.span or (0, 0)))
  # `--mode=predict --csv` writes scores.
  used = {*COLUMNS, "score"} | ({*REGION_COLUMNS} if _has_regions(header) else set())
  unused = [repr(column) for column in header if column not in used]
  notes = [f"{path}: unused columns: {', '.join(unused)}"] if unused else []
  return entries, notes + _describe_overlaps(entries)


def _iterate_rows(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
  """Yields the rows that are not empty, stripped, with their line numbers."""
  content = path.read_bytes()
  try:
    text = content.decode("utf-8-sig")  # spreadsheets begin a file with a byte order mark
  except UnicodeDecodeError as error:
    line = content.count(b"\n", 0, error.start) + 1
    raise UserError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  try:
    for row in reader:
      row = [field.strip() for field in row]
      if any(row):
        yield reader.line_num, row
  except csv.Error as error:
    raise UserError(
      f"{path}, line {reader.line_num}: not valid CSV ({error}); check the double quotes"
    ) from error


def _parse_row(
  header: Sequence[str], row: Sequence[str], where: str, folder: pathlib.Path
) -> Entry | None:
  """Returns the clip of a row; None for a gap that `--mode=predict --window --csv` wrote."""
  if len(row) != len(header):
    raise UserError(
      f"{where}: {len(row)} fields, but the header has {len(header)} columns; put a field that"
      " contains a comma into double quotes"
    )
  fields = dict(zip(header, row, strict=True))
  if fields["label"] == fields.get("score") == "" and fields.get("start"):
    return None
  if not fields["path"]:
    raise UserError(f"{where}: the path is missing; add it, or delete the line")
  span, cut = _parse_span(fields, where), _parse_region(fields, where)
  split = fields.get("split")
  if split is not None and splits.parse_split(split) is None:
    raise UserError(f"{where}: unknown split {split!r}; must be train, val or test")
  return Entry(
    where=where,
    id=fields["path"] + part_suffix(span, cut),
    file=str(folder / fields["path"]),
    name=parse_cell(fields["label"]),  # undoes the escape of `--mode=predict --csv`
    split=split and splits.parse_split(split),
    span=span,
    region=cut,
    group=fields.get("group", ""),
  )


def _parse_span(fields: dict[str, str], where: str) -> tuple[float, float] | None:
  """Returns start and end of a row's segment in seconds, None for a whole video."""
  texts = fields.get("start", ""), fields.get("end", "")
  if not any(texts):
    return None
  times = []
  for column, text in zip(("start", "end"), texts, strict=True):
    parts = text.split(":")
    if not (text and len(parts) <= 3 and all(re.fullmatch(TIME, part) for part in parts)):
      raise UserError(
        f"{where}: {column} {text!r} is not a time; write seconds (62.5) or hh:mm:ss.mmm"
      )
    times.append(sum(float(part) * 60**k for k, part in enumerate(reversed(parts))))
  if times[0] >= times[1]:
    raise UserError(f"{where}: end {texts[1]} must be after start {texts[0]}")
  return times[0], times[1]


def _has_regions(header: Collection[str]) -> bool:
  return all(column in header for column in REGION_COLUMNS)


def _parse_region(fields: dict[str, str], where: str) -> region.Region | None:
  """Returns a row's region, None for the whole frame."""
  texts = [fields[column] for column in REGION_COLUMNS] if _has_regions(fields) else []
  if not any(texts):
    return None
  try:
    return region.parse_region(",".join(texts))
  except UserError as error:
    raise UserError(f"{where}: {error}") from error


def _check_header(header: Sequence[str], where: str) -> None:
  """Raises UserError if a column is missing, occurs twice, or is most likely misspelt."""
  for column in ("path", "label"):
    if column not in header:
      raise UserError(
        f"{where}: missing column {column!r}, found {', '.join(map(repr, header))}; the first line"
        f" must be {HEADER}, separated by commas"
      )
  for name in header:
    if header.count(name) > 1:
      raise UserError(f"{where}: the column {name!r} occurs twice; delete one of the two")
    similar = [column for column in COLUMNS if column not in header and _resembles(name, column)]
    if name not in COLUMNS and similar:
      raise UserError(
        f"{where}: unknown column {name!r}; rename it to {similar[0]!r} if that is meant, or to"
        " something less similar"
      )
  for column, other in (("start", "end"), ("end", "start")):
    if column in header and other not in header:
      raise UserError(f"{where}: the column {column!r} requires a column {other!r}; add it")
  missing = [column for column in REGION_COLUMNS if column not in header]
  if missing and {"x", "y"} & {*header}:
    raise UserError(
      f"{where}: a region requires the columns {', '.join(REGION_COLUMNS)}; add {missing[0]!r}, or"
      " rename the others"
    )


def _resembles(name: str, column: str) -> bool:
  """Returns whether a name has a column's as a word, or is one typing error away from it.

  Such an error is a letter too few, too many or wrong, or two letters exchanged.
  """
  if column in re.findall("[a-z]+", name):
    return True
  same = len(os.path.commonprefix([name, column]))
  name, column = name[same:], column[same:]
  return (
    name[1:] in (column, column[1:])
    or name == column[1:]
    or (name[:2] == column[1::-1] and name[2:] == column[2:])
  )


def _group_segments(entries: list[Entry]) -> list[Entry]:
  """Returns clips in which the parts of a video are a group, unless they have another one.

  Parts are segments and regions. The row of a whole video joins the group of its parts; unless it
  names a split: then `listing.check_listing` compares the files.
  """
  if not any(entry.span or entry.region for entry in entries):
    return entries
  real_paths = {file: os.path.realpath(file) for file in {entry.file for entry in entries}}
  groups = {}  # by real path: the first spelling of the path
  for entry in entries:
    if entry.span or entry.region:
      path = entry.id.removesuffix(part_suffix(entry.span, entry.region))
      groups.setdefault(real_paths[entry.file], path)
  return [
    dataclasses.replace(entry, group=entry.group or groups.get(real_paths[entry.file], ""))
    if entry.span or entry.region or entry.split is None
    else entry
    for entry in entries
  ]


def _describe_overlaps(entries: Sequence[Entry]) -> list[str]:
  """Returns a note if segments, sorted by file and start, overlap and have different labels."""
  pairs, active = [], []
  for entry in entries:
    start, end = entry.span or (0.0, math.inf)
    active = [(until, o) for until, o in active if o.file == entry.file and until > start]
    same_place = [o for _, o in active if o.region == entry.region]
    other = next((o for o in same_place if o.name != entry.name), None)
    if other:
      pairs.append((other, entry))
    active.append((end, entry))
  if not pairs:
    return []
  example = " and ".join(f"{entry.id} ({entry.name})" for entry in pairs[0])
  return [
    f"{len(pairs)} segments overlap others with a different label, such as {example}: the network"
    " is trained on both labels"
  ]
