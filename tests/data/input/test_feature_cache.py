"""The cache of features, with a mean over pixels in place of a trunk."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from data.input import feature_cache, pipeline, source
from data.input.pipeline import BatchSpec
from data.input.source import PreparedSource
from tests.data.input.test_pipeline import CROP, FRAMES, HEIGHT, builder  # noqa: F401
from u2s_jax.runtime.errors import UserError
from u2s_jax.video.clips import Augmentation, ClipSpec

CLIP = ClipSpec(num_frames=FRAMES, crop_size=CROP, short_edge=HEIGHT)
BATCH = BatchSpec(batch_size=4, num_threads=1)
SHAPE = (FRAMES, 2, 2, 3)


def compute(video):
  """Returns the mean over blocks of 12 x 12 pixels."""
  blocks = video.reshape(len(video), FRAMES, 2, 12, 2, 12, 3)
  return blocks.mean((3, 5), dtype=np.float32)


def make_source(dataset, views=0, **augmentation):
  return PreparedSource(
    dataset, CLIP, Augmentation(**augmentation), BATCH, BATCH, seed=3, augmented_views=views
  )


@pytest.fixture
def dataset(builder, tmp_path, monkeypatch):  # noqa: F811
  """The data set of the pipeline's tests, with a folder of its own for the features."""
  monkeypatch.setattr(feature_cache, "SHARD_BYTES", 2 * 4 * 4 * math.prod(SHAPE))  # two batches
  monkeypatch.setattr(source, "compute_digest", lambda dataset: "a digest")
  monkeypatch.setattr(builder, "folder", tmp_path)
  return builder


def settings(**more):
  return {"trunk": 1, "dtype": "float32"} | more


def take(batches, count):
  taken = list(itertools.islice(batches, count))
  batches.close()
  return taken


def test_training_batches_are_those_of_the_centre_view_in_the_same_order(dataset):
  prepared = make_source(dataset)
  train_batches, center_batches = prepared.cache_features(compute, SHAPE, settings())
  expected = {}
  for batch in pipeline.eval_batches(dataset.split("train"), CLIP, BATCH, "center"):
    for row in np.flatnonzero(batch["valid"]):
      expected[batch["id"][row]] = compute(batch["video"][:, 0])[row], batch["label"][row]
  for stage, first in ((0, 0), (2, 5)):
    plain = take(prepared.train_batches(stage, first), 7)
    for got, other in zip(take(train_batches(stage, first), 7), plain, strict=True):
      assert got["id"].tolist() == other["id"].tolist() and got["valid"].all()
      for features, label, clip_id in zip(got["video"], got["label"], got["id"], strict=True):
        np.testing.assert_array_equal(features, expected[clip_id][0])
        assert label == expected[clip_id][1]
  for split in ("train", "validation"):
    plain = list(prepared.eval_batches(split, "center"))
    for got, other in zip(center_batches(split), plain, strict=True):
      np.testing.assert_array_equal(got["video"][:, 0], compute(other["video"][:, 0]))
      for name in ("label", "valid", "id"):
        assert got[name].tolist() == other[name].tolist()


def test_augmented_views_take_turns(dataset):
  prepared = make_source(dataset, views=2, flip=True, multi_scale=(1.0, 0.75))
  train_batches, _ = prepared.cache_features(compute, SHAPE, settings())
  by_epoch = [{}, {}, {}]
  for number, batch in enumerate(take(train_batches(0, 0), 9)):
    for row, clip_id in enumerate(batch["id"]):
      epoch = (4 * number + row) // len(dataset.split("train").records)
      if epoch < 3:
        by_epoch[epoch][clip_id] = batch["video"][row]
  assert [len(seen) for seen in by_epoch] == [11, 11, 11]
  differing = sum(not np.array_equal(by_epoch[0][k], by_epoch[1][k]) for k in by_epoch[0])
  assert differing > 5
  for clip_id, features in by_epoch[0].items():
    np.testing.assert_array_equal(features, by_epoch[2][clip_id])


