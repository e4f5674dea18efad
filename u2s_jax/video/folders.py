"""Lists a user's videos or images: a folder for each class, or a CSV file.

  <source>/<class>/.../<file>
  <source>/{train,val,test}/<class>/.../<file>. Other usual names of splits are recognized if all
    folders have one: `training`, `dev`, `test_set` (see `splits.parse_split`). `test` alone can be
    evaluated by runs with the same classes, which are all its folders, also empty ones.
  <source>/[train/]<class>/.../<clip>/img_00001.jpg, ...: clips as folders of extracted frames, see
    `list_frame_folders`.
  <source>.csv: see `clips_csv`.

Without splits, about a fifth of the clips of each class is held out for validation, in whole groups
if there are any: see `splits.choose_validation`.
"""

import collections
import dataclasses
import difflib
import functools
import glob
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NoReturn

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import clips_csv, splits
from u2s_jax.video.images import FRAME_EXTENSIONS
from u2s_jax.video.listing import SPLITS, Clip, Entry, Listing, check_listing, check_names

# The extensions that FFmpeg 8 gives the video containers and streams that `decode` opens (`av`'s
# `ContainerFormat(name).extensions`), and in the last line usual ones that it leaves out because it
# goes by the content. None of stills (.avif), sound (.m4a, .ogg), subtitles (.mks) or text.
VIDEO_EXTENSIONS = tuple(
  """
  .3g2 .3gp .264 .265 .apng .asf .avc .avi .dif .dv .f4v .flv .gif .h264 .h265 .h26l .hevc .ismv
  .ivf .m1v .m2t .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mk3d .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut
  .obu .ogv .psp .rm .ts .webm .wmv .y4m
  .3gp2 .3gpp .divx .m2p .mpe .mpv .ogm .qt .rmvb .tod .tp .trp .vob .xvid
  """.split()
)
IMAGE_EXTENSIONS = tuple(".jpg .jpeg .png .bmp .webp .gif .tif .tiff .ppm .pgm".split())
# A class is most likely a typing error if another, at least TYPO_RATIO times as frequent, has
# almost its name (the ratio of `difflib`).
TYPO_RATIO, TYPO_SIMILARITY = 10, 0.85
FRAMES = "folders of frames"  # a kind of clips, like "videos" and "images"


def is_image(path: str) -> bool:
  """Returns whether the extension is an image's; a GIF, which may be animated, is a video."""
  suffix = pathlib.Path(path).suffix.lower()
  return suffix in IMAGE_EXTENSIONS and suffix not in VIDEO_EXTENSIONS


def find_files(where: str) -> list[str]:
  """Finds the videos and images that a file, a folder (recursively) or a glob pattern names.

  In folders links are followed and hidden files skipped, as by `list_videos` and `list_images`.

  Raises:
    FileNotFoundError: if there are none.
    UserError: if a link in the folder leads back to it.
  """
  where = os.path.expanduser(where)  # a shell does not expand the ~ of --video=~/a.mp4
  path = pathlib.Path(where)
  if path.is_dir():
    found = _walk(path)
    known = VIDEO_EXTENSIONS + IMAGE_EXTENSIONS
    files = [file for file in found if file.suffix.lower() in known]
    if found and not files:
      raise FileNotFoundError(
        f"{where}: no videos or images, only files with other extensions"
        f" ({_count_extensions(found)})"
      )
  elif path.exists():
    files = [path]
  else:
    files = [pathlib.Path(name) for name in glob.glob(where, recursive=True)]
  if not files:
    raise FileNotFoundError(f"{where}: no videos or images found")
  return sorted(map(str, files))


def list_videos(source: pathlib.Path, group_pattern: str = "") -> Listing:
  """Lists a user's videos.

  Args:
    source: folder or CSV file, see the module's docstring.
    group_pattern: regular expression, searched for in the ids of a folder's clips: those with the
      same match (of the first group, if the pattern has one) are a group. Empty: no groups.

  Returns:
    The clips; `validation` is the test split if there is no other. Ids are paths relative to the
    folder, or as in the CSV file. The classes are sorted by name, or by value if all names are
    numbers. Whether the files of a CSV file exist is not checked.

  Raises:
    FileNotFoundError: if `source` does not exist; one line.
    UserError: if `source` is not valid; one line, which names the file or the folder.
  """
  return _list(source, "videos", VIDEO_EXTENSIONS, group_pattern)


