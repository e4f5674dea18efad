"""Preparation of data sets: stored contents, skipped clips, resuming, and error messages."""

import contextlib
import csv
import dataclasses
import fcntl
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data.input import store
from data.preparation import cluster, file_states, finalize, prepare, shard_writer, shards, workers
from u2s_jax.runtime import signals
from u2s_jax.runtime.errors import INTERRUPTED, UserError
from u2s_jax.video import folders
from u2s_jax.video.decode import Storage
from u2s_jax.video.listing import Clip, Listing

SMALL = Storage(short_edge=32)
ROOT = pathlib.Path(prepare.__file__).parents[2]


@pytest.fixture(scope="module")
def clip(tmp_path_factory, write_video):
  return write_video(tmp_path_factory.mktemp("clip") / "clip.webm", 4).read_bytes()


@pytest.fixture
def source(tmp_path, clip):
  """Two classes of 25 clips: 40 for training, in 3 shards, and 10 for validation."""
  for name in ("Bend it", "Träge"):
    (tmp_path / "source" / name).mkdir(parents=True)
    for k in range(25):
      (tmp_path / "source" / name / f"{k:02}.webm").write_bytes(clip)
  return tmp_path / "source"


def _prepare(source, out=None, storage=SMALL, num_workers=2):
  return prepare.prepare(
    folders.list_videos(source),
    out or source.parent / "out",
    storage,
    origin={"dataset": "videos"},
    num_workers=num_workers,
  )


def _arguments(source, out, *more, dataset="videos"):
  size = (
    [] if any(argument.startswith("--short_edge") for argument in more) else ["--short_edge=32"]
  )
  return [f"--dataset={dataset}", f"--source={source}", f"--out={out}", *size, *more]


def _ids(dataset, split):
  return [store.parse_record(record)[0].decode() for record in dataset.split(split).records]


def _contents(folder):
  """Returns the content of files by name and, for shards, the records.

  Without the states of the source's files, as tests write these again.
  """
  builder = tfds.builder_from_directory(folder)
  contents = {
    path.name: path.read_bytes()
    for path in folder.iterdir()
    if "array_record" not in path.name and not path.name.startswith("states_")
  }
  for split in builder.info.splits:
    contents[split] = [
      (example["id"], example["label"], example["num_frames"], *example["frames"])
      for example in builder.as_data_source(split)
    ]
    contents[split, "shards"] = builder.info.splits[split].shard_lengths
  return contents


def _fails(capsys, source, out, *more, **keywords):
  """Runs the command, which must fail, and returns the line of the error."""
  with pytest.raises(SystemExit) as caught:
    prepare.main(_arguments(source, out, *more, **keywords))
  capsys.readouterr()
  assert caught.value.code.startswith("error: ") and "\n" not in caught.value.code
  return caught.value.code


def _skipped(out):
  with open(out / "skipped.csv", newline="", encoding="utf-8") as file:
    return list(csv.reader(file))


def test_stored_examples_and_metadata(source):
  _prepare(source)
  builder = tfds.builder_from_directory(source.parent / "out")
  assert builder.info.features["label"].names == ["Bend it", "Träge"]
  assert builder.info.file_format.value == "array_record"
  assert builder.info.metadata["modality"] == "rgb" and builder.info.metadata["short_edge"] == 32
  assert builder.info.splits["train"].shard_lengths == [16, 16, 8]
  train = list(builder.as_data_source("train"))
  assert len(train) == 40 and len(builder.as_data_source("validation")) == 10
  assert train[0]["id"] == b"Bend it/00.webm" and train[39]["id"].decode() == "Träge/23.webm"
  assert [example["label"] for example in train] == [0] * 20 + [1] * 20
  assert train[7]["num_frames"] == len(train[7]["frames"]) == 4
  for k, frame in enumerate(train[7]["frames"]):
    pixels = tf.io.decode_jpeg(frame).numpy()
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels.astype(int) - 16 * k).max() <= 3
  assert _skipped(source.parent / "out") == [["path", "reason"]]


def test_segments_equal_files_cut_from_the_video(tmp_path, write_video, monkeypatch):
  frames = [np.full((32, 48, 3), 5 * k, np.uint8) for k in range(48)]

  def write(name, first, last):
    options = {"codec": "ffv1", "pixel_format": "bgr0"}
    return write_video(tmp_path / name, frames[first:last], **options)

  write("day.mkv", 0, 48)
  write("night.mkv", 0, 48)
  spans = [(24, 36), (0, 12), (6, 30), (36, 48)]  # in frames of 1/12 s
  rows, cut = [], []
  for k, (first, last) in enumerate(spans):
    for video, split in (("day", "train"), ("night", "val")):
      rows.append(f"{video}.mkv,{first / 12:.3f},{last / 12:.3f},{'xy'[k % 2]},{split}")
      cut.append(f"{write(f'{video}_{first}_{last}.mkv', first, last).name},{'xy'[k % 2]},{split}")
  source = tmp_path / "parts.csv"
  source.write_text("\n".join(["path,start,end,label,split", *rows]))
  (tmp_path / "cut.csv").write_text("\n".join(["path,label,split", *cut]))
  monkeypatch.setattr(shard_writer, "MAX_SEGMENTS", 3)  # more than one group for a video
  arguments = ["--dataset=videos", "--workers=1", "--short_edge=32"]
  stored = {}
  for name in ("parts", "cut"):
    prepare.main([*arguments, f"--source={tmp_path}/{name}.csv", f"--out={tmp_path}/{name}"])
    for split in ("train", "validation"):
      for record in store.open_dataset(tmp_path / name).split(split).records:
        clip_id, label, jpegs = store.parse_record(record)
        stored[name, clip_id.decode()] = label, list(jpegs)
  for first, last in spans:
    for video in ("day", "night"):
      times = "-".join(f"{t / 12:.3f}".rstrip("0").rstrip(".") for t in (first, last))
      part = stored["parts", f"{video}.mkv#{times}"]
      assert part == stored["cut", f"{video}_{first}_{last}.mkv"]
      assert len(part[1]) == last - first


