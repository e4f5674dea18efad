"""The label files of Something-Something V2, valid and invalid."""

import json
import shutil

import pytest

from data.sources import something_something
from u2s_jax.runtime.errors import UserError

TEMPLATES = ['Pushing [something] to [part], "softly"', "Bending [something]", "Doing nothing"]
NAMES = [template.replace("[", "").replace("]", "") for template in TEMPLATES]


@pytest.fixture
def source(tmp_path):
  """Writes a small data set in the official layout."""
  (tmp_path / "labels").mkdir(parents=True)
  (tmp_path / something_something.VIDEO_FOLDER).mkdir()
  # Not in index order, as in the real file.
  _write(tmp_path / "labels/labels.json", {NAMES[2]: "2", NAMES[0]: "0", NAMES[1]: "1"})
  _write(tmp_path / "labels/train.json", [_entry(clip_id) for clip_id in range(3)])
  _write(tmp_path / "labels/validation.json", [_entry(3), _entry(4)])
  _write(tmp_path / "labels/test.json", [{"id": "5"}, {"id": "6"}])
  (tmp_path / "labels/test-answers.csv").write_text(f"5;{NAMES[0]}\n")
  return tmp_path


def _entry(clip_id):
  template = TEMPLATES[clip_id % 3]
  return {"id": str(clip_id), "label": "x", "template": template, "placeholders": ["a thing"]}


def _write(path, value):
  path.write_text(json.dumps(value))


def _labels(found, split):
  return {clip.id: clip.label for clip in found.splits[split]}


@pytest.mark.parametrize("layout", ["modern", "older"])
def test_lists_clips(source, layout):
  if layout == "older":
    for path in (source / "labels").iterdir():
      older = f"something-something-v2-{path.name}" if path.suffix == ".json" else path.name
      shutil.move(path, source / older)
    (source / "labels").rmdir()
  found = something_something.list_clips(source)
  assert list(found.names) == NAMES and not found.images
  assert _labels(found, "train") == {"0": 0, "1": 1, "2": 2}
  assert _labels(found, "validation") == {"3": 0, "4": 1}
  assert _labels(found, "test") == {"5": 0, "6": -1}
  # The video is missing; decoding reports it.
  clip = found.splits["test"][1]
  assert clip.path == str(source / something_something.VIDEO_FOLDER / "6.webm")
  assert clip.load is None
  assert found.official == {"train": 168913, "validation": 24777, "test": 27157}


def test_test_split_is_optional(source):
  (source / "labels/test-answers.csv").unlink()
  assert _labels(something_something.list_clips(source), "test") == {"5": -1, "6": -1}
  (source / "labels/test.json").unlink()
  assert set(something_something.list_clips(source).splits) == {"train", "validation"}


def _fails(source, kind, *parts):
  with pytest.raises(kind) as caught:
    something_something.list_clips(source)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_missing_or_empty_source(tmp_path):
  _fails(tmp_path / "nowhere", FileNotFoundError, "nowhere", "not a folder")
  (tmp_path / "empty").mkdir()
  _fails(tmp_path / "empty", FileNotFoundError, str(tmp_path / "empty"), "is empty")


@pytest.mark.parametrize("name", ["labels", "train", "validation"])
def test_missing_label_file(source, name):
  (source / f"labels/{name}.json").unlink()
  _fails(source, FileNotFoundError, f"labels/{name}.json", f"something-something-v2-{name}.json")


def test_invalid_label_files_are_errors(source):
  train = source / "labels/train.json"
  _write(train, [_entry(0) | {"template": "Eating [something]"}])
  _fails(source, UserError, "train.json", "'Eating something'", "entry 0", "labels.json")
  _write(train, [_entry(0), _entry(1), _entry(0)])
  _fails(source, UserError, "train.json", "id 0 occurs twice")
  _write(train, [{"id": "0"}])
  _fails(source, UserError, "train.json", 'entry 0 has no "template"')
  _write(train, [_entry(0), {"template": "x"}])
  _fails(source, UserError, "train.json", 'entry 1 has no "id"')
  _write(train, [{"id": "0", "template": None}])
  _fails(source, UserError, "train.json", "template of entry 0 must be a string, not None")
  _write(train, [])
  _fails(source, UserError, "train.json", "no entries")
  _write(train, {})
  _fails(source, UserError, "train.json", "must be a JSON list")
  train.write_text('[{"id": ')
  _fails(source, UserError, "train.json", "not a valid JSON file")
  train.write_bytes(b'[{"id": "\xff"}]')
  _fails(source, UserError, "train.json", "not a valid JSON file")
  _write(train, [_entry(0)])
  _fails(source, UserError, str(source), "no training clip", "Bending something")
  _write(train, [_entry(clip_id) for clip_id in range(4)])
  _fails(source, UserError, str(source), "id 3 occurs twice", "in train and in validation")
  _write(train, [_entry(clip_id) for clip_id in range(3)])
  (source / "labels/test-answers.csv").write_text("5;Eating something\n")
  _fails(source, UserError, "test-answers.csv", "'Eating something'", "entry 5")
  _write(source / "labels/labels.json", {"a": "0", "b": "2"})
  _fails(source, UserError, "labels.json", "no class has the index 1")


def test_missing_video_folder(source):
  (source / something_something.VIDEO_FOLDER).rmdir()
  _fails(source, FileNotFoundError, str(source / something_something.VIDEO_FOLDER))