def list_images(source: pathlib.Path, group_pattern: str = "") -> Listing:
  """Lists a user's images, see `list_videos`."""
  listing = _list(source, "images", IMAGE_EXTENSIONS, group_pattern)
  return dataclasses.replace(listing, images=True)


def list_frame_folders(source: pathlib.Path, group_pattern: str = "") -> Listing:
  """Lists clips that are folders of extracted frames, see `list_videos`."""
  return _list(source, FRAMES, FRAME_EXTENSIONS, group_pattern)


def _list(
  source: pathlib.Path, kind: str, extensions: Sequence[str], group_pattern: str
) -> Listing:
  if group_pattern and source.is_file():
    raise UserError(f"group_pattern: applies to folders only; add a column 'group' to {source}")
  classes = set()
  if source.is_dir():
    entries, notes, classes = _read_folder(source, kind, extensions)
    entries = [
      dataclasses.replace(entry, group=_match_group(entry.id, group_pattern)) for entry in entries
    ]
  elif source.is_file() and source.suffix.lower() == ".csv":
    entries, notes = clips_csv.read_csv(source)
  elif source.exists():
    raise UserError(
      f"{source}: neither a folder nor a .csv file; if it is an archive, extract it first"
    )
  else:
    raise FileNotFoundError(f"{source}: no such folder or .csv file")

  _check_labels([entry for entry in entries if entry.split is None])
  if all(entry.split for entry in entries):
    return _make_listing(source, kind, entries, notes, classes)

  def split_by(
    hold_out: Callable[[pathlib.Path, Sequence[Entry]], tuple[set[str], str]],
  ) -> Listing:
    held_out, note = hold_out(source, entries)
    assigned = [
      dataclasses.replace(entry, split="validation" if entry.id in held_out else "train")
      for entry in entries
    ]
    listing = _make_listing(source, kind, assigned, [*notes, note], classes)
    return dataclasses.replace(listing, validation_note=note)

  return dataclasses.replace(
    split_by(_hold_out), earlier=functools.partial(split_by, _hold_out_as_before)
  )


def _make_listing(
  source: pathlib.Path, kind: str, entries: Sequence[Entry], notes: list[str], classes: set[str]
) -> Listing:
  """Makes a listing of clips that all have a split; `classes` are those of folders."""
  check_names(classes | {entry.name for entry in entries}, str(source))
  _check_groups(entries)
  counts = collections.Counter(entry.split for entry in entries)
  is_test_only = [*counts] == ["test"]
  if counts["test"] and not counts["validation"] and not is_test_only:
    entries = [
      dataclasses.replace(entry, split="validation") if entry.split == "test" else entry
      for entry in entries
    ]
    notes.append(
      f"no validation split: the test split ({counts['test']} {kind}) is used for validation"
    )

  _check_labels(entries)
  if is_test_only:
    names = classes | {entry.name for entry in entries} - {""}
    notes.append("only a test split: runs that were trained on its classes can be evaluated on it")
  elif not counts["train"]:
    raise UserError(f"{source}: no training split, only {', '.join(counts)}; add one")
  else:
    names = {entry.name for entry in entries if entry.split == "train"}
  are_numbers = all(name.isdecimal() for name in names)
  names = sorted(names, key=lambda name: (int(name), name) if are_numbers else name)
  index = {name: i for i, name in enumerate(names)}
  by_split = {split: [] for split in SPLITS}
  for entry in entries:
    if entry.name and entry.name not in index:
      raise UserError(
        f"{entry.where}: the class {entry.name!r} has no training clip; add some, or remove the"
        " class"
      )
    label = index.get(entry.name, -1)
    clip = Clip(
      entry.id, label, entry.file, span=entry.span, region=entry.region, group=entry.group
    )
    by_split[entry.split].append(clip)
  by_split = {split: clips for split, clips in by_split.items() if clips}
  notes += _describe_typos([entry.name for entry in entries if entry.name])
  result = Listing(names=names, splits=by_split, notes=notes)
  check_listing(result, str(source))
  return result