def test_flow_counts_pairs(tmp_path, write_video):
  for split, frames in (("train", 3), ("val", 6)):
    (tmp_path / "source" / split / "moving").mkdir(parents=True)
    write_video(tmp_path / "source" / split / "moving" / "a.webm", frames)
  _prepare(tmp_path / "source", storage=Storage("flow", 32, flow_algorithm="dis"))
  builder = tfds.builder_from_directory(tmp_path / "out")
  assert builder.info.metadata["modality"] == "flow"
  (train,), (validation,) = builder.as_data_source("train"), builder.as_data_source("validation")
  assert (train["num_frames"], len(train["frames"])) == (2, 4)
  assert (validation["num_frames"], len(validation["frames"])) == (5, 10)
  assert tf.io.decode_jpeg(train["frames"][0]).shape == (32, 48, 1)


def test_result_does_not_depend_on_num_workers(source):
  one, three = source.parent / "one", source.parent / "three"
  _prepare(source, one, num_workers=1)
  _prepare(source, three, num_workers=3)
  assert _contents(one) == _contents(three)


def test_resumes_after_sigkill_with_identical_data(source, clip):
  expected, out = source.parent / "expected", source.parent / "out"
  _prepare(source, expected)
  fifo = source / "Träge" / "05.webm"  # in the second shard; reading it blocks
  fifo.unlink()
  os.mkfifo(fifo)
  first = "clips-train.array_record-00000-of-00003"
  process = subprocess.Popen(
    [sys.executable, "-m", "data.prepare", *_arguments(source, out)],
    cwd=ROOT,
    stderr=subprocess.DEVNULL,
  )
  until = time.monotonic() + 60
  while not (out / ".progress.jsonl").exists() or not (out / ".progress.jsonl").read_text():
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))  # unblocks the decoder, which exits
  assert (out / first).exists() and not list(out.glob("clips-validation*"))
  with pytest.raises(FileNotFoundError, match="holds no finished data set"):
    store.open_dataset(out)
  with pytest.raises(Exception, match="dataset_info.json"):
    tfds.builder_from_directory(out)
  fifo.unlink()
  fifo.write_bytes(clip)
  with open(out / ".progress.jsonl", "a") as file:
    file.write('{"key": ["train", 1], "cou')  # truncated by a crash of the machine
  written = (out / first).stat().st_mtime_ns
  _prepare(source)
  assert (out / first).stat().st_mtime_ns == written  # not written again
  assert _contents(out) == _contents(expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_resumes_after_signal(number, source, capsys, monkeypatch):
  handler = signal.getsignal(number)

  write_shard = shard_writer.write_shard

  def interrupt(*arguments):
    signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)  # `timeout` sends two; they count as one
    return write_shard(*arguments)

  monkeypatch.setattr(shard_writer, "write_shard", interrupt)
  with pytest.raises(SystemExit) as exit:
    prepare.main(_arguments(source, source.parent / "out"))
  assert exit.value.code == INTERRUPTED and signal.getsignal(number) is handler
  line = capsys.readouterr().err.splitlines()[-1]
  assert line.startswith(f"interrupted ({signal.Signals(number).name})")
  assert line.endswith(f"; rerun the same command to resume {source.parent / 'out'}")
  monkeypatch.undo()
  prepare.main(_arguments(source, source.parent / "out"))
  assert "train: 40 clips" in capsys.readouterr().out


def test_skips_unreadable_clips(source, clip, capsys):
  out = source.parent / "out"
  bad = source / "Bend it" / "06.webm", source / "Träge" / "24.webm"
  bad[0].write_bytes(b"")
  bad[1].write_bytes(clip[:40])
  error = _fails(capsys, source, out)
  assert "2 of 50 clips cannot be read (4 %; --max_unreadable is 1 %)" in error
  assert str(out / "skipped.csv") in error
  rows = _skipped(out)
  assert [row[0] for row in rows] == ["path", *map(str, bad)]
  assert "cannot be decoded" in rows[1][1] and "no frames" in rows[2][1]
  assert not store.is_finished(out)
  # Complete shards are not written again.
  shards = {path: path.stat().st_mtime_ns for path in out.glob("clips-train*")}
  prepare.main(_arguments(source, out, "--max_unreadable=0.05"))
  printed = capsys.readouterr().out
  assert "train: 39 clips" in printed and "skipped: 2" in printed
  assert {path: path.stat().st_mtime_ns for path in out.glob("clips-train*")} == shards
  builder = store.open_dataset(out)
  ids = _ids(builder, "train") + _ids(builder, "validation")
  assert len(ids) == 48 and "Bend it/06.webm" not in ids and "Träge/24.webm" not in ids


