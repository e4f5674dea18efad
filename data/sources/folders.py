"""Videos or images as users have them: a folder for each class, or a CSV file.

  <source>/<class>/.../<file>
  <source>/{train,val,test}/<class>/.../<file>; other usual names of splits are known too, where all
  folders have one: `training`, `dev`, `test_set` (see `splits.split_of`). `test` alone is for
  evaluation by runs that know its classes: those of all its folders, also empty ones.
  <source>/[train/]<class>/.../<clip>/img_00001.jpg, ...: of `frames`, folders of extracted ones
  <source>.csv: the header `path,label,split`, then a row for each clip. `label` is the class's
  name, empty where it is not known (`test` only); `split` is train, val or test. Paths are absolute
  or start at the CSV file's folder. `start,end` make a clip of a part of a video: seconds, or
  hh:mm:ss.mmm. `group` says what belongs together (a person, a camera), and is on one side of a
  split; without it the parts of a video do. The columns may come in any order; others are not used.

Without splits, about a fifth of the clips of each class goes to validation, in whole groups where
there are any: see `splits.choose_validation`.
"""

import collections
import csv
import dataclasses
import functools
import glob
import io
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from data.images import FRAME_EXTENSIONS
from data.sources import splits
from data.sources.listing import SPLITS, Clip, Listing, check, check_names, suffix
from u2s_jax.errors import UserError, cell_text

# The endings that FFmpeg 8 gives the containers and streams of video that `decode` opens (`av`'s
# `ContainerFormat(name).extensions`), and in the last line usual ones that it leaves out, as it
# goes by the content. None of its stills (.avif), sound (.m4a, .ogg), subtitles (.mks) and texts.
VIDEO_EXTENSIONS = tuple(
  """
  .3g2 .3gp .264 .265 .apng .asf .avc .avi .dif .dv .f4v .flv .gif .h264 .h265 .h26l .hevc .ismv
  .ivf .m1v .m2t .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mk3d .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut
  .obu .ogv .psp .rm .ts .webm .wmv .y4m
  .3gp2 .3gpp .divx .m2p .mpe .mpv .ogm .qt .rmvb .tod .tp .trp .vob .xvid
  """.split()
)
IMAGE_EXTENSIONS = tuple(".jpg .jpeg .png .bmp .webp .gif .tif .tiff .ppm .pgm".split())
FRAMES = "folders of frames"  # a kind of clips
COLUMNS = ("path", "label", "split", "start", "end", "group")
PLAIN = ("train", "val", "valid", "validation", "test")  # splits that may have other folders beside
TIME = re.compile(r"\d+(\.\d*)?|\.\d+")


def is_image(path: str) -> bool:
  """Whether a file is an image by its extension; a GIF, which may move, is a video."""
  suffix = pathlib.Path(path).suffix.lower()
  return suffix in IMAGE_EXTENSIONS and suffix not in VIDEO_EXTENSIONS


def find_files(where: str) -> list[str]:
  """The videos and images that a file, a folder (with all below it) or a pattern names, sorted.

  Of a folder, those that `videos` and `images` take too: not hidden ones, and also linked ones.

  Raises:
    FileNotFoundError: there is none.
    UserError: a link in the folder leads back to it.
  """
  where = os.path.expanduser(where)  # the shell leaves a ~ after an = as it is
  path = pathlib.Path(where)
  if path.is_dir():
    found = _walk(path)
    known = VIDEO_EXTENSIONS + IMAGE_EXTENSIONS
    files = [file for file in found if file.suffix.lower() in known]
    if found and not files:
      raise FileNotFoundError(f"{where}: no video or image by the extension, but {_endings(found)}")
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
  classes = set()
  if source.is_dir():
    entries, notes, classes = _from_folder(source, kind, extensions)
    entries = [
      dataclasses.replace(entry, group=_group(entry.id, group_pattern)) for entry in entries
    ]
  elif source.is_file() and source.suffix.lower() == ".csv":
    entries, notes = _from_csv(source)
  elif source.exists():
    raise UserError(f"{source} is neither a folder nor a .csv file: unpack it, if it is an archive")
  else:
    raise FileNotFoundError(f"{source}: there is no such folder or .csv file")

  _check_labels([entry for entry in entries if entry.split is None])
  if all(entry.split for entry in entries):
    return _arranged(source, kind, entries, notes, classes)

  def split_by(choose: Callable[[Sequence[_Entry]], tuple[set[str], str]]) -> Listing:
    held_out, note = choose(entries)
    apart = [
      dataclasses.replace(entry, split="validation" if entry.id in held_out else "train")
      for entry in entries
    ]
    return _arranged(source, kind, apart, [*notes, note], classes)

  return dataclasses.replace(
    split_by(_held_out), earlier=functools.partial(split_by, _held_out_before)
  )