def _describe_typos(names: Sequence[str]) -> Iterator[str]:
  """Yields a note for each rare class whose name is almost that of a frequent one."""
  counts = collections.Counter(names)
  for name, count in counts.items():
    frequent = [other for other in counts if counts[other] >= TYPO_RATIO * count]
    for other in difflib.get_close_matches(name, frequent, n=1, cutoff=TYPO_SIMILARITY):
      if re.sub(r"\d", "", name) != re.sub(r"\d", "", other):  # numbered classes are no errors
        yield (
          f"class {name!r} (clips: {count}) is spelt almost like {other!r} ({counts[other]}); is"
          " that a typing error?"
        )


def _get_groups(entries: Sequence[Entry]) -> list[str]:
  """Returns the group of each clip; one without a group is a group of its own."""
  return [entry.group or f"\n{entry.id}" for entry in entries]


def _hold_out(source: pathlib.Path, entries: Sequence[Entry]) -> tuple[set[str], str]:
  """Returns the ids of the validation clips, and a note; raises UserError if there can be none."""
  groups, names = _get_groups(entries), [entry.name for entry in entries]
  chosen = splits.choose_validation(names, groups)
  if not chosen and len(set(groups)) == 1:
    raise UserError(
      f"{source}: all clips are of one group ({entries[0].group}), which cannot be both"
      " trained and validated on; add clips of other groups, or assign the clips to splits"
    )
  if not chosen:
    raise UserError(
      f"{source}: no class has two clips of different groups, so none can be held out for"
      " validation. Clips of one video are a group; add clips of other videos, assign the clips to"
      " splits, or set groups in a column 'group'"
    )
  ids = {entry.id for entry, group in zip(entries, groups, strict=True) if group in chosen}
  note = (
    f"no splits: about a fifth of each class is held out for validation, {len(ids)} of"
    f" {len(entries)} clips"
  )
  if any(entry.group for entry in entries):
    note += f"; none of the {len(set(groups))} groups is in both splits"
  if untested := sorted({*names} - {entry.name for entry in entries if entry.id in ids}):
    note += (
      f"; classes without validation clips, as training needs them all: {len(untested)}, such as"
      f" {untested[0]!r}"
    )
  return ids, note


def _hold_out_as_before(source: pathlib.Path, entries: Sequence[Entry]) -> tuple[set[str], str]:
  groups = _get_groups(entries) if any(entry.group for entry in entries) else None
  names, ids = [entry.name for entry in entries], [entry.id for entry in entries]
  held_out = splits.choose_as_before(names, ids, groups)
  return held_out, (
    f"started by an earlier version: its choice of {len(held_out)} validation clips is kept"
  )


def _match_group(clip_id: str, pattern: str) -> str:
  try:
    match = re.search(pattern, clip_id) if pattern else None
  except re.error as error:
    raise UserError(
      f"group_pattern: {pattern!r} is not a valid regular expression ({error})"
    ) from error
  return "" if match is None else match[1 if match.re.groups else 0] or ""


def _check_labels(entries: Sequence[Entry]) -> None:
  for entry in entries:
    if not entry.name and entry.split != "test":
      raise UserError(
        f"{entry.where}: the label is missing; only clips of the test split may have none"
      )


def _check_groups(entries: Sequence[Entry]) -> None:
  first = {}
  for entry in entries:
    other = first.setdefault(entry.group, entry) if entry.group else entry
    if other.split != entry.split:
      raise UserError(
        f"{entry.where}: {entry.id} is in {entry.split}, but {other.id} of the same group"
        f" ({entry.group}) is in {other.split}; keep a group in one split"
      )