def test_retries_skipped_clip_after_its_file_changed(source, clip, capsys):
  out = source.parent / "out"
  bad = pathlib.Path(folders.list_videos(source).splits["train"][20].file)
  bad.write_bytes(b"no video")
  _fails(capsys, source, out)
  shards = sorted(out.glob("clips-train*"))
  before = [path.stat().st_mtime_ns for path in shards]
  bad.write_bytes(clip)
  assert bad.relative_to(source).as_posix() in _ids(_prepare(source), "train")
  after = [path.stat().st_mtime_ns for path in shards]
  assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_missing_files_are_reported_before_decoding(source, capsys):
  table = source / "clips.csv"
  rows = ["path,label,split", "none.webm,a,train", "Bend it/00.webm,a,train"]
  rows += ["Träge/00.webm,b,train", "Träge/01.webm,b,val"]
  table.write_text("\n".join(rows))
  error = _fails(capsys, table, source.parent / "out")
  assert "none.webm: missing, as 1 of 4 clips are" in error
  assert not list((source.parent / "out").glob("clips*"))
  prepare.main(_arguments(table, source.parent / "out", "--max_unreadable=0.4"))
  assert _skipped(source.parent / "out")[1][0].endswith("none.webm")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_class_or_split_without_readable_clips_is_an_error(source, capsys, split):
  for clip in folders.list_videos(source).splits[split]:
    if split == "validation" or clip.label == 0:
      pathlib.Path(clip.file).write_bytes(b"no video")
  error = _fails(capsys, source, source.parent / "out", "--max_unreadable=1")
  assert (
    "class 'Bend it': no training clip" if split == "train" else "split 'validation': no clip"
  ) in error


@pytest.mark.parametrize("deaths", [1, 2])
def test_restarts_decoder_that_dies(tmp_path, clip, monkeypatch, deaths):
  """If it dies twice, the clip is the cause: it is skipped, and retried by the next call."""
  started, left = [], [deaths]
  start = workers._Worker._start

  def start_and_kill(self):
    started.append(start(self))
    if len(started) > 1 and left[0]:
      left[0] -= 1
      started[-1].kill()
      started[-1].wait()
    return started[-1]

  def load_and_kill():
    left[0] -= 1
    started[-1].kill()
    started[-1].wait()
    return clip

  monkeypatch.setattr(workers._Worker, "_start", start_and_kill)
  clips = [Clip(str(k), 0, f"clip {k}", lambda: clip) for k in range(4)]
  clips[1] = Clip("1", 0, "clip 1", load_and_kill)
  listing = Listing(["a"], {"train": clips[:3], "validation": clips[3:]})
  builder = prepare.prepare(
    listing,
    tmp_path / "out",
    Storage(short_edge=32),
    origin={},
    num_workers=1,
    max_unreadable=0.5,
  )
  assert _ids(builder, "train") == (["0", "1", "2"] if deaths == 1 else ["0", "2"])
  assert _ids(builder, "validation") == ["3"]
  rows = _skipped(tmp_path / "out")[1:]
  assert len(rows) == deaths - 1
  assert all(row[0] == "clip 1" and "status -9" in row[1] for row in rows)


def test_retries_clip_after_read_error(tmp_path, clip):
  """The error says nothing about the clip, so the next call retries it though it is unchanged."""
  broken = [True]

  def load():
    if broken[0]:
      raise OSError(5, "Input/output error")
    return clip

  clips = [Clip(str(k), 0, f"clip {k}", load if k == 1 else lambda: clip) for k in range(4)]
  listing = Listing(["a"], {"train": clips[:3], "validation": clips[3:]})
  arguments = listing, tmp_path / "out", Storage(short_edge=32)
  settings = {"origin": {}, "num_workers": 1}
  with pytest.raises(UserError, match="1 of 4 clips cannot be read"):
    prepare.prepare(*arguments, **settings)
  assert _skipped(tmp_path / "out")[1] == ["clip 1", "it cannot be read (Input/output error)"]
  broken[0] = False
  assert _ids(prepare.prepare(*arguments, **settings), "train") == ["0", "1", "2"]


def test_finished_data_set_is_not_changed(source, capsys):
  out = source.parent / "out"
  _prepare(source)
  before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
  prepare.main(_arguments(source, out))
  assert "train: 40 clips" in capsys.readouterr().out
  for more, words in (
    (["--short_edge=24"], "short_edge = 32, not 24"),
    (["--jpeg_quality=50"], "jpeg_quality = 95, not 50"),
    (["--modality=flow"], "modality = rgb, not flow"),
  ):
    assert words in _fails(capsys, source, out, *more)
  (source / "Träge" / "00.webm").unlink()
  assert "other classes, labels or clips" in _fails(capsys, source, out)
  assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.fixture
def images(tmp_path):
  """Two classes of 10 images whose sizes and contents all differ."""
  random = np.random.default_rng(0)
  for name in "ab":
    (tmp_path / "A" / name).mkdir(parents=True)
    for k in range(10):
      image = Image.fromarray(random.integers(0, 256, (32, 40, 3), np.uint8))
      image.save(tmp_path / "A" / name / f"{k}.png")
  return tmp_path / "A"


def _swap_classes(source):
  """Returns a copy of a source in which the folders of the two classes are exchanged."""
  other = source.parent / "B"
  shutil.copytree(source / "a", other / "b")
  shutil.copytree(source / "b", other / "a")
  return other


