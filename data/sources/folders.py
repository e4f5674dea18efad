"""Videos or images as users have them: a folder for each class, or a CSV file.

  <source>/<class>/.../<file>
  <source>/{train,val,test}/<class>/.../<file>; `valid` and `validation` stand for `val` too
  <source>/[train/]<class>/.../<clip>/img_00001.jpg, ...: of `frames`, folders of extracted ones
  <source>.csv: the header `path,label,split`, then a row for each clip. `label` is the class's
  name, empty where it is not known (`test` only); `split` is train, val or test. Paths are absolute
  or start at the CSV file's folder. `start,end` make a clip of a part of a video: seconds, or
  hh:mm:ss.mmm. `group` says what belongs together (a person, a camera), and is on one side of a
  split; without it the parts of a video do. The columns may come in any order; others are ignored.

Without splits, every 5th clip of each class goes to validation, of groups every 5th or so.
"""

import collections
import csv
import dataclasses
import glob
import io
import os
import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import NoReturn

from data.images import FRAME_EXTENSIONS
from data.sources.listing import SPLITS, Clip, Listing, check, suffix
from u2s_jax.errors import UserError, cell_text

VIDEO_EXTENSIONS = tuple(
  ".mp4 .webm .avi .mkv .mov .m4v .mpg .mpeg .wmv .flv .3gp .ts .gif .ogv".split()
)
IMAGE_EXTENSIONS = tuple(".jpg .jpeg .png .bmp .webp .gif .tif .tiff .ppm .pgm".split())
FRAMES = "folders of frames"  # a kind of clips
TIME = re.compile(r"\d+(\.\d*)?|\.\d+")
SPLIT_NAMES = {
  "train": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "test": "test",
}


def is_image(path: str) -> bool:
  """Whether a file is an image by its extension; a GIF, which may move, is a video."""
  suffix = pathlib.Path(path).suffix.lower()
  return suffix in IMAGE_EXTENSIONS and suffix not in VIDEO_EXTENSIONS


def find_files(where: str) -> list[str]:
  """The videos and images that a file, a folder (with all below it) or a pattern names, sorted.

  Raises:
    FileNotFoundError: there is none.
  """
  path = pathlib.Path(where)
  if path.is_dir():
    known = VIDEO_EXTENSIONS + IMAGE_EXTENSIONS
    files = [file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file()]
  elif path.exists():
    files = [path]
  else:
    files = [pathlib.Path(name) for name in glob.glob(where, recursive=True)]
  if not files:
    raise FileNotFoundError(f"{where}: no video or image there")
  return sorted(map(str, files))


@dataclasses.dataclass(frozen=True)
class _Entry:
  """A clip as the source has it.

  Attributes:
    where: it is listed, for errors.
    id: of the clip.
    file: its path.
    name: of its class, empty where it is not known.
    split: None where the source says nothing of splits.
    span: start and end of a part, seconds; None for the whole.
    group: of clips that are not to be in two splits; empty: it is alone.
  """

  where: str
  id: str
  file: str
  name: str
  split: str | None
  span: tuple[float, float] | None = None
  group: str = ""


def videos(source: pathlib.Path, group_pattern: str = "") -> Listing:
  """Lists a user's videos.

  Args:
    source: folder or CSV file, see the module's docstring.
    group_pattern: regular expression, looked for in the ids of a folder's clips: those where it
      finds the same (its first group, if it has one) belong together. Empty: each is alone.

  Returns:
    The clips; `validation` is the test split where there is a test split only. Ids are paths inside
    the folder, or as the CSV file has them. The classes are sorted by name, or as numbers where all
    names are numbers. Whether the files of a CSV file are there is not looked at.

  Raises:
    FileNotFoundError: `source` is missing; one line.
    UserError: `source` is not valid; one line, names the file or the folder.
  """
  return _listing(source, "videos", VIDEO_EXTENSIONS, group_pattern)


def images(source: pathlib.Path, group_pattern: str = "") -> Listing:
  """Lists a user's images; all else as `videos`."""
  listing = _listing(source, "images", IMAGE_EXTENSIONS, group_pattern)
  return dataclasses.replace(listing, images=True)


