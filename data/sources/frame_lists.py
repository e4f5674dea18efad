"""Clips whose frames are already extracted, listed as TSM and mmaction2 do, or in class folders.

  <source>/<lists>.txt: one whose name holds `train`, one with `val` (or `test`, which may be alone,
    to evaluate on; other names are those of `splits.NAMES`): a line for each
    clip, `<folder> <frames> <label>`, the folder in <source> or in <source>/rawframes. The count is
    not looked at: all frames in the folder are taken.
  <source>/category.txt, classes.txt, label_map.txt or labels.txt: a class's name a line, in the
    order of the labels; without one the labels' numbers are the names
  <source>/<folder>/img_00001.jpg, ...: in the order of their numbers

Without lists, `folders.frames`.
"""

import pathlib
import re

from data.sources import folders
from data.sources.listing import Clip, Listing, check
from data.sources.splits import NAMES
from u2s_jax.errors import UserError

CLASS_FILES = ("category.txt", "classes.txt", "label_map.txt", "labels.txt")
RAW = "rawframes"  # where mmaction2 has the folders


def listing(source: pathlib.Path, group_pattern: str = "") -> Listing:
  """Reads the lists, or the folders.

  Args:
    source: see the module's docstring.
    group_pattern: see `folders.videos`; of lists there is none.

  Returns:
    The clips; `validation` is the test split where there is a test split only.

  Raises:
    FileNotFoundError: `source` is missing; one line.
    UserError: a list, or a line of one, that cannot be; one line, names it.
  """
  lists = _lists(source) if source.is_dir() else {}
  if not lists:
    return folders.frames(source, group_pattern)
  if group_pattern:
    raise UserError(f"--group_pattern: {source} has lists, which say what is in which split")
  names = _names(source)
  splits = {split: _clips(path, source, len(names)) for split, path in lists.items()}
  if not names:
    labels = (clip.label for clips in splits.values() for clip in clips)
    names = [str(k) for k in range(max(labels, default=-1) + 1)]
  if "train" in splits and "validation" not in splits and "test" in splits:
    splits["validation"] = splits.pop("test")
  result = Listing(names=names, splits=splits)
  check(result, str(source))
  return result


def _lists(source: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the list of each split."""
  found = {}
  for path in sorted(source.glob("*.txt")):
    words = re.findall("[a-z]+", path.stem.lower())
    named = {NAMES[word] for word in words if word in NAMES}
    if path.name in CLASS_FILES or not named:
      continue
    (split, *more) = sorted(named)
    if more:
      raise UserError(f"{path}: its name says {split} and {more[0]}: rename it, or move it away")
    if split in found:
      raise UserError(f"{path}: {found[split].name} is of {split} too: keep one list a split")
    found[split] = path
  return found


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: the file is not UTF-8: save it as UTF-8") from error


def _names(source: pathlib.Path) -> list[str]:
  """Reads the classes, empty where no file names them."""
  for name in CLASS_FILES:
    if (source / name).is_file():
      lines = _text(source / name).splitlines()
      return [line.strip() for line in lines if line.strip()]
  return []


def _clips(path: pathlib.Path, source: pathlib.Path, num_classes: int) -> list[Clip]:
  """Reads a list; `num_classes` is 0 where nobody says."""
  clips = {}
  for number, line in enumerate(_text(path).splitlines(), 1):
    if not line.strip():
      continue
    where, fields = f"{path}, line {number}", line.rsplit(maxsplit=2)
    if len(fields) < 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
      raise UserError(f"{where}: {line.strip()!r} should be '<folder> <frames> <label>'")
    folder, label = fields[0].strip(), int(fields[2])
    if num_classes and label >= num_classes:
      raise UserError(f"{where}: the label {label}, but {num_classes} classes are named")
    if folder in clips:
      raise UserError(f"{where}: {folder} occurs twice: delete one of the lines")
    place = next(
      (root / folder for root in (source, source / RAW) if (root / folder).is_dir()), None
    )
    clips[folder] = Clip(folder, label, str(place or source / folder))
  return list(clips.values())