def _interrupt_before_finalizing(monkeypatch, source, out):
  def interrupt(*arguments):
    signal.raise_signal(signal.SIGINT)
    signals.raise_if_requested()

  with monkeypatch.context() as patch:
    patch.setattr(finalize, "finalize_dataset", interrupt)
    with pytest.raises(SystemExit):
      prepare.main(_arguments(source, out, dataset="images"))


@pytest.mark.parametrize("finished", [False, True])
def test_rejects_other_files_with_the_same_names(images, monkeypatch, capsys, finished):
  out, other = images.parent / "out", _swap_classes(images)
  if finished:
    prepare.main(_arguments(images, out, dataset="images"))
  else:
    _interrupt_before_finalizing(monkeypatch, images, out)
  before = {path: path.read_bytes() for path in out.iterdir()}
  error = _fails(capsys, other, out, dataset="images")
  assert str(other / "a/") in error and "20 of 20 clips differ" in error
  assert {path: path.read_bytes() for path in out.iterdir()} == before
  # One file changes its time but not its size; then it is restored in a folder of another name.
  one = images / "a/3.png"
  times = os.stat(one)
  os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
  error = _fails(capsys, images, out, dataset="images")
  assert (
    f"{one}: " in error
    and "1 of 20 clips differ" in error
    and "same size, but another modification time" in error
  )
  whole_seconds = times.st_mtime_ns // 10**9 * 10**9  # as tar keeps them
  os.utime(one, ns=(times.st_atime_ns, whole_seconds))
  images.rename(images.parent / "moved")
  prepare.main(_arguments(images.parent / "moved", out, dataset="images"))
  assert store.open_dataset(out).class_sizes() == (8, 8)


def test_resumes_data_without_file_states(images, monkeypatch):
  out, other = images.parent / "out", _swap_classes(images)
  add = shards.Progress.add
  with monkeypatch.context() as patch:
    patch.setattr(
      shards.Progress,
      "add",
      lambda self, key, shard: add(self, key, shard._replace(states=())),
    )
    _interrupt_before_finalizing(monkeypatch, images, out)
  for source in (images, other):  # unfinished, then finished; the original files are unknown
    prepare.main(_arguments(source, out, dataset="images"))
  assert not list(out.glob("states_*"))


@pytest.mark.parametrize("finished", [False, True])
def test_resumes_with_splits_of_an_earlier_version(images, monkeypatch, capsys, finished):
  """That version held out every fifth clip, in the order of the names."""
  out = images.parent / "out"
  with monkeypatch.context() as patch:
    patch.setattr(folders, "_hold_out", folders._hold_out_as_before)
    if finished:
      prepare.main(_arguments(images, out, dataset="images"))
      next(out.glob("clips-train*")).unlink()
    else:
      _interrupt_before_finalizing(patch, images, out)
  capsys.readouterr()
  prepare.main(_arguments(images, out, dataset="images"))
  assert "by an earlier version: its choice of 4 validation clips" in capsys.readouterr().out
  assert _ids(store.open_dataset(out), "validation") == [
    f"{name}/{k}.png" for name in "ab" for k in (4, 9)
  ]
  for path in images.glob("*/9.png"):
    path.unlink()
  assert "other classes, labels or clips" in _fails(capsys, images, out, dataset="images")


def test_prepares_test_split_alone(images, capsys):
  out, source = images.parent / "out", images.parent / "source"
  source.mkdir()
  images.rename(source / "testing")
  for _ in range(2):
    prepare.main(_arguments(source, out, dataset="images"))
    printed = capsys.readouterr().out
    assert "test: 20 images" in printed and "note: only a test split: runs" in printed
    assert "fewer than" not in printed
  data = store.open_dataset(out)
  assert (
    data.class_names == ("a", "b") and data.class_sizes() == () and [*data.info.splits] == ["test"]
  )
  assert data.split("test").labels().tolist() == [0] * 10 + [1] * 10


@pytest.mark.parametrize("place", ["out", "a/deep/out", "linked/out", "../A/out"])
def test_rejects_output_inside_source(images, tmp_path, capsys, monkeypatch, place):
  (images / "linked").symlink_to(tmp_path / "B")
  (tmp_path / "B").mkdir()
  (tmp_path / "link").symlink_to(images)
  if place.startswith("linked"):  # a link that leaves the source, and one into it
    with pytest.raises(SystemExit, match="linked: this class folder holds no images"):
      prepare.main(_arguments(images, images / place, dataset="images"))
    place = tmp_path / "link/out"
  monkeypatch.chdir(images)
  error = _fails(capsys, images, place, dataset="images")
  assert f"--out {images / place}: lies in --source {images}" in error
  assert sorted(path.name for path in images.iterdir()) == ["a", "b", "linked"]
  assert not (images / "a/deep").exists()


def test_single_class_is_an_error_before_decoding(images, capsys):
  shutil.rmtree(images / "b")
  error = _fails(capsys, images, images.parent / "out", dataset="images")
  assert "only one class, 'a'" in error and not (images.parent / "out").exists()
  (images.parent / "list.csv").write_text(
    "path,label,split\n" + "".join(f"A/a/{k}.png,x,{'val' if k else 'train'}\n" for k in range(9))
  )
  source = images.parent / "list.csv"
  assert "only one class, 'x'" in _fails(capsys, source, images.parent / "out", dataset="images")
  above = images.parent / "above"  # one level too high
  above.mkdir()
  images.rename(above / "images")
  (above / "images/a").rename(above / "images/c")
  assert "only one class, 'images'" in _fails(
    capsys, above, images.parent / "out", dataset="images"
  )


