"""Training from cached features."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.memory_run import (
  TRAIN,
  VALIDATION,
  MemorySource,
  clips,
  make_config,
  restore_state,
  train,
)
from u2s_jax.run import validation
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError

FROZEN = {"trainable": ("universal", "specific", "mask"), "data.cache_features": True}


class CachingSource(MemorySource):
  """Stores features in memory."""

  def source(self):
    return dataclasses.replace(super().source(), cache_features=self.cache_features)

  def cache_features(self, compute, shape, settings):
    self.settings = settings
    stored = {}
    for split, count in (("train", TRAIN), ("validation", VALIDATION)):
      for first in range(0, count, 8):
        numbers = np.minimum(np.arange(first, first + 8), count - 1)
        features = compute(clips(split, numbers)["video"])
        assert features.shape[1:] == shape
        for number, values in zip(numbers, features, strict=True):
          stored.setdefault(split, {})[number] = values

    def with_features(batch, split, numbers):
      return batch | {"video": np.stack([stored[split][n] for n in numbers])}

    def train_batches(stage, first_step):
      for step, batch in enumerate(self.train_batches(stage, first_step), start=first_step):
        numbers = np.random.default_rng((stage, step)).integers(0, TRAIN, 8)
        yield with_features(batch, "train", numbers)

    def center_batches(split):
      count = TRAIN if split == "train" else VALIDATION
      for k, batch in enumerate(self.eval_batches(split, "center")):
        numbers = np.minimum(np.arange(8 * k, 8 * k + 8), count - 1)
        batch = with_features(batch, split, numbers)
        yield batch | {"video": batch["video"][:, None]}

    return train_batches, center_batches


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_from_features_is_training_from_videos(tmp_path, dtype):
  """Up to rounding: XLA fuses the trunk's end with the branches' beginning."""
  fields = FROZEN | {"model.dtype": dtype}
  source = CachingSource()
  train(make_config(**fields), tmp_path / "cached", source)
  plain = make_config(**(fields | {"data.cache_features": False}))
  train(plain, tmp_path / "plain")
  assert source.settings["dtype"] == dtype
  one, _ = restore_state(make_config(**fields), tmp_path / "cached")
  other, _ = restore_state(plain, tmp_path / "plain")
  tolerance = 1e-6 if dtype == "float32" else 1e-3
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, 0, tolerance), one.params, other.params
  )
  scores = [np.load(tmp_path / name / "scores/validation.npz") for name in ("cached", "plain")]
  np.testing.assert_allclose(scores[0]["specific"], scores[1]["specific"], 0, 10 * tolerance)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"data.cache_features": True}, "requires a frozen trunk, but 'trunk' is trained"),
    (
      FROZEN | {"trainable": ("trunk/group1", "universal", "specific")},
      "but 'trunk/group1' is trained",
    ),
    ({"data.cache_views": 2}, "data.cache_views: requires data.cache_features=True"),
    (FROZEN | {"data.cache_views": -1}, "data.cache_views: -1 must be >= 0"),
  ],
)
def test_rejects_what_cannot_be_cached(tmp_path, fields, message):
  with pytest.raises(UserError, match=message):
    validation.check(make_config(**fields), Workdir(tmp_path))


def test_source_without_a_store_raises(tmp_path):
  with pytest.raises(UserError, match="this source of clips cannot store features"):
    train(make_config(**FROZEN), tmp_path)
