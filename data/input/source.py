"""Connects a config to the input pipeline: its data set, clip format and augmentation."""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from data.input import feature_cache, pipeline, store
from data.input.pipeline import Batches, BatchSpec
from data.input.store import PreparedDataset
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import clips
from u2s_jax.video.clips import Augmentation, ClipSpec


@dataclasses.dataclass(frozen=True)
class PreparedSource:
  """Batches of a prepared data set.

  `seed` determines the order and augmentation of training clips. `cache_features` stores
  `augmented_views` augmented views of each, or the centre view.
  """

  dataset: PreparedDataset
  clip: ClipSpec
  augmentation: Augmentation
  training: BatchSpec
  testing: BatchSpec
  seed: int
  augmented_views: int = 0

  def fields(self) -> dict[str, Any]:
    """Returns the arguments of `u2s_jax.run.Source`, which this package does not import."""
    splits = self.dataset.info.splits
    return {
      "class_names": self.dataset.class_names,
      "num_train": splits["train"].num_examples if "train" in splits else 0,
      "channels": self.clip.channels,
      "train_batches": self.train_batches,
      "eval_batches": self.eval_batches,
      "stored": self.dataset.storage_settings(),
      "class_sizes": self.dataset.class_sizes(),
      "paths": self.dataset.paths,
      "cache_features": self.cache_features,
      "name": self.dataset.folder.name,
      "digest": compute_digest(self.dataset),
    }

  def train_batches(self, stage: int, first_step: int) -> Batches:
    """Yields the training batches of a stage from `first_step` on, without end."""
    return pipeline.train_batches(
      self.dataset.split("train"),
      self.clip,
      self.augmentation,
      self.training,
      seed=self.seed,
      stage=stage,
      first_step=first_step,
    )

  def eval_batches(self, split: str, views: str) -> Batches:
    """Yields the batches of a split, one epoch in order."""
    return pipeline.eval_batches(self.dataset.split(split), self.clip, self.testing, views)

  def cache_features(
    self, compute: feature_cache.Compute, shape: tuple[int, ...], settings: Mapping[str, Any]
  ) -> tuple[Callable[[int, int], Batches], Callable[[str], Batches]]:
    """Computes features of all clips, or those that are missing, and stores them.

    Training clips are those of the centre view, or `augmented_views` augmented ones.

    Args:
      compute: computes the features of a batch of clips, always of the same size.
      shape: shape of the features of a clip.
      settings: what else the features depend on, JSON-serializable; with `dtype`.

    Returns:
      `train_batches` and, for the centre view of a split, batches like those of `eval_batches`;
      their `video` holds the features.

    Raises:
      UserError: see `feature_cache.open_cache` and `fill`.
    """
    digest = compute_digest(self.dataset)
    if not digest:
      raise UserError(
        f"{self.dataset.folder}: has no digest, as data of an earlier version; data.cache_features"
        " requires one, prepare the data set again"
      )
    settings = {**settings, "data": digest, "clip": str(self.clip)}
    settings["batch_size"] = self.training.batch_size
    views = tuple(range(1, self.augmented_views + 1)) or (0,)
    train, validation = self.dataset.split("train"), self.dataset.split("validation")

    def open_cache(more: Mapping[str, Any]) -> feature_cache.FeatureCache:
      folder, feed = self.dataset.folder, self.training
      return feature_cache.open_cache(folder, settings | more, shape, feed)

    center = augmented = open_cache({})
    for split in (train, validation):
      center.fill(split, {0: functools.partial(self._make_center_batches, split)}, compute)
    if self.augmented_views:
      draws = dataclasses.replace(self.augmentation, balance=0.0)
      augmented = open_cache({"augmentation": str(draws), "seed": self.seed})
      makers = {view: functools.partial(self._make_augmented_batches, view) for view in views}
      augmented.fill(train, makers, compute)

    def train_batches(stage: int, first_step: int) -> Batches:
      balance = self.augmentation.balance
      order = pipeline.make_order(train, balance, self.training, self.seed, stage)
      return augmented.train_batches(train, views, order, first_step)

    def center_batches(split: str) -> Batches:
      return center.center_batches(self.dataset.split(split), self.testing)

    return train_batches, center_batches

  def _make_center_batches(self, split: store.Split, first_step: int) -> Batches:
    return pipeline.eval_batches(split, self.clip, self.training, "center", first_step)

  def _make_augmented_batches(self, view: int, first_step: int) -> Batches:
    return pipeline.augmented_batches(
      self.dataset.split("train"),
      self.clip,
      self.augmentation,
      self.training,
      seed=self.seed,
      view=view,
      first_step=first_step,
    )


def compute_digest(dataset: PreparedDataset) -> str:
  """Returns a digest of classes, clip ids, labels, storage settings and number of bytes.

  The folder is not included, so a data set may be moved. Empty for a data set of an earlier version
  or of another tool, which has no digest of its clips.
  """
  try:
    clips_digest = json.loads((dataset.folder / store.SETTINGS).read_text())["clips"]
  except (OSError, ValueError, LookupError):
    return ""
  # The number of bytes distinguishes data sets whose files have equal names.
  splits = {
    name: [split.num_examples, split.num_bytes] for name, split in dataset.info.splits.items()
  }
  content = [clips_digest, dataset.modality, dataset.storage_settings(), sorted(splits.items())]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def open_source(
  config: ml_collections.ConfigDict,
  folder: str | os.PathLike[str],
  process_index: int,
  process_count: int,
) -> PreparedSource:
  """Opens the prepared data set in `folder` for a config.

  Raises:
    FileNotFoundError: if there is no data set, or it is not finished.
    UserError: if a field of the section `data` is not valid or does not match the data set.
  """
  clip, augmentation = clips.read_config(config.data)
  dataset = store.open_dataset(folder)
  if dataset.modality != clip.modality:
    raise UserError(f"data.modality: {clip.modality!r}, but {folder} holds {dataset.modality!r}")
  share = process_index, process_count, config.data.num_threads
  return PreparedSource(
    dataset,
    clip,
    augmentation,
    training=BatchSpec(config.batch_size, *share),
    testing=BatchSpec(config.eval.batch_size, *share),
    seed=config.seed,
    augmented_views=config.data.cache_views,
  )