def test_file_that_changes_during_preparation_is_decoded_again(images, monkeypatch, capsys):
  out, late = images.parent / "out", images / "b/7.png"
  complete, write = late.read_bytes(), shard_writer.write_shard

  def copy_the_rest(*arguments):
    shard = write(*arguments)
    late.write_bytes(complete)
    return shard

  half = io.BytesIO()
  Image.new("RGB", (40, 32)).save(half, "PNG")
  late.write_bytes(half.getvalue())
  with monkeypatch.context() as patch:
    patch.setattr(shard_writer, "write_shard", copy_the_rest)
    error = _fails(capsys, images, out, dataset="images")
  assert f"{late}: the file changed during" in error and not store.is_finished(out)
  prepare.main(_arguments(images, out, dataset="images"))
  (found,) = [
    frames[0]
    for split in ("train", "validation")
    for clip_id, _, frames in map(store.parse_record, store.open_dataset(out).split(split).records)
    if clip_id == b"b/7.png"
  ]
  assert (
    np.asarray(Image.open(io.BytesIO(found))).mean() > 100
  )  # noise; the incomplete file was black


def test_restores_shard_with_skipped_clip_from_moved_source(images, capsys):
  out, bad = images.parent / "out", images / "a/2.png"
  bad.write_bytes(b"no image")
  arguments = {"dataset": "images"}
  prepare.main(_arguments(images, out, "--max_unreadable=0.1", **arguments))
  before = _contents(out)
  images.rename(images.parent / "moved")
  for shard in out.glob("clips*"):
    shard.unlink()
  prepare.main(_arguments(images.parent / "moved", out, "--max_unreadable=0.1", **arguments))
  assert _contents(out) == before


def test_find_changed(tmp_path):
  """For a folder of frames, segments of one video, and images inside records."""
  folder = tmp_path / "frames"
  folder.mkdir()
  for k in range(3):
    (folder / f"{k}.jpg").write_bytes(bytes(100 + k))
  content = [b"abc"]
  clips = [
    Clip("frames", 0, str(folder)),
    Clip("segment 0", 0, str(folder / "0.jpg"), span=(0.0, 1.0)),
    Clip("segment 1", 0, str(folder / "0.jpg"), span=(1.0, 2.0)),
    Clip("held", 0, "in a record", lambda: content[0]),
  ]
  states = [*(file_states.read_file_state(clip.file) for clip in clips[:3])]
  pairs = list(zip(clips, [*states, file_states.compute_content_state(b"abc")], strict=True))

  def find_changed_ids():
    return [clip.id for clip, _ in file_states.find_changed(pairs)]

  assert find_changed_ids() == []
  (folder / "Thumbs.db").touch()  # not a frame
  shutil.copytree(folder, tmp_path / "copy")
  moved = [(dataclasses.replace(pairs[0][0], file=str(tmp_path / "copy")), pairs[0][1])]
  assert not file_states.find_changed(moved) and find_changed_ids() == []
  content[0] = b"abd"
  assert find_changed_ids() == ["held"]
  times = os.stat(folder / "1.jpg")
  os.rename(folder / "1.jpg", folder / "x.jpg")  # two frames are exchanged
  os.rename(folder / "2.jpg", folder / "1.jpg")
  os.rename(folder / "x.jpg", folder / "2.jpg")
  assert find_changed_ids() == ["frames", "held"] and times.st_size == 101
  (folder / "0.jpg").write_bytes(b"")
  assert find_changed_ids() == ["frames", "segment 0", "segment 1", "held"]
  shutil.rmtree(folder)  # deleted after the preparation
  assert find_changed_ids() == ["held"]