def _arranged(
  source: pathlib.Path, kind: str, entries: Sequence[_Entry], notes: list[str], classes: set[str]
) -> Listing:
  """Returns clips, each of which is in a split, as a listing; `classes` are those of folders."""
  check_names(classes | {entry.name for entry in entries}, str(source))
  _check_groups(entries)
  counts = collections.Counter(entry.split for entry in entries)
  test_only = [*counts] == ["test"]
  if counts["test"] and not counts["validation"] and not test_only:
    entries = [
      dataclasses.replace(entry, split="validation") if entry.split == "test" else entry
      for entry in entries
    ]
    notes.append(
      f"there is no validation split: the test split, {counts['test']} {kind}, stands in for it"
    )

  _check_labels(entries)
  if test_only:
    names = classes | {entry.name for entry in entries} - {""}
    notes.append("there is a test split alone: runs that know its classes can be evaluated on it")
  elif not counts["train"]:
    raise UserError(f"{source}: there is no training split, but {', '.join(counts)}: add it")
  else:
    names = {entry.name for entry in entries if entry.split == "train"}
  numbers = all(name.isdecimal() for name in names)
  names = sorted(names, key=lambda name: (int(name), name) if numbers else name)
  index = {name: i for i, name in enumerate(names)}
  by_split = {split: [] for split in SPLITS}
  for entry in entries:
    if entry.name and entry.name not in index:
      raise UserError(
        f"{entry.where}: the class {entry.name!r} has no training clip: add some, or take it out"
      )
    label = index.get(entry.name, -1)
    by_split[entry.split].append(Clip(entry.id, label, entry.file, span=entry.span))
  by_split = {split: clips for split, clips in by_split.items() if clips}
  result = Listing(names=names, splits=by_split, notes=notes)
  check(result, str(source))
  return result


def _grouped(entries: Sequence[_Entry]) -> list[str]:
  """Returns the group of each clip; one that is in none is a group of its own."""
  return [entry.group or f"\n{entry.id}" for entry in entries]


def _held_out(entries: Sequence[_Entry]) -> tuple[set[str], str]:
  """Chooses clips for validation; returns their ids and what was done.

  Raises:
    UserError: none can be held out.
  """
  groups, names = _grouped(entries), [entry.name for entry in entries]
  chosen = splits.choose_validation(names, groups)
  if not chosen and len(set(groups)) == 1:
    raise UserError(
      f"{entries[0].where}: all clips are of one group ({entries[0].group}), and a network would be"
      " tested on what it learned: add others, or a column `split` or `group`"
    )
  if not chosen:
    raise UserError(
      f"{entries[0].where}: no class has two clips of different groups, of which one could be held"
      " out for validation: add some, or say which split each clip is in"
    )
  ids = {entry.id for entry, group in zip(entries, groups, strict=True) if group in chosen}
  note = (
    f"there are no splits: about a fifth of each class went to validation, {len(ids)} of"
    f" {len(entries)} clips"
  )
  if any(entry.group for entry in entries):
    note += f", and of {len(set(groups))} groups none is in both"
  without = sorted({*names} - {entry.name for entry in entries if entry.id in ids})
  if without:
    note += f"; none of {len(without)} classes, such as {without[0]!r}, as training needs them"
  return ids, note