def frames(source: pathlib.Path, group_pattern: str = "") -> Listing:
  """Lists clips that are folders of extracted frames; all else as `videos`."""
  return _listing(source, FRAMES, FRAME_EXTENSIONS, group_pattern)


def _listing(
  source: pathlib.Path, kind: str, extensions: Sequence[str], group_pattern: str
) -> Listing:
  if group_pattern and source.is_file():
    raise UserError(f"--group_pattern: is for folders; give {source} a column `group`")
  if source.is_dir():
    entries, notes = _from_folder(source, kind, extensions)
    entries = [
      dataclasses.replace(entry, group=_group(entry.id, group_pattern)) for entry in entries
    ]
  elif source.is_file() and source.suffix.lower() == ".csv":
    entries, notes = _from_csv(source), []
  elif source.exists():
    raise UserError(f"{source} is neither a folder nor a .csv file: unpack it, if it is an archive")
  else:
    raise FileNotFoundError(f"{source}: there is no such folder or .csv file")

  if any(entry.split is None for entry in entries):
    grouped = any(entry.group for entry in entries)
    held_out, note = (_by_groups if grouped else _every_fifth)(entries)
    entries = [
      dataclasses.replace(entry, split="validation" if entry.id in held_out else "train")
      for entry in entries
    ]
    notes.append(note)
  _check_groups(entries)
  by_split = collections.Counter(entry.split for entry in entries)
  if by_split["test"] and not by_split["validation"]:
    entries = [
      dataclasses.replace(entry, split="validation") if entry.split == "test" else entry
      for entry in entries
    ]
    notes.append(
      f"there is no validation split: the test split, {by_split['test']} {kind}, stands in for it"
    )

  names = {entry.name for entry in entries if entry.split == "train"}
  numbers = all(name.isdecimal() for name in names)
  names = sorted(names, key=lambda name: (int(name), name) if numbers else name)
  index = {name: i for i, name in enumerate(names)}
  splits = {split: [] for split in SPLITS}
  for entry in entries:
    if not entry.name and entry.split != "test":
      raise UserError(f"{entry.where}: there is no label, which only a test split may do without")
    if entry.name and entry.name not in index:
      raise UserError(
        f"{entry.where}: the class {entry.name!r} has no training clip: add some, or take it out"
      )
    label = index.get(entry.name, -1)
    splits[entry.split].append(Clip(entry.id, label, entry.file, span=entry.span))
  splits = {split: clips for split, clips in splits.items() if clips}
  result = Listing(names=names, splits=splits, notes=notes)
  check(result, str(source))
  return result


def _every_fifth(entries: Sequence[_Entry]) -> tuple[set[str], str]:
  """Chooses clips for validation; returns their ids and what was done."""
  by_class = collections.defaultdict(list)
  for entry in entries:
    by_class[entry.name].append(entry.id)
  held_out = set()
  for ids in by_class.values():
    ids.sort()
    held_out.update(ids[4::5] or ids[1:][-1:])  # the last of 2 to 4; one alone is for training
  return held_out, (
    "there are no splits: of each class every 5th clip, or the last of fewer than 5, went to "
    f"validation, {len(held_out)} of {len(entries)} in all"
  )


def _by_groups(entries: Sequence[_Entry]) -> tuple[set[str], str]:
  """Chooses whole groups for validation, about a fifth of each class; returns as `_every_fifth`."""
  from sklearn.model_selection import StratifiedGroupKFold

  groups = [entry.group or f"\n{entry.id}" for entry in entries]
  count = len(set(groups))
  if count < 2:
    raise UserError(
      f"{entries[0].where}: all clips are of one group ({entries[0].group}), and a network would be"
      " tested on what it learned: add others, or a column `split` or `group`"
    )
  names = [entry.name for entry in entries]
  most = max(collections.Counter(names).values())
  if most < 2:
    raise UserError(f"{entries[0].where}: no class has two clips, of which one could be held out")
  folds = StratifiedGroupKFold(max(2, min(5, count, most)), shuffle=True, random_state=0)
  with warnings.catch_warnings(action="ignore", category=UserWarning):  # of small classes
    # The first that leaves every class some clips for training, where there is one.
    rows = max(
      (test for _, test in folds.split(names, names, groups)),
      key=lambda test: len({name for row, name in enumerate(names) if row not in {*test}}),
    )
  held_out = {entries[row].id for row in rows}
  return held_out, (
    f"there are no splits: about a fifth of each class went to validation, {len(held_out)} of"
    f" {len(entries)} clips, and of {count} groups none is in both"
  )