def test_invalid_settings_and_folders_are_errors(source, capsys):
  out = source.parent / "out"
  for more, words in (
    (["--short_edge=0"], "short_edge: must be >= 1 pixel, got 0"),
    (["--jpeg_quality=101"], "jpeg_quality: must be between 1 and 100, got 101"),
    (["--workers=0"], "workers: 0 must be >= 1"),
    (["--max_unreadable=2"], "max_unreadable: 2.0 must be in [0, 1]"),
    (["--workers=1", "--workers=2"], "--workers: given twice"),
  ):
    assert words in _fails(capsys, source, out, *more)
  assert not out.exists()
  assert "not a prepared data set" in _fails(capsys, source, source)
  (source.parent / "file").write_text("x")
  assert "file" in _fails(capsys, source, source.parent / "file")
  assert "none" in _fails(capsys, source.parent / "none", out)
  out.mkdir()
  (out / ".preparation.json.partial").write_text("{")  # left by a kill right at the start
  with open(out / ".lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    assert "another process is preparing it" in _fails(capsys, source, out)
  prepare.main(_arguments(source, out))


def test_resumes_after_full_disk(source, full_disk, capsys):
  disk = full_disk(150)  # the first shard fits; an ArrayRecord file has at least 64 KiB
  error = _fails(capsys, source, disk / "out")
  assert re.match(rf"error: {disk}/out/.*: No space left on device; fix this, then", error)
  assert sorted(path.name for path in disk.glob("out/clips*")) == [
    "clips-train.array_record-00000-of-00003"
  ]
  full_disk.change("size=4m")
  prepare.main(_arguments(source, disk / "out"))
  _prepare(source)
  assert _contents(disk / "out") == _contents(source.parent / "out")
  full_disk.change("ro")
  prepare.main(_arguments(source, disk / "out"))  # nothing to write
  shutil.rmtree(source.parent / "out")
  assert "other: Read-only file system; fix this" in _fails(capsys, source, disk / "other/out")


def test_restores_damaged_shard(source, capsys):
  dataset = _prepare(source)
  out, before = dataset.folder, _contents(dataset.folder)
  shard = out / "clips-train.array_record-00001-of-00003"
  shards, content = dataset.split("train").shards, bytearray(shard.read_bytes())
  assert store.find_corrupt_shard(shards) is None
  content[content.index(b"JFIF") + 1] ^= 1
  for damaged in (content, content[:100], content[: len(content) // 2]):
    shard.write_bytes(damaged)
    line = store.find_corrupt_shard(shards)
    assert line.startswith(f"{shard}: damaged (") and "delete it, then rerun the command" in line
  shard.unlink()
  assert store.find_corrupt_shard(shards).startswith(f"{shard}: missing; rerun the command")
  others = {path: path.stat().st_mtime_ns for path in out.iterdir() if path.name != ".lock"}
  missing = folders.list_videos(source).splits["train"][20]
  content, times = pathlib.Path(missing.path).read_bytes(), os.stat(missing.path)
  pathlib.Path(missing.path).write_bytes(b"x" * len(content))
  os.utime(missing.path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a defective disk does
  assert f"{missing.path} cannot be read, but could when" in _fails(capsys, source, out)
  assert not shard.exists()
  pathlib.Path(missing.path).write_bytes(content)
  assert "same size, but another modification time" in _fails(capsys, source, out)
  os.utime(missing.path, ns=(times.st_atime_ns, times.st_mtime_ns))
  prepare.main(_arguments(source, out))
  assert _contents(out) == before
  now = {path: path.stat().st_mtime_ns for path in others}
  assert now == others


@contextlib.contextmanager
def _dask(folder, port, count):
  """Starts a scheduler and workers; yields the scheduler's address and the worker processes."""
  address, processes = f"tcp://127.0.0.1:{port}", []

  def start(module, ready, *arguments):
    command = [sys.executable, "-m", f"distributed.cli.{module}", *arguments, "--no-dashboard"]
    log = folder / f"dask_{len(processes)}.log"
    with open(log, "w") as file:
      processes.append(subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file))
    until = time.monotonic() + 60
    while ready not in log.read_text():
      assert processes[-1].poll() is None and time.monotonic() < until, log.read_text()
      time.sleep(0.05)
    return processes[-1]

  try:
    start("dask_scheduler", "Scheduler at", f"--port={port}", "--host=127.0.0.1")
    fields = ("dask_worker", "Registered to", address, "--nthreads=1", "--no-nanny")
    yield address, [start(*fields) for _ in range(count)]
  finally:
    for process in processes:
      process.kill()
      process.wait()


def test_cluster_survives_signal_and_killed_worker(source, tmp_path, free_port, capsys):
  pytest.importorskip("distributed", reason="--cluster needs the package distributed")
  with _dask(tmp_path, free_port(), 3) as (address, dask_workers):
    _check_cluster_signal(source, tmp_path / "interrupted", address)
    for name in ("Bend it", "Träge"):
      (source / name / "24.webm").write_bytes(b"no video")
    expected, out = tmp_path / "expected", tmp_path / "out"
    prepare.main(_arguments(source, expected, "--max_unreadable=0.1"))

    def kill_worker():
      until = time.monotonic() + 60
      while not list(out.glob(f"{cluster.PARTIAL}*/*/*")):  # a shard is being written
        assert time.monotonic() < until
        time.sleep(0.01)
      dask_workers[0].kill()

    killer = threading.Thread(target=kill_worker, daemon=True)
    killer.start()
    capsys.readouterr()
    prepare.main(_arguments(source, out, "--max_unreadable=0.1", f"--cluster={address}"))
    killer.join()
  assert "skipped: 2" in capsys.readouterr().out
  assert _contents(out) == _contents(expected)
  assert not list(out.glob(f"{cluster.PARTIAL}*"))


def _check_cluster_signal(source, out, address):
  """Checks that SIGTERM ends the command although no shard is done for a long time."""
  fifo = source / "Träge" / "05.webm"
  clip = fifo.read_bytes()
  fifo.unlink()
  os.mkfifo(fifo)  # reading it blocks
  sent = []

  def interrupt():
    until = time.monotonic() + 60
    # Two of four shards are done; the scheduler may have queued the third behind the blocked one.
    while len(list(out.glob("clips-*"))) < 2:
      assert time.monotonic() < until
      time.sleep(0.01)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGTERM)

  killer = threading.Thread(target=interrupt, daemon=True)
  killer.start()
  with pytest.raises(SystemExit) as caught:
    prepare.main(_arguments(source, out, f"--cluster={address}"))
  assert caught.value.code == INTERRUPTED
  assert time.monotonic() - sent[0] < 20  # seconds; a blocked decoder is given up after 60
  os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))  # unblocks the decoder
  fifo.unlink()
  fifo.write_bytes(clip)


