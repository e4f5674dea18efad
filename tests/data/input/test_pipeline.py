"""The input pipeline, on clips whose pixels encode their frame number and position.

RGB: red is 3 times the column, green 3 times the row, blue 16 times the frame number. Flow: see
`_flow_pair`.
"""

import copy
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from data.input import pipeline, store
from data.input.pipeline import BatchSpec
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import clip_views
from u2s_jax.video.clips import Augmentation, ClipSpec

HEIGHT, WIDTH, CROP, FRAMES = 32, 64, 24, 4
NUM_TRAIN, NUM_VALIDATION = 11, 5
NAMES = ["Left to right", "Right to left", "Doing something", "Showing something"]
# Number of pairs -> pairs of each of FRAMES stacks of 5 from the middle of the segments.
STACKS = {
  14: [[1, 2, 3, 4, 5], [3, 4, 5, 6, 7], [6, 7, 8, 9, 10], [8, 9, 10, 11, 12]],
  9: [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [3, 4, 5, 6, 7], [4, 5, 6, 7, 8]],
  5: [[0, 1, 2, 3, 4]] * 4,
  3: [[0, 1, 2, 2, 2]] * 4,
  1: [[0, 0, 0, 0, 0]] * 4,
}
PAIRS = [14, 9, 5, 3, 1]  # of clip i: PAIRS[i % 5]
# All augmentation at once.
AUGMENT = {"short_edge": 30, "multi_scale": (1, 0.875, 0.75), "flip": True}


def _jpeg(image):
  return tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False).numpy()


def _rgb_frame(k):
  image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  image[..., 0], image[..., 1] = 3 * np.arange(WIDTH), 3 * np.arange(HEIGHT)[:, None]
  image[..., 2] = 16 * k
  return image


