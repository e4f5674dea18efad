"""UCF101 in its official layout, with empty files for the videos."""

import pytest

from data.sources import ucf101
from u2s_jax.runtime.errors import UserError

TRAIN = """ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r
ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c02.avi 1\r
HandStandPushups/v_HandStandPushups_g08_c01.avi 2\r
YoYo/v_YoYo_g08_c01.avi 3\r
"""
TEST = """ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r
HandStandPushups/v_HandStandPushups_g01_c01.avi\r
YoYo/v_YoYo_g01_c01.avi\r
"""


@pytest.fixture
def source(tmp_path):
  lists = tmp_path / "ucfTrainTestlist"
  lists.mkdir()
  _write(lists / "classInd.txt", "1 ApplyEyeMakeup\r\n2 HandStandPushups\r\n3 YoYo\r\n\r\n")
  for split in (1, 2, 3):
    _write(lists / f"trainlist0{split}.txt", TRAIN)
    _write(lists / f"testlist0{split}.txt", TEST)
  for line in (TRAIN + TEST).splitlines():
    # Only the lists write a capital S.
    path = tmp_path / "UCF-101" / line.split()[0].replace("HandStand", "Handstand")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return tmp_path


def _write(path, text):
  path.write_text(text, newline="")


def _paths(found, source):
  clips = [*found.splits["train"], *found.splits["validation"]]
  return {clip.id: clip.path.removeprefix(f"{source}/") for clip in clips}


def test_lists_clips(source):
  found = ucf101.list_clips(source, 1)
  assert list(found.names) == ["ApplyEyeMakeup", "HandStandPushups", "YoYo"]
  assert [(clip.id, clip.label) for clip in found.splits["train"]] == [
    ("v_ApplyEyeMakeup_g08_c01", 0),
    ("v_ApplyEyeMakeup_g08_c02", 0),
    ("v_HandStandPushups_g08_c01", 1),
    ("v_YoYo_g08_c01", 2),
  ]
  assert [(clip.id, clip.label) for clip in found.splits["validation"]] == [
    ("v_ApplyEyeMakeup_g01_c01", 0),
    ("v_HandStandPushups_g01_c01", 1),
    ("v_YoYo_g01_c01", 2),
  ]
  paths = _paths(found, source)
  assert paths["v_YoYo_g08_c01"] == "UCF-101/YoYo/v_YoYo_g08_c01.avi"
  assert set(found.splits) == {"train", "validation"}


@pytest.mark.parametrize("folder", ["HandStandPushups", "HandstandPushups"])
@pytest.mark.parametrize("file", ["HandStandPushups", "HandstandPushups"])
def test_case_of_handstand_pushups(source, folder, file):
  root = source / "UCF-101"
  (root / "HandstandPushups").rename(root / folder)
  for path in list((root / folder).iterdir()):
    path.rename(path.with_name(path.name.replace("HandstandPushups", file)))
  paths = _paths(ucf101.list_clips(source, 1), source)
  expected = f"UCF-101/{folder}/v_{file}_g01_c01.avi"
  assert paths["v_HandStandPushups_g01_c01"] == expected
  assert (source / expected).is_file()
  # The same if classInd.txt, unlike the other lists, has the name of the folder.
  _write(source / "ucfTrainTestlist/classInd.txt", "1 ApplyEyeMakeup\n2 HandstandPushups\n3 YoYo\n")
  found = ucf101.list_clips(source, 1)
  assert found.names[1] == "HandstandPushups" and _paths(found, source) == paths


@pytest.mark.parametrize("place", ["videos", ""])
def test_other_folders(source, place):
  if place:
    (source / "UCF-101").rename(source / place)
  else:
    for folder in [*(source / "UCF-101").iterdir(), *(source / "ucfTrainTestlist").iterdir()]:
      folder.rename(source / folder.name)
    (source / "UCF-101").rmdir()
    (source / "ucfTrainTestlist").rmdir()
  paths = _paths(ucf101.list_clips(source, 1), source)
  assert len(paths) == 7 and all((source / path).is_file() for path in paths.values())


def test_missing_video_is_listed(source):
  (source / "UCF-101/YoYo/v_YoYo_g01_c01.avi").unlink()
  paths = _paths(ucf101.list_clips(source, 1), source)
  assert paths["v_YoYo_g01_c01"] == "UCF-101/YoYo/v_YoYo_g01_c01.avi"


def test_splits(source):
  lists = source / "ucfTrainTestlist"
  _write(lists / "trainlist02.txt", "\n".join(TRAIN.splitlines()[1:]))
  assert len(ucf101.list_clips(source, 2).splits["train"]) == 3
  official = [ucf101.list_clips(source, split).official for split in (1, 2, 3)]
  assert official == [
    {"train": 9537, "validation": 3783},
    {"train": 9586, "validation": 3734},
    {"train": 9624, "validation": 3696},
  ]
  assert {sum(counts.values()) for counts in official} == {13320}


def _fails(source, kind, *parts, split=1):
  with pytest.raises(kind) as caught:
    ucf101.list_clips(source, split)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_missing_files_are_errors(source):
  _fails(source, UserError, "--split: 4 must be", split=4)
  _fails(source / "nowhere", FileNotFoundError, "nowhere", "not a folder")
  (source / "ucfTrainTestlist/testlist03.txt").unlink()
  _fails(source, FileNotFoundError, "ucfTrainTestlist/testlist03.txt", split=3)
  (source / "UCF-101/YoYo").rename(source / "UCF-101/Other")
  _fails(source, FileNotFoundError, "UCF-101/YoYo", "1 of 3", "UCF101.rar")
  (source / "ucfTrainTestlist/classInd.txt").unlink()
  _fails(source, FileNotFoundError, "ucfTrainTestlist/classInd.txt")


@pytest.mark.parametrize(
  "name, text, parts",
  [
    ("classInd", "0 ApplyEyeMakeup\n", ["line 1", "'1 <class>'"]),
    ("classInd", "1 ApplyEyeMakeup\n3 YoYo\n", ["line 2", "'2 <class>'"]),
    ("trainlist01", TRAIN + "YoYo/v_YoYo_g09_c01.avi 2\n", ["line 5", "'2'", "'YoYo' has 3"]),
    ("trainlist01", TRAIN + "YoYo/v_YoYo_g09_c01.avi\n", ["line 5", "<Class>/<file> <index>"]),
    ("trainlist01", TRAIN + "Yo/v_Yo_g09_c01.avi 3\n", ["line 5", "'Yo'", "classInd.txt"]),
    ("testlist01", TEST + "v_YoYo_g09_c01.avi\n", ["line 4", "'<Class>/<file>'"]),
    ("testlist01", TEST + TRAIN.splitlines()[3][:-2], ["v_YoYo_g08_c01 occurs twice"]),
    ("testlist01", "", ["'validation'"]),
    ("trainlist01", "\n".join(TRAIN.splitlines()[:3]), ["no training clip", "'YoYo'"]),
  ],
)
def test_invalid_lists_are_errors(source, name, text, parts):
  path = source / f"ucfTrainTestlist/{name}.txt"
  _write(path, text)
  prefix = f"{path}, " if parts[0].startswith("line") else f"{source}: "
  _fails(source, UserError, prefix, *parts)