def _group(clip_id: str, pattern: str) -> str:
  """Returns what a pattern finds in an id, empty for no pattern or where it finds nothing."""
  try:
    found = re.search(pattern, clip_id) if pattern else None
  except re.error as error:
    raise UserError(f"--group_pattern: {pattern!r} is no regular expression ({error})") from error
  return "" if found is None else found[1 if found.re.groups else 0] or ""


def _check_groups(entries: Sequence[_Entry]) -> None:
  """Raises UserError where a group is in two splits."""
  first = {}
  for entry in entries:
    other = first.setdefault(entry.group, entry) if entry.group else entry
    if other.split != entry.split:
      raise UserError(
        f"{entry.where}: {entry.id} is in {entry.split}, and {other.id} of the same group"
        f" ({entry.group}) in {other.split}: a network would be tested on what it learned"
      )


def _from_folder(
  source: pathlib.Path, kind: str, extensions: Sequence[str]
) -> tuple[list[_Entry], list[str]]:
  """Reads the layouts with class folders; returns the clips and the notes."""
  notes, ignored, stray = [], collections.Counter(), []
  folders, files = _children(source)
  levels = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
  has_levels = any(
    folder.name.lower() == "train" and _children(folder)[0] for folder in levels
  ) or (len(levels) > 1 and levels == folders)  # no two classes are called train and val
  parts = [(None, source)]
  if has_levels:
    parts = [(SPLIT_NAMES[folder.name.lower()], folder) for folder in levels]
    for split, count in collections.Counter(split for split, _ in parts).items():
      if count > 1:
        same = " and ".join(folder.name for part, folder in parts if part == split)
        raise UserError(f"{source}: {same} are folders of one split: merge them")
    beside = [repr(folder.name) for folder in folders if folder not in levels]
    if beside:
      notes.append(f"ignored what lies beside the splits' folders: {', '.join(beside)}")

  entries = []
  for split, part in parts:
    classes, beside_classes = _children(part)
    files += beside_classes if has_levels else []
    for folder in classes:
      kept = []
      for path in _walk(folder):
        if path.suffix.lower() in extensions:
          kept.append(path)
        else:
          ignored[path.suffix.lower()] += 1
      if kind == FRAMES:
        stray += [path for path in kept if path.parent == folder]
        kept = sorted({path.parent for path in kept} - {folder})
      if not kept and split in (None, "train"):
        raise UserError(f"{folder}: the class folder holds no {kind}: add some, or move it away")
      for path in kept:
        clip_id = path.relative_to(source).as_posix()
        entries.append(_Entry(str(folder), clip_id, str(path), folder.name, split))
  for path in files:
    if path.suffix.lower() in extensions:
      stray.append(path)
    else:
      ignored[path.suffix.lower()] += 1
  if not entries:
    raise UserError(
      f"{source} holds no class folders with {kind}: put each file into a folder named after its "
      "class, or list the files in a CSV file"
    )
  if stray:
    what = (
      "images that lie in no clip's folder"
      if kind == FRAMES
      else f"{kind} that lie in no class folder"
    )
    notes.append(f"ignored {len(stray)} {what}, such as {stray[0]}")
  if ignored:
    counts = sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{ending or 'no extension'} {count}" for ending, count in counts)
    notes.append(f"ignored {ignored.total()} files that are no {kind} by their extension: {counts}")
  return entries, notes


