"""A config's batches: the data set that it names, as clips of the kind that it asks for."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import ml_collections

from data import clips, pipeline, shards, store
from data.clips import Augmentation, ClipSpec
from data.pipeline import Batches, Feed
from data.store import PreparedDataset
from u2s_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PreparedSource:
  """Batches of a prepared data set.

  Attributes:
    dataset: the data set.
    clip: what a clip has to be.
    augmentation: what chance does to training clips.
    training: how training batches are cut.
    testing: how batches of a test are cut.
    seed: of the order of training clips and all that is random about them.
  """

  dataset: PreparedDataset
  clip: ClipSpec
  augmentation: Augmentation
  training: Feed
  testing: Feed
  seed: int

  def fields(self) -> dict[str, Any]:
    """Returns the fields of a `u2s_jax.run.Source`, which this package does not know."""
    splits = self.dataset.info.splits
    return {
      "class_names": self.dataset.class_names,
      "num_train": splits["train"].num_examples if "train" in splits else 0,
      "channels": self.clip.channels,
      "train_batches": self.train_batches,
      "eval_batches": self.eval_batches,
      "stored": self.dataset.how_stored(),
      "class_sizes": self.dataset.class_sizes(),
      "paths": self.dataset.paths,
      "name": self.dataset.folder.name,
      "digest": data_digest(self.dataset),
    }

  def train_batches(self, stage: int, first_step: int) -> Batches:
    """Streams a stage's training batches from a step on, without end."""
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
    """Goes through a split once."""
    return pipeline.eval_batches(self.dataset.split(split), self.clip, self.testing, views)


def data_digest(dataset: PreparedDataset) -> str:
  """Returns a digest of what a data set holds: classes, clip ids, labels and stored bytes.

  The folder is not part of it: a data set may be moved. Empty for a data set of an earlier version
  or of another tool, whose clips nobody has listed.
  """
  try:
    listed = json.loads((dataset.folder / shards.SETTINGS).read_text())["clips"]
  except (OSError, ValueError, LookupError):
    return ""
  # The bytes tell data sets apart whose files have the same names; so does how they were decoded.
  splits = {
    name: [split.num_examples, split.num_bytes] for name, split in dataset.info.splits.items()
  }
  content = [listed, dataset.modality, dataset.how_stored(), sorted(splits.items())]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def open_source(
  config: ml_collections.ConfigDict,
  folder: str | os.PathLike[str],
  process_index: int,
  process_count: int,
) -> PreparedSource:
  """Opens a config's data set.

  Args:
    config: see `configs/default.py`.
    folder: of the prepared data set.
    process_index: number of this process.
    process_count: how many processes share a batch.

  Raises:
    FileNotFoundError: there is no data set, or none that is finished.
    UserError: a field of the section `data` that cannot be, or is not the data set's.
  """
  clip, augmentation = clips.of_config(config.data)
  dataset = store.open_dataset(folder)
  if dataset.modality != clip.modality:
    raise UserError(f"data.modality: {clip.modality!r}, but {folder} holds {dataset.modality!r}")
  share = process_index, process_count, config.data.num_threads
  return PreparedSource(
    dataset,
    clip,
    augmentation,
    training=Feed(config.batch_size, *share),
    testing=Feed(config.eval.batch_size, *share),
    seed=config.seed,
  )