def _read_folder(
  source: pathlib.Path, kind: str, extensions: Sequence[str]
) -> tuple[list[Entry], list[str], set[str]]:
  """Reads the layouts with class folders; returns the clips, notes, and the class names."""
  split_folders, notes = _find_split_folders(source)
  entries, names, strays, others = [], set(), [], []
  loose_files = _list_folder(source)[1]
  for split, folder in split_folders or [(None, source)]:
    class_folders, files = _list_folder(folder)
    loose_files += files if split_folders else []
    names |= {class_folder.name for class_folder in class_folders}
    for class_folder in class_folders:
      found = _walk(class_folder)
      clips = [path for path in found if path.suffix.lower() in extensions]
      unknown = [path for path in found if path.suffix.lower() not in extensions]
      others += unknown
      if kind == FRAMES:
        strays += [path for path in clips if path.parent == class_folder]
        clips = sorted({path.parent for path in clips} - {class_folder})
      if not clips and split in (None, "train"):
        counts = f", only files with other extensions ({_count_extensions(unknown)})"
        raise UserError(
          f"{class_folder}: this class folder holds no {kind}{counts if unknown else ''}; add some,"
          " or move the folder away"
        )
      for path in clips:
        _check_encoding(path)
        clip_id = path.relative_to(source).as_posix()
        entries.append(Entry(str(class_folder), clip_id, str(path), class_folder.name, split))
  for path in loose_files:
    (strays if path.suffix.lower() in extensions else others).append(path)
  if not entries:
    raise UserError(
      f"{source}: no class folders with {kind}; put each file into a folder named after its class,"
      " or list the files in a CSV file"
    )
  if strays:
    place = f"{kind} outside the class folders"
    if kind == FRAMES:
      place = "images outside the clips' folders"
    notes.append(f"ignored {place}: {len(strays)}, such as {strays[0]}")
  if others:
    notes.append(f"ignored files with other extensions: {_count_extensions(others)}")
  return entries, notes, names


def _find_split_folders(
  source: pathlib.Path,
) -> tuple[list[tuple[str, pathlib.Path]], list[str]]:
  """Returns the folders of splits, none if `source` holds class folders, and notes."""
  folders, _ = _list_folder(source)
  # Classes may be called `train` and `bus`. So unless all folders have names of splits, only plain
  # names count, and only if there is a `train` that holds folders (of classes) itself.
  candidates = [folder for folder in folders if splits.parse_split(folder.name)]
  if candidates != folders:
    plain = ("train", "val", "valid", "validation", "test")
    candidates = [folder for folder in folders if folder.name.lower() in plain]
    if not any(folder.name.lower() == "train" and _list_folder(folder)[0] for folder in candidates):
      candidates = []
  if not candidates:
    return [], []
  split_folders = [(splits.parse_split(folder.name), folder) for folder in candidates]
  for split, count in collections.Counter(split for split, _ in split_folders).items():
    if count > 1:
      same = " and ".join(folder.name for other, folder in split_folders if other == split)
      raise UserError(f"{source}: {same} are both the split {split!r}; merge the folders")
  ignored = [repr(folder.name) for folder in folders if folder not in candidates]
  notes = [f"ignored folders that are no splits: {', '.join(ignored)}"] if ignored else []
  found = {split for split, _ in split_folders}
  if found == {"train"}:
    missing, names = "validation", "val, valid, validation, dev, test, testing or eval"
  elif "train" in found or found == {"test"}:
    return split_folders, notes
  else:
    missing, names = "train", "train or training"
  listed = ", ".join([*(repr(folder.name) for folder in candidates), *ignored])
  raise UserError(
    f"{source}: no folder for the split {missing!r}, only {listed}; add one called {names}"
  )


def _count_extensions(files: Iterable[pathlib.Path]) -> str:
  """Returns how many files have each extension, the most frequent first: `.txt 3, .png 1`."""
  counts = collections.Counter(sorted(file.suffix.lower() for file in files)).most_common()
  return ", ".join(f"{extension or 'no extension'} {count}" for extension, count in counts)


def _list_folder(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Returns the folders and the files in a folder, sorted, without hidden ones."""
  folders, files = [], []
  for path in sorted(folder.iterdir()):
    if not path.name.startswith("."):
      (folders if path.is_dir() else files).append(path)
  return folders, files


def _walk(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns all files below a folder, sorted, without hidden ones; follows links."""

  def fail(error: OSError) -> NoReturn:
    raise error  # by default `os.walk` skips a folder that it cannot read

  found, seen = [], set()
  for place, folders, files in os.walk(folder, onerror=fail, followlinks=True):
    real_path = os.path.realpath(place)
    if real_path in seen:
      raise UserError(f"{place}: this link leads back to a folder of {folder}; remove the link")
    seen.add(real_path)
    folders[:] = [name for name in folders if not name.startswith(".")]
    found += [pathlib.Path(place, name) for name in files if not name.startswith(".")]
  return sorted(found)


def _check_encoding(path: pathlib.Path) -> None:
  try:
    str(path).encode()
  except UnicodeEncodeError as error:
    raise UserError(f"{ascii(str(path))}: the name is not UTF-8; rename the file") from error
