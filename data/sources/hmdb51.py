"""HMDB51, from its archives unpacked into one folder.

<source>/<class>/<video>.avi; the classes may also lie in <source>/videos or <source>/hmdb51_org
<source>/testTrainMulti_7030_splits/<class>_test_split{1,2,3}.txt; the lists may also lie in
<source>/splits or in <source> itself
"""

import pathlib

from data.sources.listing import Clip, Listing, check
from u2s_jax.errors import UserError

LIST_FOLDERS = ("testTrainMulti_7030_splits", "splits")
VIDEO_FOLDERS = ("videos", "hmdb51_org")


def listing(source: pathlib.Path, split: int) -> Listing:
  """Reads the lists of one split.

  Args:
    source: folder of the videos and the lists, see the module's docstring.
    split: 1 to 3.

  Returns:
    The split's training clips as `train` and its test clips as `validation`; the classes are sorted
    by name. Whether each video is there is not looked at.

  Raises:
    FileNotFoundError: `source`, a list or a class folder is missing; one line, names it.
    UserError: a line of a list is not valid, or there is no such split; one line.
  """
  if split not in (1, 2, 3):
    raise UserError(f"--split is {split}; HMDB51 has the splits 1, 2 and 3")
  if not source.is_dir():
    raise FileNotFoundError(f"{source} is not a folder: unpack HMDB51 into it")
  lists = next((source / name for name in LIST_FOLDERS if (source / name).is_dir()), source)
  root = next((source / name for name in VIDEO_FOLDERS if (source / name).is_dir()), source)
  names = sorted(
    folder.name
    for folder in root.iterdir()
    if folder.is_dir() and not folder.name.startswith(".") and folder.name not in LIST_FOLDERS
  )
  if not names:
    raise FileNotFoundError(
      f"{root} holds no class folders: unpack hmdb51_org.rar and the archives in it there"
    )
  ending = f"_test_split{split}.txt"
  for path in sorted(lists.glob(f"*{ending}")):
    name = path.name.removesuffix(ending)
    if name not in names and not name.startswith("."):
      raise FileNotFoundError(
        f"{root / name}: the class folder is missing, but {path} is there: unpack {name}.rar there"
      )
  splits = {"train": [], "validation": []}
  for label, name in enumerate(names):
    _read_list(lists / f"{name}{ending}", root / name, label, splits)
  result = Listing(names=names, splits=splits, official={"train": 3570, "validation": 1530})
  check(result, str(source))
  return result


def _read_list(
  path: pathlib.Path, folder: pathlib.Path, label: int, splits: dict[str, list[Clip]]
) -> None:
  """Adds the clips of one class, lines '<video>.avi 0|1|2', to `splits`."""
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: the list of the class folder {folder} is missing: unpack test_train_splits.rar "
      "there, or move the folder away"
    )
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    video, _, use = line.strip().rpartition(" ")
    video = video.strip()
    if use not in ("0", "1", "2") or not video:
      raise UserError(
        f"{path}, line {number}: {line.strip()!r} should be a video and 1 (train), 2 (test) or 0 "
        "(unused)"
      )
    if use != "0":
      clip_id = f"{folder.name}/{pathlib.PurePosixPath(video).stem}"
      clip = Clip(clip_id, label, str(folder / video))
      splits["train" if use == "1" else "validation"].append(clip)
