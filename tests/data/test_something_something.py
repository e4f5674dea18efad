"""Preparing Something-Something V2 from real video files, and what happens when they are bad."""

import json
import pathlib
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
import tensorflow as tf

from data import something_something

TEMPLATES = ['Pushing [something] to [part], "softly"', "Bending [something]", "Doing nothing"]


def _write_video(path, num_frames, height=32, width=48):
  """Writes a lossless VP9 video whose frame k has the grey level 16 * k."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libvpx-vp9", rate=12)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.options = {"lossless": "1", "deadline": "realtime", "cpu-used": "8"}
    for k in range(num_frames):
      image = np.full((height, width, 3), 16 * k, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
  folder = tmp_path_factory.mktemp("videos")
  for clip_id in range(7):
    _write_video(folder / f"{clip_id}.webm", 3 + clip_id)
  return folder


@pytest.fixture
def source(tmp_path, videos):
  """A small data set in the folder layout of the data set's owner."""
  root = tmp_path / "source"
  (root / "labels").mkdir(parents=True)
  shutil.copytree(videos, root / something_something.VIDEO_FOLDER)
  plain = [template.replace("[", "").replace("]", "") for template in TEMPLATES]
  # Not in index order, as in the real file.
  labels = {plain[2]: "2", plain[0]: "0", plain[1]: "1"}
  _write(root / "labels/labels.json", labels)
  _write(root / "labels/train.json", [_entry(clip_id) for clip_id in range(3)])
  _write(root / "labels/validation.json", [_entry(3), _entry(4)])
  _write(root / "labels/test.json", [{"id": "5"}, {"id": "6"}])
  (root / "labels/test-answers.csv").write_text(f"5;{plain[0]}\n")
  return root


def _entry(clip_id):
  template = TEMPLATES[clip_id % 3]
  return {"id": str(clip_id), "label": "x", "template": template, "placeholders": ["a thing"]}


def _write(path, value):
  path.write_text(json.dumps(value))


def _prepare(source, **settings):
  settings = {"short_edge": 32, "num_workers": 2} | settings
  return something_something.prepare(source, source.parent / "prepared", **settings)


def _read(builder, split):
  return {example["id"].decode(): example for example in builder.as_data_source(split)}


def _nothing_prepared(source):
  return not [path for path in (source.parent / "prepared").rglob("*") if path.is_file()]


@pytest.mark.parametrize("layout", ["modern", "older"])
def test_what_is_stored(source, layout):
  if layout == "older":
    for path in (source / "labels").iterdir():
      older = f"something-something-v2-{path.name}" if path.suffix == ".json" else path.name
      shutil.move(path, source / older)
    (source / "labels").rmdir()
  builder = _prepare(source)
  names = [template.replace("[", "").replace("]", "") for template in TEMPLATES]
  assert builder.info.features["label"].names == names
  assert builder.info.file_format.value == "array_record"
  train, test = _read(builder, "train"), _read(builder, "test")
  assert set(train) == {"0", "1", "2"} and set(_read(builder, "validation")) == {"3", "4"}
  assert {clip_id: clip["label"] for clip_id, clip in train.items()} == {"0": 0, "1": 1, "2": 2}
  assert {clip_id: clip["label"] for clip_id, clip in test.items()} == {"5": 0, "6": -1}
  assert test["6"]["num_frames"] == len(test["6"]["frames"]) == 9
  for k, frame in enumerate(test["6"]["frames"]):
    pixels = tf.io.decode_jpeg(frame).numpy()
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels.astype(int) - 16 * k).max() <= 3


def test_frames_are_resized_to_the_short_edge(source):
  _write_video(source / something_something.VIDEO_FOLDER / "0.webm", 3, height=50, width=38)
  clips = _read(_prepare(source, short_edge=19), "train")
  assert tf.io.decode_jpeg(clips["0"]["frames"][0]).shape == (24, 19, 3)  # 25 made even.
  assert tf.io.decode_jpeg(clips["1"]["frames"][0]).shape == (19, 28, 3)
  larger = _read(_prepare(source, short_edge=64), "train")
  assert tf.io.decode_jpeg(larger["1"]["frames"][0]).shape == (64, 96, 3)


