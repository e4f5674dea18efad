"""The input pipeline, on videos whose pixels tell their frame number and position.

Red is 3 times the column, green 3 times the row, blue 16 times the frame number.
"""

import itertools
import json

import av
import numpy as np
import pytest

from data import pipeline, something_something

HEIGHT, WIDTH, CROP, FRAMES = 32, 64, 24, 4
NUM_TRAIN, NUM_VALIDATION = 11, 5
NAMES = ["Left to right", "Right to left", "Doing something", "Showing something"]


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
  root = tmp_path_factory.mktemp("data")
  folder = root / "source" / something_something.VIDEO_FOLDER
  folder.mkdir(parents=True)
  (root / "source/labels").mkdir()
  base = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
  base[..., 0], base[..., 1] = 3 * np.arange(WIDTH), 3 * np.arange(HEIGHT)[:, None]
  for clip_id in range(NUM_TRAIN + NUM_VALIDATION):
    with av.open(str(folder / f"{clip_id}.webm"), "w") as container:
      stream = container.add_stream("libvpx-vp9", rate=12)
      stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv444p"
      stream.options = {"lossless": "1", "deadline": "realtime", "cpu-used": "8"}
      for k in range(_num_frames(clip_id)):
        base[..., 2] = 16 * k
        container.mux(stream.encode(av.VideoFrame.from_ndarray(base, format="rgb24")))
      container.mux(stream.encode(None))
  entries = [{"id": str(i), "template": NAMES[i % 4]} for i in range(NUM_TRAIN + NUM_VALIDATION)]
  files = {
    "labels": {name: str(i) for i, name in enumerate(NAMES)},
    "train": entries[:NUM_TRAIN],
    "validation": entries[NUM_TRAIN:],
  }
  for name, value in files.items():
    (root / f"source/labels/{name}.json").write_text(json.dumps(value))
  return something_something.prepare(
    root / "source", root / "prepared", short_edge=HEIGHT, jpeg_quality=100, num_workers=2
  )


def _num_frames(clip_id):
  return 3 + clip_id % 12  # Some have fewer than FRAMES.


def _train(builder, **settings):
  defaults = {
    'batch_size': 4, 'num_frames': FRAMES, 'crop_size': CROP, 'seed': 0, 'stage': 'universal',
    'first_step': 0,
  }  # fmt: skip
  return pipeline.train_batches(builder, "train", **(defaults | settings))


def _eval(builder, split="validation", **settings):
  defaults = {"batch_size": 4, "num_frames": FRAMES, "crop_size": CROP, "views": "center"}
  return list(pipeline.eval_batches(builder, split, **(defaults | settings)))


def _ids(batches):
  return [int(clip_id) for batch in batches for clip_id in batch["id"]]


def _frame_numbers(video):
  return np.round(video[..., 2].mean((-1, -2)) / 16).astype(int)


def _columns(video):
  """The column in the source of each column of each frame."""
  return video[..., 0].astype(float).mean(-2) / 3


def _assert_same(one, other):
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def test_shapes_and_types(builder):
  (batch,) = _train(builder, num_steps=1)
  assert batch["video"].shape == (4, FRAMES, CROP, CROP, 3) and batch["video"].dtype == np.uint8
  assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
  assert batch["mask"].dtype == np.bool_ and batch["mask"].all()
  assert all(isinstance(clip_id, bytes) for clip_id in batch["id"])
  assert [int(i) % 4 for i in batch["id"]] == batch["label"].tolist()
  assert pipeline.num_examples(builder, "train") == NUM_TRAIN
  assert pipeline.num_examples(builder, "train[:3]") == 3


def test_every_epoch_is_another_permutation(builder):
  ids = _ids(_train(builder, num_steps=11))  # 44 clips: 4 epochs, batches span their borders.
  epochs = [tuple(ids[i : i + NUM_TRAIN]) for i in range(0, 44, NUM_TRAIN)]
  assert all(sorted(epoch) == list(range(NUM_TRAIN)) for epoch in epochs)
  assert len(set(epochs)) == 4
  assert _ids(_train(builder, num_steps=11)) == ids
  assert _ids(_train(builder, num_steps=11, seed=1)) != ids
  assert _ids(_train(builder, num_steps=11, stage="joint")) != ids


def test_a_split_of_one_clip(builder):
  batches = pipeline.train_batches(
    builder, 'train[:1]', batch_size=2, num_frames=1, crop_size=CROP, seed=0, stage=0,
    first_step=5, num_steps=2,
  )  # fmt: skip
  assert len(set(_ids(batches))) == 1


def test_resume_is_bitwise_the_uninterrupted_stream(builder):
  whole = list(_train(builder, num_steps=7, flip=True))
  resumed = list(itertools.islice(_train(builder, first_step=4, flip=True, num_threads=2), 3))
  for one, other in zip(whole[4:], resumed, strict=True):
    _assert_same(one, other)


