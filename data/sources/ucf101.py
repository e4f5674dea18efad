"""UCF101, from its two archives unpacked into one folder.

  <source>/UCF-101/<Class>/v_<Class>_g08_c01.avi; the classes may also lie in <source>/videos or
  in <source> itself
  <source>/ucfTrainTestlist/{classInd,trainlist0k,testlist0k}.txt; the lists may also lie in
  <source> itself

The lists and the videos disagree on the case of letters ('HandStandPushups' and
'HandstandPushups'), so names are matched whatever their case.
"""

import os
import pathlib
from collections.abc import Iterable

from data.sources.listing import Clip, Listing, check
from u2s_jax.errors import UserError

OFFICIAL = {1: (9537, 3783), 2: (9586, 3734), 3: (9624, 3696)}


def listing(source: pathlib.Path, split: int) -> Listing:
  """Reads the lists of one split.

  Args:
    source: folder of the videos and the lists, see the module's docstring.
    split: 1 to 3.

  Returns:
    The split's train list as `train` and its test list as `validation`. A video that is not there
    has the path that it should have.

  Raises:
    FileNotFoundError: `source`, a list or a class folder is missing; one line, names it.
    UserError: a line of a list is not valid, or there is no such split; one line.
  """
  if split not in OFFICIAL:
    raise UserError(f"--split is {split}; UCF101 has the splits 1, 2 and 3")
  if not source.is_dir():
    raise FileNotFoundError(f"{source} is not a folder: unpack UCF101 into it")
  lists = source / "ucfTrainTestlist"
  if not lists.is_dir():
    lists = source
  folders = (source / "UCF-101", source / "videos")
  root = next((folder for folder in folders if folder.is_dir()), source)
  names = _class_names(lists / "classInd.txt")
  folders = _class_folders(root, names)
  train, validation = OFFICIAL[split]
  result = Listing(
    names=names,
    splits={
      "train": _clips(lists / f"trainlist0{split}.txt", names, folders, labelled=True),
      "validation": _clips(lists / f"testlist0{split}.txt", names, folders, labelled=False),
    },
    official={"train": train, "validation": validation},
  )
  check(result, str(source))
  return result


def _lines(path: pathlib.Path) -> list[tuple[str, str]]:
  """The lines of a list that are not empty, each with words that say where it is."""
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: the list is missing: unpack UCF101TrainTestSplits-RecognitionTask.zip there"
    )
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  return [(f"{path}, line {i}", line.strip()) for i, line in enumerate(lines, 1) if line.strip()]


def _class_names(path: pathlib.Path) -> list[str]:
  names = []
  for where, line in _lines(path):
    index, _, name = line.partition(" ")
    if index != str(len(names) + 1) or not name.strip():
      raise UserError(f"{where}: {line!r} should be '{len(names) + 1} <class>'")
    names.append(name.strip())
  return names


def _any_case(names: Iterable[str]) -> dict[str, str]:
  """Names by themselves and, after those, by themselves in lower case."""
  names = list(names)
  return {name.lower(): name for name in names} | {name: name for name in names}


def _find(name: str, present: dict[str, str]) -> str | None:
  """Finds a name in what `_any_case` returned."""
  return present.get(name) or present.get(name.lower())


def _class_folders(
  root: pathlib.Path, names: list[str]
) -> dict[str, tuple[pathlib.Path, dict[str, str]]]:
  """Returns the folder of each class and the files in it."""
  present = _any_case(os.listdir(root))
  folders = {name: _find(name, present) for name in names}
  missing = [name for name in names if folders[name] is None]
  if missing:
    raise FileNotFoundError(
      f"{root / missing[0]}: the class folder is missing, as {len(missing)} of {len(names)} are: "
      "unpack UCF101.rar there"
    )
  # One listing a class: 13,320 single look-ups are slow on network file systems.
  places = {name: root / folders[name] for name in names}
  return {name: (place, _any_case(os.listdir(place))) for name, place in places.items()}


def _clips(
  path: pathlib.Path,
  names: list[str],
  folders: dict[str, tuple[pathlib.Path, dict[str, str]]],
  labelled: bool,
) -> list[Clip]:
  """Reads '<Class>/<file> <index>' or, not labelled, '<Class>/<file>'."""
  index, known, clips = {name: i for i, name in enumerate(names)}, _any_case(names), []
  for where, line in _lines(path):
    video, number = line, None
    if labelled:
      video, _, number = line.rpartition(" ")
    folder, _, file = video.strip().partition("/")
    if not file or "/" in file:
      form = "<Class>/<file> <index>" if labelled else "<Class>/<file>"
      raise UserError(f"{where}: {line!r} should be '{form}'")
    name = _find(folder, known)
    if name is None:
      raise UserError(f"{where}: the class {folder!r} is not in {path.with_name('classInd.txt')}")
    if labelled and number != str(index[name] + 1):
      raise UserError(
        f"{where}: the class has the index {number!r}, but {name!r} has {index[name] + 1} in "
        f"{path.with_name('classInd.txt')}"
      )
    place, present = folders[name]
    file_path = str(place / (_find(file, present) or file))
    clips.append(Clip(pathlib.PurePosixPath(file).stem, index[name], file_path))
  return clips
