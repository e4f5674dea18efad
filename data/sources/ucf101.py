"""UCF101, from its two archives unpacked into one folder.

  <source>/UCF-101/<Class>/v_<Class>_g08_c01.avi, or the classes in <source>/videos or <source>
  <source>/ucfTrainTestlist/{classInd,trainlist0k,testlist0k}.txt, or the lists in <source>

Lists and videos differ in case ('HandStandPushups' and 'HandstandPushups'), so names are matched
case-insensitively.
"""

import os
import pathlib
from collections.abc import Sequence

from u2s_jax.runtime.errors import UserError
from u2s_jax.video.listing import Clip, Listing, check_listing

OFFICIAL = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}


def list_clips(source: pathlib.Path, split: int) -> Listing:
  """Lists the clips of one official split, 1 to 3; does not check that the videos exist.

  The split's train list is `train`, its test list `validation`.

  Raises:
    FileNotFoundError: if `source`, a list or a class folder is missing; one line that names it.
    UserError: if a line of a list or `split` is not valid; one line.
  """
  if split not in OFFICIAL:
    raise UserError(f"--split: {split} must be 1, 2 or 3, the splits of UCF101")
  if not source.is_dir():
    raise FileNotFoundError(f"{source}: not a folder; unpack UCF101 into it")
  lists = source / "ucfTrainTestlist"
  if not lists.is_dir():
    lists = source
  root = next((path for path in (source / "UCF-101", source / "videos") if path.is_dir()), source)
  names = _read_class_names(lists / "classInd.txt")
  folders = _find_class_folders(root, names)
  train, validation = OFFICIAL[split]
  result = Listing(
    names=names,
    splits={
      "train": _read_list(lists / f"trainlist0{split}.txt", names, folders, labelled=True),
      "validation": _read_list(lists / f"testlist0{split}.txt", names, folders, labelled=False),
    },
    official={"train": train, "validation": validation},
  )
  check_listing(result, str(source))
  return result


def _read_lines(path: pathlib.Path) -> list[tuple[str, str]]:
  """Returns (position for messages, line) for all lines that are not empty."""
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: the list is missing; unpack UCF101TrainTestSplits-RecognitionTask.zip there"
    )
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  return [(f"{path}, line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]


def _read_class_names(path: pathlib.Path) -> list[str]:
  names = []
  for position, line in _read_lines(path):
    index, _, name = line.partition(" ")
    if index != str(len(names) + 1) or not name.strip():
      raise UserError(f"{position}: {line!r} must be '{len(names) + 1} <class>'")
    names.append(name.strip())
  return names


def _index_names(names: Sequence[str]) -> dict[str, str]:
  """Returns names by name and by lowercase name, for `_find_name`; exact names take precedence."""
  return {name.lower(): name for name in names} | {name: name for name in names}


def _find_name(name: str, index: dict[str, str]) -> str | None:
  return index.get(name) or index.get(name.lower())


def _find_class_folders(
  root: pathlib.Path, names: list[str]
) -> dict[str, tuple[pathlib.Path, dict[str, str]]]:
  """Returns the folder of each class and the index of its files."""
  index = _index_names(os.listdir(root))
  folders = {name: _find_name(name, index) for name in names}
  missing = [name for name in names if folders[name] is None]
  if missing:
    raise FileNotFoundError(
      f"{root / missing[0]}: the class folder is missing, as {len(missing)} of {len(names)} are; "
      "unpack UCF101.rar there"
    )
  # One directory listing per class: 13,320 single lookups are slow on network file systems.
  paths = {name: root / folders[name] for name in names}
  return {name: (path, _index_names(os.listdir(path))) for name, path in paths.items()}


def _read_list(
  path: pathlib.Path,
  names: list[str],
  folders: dict[str, tuple[pathlib.Path, dict[str, str]]],
  labelled: bool,
) -> list[Clip]:
  """Reads lines '<Class>/<file> <index>' or, if not `labelled`, '<Class>/<file>'."""
  labels, index, clips = {name: i for i, name in enumerate(names)}, _index_names(names), []
  for position, line in _read_lines(path):
    video, number = line, None
    if labelled:
      video, _, number = line.rpartition(" ")
    folder, _, file = video.strip().partition("/")
    if not file or "/" in file:
      expected = "<Class>/<file> <index>" if labelled else "<Class>/<file>"
      raise UserError(f"{position}: {line!r} must be '{expected}'")
    name = _find_name(folder, index)
    if name is None:
      raise UserError(
        f"{position}: the class {folder!r} is not in {path.with_name('classInd.txt')}"
      )
    if labelled and number != str(labels[name] + 1):
      raise UserError(
        f"{position}: the class has the index {number!r}, but {name!r} has {labels[name] + 1} in "
        f"{path.with_name('classInd.txt')}"
      )
    class_folder, files = folders[name]
    file_path = str(class_folder / (_find_name(file, files) or file))
    clip_id = pathlib.PurePosixPath(file).stem  # such as v_Archery_g08_c02, of group 8
    group = clip_id.rpartition("_c")[0]
    clips.append(Clip(clip_id, labels[name], file_path, group=group))
  return clips