def _held_out_before(entries: Sequence[_Entry]) -> tuple[set[str], str]:
  """Chooses as earlier versions did, see `_held_out`."""
  groups = _grouped(entries) if any(entry.group for entry in entries) else None
  names, ids = [entry.name for entry in entries], [entry.id for entry in entries]
  held_out = splits.choose_as_before(names, ids, groups)
  return held_out, (
    f"begun by an earlier version, whose choice of {len(held_out)} clips for validation stays"
  )


def _group(clip_id: str, pattern: str) -> str:
  """Returns what a pattern finds in an id, empty for no pattern or where it finds nothing."""
  try:
    found = re.search(pattern, clip_id) if pattern else None
  except re.error as error:
    raise UserError(f"--group_pattern: {pattern!r} is no regular expression ({error})") from error
  return "" if found is None else found[1 if found.re.groups else 0] or ""


def _check_labels(entries: Sequence[_Entry]) -> None:
  """Raises UserError where a clip has no label, but for test splits."""
  for entry in entries:
    if not entry.name and entry.split != "test":
      raise UserError(f"{entry.where}: there is no label, which only a test split may do without")


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
) -> tuple[list[_Entry], list[str], set[str]]:
  """Reads the layouts with class folders; returns the clips, the notes and the classes."""
  notes, ignored, stray = [], [], []
  folders, files = _children(source)
  # No classes are called training and testing, but some may be called train and bus.
  levels = [folder for folder in folders if splits.split_of(folder.name)]
  if levels != folders:
    levels = [folder for folder in folders if folder.name.lower() in PLAIN]
  has_levels = bool(levels) and (
    levels == folders
    or any(folder.name.lower() == "train" and _children(folder)[0] for folder in levels)
  )
  parts = [(None, source)]
  if has_levels:
    parts = [(splits.split_of(folder.name), folder) for folder in levels]
    for split, count in collections.Counter(split for split, _ in parts).items():
      if count > 1:
        same = " and ".join(folder.name for part, folder in parts if part == split)
        raise UserError(f"{source}: {same} are folders of one split: merge them")
    beside = [repr(folder.name) for folder in folders if folder not in levels]
    if beside:
      notes.append(f"ignored what lies beside the splits' folders: {', '.join(beside)}")
    _check_parts(source, {split for split, _ in parts}, levels, beside)

  entries, names = [], set()
  for split, part in parts:
    classes, beside_classes = _children(part)
    files += beside_classes if has_levels else []
    names |= {folder.name for folder in classes}
    for folder in classes:
      found = _walk(folder)
      kept = [path for path in found if path.suffix.lower() in extensions]
      others = [path for path in found if path.suffix.lower() not in extensions]
      ignored += others
      if kind == FRAMES:
        stray += [path for path in kept if path.parent == folder]
        kept = sorted({path.parent for path in kept} - {folder})
      if not kept and split in (None, "train"):
        beside = f" by the extension, but {_endings(others)}" if others else ""
        raise UserError(
          f"{folder}: the class folder holds no {kind}{beside}: add some, or move it away"
        )
      for path in kept:
        _check_name(path)
        clip_id = path.relative_to(source).as_posix()
        entries.append(_Entry(str(folder), clip_id, str(path), folder.name, split))
  for path in files:
    if path.suffix.lower() in extensions:
      stray.append(path)
    else:
      ignored.append(path)
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
    endings = _endings(ignored)
    notes.append(f"ignored {len(ignored)} files that are no {kind} by their extension: {endings}")
  return entries, notes, names


