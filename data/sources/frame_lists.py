"""Clips with extracted frames, in the list format of TSM and mmaction2 or in class folders.

  <source>/<list>.txt: a list whose name contains `train` and one with `val` or `test`; a `test`
    list alone is for evaluation only; `splits.SPLIT_NAMES` has more names. Each line is
    `<folder> <frames> <label>`, with the folder in <source> or <source>/rawframes. The number of
    frames is ignored: all frames in the folder are used.
  <source>/category.txt, classes.txt, label_map.txt or labels.txt: one class name per line, in the
    order of the labels; without such a file the labels are the names
  <source>/<folder>/img_00001.jpg, ...: ordered by number

Without lists, see `folders.list_frame_folders`.
"""

import pathlib
import re

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import folders
from u2s_jax.video.listing import Clip, Listing, check_listing
from u2s_jax.video.splits import SPLIT_NAMES

CLASS_FILES = ("category.txt", "classes.txt", "label_map.txt", "labels.txt")
RAW_FRAMES = "rawframes"  # where mmaction2 stores the folders


def list_clips(source: pathlib.Path, group_pattern: str = "") -> Listing:
  """Lists the clips from the lists or, if there are none, from class folders.

  `validation` is the test list if there is a train list but no validation list. `group_pattern`,
  see `folders.list_videos`, is not allowed with lists.

  Raises:
    FileNotFoundError: if `source` is missing; one line.
    UserError: if a list or a line of one is not valid; one line that names it.
  """
  lists = _find_lists(source) if source.is_dir() else {}
  if not lists:
    return folders.list_frame_folders(source, group_pattern)
  if group_pattern:
    raise UserError(f"--group_pattern: {source} has lists, which define the splits; leave it out")
  names = _read_class_names(source)
  splits = {split: _read_list(path, source, len(names)) for split, path in lists.items()}
  if not names:
    labels = (clip.label for clips in splits.values() for clip in clips)
    names = [str(k) for k in range(max(labels, default=-1) + 1)]
  if "train" in splits and "validation" not in splits and "test" in splits:
    splits["validation"] = splits.pop("test")
  result = Listing(names=names, splits=splits)
  check_listing(result, str(source))
  return result


def _find_lists(source: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the list file of each split."""
  lists = {}
  for path in sorted(source.glob("*.txt")):
    words = re.findall("[a-z]+", path.stem.lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if path.name in CLASS_FILES or not splits:
      continue
    (split, *others) = sorted(splits)
    if others:
      raise UserError(f"{path}: the name contains {split} and {others[0]}; rename or move the file")
    if split in lists:
      raise UserError(f"{path}: {lists[split].name} is also a list of {split}; keep one of them")
    lists[split] = path
  return lists


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: the file is not UTF-8; save it as UTF-8") from error


def _read_class_names(source: pathlib.Path) -> list[str]:
  """Returns the class names; empty if no file lists them."""
  for name in CLASS_FILES:
    if (source / name).is_file():
      lines = _read_text(source / name).splitlines()
      return [line.strip() for line in lines if line.strip()]
  return []


def _read_list(path: pathlib.Path, source: pathlib.Path, num_classes: int) -> list[Clip]:
  """Reads the list of a split; `num_classes` is 0 if unknown."""
  clips = {}
  for number, line in enumerate(_read_text(path).splitlines(), 1):
    if not line.strip():
      continue
    position, fields = f"{path}, line {number}", line.rsplit(maxsplit=2)
    if len(fields) < 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
      raise UserError(f"{position}: {line.strip()!r} must be '<folder> <frames> <label>'")
    folder, label = fields[0].strip(), int(fields[2])
    if num_classes and label >= num_classes:
      raise UserError(f"{position}: label {label} must be < {num_classes}, the number of classes")
    if folder in clips:
      raise UserError(f"{position}: {folder} occurs twice; delete one of the lines")
    frames_folder = next(
      (root / folder for root in (source, source / RAW_FRAMES) if (root / folder).is_dir()), None
    )
    clips[folder] = Clip(folder, label, str(frames_folder or source / folder))
  return list(clips.values())