def test_paths_and_class_sizes(source):
  data = _prepare(source)
  paths = data.paths("validation")
  held_out = _ids(data, "validation")
  assert paths == {clip_id: f"{source}/{clip_id}" for clip_id in held_out} and len(paths) == 10
  assert data.class_sizes() == (20, 20)
  (data.folder / "labels_train.npy").unlink()
  (data.folder / "paths_validation.json").unlink()
  data = store.open_dataset(data.folder)
  assert data.class_sizes() == () and data.paths("validation") == {}


def test_estimate_cost(source, capsys, monkeypatch):
  monkeypatch.setattr(prepare, "MIN_ESTIMATED", {"rgb": 50, "flow": 50})
  monkeypatch.setattr(prepare, "SAMPLE_SIZE", 10)
  asked, clock, cpu = [], 10.0, 0.5

  def decode_clips(job, groups, num_workers, timings):
    for number, (clip,) in enumerate(groups):
      asked.append(clip.id)
      timings[number] = clock, cpu
      yield workers.Decoded([b"x" * 600, b"x" * 400]), None

  monkeypatch.setattr(shard_writer, "decode_clips", decode_clips)
  job = shard_writer.Job(source, ("a", "b"), False, SMALL, {})
  clips = [Clip(str(k), 0, "") for k in range(50)]
  space = shutil.disk_usage(source)
  for free, line in (
    (24_000, None),
    (26_000, "which may not fit"),
    (5_100_000, "(estimated from 10 of them); 5.1 MB are free"),
  ):
    monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: space._replace(free=free))
    if line is None:  # 50 times 1,000 bytes is more than twice that
      with pytest.raises(
        UserError, match="50 clips need about 0.1 MB .* 10 of them.*, but only 0.0 MB"
      ):
        prepare.estimate_cost(job, {("train", 0): clips}, 2)
    else:
      prepare.estimate_cost(job, {("train", 0): clips}, 2)
      printed = capsys.readouterr().out
      assert line in printed and "with 2 processes" in printed
      # 50 times 10 s by two processes, minus 10 s: their startup, as the fake clock does not run.
      assert _parse_seconds(printed) in (240, 241)
  assert sorted(asked[:10], key=int) == [str(k) for k in range(2, 50, 5)] != asked[:10]
  prepare.estimate_cost(job, {("train", 0): clips[:49]}, 2)
  assert len(asked) == 30
  # 32 processes on two cores: 16 times as slow if all are busy, not slower in a small sample.
  monkeypatch.setattr(os, "cpu_count", lambda: 2)
  cpu = 1.0
  for clock, expected in ((16.0, 25), (1.0, 25), (64.0, 100)):
    prepare.estimate_cost(job, {("train", 0): clips}, 32)
    assert abs(_parse_seconds(capsys.readouterr().out) + clock - expected) <= 1


def _parse_seconds(printed):
  hours, minutes, seconds = map(
    int, re.search(r"(\d+):(\d\d):(\d\d) \(h:mm:ss\)", printed).groups()
  )
  return 3600 * hours + 60 * minutes + seconds


def test_unreadable_sample_is_reported_before_decoding(source, capsys, monkeypatch):
  monkeypatch.setattr(prepare, "MIN_ESTIMATED", {"rgb": 50, "flow": 50})
  for path in source.glob("*/*"):
    path.write_bytes(b"no video")
  error = _fails(capsys, source, source.parent / "out")
  assert "50 of 50 clips cannot be read" in error
  with pytest.raises(SystemExit):
    prepare.main(_arguments(source, source.parent / "again"))
  printed = capsys.readouterr().out
  assert "none of the first 24 sampled clips can be read: " in printed
  assert "cannot be decoded" in printed
  assert "h:mm:ss" not in printed


def _segments(count, seconds, step):
  return [
    Clip(f"v#{k}", 0, "v.mp4", span=(float(k * step), float(k * step + seconds)))
    for k in range(count)
  ]


@pytest.mark.parametrize(
  ("short_edge", "sizes"),
  [(240, [40]), (540, [23, 17]), (1080, [5] * 8), (2160, [1] * 40)],
)
def test_group_size_is_bounded_by_memory(short_edge, sizes):
  job = shard_writer.Job(pathlib.Path("out"), ("a",), False, Storage(short_edge=short_edge), {})
  assert [len(group) for group in shard_writer.group_clips(job, _segments(40, 3, 4))] == sizes


@pytest.mark.parametrize("failing", ["all", "process", "some"])
def test_decodes_segments_of_failed_group_one_by_one(failing, monkeypatch, tmp_path):
  asked = []

  def process_requests(function, fields, requests, num_workers, timings=None):
    for request in requests:
      _, _, spans, _ = request()
      asked.append(len(spans))
      if len(spans) == 1:
        bad = spans[0][0] == 8.0
        yield [workers.Skipped("damaged") if bad else workers.Decoded([b"%d" % spans[0][0]])]
      elif failing == "some":
        good = [workers.Decoded([b"%d" % start]) for start, _ in spans[:2]]
        yield good + [workers.Skipped("damaged")] * (len(spans) - 2)
      else:
        yield workers.Skipped("it takes more than 4 GiB", retry=failing == "process")

  monkeypatch.setattr(workers, "process_requests", process_requests)
  (tmp_path / "v.mp4").touch()
  clips = [dataclasses.replace(clip, file=str(tmp_path / "v.mp4")) for clip in _segments(5, 3, 4)]
  job = shard_writer.Job(pathlib.Path("out"), ("a",), False, SMALL, {})
  answers = list(shard_writer.decode_clips(job, shard_writer.group_clips(job, clips), 1))
  expected = [workers.Decoded([b"%d" % (4 * k)]) for k in range(5)]
  expected[2] = workers.Skipped("damaged")
  assert [answer for answer, _ in answers] == expected
  assert all(state[0] == 0 for _, state in answers)
  assert asked == ([5, 1, 1, 1] if failing == "some" else [5, 1, 1, 1, 1, 1])