def _check_parts(
  source: pathlib.Path, found: set[str], levels: Sequence[pathlib.Path], beside: Sequence[str]
) -> None:
  """Raises UserError where a split has no folder; a test split may be alone."""
  there = ", ".join([*(repr(folder.name) for folder in levels), *beside])
  if "train" not in found and found != {"test"}:
    split, names = "train", "train or training"
  elif found == {"train"}:
    split, names = "validation", "val, valid, validation, dev, test, testing or eval"
  else:
    return
  raise UserError(
    f"{source}: no folder of the split {split!r} lies beside {there}: add one, called {names}"
  )


def _endings(files: Iterable[pathlib.Path]) -> str:
  """Returns how many files have which ending, the most frequent first."""
  counts = sorted(collections.Counter(file.suffix.lower() for file in files).items())
  counts.sort(key=lambda item: -item[1])
  return ", ".join(f"{ending or 'no extension'} {count}" for ending, count in counts)


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
  return sorted(found)


def _check_name(path: pathlib.Path) -> None:
  """Raises UserError for a name that no list of text can hold."""
  try:
    str(path).encode()
  except UnicodeEncodeError as error:
    raise UserError(f"{ascii(str(path))}: the name is not UTF-8: rename it") from error


def _from_csv(path: pathlib.Path) -> tuple[list[_Entry], list[str]]:
  """Reads a CSV file; returns the clips and the notes."""
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
        _check_header(header, where)
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
      if split is not None and splits.split_of(split) is None:
        raise UserError(f"{where}: the split {split!r} is none of train, val and test")
      split = split and splits.split_of(split)
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
  entries.sort(key=lambda entry: (order[entry.file], entry.span or (0, 0)))
  # `--mode=predict --csv` writes scores.
  unused = [repr(column) for column in header if column not in (*COLUMNS, "score")]
  notes = [f"{path}: columns that are not used: {', '.join(unused)}"] if unused else []
  return entries, notes + _overlaps(entries)


def _check_header(header: Sequence[str], where: str) -> None:
  """Raises UserError where a column is missing, there twice, or most likely misspelt."""
  for column in ("path", "label"):
    if column not in header:
      raise UserError(
        f"{where}: there is no column {column!r}, but {', '.join(map(repr, header))}: the first"
        " line has to be path,label,split with commas"
      )
  for name in header:
    if header.count(name) > 1:
      raise UserError(f"{where}: the column {name!r} is there twice: delete one")
    near = [column for column in COLUMNS if column not in header and _resembles(name, column)]
    if name not in COLUMNS and near:
      raise UserError(
        f"{where}: the column {name!r} is not known, and there is no {near[0]!r}: call it so if it"
        " is meant, or something else"
      )
  for column, other in (("start", "end"), ("end", "start")):
    if column in header and other not in header:
      raise UserError(f"{where}: there is a column {column!r}, but no {other!r}: parts need both")


def _resembles(name: str, column: str) -> bool:
  """Whether a name has a column's as a word, or one letter less, more, other, or two exchanged."""
  if column in re.findall("[a-z]+", name):
    return True
  same = len(os.path.commonprefix([name, column]))
  name, column = name[same:], column[same:]
  return (
    name[1:] in (column, column[1:])
    or name == column[1:]
    or (name[:2] == column[1::-1] and name[2:] == column[2:])
  )


def _overlaps(entries: Sequence[_Entry]) -> list[str]:
  """Returns a note on parts that overlap and have different labels; sorted by file and start."""
  found, running = [], []
  for entry in entries:
    start, end = entry.span or (0.0, math.inf)
    running = [(until, o) for until, o in running if o.file == entry.file and until > start]
    other = next((o for _, o in running if o.name != entry.name), None)
    if other:
      found.append((other, entry))
    running.append((end, entry))
  if not found:
    return []
  pair = " and ".join(f"{entry.id} ({entry.name})" for entry in found[0])
  return [
    f"{len(found)} parts of videos overlap others with another label, such as {pair}: a network is"
    " taught both"
  ]


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
