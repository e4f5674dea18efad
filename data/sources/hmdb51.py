"""HMDB51, from its archives unpacked into one folder.

<source>/<class>/<video>.avi, or the classes in <source>/videos or <source>/hmdb51_org
<source>/testTrainMulti_7030_splits/<class>_test_split{1,2,3}.txt, or the lists in <source>/splits
or <source>
"""

import pathlib

from u2s_jax.runtime.errors import UserError
from u2s_jax.video.listing import Clip, Listing, check_listing

LIST_FOLDERS = ("testTrainMulti_7030_splits", "splits")
VIDEO_FOLDERS = ("videos", "hmdb51_org")


def list_clips(source: pathlib.Path, split: int) -> Listing:
  """Lists the clips of one official split, 1 to 3; does not check that the videos exist.

  The split's training clips are `train`, its test clips `validation`; classes are sorted by name.

  Raises:
    FileNotFoundError: if `source`, a list or a class folder is missing; one line that names it.
    UserError: if a line of a list or `split` is not valid; one line.
  """
  if split not in (1, 2, 3):
    raise UserError(f"--split: {split} must be 1, 2 or 3, the splits of HMDB51")
  if not source.is_dir():
    raise FileNotFoundError(f"{source}: not a folder; unpack HMDB51 into it")
  lists = next((source / name for name in LIST_FOLDERS if (source / name).is_dir()), source)
  root = next((source / name for name in VIDEO_FOLDERS if (source / name).is_dir()), source)
  names = sorted(
    folder.name
    for folder in root.iterdir()
    if folder.is_dir() and not folder.name.startswith(".") and folder.name not in LIST_FOLDERS
  )
  if not names:
    raise FileNotFoundError(
      f"{root}: has no class folders; unpack hmdb51_org.rar and the archives in it there"
    )
  suffix = f"_test_split{split}.txt"
  for path in sorted(lists.glob(f"*{suffix}")):
    name = path.name.removesuffix(suffix)
    if name not in names and not name.startswith("."):
      raise FileNotFoundError(
        f"{root / name}: missing class folder, listed in {path}; unpack {name}.rar to {root}"
      )
  splits = {"train": [], "validation": []}
  for label, name in enumerate(names):
    _read_list(lists / f"{name}{suffix}", root / name, label, splits)
  result = Listing(names=names, splits=splits, official={"train": 3570, "validation": 1530})
  check_listing(result, str(source))
  return result


def _read_list(
  path: pathlib.Path, folder: pathlib.Path, label: int, splits: dict[str, list[Clip]]
) -> None:
  """Adds the clips of one class to `splits`; each line is '<video>.avi 0|1|2'."""
  if not path.is_file():
    raise FileNotFoundError(
      f"{path}: the list of the class folder {folder} is missing; unpack test_train_splits.rar "
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
        f"{path}, line {number}: {line.strip()!r} must be a video and 1 (train), 2 (test) or 0 "
        "(unused)"
      )
    if use != "0":
      clip_id = f"{folder.name}/{pathlib.PurePosixPath(video).stem}"
      clip = Clip(clip_id, label, str(folder / video))
      splits["train" if use == "1" else "validation"].append(clip)