def test_killed_while_filling_goes_on_with_the_same_files(dataset, tmp_path, capsys):
  calls = []

  def crash(video):
    calls.append(len(video))
    if len(calls) == 3:
      raise KeyboardInterrupt
    return compute(video)

  prepared = make_source(dataset)
  with pytest.raises(KeyboardInterrupt):
    prepared.cache_features(crash, SHAPE, settings())
  (folder,) = (tmp_path / "features").iterdir()
  assert [path.name for path in folder.glob("*.array_record")] == ["train-0-00000.array_record"]
  first = next(folder.glob("*.array_record")).read_bytes()
  capsys.readouterr()
  calls[:] = [None] * 4
  prepared.cache_features(crash, SHAPE, settings())
  assert len(calls) == 4 + 3  # one batch of the second shard, two of validation
  printed = capsys.readouterr().out
  assert "3 clips of train, 0.00 GB in" in printed and "0 min left" in printed
  assert (folder / "train-0-00000.array_record").read_bytes() == first
  prepared.cache_features(lambda video: pytest.fail("computed again"), SHAPE, settings())


@pytest.mark.parametrize(
  "changed", [settings(trunk=2), settings(dtype="float32", pixels=[0.5])], ids=["trunk", "pixels"]
)
def test_other_settings_have_other_features(dataset, tmp_path, changed, capsys):
  before, _ = make_source(dataset).cache_features(compute, SHAPE, settings())
  after, _ = make_source(dataset).cache_features(lambda v: 2 * compute(v), SHAPE, changed)
  assert len(list((tmp_path / "features").iterdir())) == 2
  assert "holds features of 1 other settings; delete those" in capsys.readouterr().out
  one, other = (take(batches(0, 0), 1)[0]["video"] for batches in (before, after))
  np.testing.assert_array_equal(other, 2 * one)


def test_stale_folder_is_refused(dataset, tmp_path):
  make_source(dataset).cache_features(compute, SHAPE, settings())
  (folder,) = (tmp_path / "features").iterdir()
  stored = folder / "settings.json"
  stored.write_text(stored.read_text().replace('"trunk": 1', '"trunk": 2'))
  with pytest.raises(UserError, match="holds features of other weights or settings.*delete"):
    make_source(dataset).cache_features(compute, SHAPE, settings())


def test_damaged_file_is_named(dataset, tmp_path):
  train_batches, _ = make_source(dataset).cache_features(compute, SHAPE, settings())
  path = next(tmp_path.glob("features/*/train-0-00000.array_record"))
  content = bytearray(path.read_bytes())
  content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
  path.write_bytes(content)
  with pytest.raises(UserError, match="train-0-00000.array_record: damaged"):
    take(train_batches(0, 0), 4)


def test_bfloat16_features_keep_their_bits(dataset):
  def compute_half(video):
    return compute(video).astype(jnp.bfloat16)

  _, center_batches = make_source(dataset).cache_features(
    compute_half, SHAPE, settings(dtype="bfloat16")
  )
  got = list(center_batches("validation"))
  expected = list(make_source(dataset).eval_batches("validation", "center"))
  for batch, other in zip(got, expected, strict=True):
    assert batch["video"].dtype == jnp.bfloat16
    assert batch["video"][:, 0].tobytes() == compute_half(other["video"][:, 0]).tobytes()


def test_says_that_the_disk_is_too_small(dataset, monkeypatch):
  usage = type("Usage", (), {"free": 100})
  monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: usage)
  with pytest.raises(UserError, match=" GB of features needed, but 0.0 GB are free; free"):
    make_source(dataset).cache_features(compute, SHAPE, settings())


def test_another_run_that_computes_the_same_is_an_error(dataset, tmp_path):
  make_source(dataset).cache_features(compute, SHAPE, settings())
  (folder,) = (tmp_path / "features").iterdir()
  with (
    feature_cache.files.file_lock(folder / "lock", "taken"),
    pytest.raises(UserError, match="another run is computing these features; wait for it"),
  ):
    make_source(dataset).cache_features(compute, SHAPE, settings())


def test_stops_when_asked_to(dataset, monkeypatch):
  monkeypatch.setattr(feature_cache.signals, "is_requested", lambda: True)
  with pytest.raises(feature_cache.signals.Interrupted):
    make_source(dataset).cache_features(compute, SHAPE, settings())


def test_data_without_a_digest_is_refused(dataset, monkeypatch):
  monkeypatch.setattr(source, "compute_digest", lambda dataset: "")
  with pytest.raises(UserError, match="has no digest, as data of an earlier version"):
    make_source(dataset).cache_features(compute, SHAPE, settings())


def test_files_of_the_cache_are_opened_once(dataset):
  _, center_batches = make_source(dataset).cache_features(compute, SHAPE, settings())
  before = feature_cache._open.cache_info().misses
  for _ in range(3):
    list(center_batches("validation"))
  assert feature_cache._open.cache_info().misses == before + 1