def test_reports_copies_of_training_clips(tmp_path, write_video, capsys):
  random = np.random.default_rng(0)

  def make_scene():
    frames = random.integers(0, 256, (8, 6, 9, 3), np.uint8)
    return [
      np.asarray(Image.fromarray(p).resize((96, 64), Image.Resampling.BICUBIC)) for p in frames
    ]

  scenes = [make_scene() for _ in range(6)]
  for k, frames in enumerate(scenes):
    write_video(tmp_path / f"{k}.webm", frames)
  smaller = [np.asarray(Image.fromarray(frame).resize((72, 48))) for frame in scenes[2]]
  write_video(tmp_path / "copy.mkv", smaller, codec="libx264")
  splits = ["train"] * 4 + ["val", "test"]
  rows = [f"{k}.webm,{'ab'[k % 2]},{split}" for k, split in enumerate(splits)]
  (tmp_path / "a.csv").write_text("\n".join(["path,label,split", *rows, "copy.mkv,b,val"]))
  prepare.main(_arguments(tmp_path / "a.csv", tmp_path / "out"))
  assert "1 clips look like a training one" in capsys.readouterr().out
  with open(tmp_path / "out/leaks.csv", newline="") as file:
    (row,) = csv.DictReader(file)
  assert (row["path"], row["training_path"]) == (f"{tmp_path}/copy.mkv", f"{tmp_path}/2.webm")
  assert (row["split"], row["label"], row["training_label"]) == ("validation", "b", "a")


def test_copies_are_not_reported_with_fixed_camera(tmp_path, capsys):
  """All images show one scene with a small difference."""
  random = np.random.default_rng(0)
  scene = Image.fromarray(random.integers(0, 256, (6, 9, 3), np.uint8))
  scene = np.asarray(scene.resize((96, 64), Image.Resampling.BICUBIC))
  for k in range(40):
    image = scene.copy()
    image[20:24, 2 * k : 2 * k + 4] = 255 * (k % 2)
    (tmp_path / "source" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(tmp_path / "source" / "ab"[k % 2] / f"{k}.png")
  prepare.main(_arguments(tmp_path / "source", tmp_path / "out", dataset="images"))
  printed = capsys.readouterr().out
  assert "100 % of the training images look like one of another class" in printed
  assert "look like a training one" not in printed
  assert (tmp_path / "out/leaks.csv").read_text().count("\n") == 1


def test_unreachable_cluster_is_an_error(source, capsys, monkeypatch):
  pytest.importorskip("distributed", reason="--cluster needs the package distributed")
  monkeypatch.setattr(cluster, "CONNECT_TIMEOUT", 1)
  error = _fails(capsys, source, source.parent / "out", "--cluster=tcp://127.0.0.1:9")
  assert error.startswith("error: --cluster tcp://127.0.0.1:9: ")


def test_images_and_their_official_counts(tmp_path, capsys):
  for split, count in (("train", 3), ("test", 1)):
    for name in ("Audi A5", "BMW X3"):
      (tmp_path / "source" / split / name).mkdir(parents=True)
      for k in range(count):
        image = Image.fromarray(np.full((32, 40, 3), 50 * k, np.uint8))
        image.save(tmp_path / "source" / split / name / f"{k}.png")
  prepare.main(_arguments(tmp_path / "source", tmp_path / "cars", dataset="cars196"))
  printed = capsys.readouterr().out
  assert "train: 6 images" in printed
  assert "officially 8144: a difference of -8138 (-8138 in the lists, 0 skipped)" in printed
  assert "classes: Audi A5, BMW X3" in printed
  prepare.main(_arguments(tmp_path / "source", tmp_path / "any", dataset="images"))
  assert "officially" not in capsys.readouterr().out
  _, _, frames = store.parse_record(store.open_dataset(tmp_path / "any").split("train").records[0])
  assert len(frames) == 1 and tf.io.decode_jpeg(frames[0]).shape == (32, 40, 3)
  error = _fails(
    capsys, tmp_path / "source", tmp_path / "flow", "--modality=flow", dataset="images"
  )
  assert "images have no flow" in error


def test_rejects_data_sets_of_other_tools(tmp_path):
  with pytest.raises(FileNotFoundError, match="is not a folder"):
    store.open_dataset(tmp_path / "none")
  features = tfds.features.FeaturesDict({"x": tfds.features.Scalar(tf.int32)})
  (tmp_path / "other-train.tfrecord-00000-of-00001").write_bytes(b"")
  tfds.folder_dataset.write_metadata(
    data_dir=tmp_path,
    features=features,
    split_infos=[
      tfds.core.SplitInfo(
        name="train",
        shard_lengths=[0],
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
          data_dir=tmp_path, dataset_name="other", split="train", filetype_suffix="tfrecord"
        ),
      )
    ],
    check_data=False,
  )
  with pytest.raises(UserError, match="was not written by `python -m data.prepare`"):
    store.open_dataset(tmp_path)