def _children(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """The folders and the files in a folder, sorted, without the hidden ones."""
  folders, files = [], []
  for path in sorted(folder.iterdir()):
    if not path.name.startswith("."):
      (folders if path.is_dir() else files).append(path)
  return folders, files


def _walk(folder: pathlib.Path) -> list[pathlib.Path]:
  """All files below a folder, sorted, without the hidden ones."""

  def fail(error: OSError) -> NoReturn:
    raise error  # `os.walk` would leave the folder out

  found, seen = [], set()
  for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
    real = os.path.realpath(place)
    if real in seen:
      raise UserError(f"{place}: the link leads to a folder that is in {folder} already")
    seen.add(real)
    folders[:] = [name for name in folders if not name.startswith(".")]
    found += [pathlib.Path(place, name) for name in files if not name.startswith(".")]
  for path in found:
    try:
      str(path).encode()
    except UnicodeEncodeError as error:
      raise UserError(f"{ascii(str(path))}: the name is not UTF-8: rename it") from error
  return sorted(found)


def _from_csv(path: pathlib.Path) -> list[_Entry]:
  """Reads a CSV file."""
  content = path.read_bytes()
  try:
    text = content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content.count(b"\n", 0, error.start) + 1
    raise UserError(f"{path}, line {line}: the file is not UTF-8: save it as UTF-8") from error
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  header, entries, lines = None, [], {}
  try:
    for row in reader:
      where = f"{path}, line {reader.line_num}"
      row = [field.strip() for field in row]
      if not any(row):
        continue
      if header is None:
        header = [field.lower() for field in row]
        for column in ("path", "label"):
          if column not in header:
            raise UserError(
              f"{where}: there is no column {column!r}: the first line has to be path,label,split "
              "with commas"
            )
        continue
      if len(row) != len(header):
        raise UserError(
          f"{where}: {len(row)} fields under {len(header)} columns: put a field that has a comma "
          "into double quotes"
        )
      fields = dict(zip(header, row, strict=True))
      if fields["label"] == fields.get("score") == "" and fields.get("start"):
        continue  # a gap of a video, as `--mode=predict --window --csv` writes it
      if not fields["path"]:
        raise UserError(f"{where}: there is no path")
      span = _span(fields, where)
      clip_id, group = fields["path"] + suffix(span), fields.get("group", "")
      if clip_id in lines:
        raise UserError(f"{where}: {clip_id} is in line {lines[clip_id]} already: delete one")
      lines[clip_id] = reader.line_num
      split = fields.get("split")
      if split is not None and split.lower() not in SPLIT_NAMES:
        raise UserError(f"{where}: the split {split!r} is none of train, val and test")
      split = split and SPLIT_NAMES[split.lower()]
      file = str(path.parent / fields["path"])
      label = cell_text(fields["label"])  # of rows that `--mode=predict --csv` wrote
      entries.append(_Entry(where, clip_id, file, label, split, span, group))
  except csv.Error as error:
    raise UserError(f"{path}, line {reader.line_num}: not valid CSV ({error})") from error
  if not entries:
    raise UserError(f"{path}: there are no rows below the header path,label,split")
  entries = _with_groups(entries)
  # A video's parts one after the other, so that it is decoded once.
  order = {}
  for entry in entries:
    order.setdefault(entry.file, len(order))
  return sorted(entries, key=lambda entry: (order[entry.file], entry.span or (0, 0)))


def _with_groups(entries: list[_Entry]) -> list[_Entry]:
  """Returns rows with the parts of a video as a group, where they have none of their own.

  A whole video is one of its parts' group too, but where its row says which split it is in: that is
  compared with theirs file by file.
  """
  if not any(entry.span for entry in entries):
    return entries
  real = {file: os.path.realpath(file) for file in {entry.file for entry in entries}}
  first = {}  # by the file itself: how it is spelled first
  for entry in entries:
    if entry.span:
      first.setdefault(real[entry.file], entry.id.removesuffix(suffix(entry.span)))
  return [
    dataclasses.replace(entry, group=first[real[entry.file]])
    if not entry.group and real[entry.file] in first and (entry.span or entry.split is None)
    else entry
    for entry in entries
  ]


def _span(fields: dict[str, str], where: str) -> tuple[float, float] | None:
  """Returns start and end of a row's part in seconds, None where it names none."""
  texts = fields.get("start", ""), fields.get("end", "")
  if not any(texts):
    return None
  times = []
  for column, text in zip(("start", "end"), texts, strict=True):
    parts = text.split(":")
    if not (text and len(parts) <= 3 and all(TIME.fullmatch(part) for part in parts)):
      raise UserError(f"{where}: {column} {text!r} is no time in seconds or hh:mm:ss.mmm")
    times.append(sum(float(part) * 60**k for k, part in enumerate(reversed(parts))))
  if times[0] >= times[1]:
    raise UserError(f"{where}: the part ends at {texts[1]}, not behind its start at {texts[0]}")
  return times[0], times[1]