def test_processes_share_the_global_batch(builder):
  whole = list(_train(builder, num_steps=4))
  parts = [list(_train(builder, num_steps=4, process_index=i, process_count=2)) for i in range(2)]
  for batch, left, right in zip(whole, *parts, strict=True):
    assert left["video"].shape[0] == 2
    _assert_same(batch, {name: np.concatenate([left[name], right[name]]) for name in batch})
  whole = _eval(builder)
  parts = [_eval(builder, process_index=i, process_count=2) for i in range(2)]
  for batch, left, right in zip(whole, *parts, strict=True):
    _assert_same(batch, {name: np.concatenate([left[name], right[name]]) for name in batch})


def test_frames_come_one_from_each_segment(builder):
  seen = set()
  for batch in _train(builder, num_steps=30):
    for clip_id, numbers in zip(batch["id"], _frame_numbers(batch["video"]), strict=True):
      n = _num_frames(int(clip_id))
      # Some offset in [0, 1) explains all of them: floor((k + offset) n / FRAMES).
      low = max(number * FRAMES / n - k for k, number in enumerate(numbers))
      high = min((number + 1) * FRAMES / n - k for k, number in enumerate(numbers))
      assert max(low, 0) < min(high, 1)
      seen.add((int(clip_id), tuple(numbers)))
  assert len(seen) > 2 * NUM_TRAIN  # The offset varies.


def test_one_crop_for_the_whole_clip_anywhere_in_the_frame(builder):
  corners = []
  for batch in _train(builder, num_steps=30):
    columns = _columns(batch["video"])
    rows = batch["video"][..., 1].astype(float).mean(-1) / 3
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
  for batch in _train(builder, num_steps=20, flip=True, flip_label_map={0: 1}):
    columns = _columns(batch["video"])[:, 0]
    for clip_id, label, column in zip(batch["id"], batch["label"], columns, strict=True):
      mirrored = column[0] > column[-1]
      original = int(clip_id) % 4
      assert label == ({0: 1, 1: 0}.get(original, original) if mirrored else original)
      flips.append(mirrored)
  assert 20 < sum(flips) < 60
  both_ways = _train(builder, num_steps=2, flip=True, flip_label_map=[(0, 1), (1, 0)])
  for one, other in zip(
    both_ways, _train(builder, num_steps=2, flip=True, flip_label_map={1: 0}), strict=True
  ):
    _assert_same(one, other)


def test_evaluation_sees_every_clip_once(builder):
  batches = _eval(builder)
  assert [batch["mask"].tolist() for batch in batches] == [[True] * 4, [True] + [False] * 3]
  ids = [int(i) for batch in batches for i in batch["id"][batch["mask"]]]
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


def test_ten_crops_are_five_and_their_mirror_images(builder):
  (batch,) = _eval(builder, "validation[:2]", batch_size=2, views="10crop")
  video = batch["video"]
  assert video.shape == (2, 10, FRAMES, CROP, CROP, 3)
  np.testing.assert_array_equal(video[:, 5:], video[:, :5, ..., ::-1, :])
  (five,) = _eval(builder, "validation[:2]", batch_size=2, views="5crop")
  np.testing.assert_array_equal(five["video"], video[:, :5])
  left = [_columns(view).mean() - (CROP - 1) / 2 for view in video[0, :5]]
  room = WIDTH - CROP
  np.testing.assert_allclose(left, [0, room, 0, room, room / 2], atol=1)


def test_bad_arguments_are_named(builder):
  def fails(*parts, evaluate=False, **settings):
    with pytest.raises(ValueError) as caught:  # At the call, not at the first batch.
      _eval(builder, **settings) if evaluate else _train(builder, **settings)
    assert "\n" not in str(caught.value)
    for part in parts:
      assert part in str(caught.value)

  for evaluate in (False, True):
    fails("batch_size 4", "3 processes", process_count=3, evaluate=evaluate)
    fails("process_index 2", process_index=2, process_count=2, evaluate=evaluate)
    fails("crop_size 40", "short edge of 32", crop_size=40, evaluate=evaluate)
    fails("num_frames is 0", num_frames=0, evaluate=evaluate)
  fails("views is '7crop'", "center, 3crop, 5crop, 10crop", views="7crop", evaluate=True)
  fails("split 'test'", "train, validation", split="test", evaluate=True)
  fails("split 'validation[:0]'", "is empty", split="validation[:0]", evaluate=True)
  fails("flip_label_map names the class 4", flip=True, flip_label_map={0: 4})
  fails("flip_label_map pairs the class 0 with 1 and 2", flip=True, flip_label_map={0: 1, 2: 0})