def _flow_pair(k):
  """Returns x = 20 + 10 k plus a staircase along the columns, and y = x + 60."""
  stair = 20 + 10 * k + 2 * (np.arange(WIDTH) // 16) + np.zeros((HEIGHT, 1), int)
  return np.stack([stair, stair + 60])


def _dataset(folder, modality, clips):
  """Writes clips, lists of frames; ids count from 0, and the first NUM_TRAIN are for training."""
  records = [
    {"id": str(i), "label": i % 4, "num_frames": len(frames), "frames": frames}
    for i, frames in enumerate(clips)
  ]
  parts = {"train": [records[:6], records[6:NUM_TRAIN]], "validation": [records[NUM_TRAIN:]]}
  shards = {
    split: [
      store.write_shard(store.shard_path(folder, split, shard, len(part)), examples, NAMES)
      for shard, examples in enumerate(part)
    ]
    for split, part in parts.items()
  }
  for split, part in parts.items():
    store.write_labels(folder, split, [example["label"] for shard in part for example in shard])
  store.write_metadata(
    folder, NAMES, shards, {"modality": modality, "short_edge": HEIGHT}, "a test"
  )
  return store.open_dataset(folder)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
  frames = [_jpeg(_rgb_frame(k)) for k in range(14)]
  clips = [frames[: _num_frames(i)] for i in range(NUM_TRAIN + NUM_VALIDATION)]
  return _dataset(tmp_path_factory.mktemp("rgb"), "rgb", clips)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
  frames = [_jpeg(x[..., None].astype(np.uint8)) for k in range(14) for x in _flow_pair(k)]
  clips = [frames[: 2 * PAIRS[i % 5]] for i in range(NUM_TRAIN + NUM_VALIDATION)]
  return _dataset(tmp_path_factory.mktemp("flow"), "flow", clips)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  clips = [[_jpeg(_rgb_frame(i % 14))] for i in range(NUM_TRAIN + NUM_VALIDATION)]
  return _dataset(tmp_path_factory.mktemp("images"), "rgb", clips)


def _num_frames(clip_id):
  return 3 + clip_id % 12  # some have fewer than FRAMES


def _records(dataset, settings):
  """Returns the records of these settings; by default a batch of 4 small clips."""
  defaults = {
    "batch_size": 4,
    "num_frames": FRAMES,
    "crop_size": CROP,
    "short_edge": HEIGHT,
    "modality": dataset.modality,
  }
  settings = defaults | settings
  records = []
  for record in (ClipSpec, Augmentation, BatchSpec):
    names = {field.name for field in dataclasses.fields(record)} & settings.keys()
    records.append(record(**{name: settings.pop(name) for name in names}))
  return *records, settings


def _train(dataset, split="train", num_steps=None, **settings):
  clip, augmentation, feed, rest = _records(dataset, settings)
  place = {"seed": 0, "stage": 1, "first_step": 0} | rest
  batches = pipeline.train_batches(dataset.split(split), clip, augmentation, feed, **place)
  return itertools.islice(batches, num_steps)


def _eval(dataset, split="validation", views="center", **settings):
  clip, _, feed, _ = _records(dataset, settings)
  return list(pipeline.eval_batches(dataset.split(split), clip, feed, views))


def _ids(batches):
  return [int(clip_id) for batch in batches for clip_id in batch["id"]]


def _frame_numbers(video):
  return np.round(video[..., 2].mean((-1, -2)) / 16).astype(int)


def _columns(video):
  """Returns the source column of each column of each frame."""
  return video[..., 0].astype(float).mean(-2) / 3


def _rows(video):
  return video[..., 1].astype(float).mean(-1) / 3


def _assert_same(one, other):
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def test_shapes_and_types(builder):
  (batch,) = _train(builder, num_steps=1)
  assert batch["video"].shape == (4, FRAMES, CROP, CROP, 3) and batch["video"].dtype == np.uint8
  assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
  assert batch["valid"].dtype == np.bool_ and batch["valid"].all()
  assert all(isinstance(clip_id, bytes) for clip_id in batch["id"])
  assert [int(i) % 4 for i in batch["id"]] == batch["label"].tolist()
  assert len(builder.split("train").records) == NUM_TRAIN
  assert len(builder.split("train[:3]").records) == 3


def test_every_epoch_is_a_new_permutation(builder):
  ids = _ids(_train(builder, num_steps=11))  # 44 clips: 4 epochs; batches span two
  epochs = [tuple(ids[i : i + NUM_TRAIN]) for i in range(0, 44, NUM_TRAIN)]
  assert all(sorted(epoch) == list(range(NUM_TRAIN)) for epoch in epochs)
  assert len(set(epochs)) == 4
  assert _ids(_train(builder, num_steps=11)) == ids
  assert _ids(_train(builder, num_steps=11, seed=1)) != ids
  assert _ids(_train(builder, num_steps=11, stage=2)) != ids


def test_balance_repeats_rare_classes_and_covers_all_clips(builder):
  # As if there were 8 clips of one class and 3 of another.
  dataset = copy.copy(builder)
  split = copy.copy(builder.split("train"))
  split.labels = lambda: np.array([0] * 8 + [1] * 3)
  dataset.split = lambda name: split
  epochs = 8
  ids = np.array(_ids(_train(dataset, num_steps=11 * epochs, batch_size=1, balance=1.0)))
  ids = ids.reshape(epochs, 11)
  for epoch in ids:
    assert 5 <= (epoch >= 8).sum() <= 6  # of 11, for two equal classes
  assert {*ids.ravel()} == {*range(11)}
  counts = np.bincount(ids.ravel(), minlength=11)
  assert counts[:8].max() - counts[:8].min() <= 1 and counts[8:].max() - counts[8:].min() <= 1
  resumed = _ids(_train(dataset, num_steps=11, batch_size=1, balance=1.0, first_step=27))
  assert resumed == ids.ravel()[27:38].tolist()


def test_repeated_clip_gets_another_crop(builder):
  dataset = copy.copy(builder)
  split = copy.copy(builder.split("train"))
  split.labels = lambda: np.array([0] + [1] * 10)
  dataset.split = lambda name: split
  batches = list(_train(dataset, num_steps=11, batch_size=1, balance=1.0))
  again = [batch["video"] for batch in batches if int(batch["id"][0]) == 0]
  assert len(again) in (5, 6) and len({video.tobytes() for video in again}) == len(again)


def test_balance_requires_stored_labels(builder, tmp_path):
  shutil.copytree(builder.folder, tmp_path / "old")
  (tmp_path / "old/labels_train.npy").unlink()
  with pytest.raises(UserError, match="labels_train.npy: missing.* prepare the data set again"):
    next(_train(store.open_dataset(tmp_path / "old"), balance=0.5))


def test_split_of_one_clip(builder):
  batches = _train(builder, "train[:1]", 2, batch_size=2, num_frames=1, first_step=5)
  assert len(set(_ids(batches))) == 1


@pytest.mark.parametrize("modality", ["builder", "flow"])
def test_resumed_stream_is_bitwise_identical(modality, request):
  dataset = request.getfixturevalue(modality)
  settings = dict(AUGMENT, color_jitter=(0.2,) * 4) if modality == "builder" else AUGMENT
  whole = list(_train(dataset, num_steps=7, **settings))
  resumed = _train(dataset, first_step=4, num_threads=2, **settings)  # in the middle of epoch 1
  for one, other in zip(whole[4:], itertools.islice(resumed, 3), strict=True):
    _assert_same(one, other)


@pytest.mark.parametrize("modality", ["builder", "flow"])
def test_processes_share_the_global_batch(modality, request):
  dataset = request.getfixturevalue(modality)
  for stream in (
    lambda **share: _train(dataset, num_steps=4, **AUGMENT, **share),
    lambda **share: _eval(dataset, short_edge=30, **share),
  ):
    whole = list(stream())
    parts = [list(stream(process_index=i, process_count=2)) for i in range(2)]
    for batch, left, right in zip(whole, *parts, strict=True):
      assert left["video"].shape[0] == 2
      _assert_same(batch, {name: np.concatenate([left[name], right[name]]) for name in batch})


def test_one_frame_per_segment(builder):
  seen = set()
  for batch in _train(builder, num_steps=30):
    for clip_id, numbers in zip(batch["id"], _frame_numbers(batch["video"]), strict=True):
      n = _num_frames(int(clip_id))
      # One offset in [0, 1) must explain all of them: floor((k + offset) n / FRAMES).
      low = max(number * FRAMES / n - k for k, number in enumerate(numbers))
      high = min((number + 1) * FRAMES / n - k for k, number in enumerate(numbers))
      assert max(low, 0) < min(high, 1)
      seen.add((int(clip_id), tuple(numbers)))
  assert len(seen) > 2 * NUM_TRAIN  # the offset varies


def test_offset_per_segment(builder, flow):
  seen = set()
  for one, own in zip(
    _train(builder, num_steps=30),
    _train(builder, num_steps=30, offset_per_segment=True),
    strict=True,
  ):
    assert one["id"].tolist() == own["id"].tolist()
    # The same crop: red and green encode its position, up to JPEG errors from other frames.
    np.testing.assert_allclose(one["video"][..., :2], own["video"][..., :2].astype(int), atol=4)
    for clip_id, numbers in zip(own["id"], _frame_numbers(own["video"]), strict=True):
      n = _num_frames(int(clip_id))
      for k, number in enumerate(numbers):
        assert int(k * n / FRAMES) <= number < (k + 1) * n / FRAMES
      if n == 12:  # three frames per segment
        seen.add(tuple(number - 3 * k for k, number in enumerate(numbers)))
  assert any(len(set(places)) > 1 for places in seen)  # not explained by a single offset
  whole = list(_train(flow, num_steps=5, offset_per_segment=True))
  _assert_same(whole[3], next(_train(flow, first_step=3, offset_per_segment=True)))


def test_crop_is_uniform_and_equal_for_all_frames(builder):
  corners = []
  for batch in _train(builder, num_steps=30):
    columns = _columns(batch["video"])
    rows = _rows(batch["video"])
    for position in (columns, rows):
      np.testing.assert_allclose(position - position[:, :1], 0, atol=1)
      centred = position - position.mean(-1, keepdims=True)
      np.testing.assert_allclose(centred, centred * 0 + np.arange(CROP) - (CROP - 1) / 2, atol=1.5)
    corners += zip(np.round(rows[:, 0].mean(-1)), np.round(columns[:, 0].mean(-1)), strict=True)
  y, x = np.array(corners).T - (CROP - 1) / 2
  assert -1 <= y.min() <= 1 and HEIGHT - CROP - 1 <= y.max() <= HEIGHT - CROP + 1
  assert -1 <= x.min() <= 3 and WIDTH - CROP - 3 <= x.max() <= WIDTH - CROP + 1
  assert len(set(corners)) > 60


def test_flip_mirrors_pixels_and_swaps_labels_together(builder):
  flips = []
  for batch in _train(builder, num_steps=20, flip=True, flip_label_map=((0, 1),)):
    columns = _columns(batch["video"])[:, 0]
    for clip_id, label, column in zip(batch["id"], batch["label"], columns, strict=True):
      mirrored = column[0] > column[-1]
      original = int(clip_id) % 4
      assert label == ({0: 1, 1: 0}.get(original, original) if mirrored else original)
      flips.append(mirrored)
  assert 20 < sum(flips) < 60
  both_ways = _train(builder, num_steps=2, flip=True, flip_label_map=((0, 1), (1, 0)))
  for one, other in zip(
    both_ways, _train(builder, num_steps=2, flip=True, flip_label_map=((1, 0),)), strict=True
  ):
    _assert_same(one, other)


def test_evaluation_sees_every_clip_once(builder):
  batches = _eval(builder)
  assert [batch["valid"].tolist() for batch in batches] == [[True] * 4, [True] + [False] * 3]
  ids = [int(i) for batch in batches for i in batch["id"][batch["valid"]]]
  assert sorted(ids) == list(range(NUM_TRAIN, NUM_TRAIN + NUM_VALIDATION))
  for batch in batches:
    assert batch["video"].shape == (4, 1, FRAMES, CROP, CROP, 3)
    for clip_id, label, video in zip(batch["id"], batch["label"], batch["video"], strict=True):
      n = _num_frames(int(clip_id))
      assert label == int(clip_id) % 4
      expected = [int((k + 0.5) * n / FRAMES) for k in range(FRAMES)]
      assert _frame_numbers(video[0]).tolist() == expected
      np.testing.assert_allclose(
        _columns(video[0])[0].mean(), (WIDTH - CROP) / 2 + (CROP - 1) / 2, atol=1
      )


def test_10crop_yields_the_unmirrored_views(builder):
  (batch,) = _eval(builder, "validation[:2]", batch_size=2, views="10crop")
  video = batch["video"]
  assert video.shape == (2, 5, FRAMES, CROP, CROP, 3)
  (five,) = _eval(builder, "validation[:2]", batch_size=2, views="5crop")
  np.testing.assert_array_equal(five["video"], video)
  left = [_columns(view).mean() - (CROP - 1) / 2 for view in video[0]]
  room = WIDTH - CROP
  np.testing.assert_allclose(left, [0, room, 0, room, room / 2], atol=1)


def test_unscaled_frames_equal_stored_pixels(builder):
  stored = clip_views.decode_jpegs([_jpeg(_rgb_frame(k)) for k in range(14)], 3)
  for batch in _train(builder, num_steps=5):
    for video in batch["video"]:
      left, top = np.round(video[0, 0, 0, :2] / 3).astype(int)
      found = [
        (y, x)
        for y, x in itertools.product((top - 1, top, top + 1), (left - 1, left, left + 1))
        if 0 <= y <= HEIGHT - CROP and 0 <= x <= WIDTH - CROP
        if all(
          np.array_equal(frame, stored[k][y : y + CROP, x : x + CROP])
          for k, frame in zip(_frame_numbers(video), video, strict=True)
        )
      ]
      assert len(found) == 1
  for one, other in zip(_eval(builder), _eval(builder, short_edge=HEIGHT), strict=True):
    _assert_same(one, other)
    for k, frame in zip(_frame_numbers(one["video"][0, 0]), one["video"][0, 0], strict=True):
      np.testing.assert_array_equal(frame, stored[k][4:28, 20:44])


@pytest.mark.parametrize("short_edge, crop", [(16, 12), (24, 20), (48, 40)])
def test_frames_are_resized_to_another_short_edge(builder, short_edge, crop):
  step = HEIGHT / short_edge  # of source columns, from one column to the next
  inside = slice(3, -3)  # without the ends, where a resized window repeats pixels
  for batch in _train(builder, short_edge=short_edge, crop_size=crop, num_steps=3):
    assert batch["video"].shape == (4, FRAMES, crop, crop, 3)
    for position in (_columns(batch["video"]), _rows(batch["video"])):
      position = position - position.mean(-1, keepdims=True)
      expected = position * 0 + step * (np.arange(crop) - (crop - 1) / 2)
      np.testing.assert_allclose(position[..., inside], expected[..., inside], atol=0.75)
  batch = _eval(builder, short_edge=short_edge, crop_size=crop, views="3crop")[0]
  assert batch["video"].shape == (4, 3, FRAMES, crop, crop, 3)
  for view, share in enumerate((0, 0.5, 1)):
    first = share * (WIDTH / step - crop)
    expected = (first + np.arange(crop) + 0.5) * step - 0.5
    columns = _columns(batch["video"][:, view])
    np.testing.assert_allclose(
      columns[..., inside], columns[..., inside] * 0 + expected[inside], atol=0.75
    )


def test_multi_scale_crops(builder):
  seen, left, right = set(), [], []
  for batch in _train(builder, num_steps=60, multi_scale=(1, 0.75, 0.5)):
    for video in batch["video"]:
      columns, rows = _columns(video), _rows(video)
      np.testing.assert_allclose(columns, columns[:1] + np.zeros((FRAMES, 1)), atol=0.5)
      height, width = ((p[0, -4] - p[0, 3]) / (CROP - 7) * CROP for p in (rows, columns))
      size = (round(height / 8) * 8, round(width / 8) * 8)
      np.testing.assert_allclose((height, width), size, atol=1)
      seen.add(size)
      middle = columns[0, 3:-3].mean()
      left.append(middle - (size[1] - 1) / 2)
      right.append(WIDTH - 1 - (middle + (size[1] - 1) / 2))
  neighbours = {(32, 32), (32, 24), (24, 32), (24, 24), (24, 16), (16, 24), (16, 16)}
  assert seen == neighbours
  assert -1 < min(left) < 1 and -1 < min(right) < 1  # anywhere inside the frame


def test_colour_jitter_is_equal_for_all_frames(builder):
  plain = _train(builder, num_steps=6)
  factors = []
  for before, after in zip(
    plain, _train(builder, num_steps=6, color_jitter=(0.4, 0, 0, 0)), strict=True
  ):
    for old, new in zip(before["video"].astype(float), after["video"], strict=True):
      usable = (old > 40) & (new < 255)
      factor = np.median(new[usable] / old[usable])
      np.testing.assert_allclose(new, np.minimum(old * factor, 255), atol=1.5)
      factors.append(factor)
  assert 0.6 <= min(factors) < 0.75 and 1.25 < max(factors) <= 1.4
  for jitter in ((0, 0.4, 0, 0), (0, 0, 0.4, 0), (0, 0, 0, 0.5)):
    (batch,) = _train(builder, num_steps=1, color_jitter=jitter)
    (other,) = _train(builder, num_steps=1)
    _assert_same({**batch, "video": other["video"]}, other)
    assert (batch["video"] != other["video"]).any((1, 2, 3, 4)).all()


def test_images_are_clips_of_one_frame(images):
  for frames in (1, 3):
    batch = _eval(images, num_frames=frames)[0]
    assert batch["video"].shape == (4, 1, frames, CROP, CROP, 3)
    numbers = [[int(clip_id) % 14] * frames for clip_id in batch["id"]]
    assert _frame_numbers(batch["video"][:, 0]).tolist() == numbers
    (batch,) = _train(images, num_frames=frames, num_steps=1)
    numbers = [[int(clip_id) % 14] * frames for clip_id in batch["id"]]
    assert _frame_numbers(batch["video"]).tolist() == numbers


def test_flow_stacks_in_evaluation(flow):
  seen = 0
  for batch in _eval(flow, views="10crop"):
    assert batch["video"].shape == (4, 5, FRAMES, CROP, CROP, 10)
    clips = zip(batch["id"][batch["valid"]], batch["video"][batch["valid"]], strict=True)
    for clip_id, views in clips:
      stacks = STACKS[PAIRS[int(clip_id) % 5]]
      # (t, 10, h, w): x and y of the first pair, of the second, ...
      whole = np.stack([np.concatenate([_flow_pair(k) for k in stack]) for stack in stacks])
      whole = whole.transpose(0, 2, 3, 1)
      centre = whole[:, 4:28, 20:44]
      corners = [whole[:, :CROP, :CROP], whole[:, :CROP, -CROP:]]
      corners += [whole[:, -CROP:, :CROP], whole[:, -CROP:, -CROP:], centre]
      for view, expected in enumerate(corners):
        np.testing.assert_allclose(views[view], expected, atol=2)
      seen += 1
  assert seen == NUM_VALIDATION


def test_flow_stacks_in_training(flow):
  flips = []
  for batch in _train(flow, num_steps=15, flip=True, flip_label_map=((0, 1),)):
    assert batch["video"].shape == (4, FRAMES, CROP, CROP, 10) and batch["video"].dtype == np.uint8
    for clip_id, label, video in zip(batch["id"], batch["label"], batch["video"], strict=True):
      n = PAIRS[int(clip_id) % 5]
      x, y = video[..., ::2].astype(int), video[..., 1::2].astype(int)
      pairs = np.round((y.mean((1, 2)) - 83) / 10).astype(int)  # (t, 5)
      np.testing.assert_array_equal(pairs, np.minimum(pairs[:, :1] + np.arange(5), n - 1))
      starts = max(n - 4, 1)
      low = max(number * FRAMES / starts - t for t, number in enumerate(pairs[:, 0]))
      high = min((number + 1) * FRAMES / starts - t for t, number in enumerate(pairs[:, 0]))
      assert max(low, 0) < min(high, 1)
      mirrored = y[..., 0, :].mean() > y[..., -1, :].mean()
      np.testing.assert_allclose(256 - x if mirrored else x, y - 60, atol=3)
      original = int(clip_id) % 4
      assert label == ({0: 1, 1: 0}.get(original, original) if mirrored else original)
      flips.append(mirrored)
  assert 15 < sum(flips) < 45


def test_flow_stack_of_one_pair(flow):
  batch = _eval(flow, flow_pairs=1, num_frames=2)[0]
  assert batch["video"].shape == (4, 1, 2, CROP, CROP, 2)
  pairs = np.round((batch["video"][:, 0, ..., 1].mean((-1, -2)) - 83) / 10).astype(int)
  # (k + 0.5) n / 2 for k = 0, 1 and clips 11 to 14.
  assert pairs.tolist() == [[2, 6], [1, 3], [0, 2], [0, 0]]


def test_invalid_arguments_are_errors(builder):
  def fails(*parts, make=_train, **settings):
    with pytest.raises(UserError) as caught:  # at the call, not at the first batch
      make(builder, **settings)
    assert "\n" not in str(caught.value)
    for part in parts:
      assert part in str(caught.value)

  fails("batch_size: 4", "3 processes", process_count=3)
  fails("process_index: 2", process_index=2, process_count=2)
  fails("data.num_threads: -1", num_threads=-1)
  fails("eval.views: '7crop'", "center, 3crop, 5crop, 10crop", views="7crop", make=_eval)
  fails("split 'test'", "train, validation", split="test", make=_eval)
  fails("split 'validation[:0]'", "is empty", split="validation[:0]", make=_eval)
  fails("contains the class 4", flip=True, flip_label_map=((0, 4),))
  fails("class 0 is paired with both 1 and 2", flip=True, flip_label_map=((0, 1), (2, 0)))


OPEN_FILES = """
import os, sys
from data.input import pipeline, store
from u2s_jax.video.clips import ClipSpec
dataset = store.open_dataset(sys.argv[1])
counts = []
clip, feed = ClipSpec(2, 24, 32), pipeline.BatchSpec(16)
for _ in range(50):
  list(pipeline.eval_batches(dataset.split("train"), clip, feed, "center"))
  counts.append(len(os.listdir("/proc/self/fd")))
print(counts[0], counts[-1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_evaluations_do_not_leak_open_files(builder):
  """The limit is too low for one reader per stream, which TensorFlow would never release."""
  command = [sys.executable, "-c", OPEN_FILES, os.fspath(builder.folder)]
  result = subprocess.run(
    ["bash", "-c", 'ulimit -n 96 && exec "$@"', "bash", *command], capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr[-2000:]
  first, last = map(int, result.stdout.split())
  assert first == last


def test_damaged_shard_is_reported_while_reading(builder, tmp_path):
  folder = tmp_path / "data"
  shutil.copytree(builder.folder, folder)
  shard = folder / "clips-train.array_record-00001-of-00002"
  content = bytearray(shard.read_bytes())
  content[content.index(b"JFIF") + 1] ^= 1
  shard.write_bytes(content)
  with pytest.raises(UserError, match="00001-of-00002: damaged .*; delete it, then rerun"):
    list(_train(store.open_dataset(folder), num_steps=20))