def test_a_second_call_reuses_and_other_settings_do_not(source, capfd):
  first = _prepare(source)
  for path in (source / something_something.VIDEO_FOLDER).iterdir():
    path.rename(path.with_suffix(".moved"))
  assert _prepare(source).data_dir == first.data_dir  # Needs no videos any more.
  for path in (source / something_something.VIDEO_FOLDER).iterdir():
    path.rename(path.with_suffix(".webm"))
  folders = {first.data_dir, _prepare(source, short_edge=24).data_dir}
  folders.add(_prepare(source, jpeg_quality=50).data_dir)
  _write(source / "labels/train.json", [_entry(clip_id) for clip_id in range(4)])
  _write(source / "labels/validation.json", [_entry(4)])
  changed = _prepare(source)
  folders.add(changed.data_dir)
  assert len(folders) == 4
  assert changed.info.splits["train"].num_examples == 4
  (source / "settings.json").write_text("{}")  # a renderer's: other pixels under the same labels
  assert _prepare(source).data_dir not in folders
  assert not capfd.readouterr().out


def test_settings_out_of_range(source):
  for field, value in (("short_edge", 0), ("jpeg_quality", 101), ("num_workers", 0)):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
      _prepare(source, **{field: value})


def _fails(source, kind, *parts):
  with pytest.raises(kind) as caught:
    _prepare(source)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message
  assert _nothing_prepared(source)


def test_missing_or_empty_source(tmp_path):
  _fails(tmp_path / "nowhere", FileNotFoundError, "nowhere", "not a folder")
  (tmp_path / "empty").mkdir()
  _fails(tmp_path / "empty", FileNotFoundError, str(tmp_path / "empty"), "is empty")


@pytest.mark.parametrize("name", ["labels", "train", "validation"])
def test_missing_label_file(source, name):
  (source / f"labels/{name}.json").unlink()
  _fails(source, FileNotFoundError, f"labels/{name}.json", f"something-something-v2-{name}.json")


def test_bad_label_files(source):
  train = source / "labels/train.json"
  _write(train, [_entry(0) | {"template": "Eating [something]"}])
  _fails(source, ValueError, "train.json", "'Eating something'", "entry 0", "labels.json")
  _write(train, [_entry(0), _entry(1), _entry(0)])
  _fails(source, ValueError, "train.json", "id 0 occurs twice")
  _write(train, [{"id": "0"}])
  _fails(source, ValueError, "train.json", 'entry 0 has no "template"')
  _write(train, [_entry(0), {"template": "x"}])
  _fails(source, ValueError, "train.json", 'entry 1 has no "id"')
  _write(train, [{"id": "0", "template": None}])
  _fails(source, ValueError, "train.json", "template of entry 0 is None")
  _write(train, [{"id": "x" * 65, "template": "a"}])
  _fails(source, ValueError, "train.json", "longer than 64 bytes")
  _write(train, [_entry(0)])
  _fails(source, ValueError, "train.json", "no entry is of the class", "labels.json")
  _write(train, [])
  _fails(source, ValueError, "train.json", "no entries")
  _write(train, {})
  _fails(source, ValueError, "train.json", "a JSON list is expected")
  train.write_text('[{"id": ')
  _fails(source, ValueError, "train.json", "not a valid JSON file")
  _write(train, [_entry(clip_id) for clip_id in range(3)])
  (source / "labels/test-answers.csv").write_text("5;Eating something\n")
  _fails(source, ValueError, "test-answers.csv", "'Eating something'", "entry 5")
  _write(source / "labels/labels.json", {"a": "0", "b": "2"})
  _fails(source, ValueError, "labels.json", "no class has the index 1")


def test_missing_videos(source):
  folder = source / something_something.VIDEO_FOLDER
  (folder / "3.webm").unlink()
  _fails(source, FileNotFoundError, str(folder / "3.webm"), "1 of the 2 of validation.json")
  shutil.rmtree(folder)
  _fails(source, FileNotFoundError, str(folder))


def test_videos_that_do_not_decode(source):
  video = source / something_something.VIDEO_FOLDER / "1.webm"
  video.write_bytes(b"not a video" * 100)
  _fails(source, ValueError, str(video), "does not decode")
  video.write_bytes(b"")
  _fails(source, ValueError, str(video), "does not decode")
  _write_video(video, 0)
  _fails(source, ValueError, str(video))
  _write_video(video, 15)
  whole = video.read_bytes()
  video.write_bytes(whole[: len(whole) // 2])
  _fails(source, ValueError, str(video), "ends after")
  with av.open(str(video), "w", format="webm") as container:
    stream = container.add_stream("libopus", rate=48000)
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), "flt", "mono")
    silence.sample_rate = 48000
    container.mux(stream.encode(silence))
    container.mux(stream.encode(None))
  _fails(source, ValueError, str(video), "no video stream")
  video.write_bytes(whole)
  _prepare(source)  # And the repaired data set prepares.


def test_decoding_imports_neither_tensorflow_nor_jax():
  root = pathlib.Path(something_something.__file__).parents[1]
  code = 'import sys, data.decode; assert not {"tensorflow", "jax"} & set(sys.modules)'
  subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
