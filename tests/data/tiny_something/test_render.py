"""The rendered data set: files, labels, reproducibility, and differences between classes."""

import collections
import csv
import json
import pathlib
import subprocess
import sys

import av
import numpy as np
import pytest

from data.tiny_something import actions, render
from data.tiny_something.render import Settings
from u2s_jax.runtime.errors import UserError

_SETTINGS = {"num_train": 70, "num_validation": 36, "num_test": 35, "height": 32, "seed": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tiny") / "data"
  render.render(folder, Settings(**_SETTINGS), num_workers=2)
  return folder


def _labels(root, name):
  return json.loads((root / "labels" / f"{name}.json").read_text())


def _decode(path):
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return stream.codec_context.name, float(stream.average_rate), np.stack(frames)


def _clip(name, seed, difficulty=0.0):
  rng = np.random.default_rng(seed)
  index = actions.CLASSES.index(name)
  return actions.render_clip(index, rng, height=64, difficulty=difficulty)[0]


def _contents(folder):
  return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _drift(clip):
  """Returns how far motion moves right, in pixels, from the first to the second half."""
  motion = np.abs(np.diff(clip.astype(float), axis=0)).sum(axis=-1)
  motion[motion < 90] = 0
  columns = motion.sum(axis=1)
  halves = [columns[: len(columns) // 2].sum(0), columns[len(columns) // 2 :].sum(0)]
  place = np.arange(clip.shape[2])
  first, second = ((half * place).sum() / half.sum() for half in halves)
  return second - first


def test_classes_are_sorted_with_and_without_brackets():
  classes = actions.CLASSES
  plain = [name.replace("[", "").replace("]", "") for name in classes]
  assert len(classes) == len(set(plain)) >= 24
  assert list(classes) == sorted(classes)
  assert plain == sorted(plain)
  assert all("[something]" in name for name in classes)


def test_label_files(root):
  classes = actions.CLASSES
  plain = [name.replace("[", "").replace("]", "") for name in classes]
  assert _labels(root, "labels") == {name: str(index) for index, name in enumerate(plain)}
  ids = []
  for split, count in (("train", 70), ("validation", 36)):
    entries = _labels(root, split)
    assert len(entries) == count
    for entry in entries:
      assert set(entry) == {"id", "label", "template", "placeholders"}
      assert entry["template"] in classes
      assert len(entry["placeholders"]) == entry["template"].count("[")
      label = entry["template"]
      for thing in entry["placeholders"]:
        label = label.replace("[something]", thing, 1)
      assert entry["label"].lower() == label.lower()
    ids += [entry["id"] for entry in entries]
  test = _labels(root, "test")
  assert all(set(entry) == {"id"} for entry in test)
  with open(root / "labels" / "test-answers.csv", newline="") as file:
    answers = list(csv.reader(file, delimiter=";"))
  assert [row[0] for row in answers] == [entry["id"] for entry in test]
  assert {row[1] for row in answers} == set(plain)
  ids += [entry["id"] for entry in test]
  assert len(set(ids)) == len(ids) and all(isinstance(i, str) and i.isdecimal() for i in ids)
  files = {path.name for path in (root / render.VIDEO_FOLDER).iterdir()}
  assert files == {f"{video_id}.webm" for video_id in ids}


def test_classes_are_balanced_and_ids_are_random(root):
  for split in ("train", "validation"):
    counts = collections.Counter(entry["template"] for entry in _labels(root, split))
    assert len(counts) == len(actions.CLASSES)
    assert max(counts.values()) - min(counts.values()) <= 1
  train = sorted(_labels(root, "train"), key=lambda entry: int(entry["id"]))
  order = [actions.CLASSES.index(entry["template"]) for entry in train]
  assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.5
  # The splits interleave as well.
  largest = max(int(entry["id"]) for entry in train)
  assert any(int(entry["id"]) < largest for entry in _labels(root, "test"))


def test_videos_decode_to_what_was_rendered(root):
  widths = set()
  for split, video_id, class_index, seed in render._list_clips(Settings(**_SETTINGS))[::4]:
    path = root / render.VIDEO_FOLDER / f"{video_id}.webm"
    codec, rate, frames = _decode(path)
    assert "vp9" in codec and rate == pytest.approx(12, abs=0.1)
    assert 20 <= len(frames) <= 36
    assert frames.shape[1] == 32 and frames.shape[2] % 2 == 0
    rng = np.random.default_rng(seed)
    rendered, _ = actions.render_clip(class_index, rng, height=32, difficulty=0.5)
    assert rendered.shape == frames.shape, split
    # Coding costs some detail; another clip, or another order of frames, would cost far more.
    assert np.abs(frames.astype(float) - rendered).mean() < 14
    widths.add(frames.shape[2])
  assert len(widths) > 1


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_clip_depends_only_on_its_generator(difficulty):
  for index in range(len(actions.CLASSES)):
    clips = [
      actions.render_clip(index, np.random.default_rng(seed), height=32, difficulty=difficulty)[0]
      for seed in (5, 5, 6)
    ]
    assert clips[0].dtype == np.uint8 and clips[0].ndim == 4
    assert 20 <= len(clips[0]) <= 36
    np.testing.assert_array_equal(clips[0], clips[1])
    assert clips[0].shape != clips[2].shape or np.any(clips[0] != clips[2])


def test_files_do_not_depend_on_the_number_of_workers(tmp_path):
  settings = {**_SETTINGS, "num_train": 7, "num_validation": 3, "num_test": 2}
  for workers in (1, 2):
    render.render(tmp_path / str(workers), Settings(**settings), num_workers=workers)
  render.render(tmp_path / "other", Settings(**{**settings, "seed": 4}), num_workers=1)
  one, two, other = (
    {
      name: _decode(path)[2] if name.endswith(".webm") else path.read_bytes()
      for path in sorted((tmp_path / folder).rglob("*.*"))
      for name in [path.name]
    }
    for folder in ("1", "2", "other")
  )
  assert one.keys() == two.keys()
  for name, content in one.items():
    np.testing.assert_array_equal(content, two[name])
  clips = [name for name in one if name.endswith(".webm")]
  assert all(
    one[name].shape != other[name].shape or np.any(one[name] != other[name]) for name in clips
  )
  # No temporary folder is left.
  assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "other"}


def test_existing_folder(root, tmp_path):
  before = _contents(root)
  render.render(root, Settings(**_SETTINGS), num_workers=1)
  with pytest.raises(UserError, match="height=32") as error:
    render.render(root, Settings(**{**_SETTINGS, "height": 48}), num_workers=1)
  assert str(root) in str(error.value) and "\n" not in str(error.value)
  assert _contents(root) == before
  (tmp_path / "mine.txt").write_text("not a data set")
  with pytest.raises(UserError, match="settings.json") as error:
    render.render(tmp_path, Settings(**_SETTINGS), num_workers=1)
  assert str(tmp_path) in str(error.value)
  assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_interruption_leaves_no_files(tmp_path, monkeypatch):
  def fail(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(render, "_write_labels", fail)
  with pytest.raises(KeyboardInterrupt):
    render.render(tmp_path / "data", Settings(2, 1, 1, height=32), num_workers=1)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "change",
  [
    {"height": 33},
    {"difficulty": 1.5},
    {"clutter": -0.1},
    {"num_train": -1},
    {"num_workers": 0},
  ],
)
def test_arguments_out_of_range_are_errors(tmp_path, change):
  with pytest.raises(UserError, match=next(iter(change)).replace("num_train", "counts")):
    arguments = {**_SETTINGS, **change}
    num_workers = arguments.pop("num_workers", 1)
    render.render(tmp_path / "data", Settings(**arguments), num_workers=num_workers)
  assert list(tmp_path.iterdir()) == []


def test_renderer_imports_neither_tensorflow_nor_jax():
  code = (
    "import data.tiny_something.render, sys; "
    "assert not {'tensorflow', 'jax', 'cv2'} & set(sys.modules)"
  )
  root = pathlib.Path(render.__file__).parents[2]
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.mark.parametrize("verb", ["Pushing", "Pulling"])
def test_pushes_and_pulls_move_in_the_named_direction(verb):
  right = [_drift(_clip(f"{verb} [something] from left to right", seed)) for seed in range(12)]
  left = [_drift(_clip(f"{verb} [something] from right to left", seed)) for seed in range(12)]
  assert np.mean(np.array(right) > 0) > 0.9
  assert np.mean(np.array(left) < 0) > 0.9


@pytest.mark.parametrize(
  ("forwards", "backwards"),
  [
    ("Opening [something]", "Closing [something]"),
    ("Putting [something] into [something]", "Taking [something] out of [something]"),
    (
      "Moving [something] and [something] closer to each other",
      "Moving [something] and [something] away from each other",
    ),
    ("Moving [something] closer to [something]", "Moving [something] away from [something]"),
  ],
)
def test_reversed_class_starts_where_the_other_ends(forwards, backwards):
  # One seed paints the same scene for both. The first and last frames are idle, so they compare.
  def measure_difference(one, other):
    # Large changes only, as both have noise.
    return np.mean(np.abs(one.astype(float) - other).max(axis=-1) > 60)

  for seed in range(6):
    one, other = _clip(forwards, seed), _clip(backwards, seed)
    same_way = measure_difference(one[0], other[0]) + measure_difference(one[-1], other[-1])
    turned = measure_difference(one[0], other[-1]) + measure_difference(one[-1], other[0])
    assert turned < 0.3 * same_way


@pytest.mark.parametrize(
  ("moving", "still"),
  [
    (
      "Poking [something] so it slightly moves",
      "Poking [something] so lightly that it doesn't or almost doesn't move",
    ),
    (
      "Poking [something] so that it falls over",
      "Poking [something] so lightly that it doesn't or almost doesn't move",
    ),
    ("Opening [something]", "Pretending to open [something] without actually opening it"),
    ("Closing [something]", "Pretending to close [something] without actually closing it"),
    ("Putting [something] next to [something]", "Putting [something] into [something]"),
    ("Putting [something] onto [something]", "Putting [something] into [something]"),
    (
      "Lifting [something] up completely without letting it drop down",
      "Lifting [something] up completely, then letting it drop down",
    ),
    (
      "Lifting up one end of [something] without letting it drop down",
      "Lifting up one end of [something], then letting it drop down",
    ),
    ("Bending [something] until it breaks", "Bending [something] so that it deforms"),
    ("Tearing [something] into two pieces", "Bending [something] until it breaks"),
    (
      "Pouring [something] into [something] until it overflows",
      "Pouring [something] into [something]",
    ),
  ],
)
def test_difficulty_reduces_differences_of_outcome(moving, still):
  # One seed paints the same scene for both up to the outcome.
  gaps = {}
  for difficulty in (0.0, 1.0):
    gap = []
    for seed in range(8):
      one, other = _clip(moving, seed, difficulty), _clip(still, seed, difficulty)
      last = len(one) * 7 // 8
      # Large changes only, as both have noise.
      changed = np.abs(one[last].astype(float) - other[last]).max(axis=-1) > 60
      gap.append(changed.mean())
    gaps[difficulty] = np.mean(gap)
  assert gaps[0.0] > 0.02
  assert gaps[1.0] < gaps[0.0]


def test_clutter_reduces_the_area_of_the_action():
  name = "Putting [something] next to [something]"
  index, changed = actions.CLASSES.index(name), {}
  for clutter in (0.0, 1.0):
    shares = []
    for seed in range(8):
      rng = np.random.default_rng(seed)
      clip = actions.render_clip(index, rng, height=64, difficulty=0.0, clutter=clutter)[0]
      shares.append((np.abs(clip[0].astype(float) - clip[len(clip) // 2]).max(-1) > 60).mean())
    changed[clutter] = np.mean(shares)
  # Half the height is a quarter of the area; drifting objects add to it.
  assert 0.1 * changed[0.0] < changed[1.0] < 0.6 * changed[0.0]
