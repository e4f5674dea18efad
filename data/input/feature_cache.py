"""Features of a frozen trunk, computed once for each clip and view, next to the data set.

  <data.dir>/features/<digest>/settings.json   what they were computed from
  <data.dir>/features/<digest>/<split>-<view>-<shard>.array_record   written one by one, atomically

A record holds the label (int32), the features and the clip's id, in the order of the split. View 0
of a split is the centre view, as in an evaluation; view k > 0 the k-th augmented one.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from array_record.python import array_record_data_source, array_record_module
from jaxtyping import Float, UInt8

from data.input import pipeline, store
from data.input.pipeline import Batches, BatchSpec
from u2s_jax.runtime import files, signals
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError

ADVICE = "rerun the same command to compute it again"
SHARD_BYTES = 2**28  # a process that is killed computes at most so much again
Compute = Callable[[UInt8[np.ndarray, "b t h w c"]], Float[np.ndarray, "b t2 h2 w2 d"]]
# (first batch) -> batches of one epoch in order, from that one on.
MakeBatches = Callable[[int], Batches]


@dataclasses.dataclass(frozen=True)
class FeatureCache:
  """The features of a data set under certain settings.

  Attributes:
    folder: see the module's docstring.
    shape: shape of the features of a clip.
    dtype: 'float32' or 'bfloat16'.
    feed: batches that the features are computed in; of a single process.
  """

  folder: pathlib.Path
  shape: tuple[int, ...]
  dtype: str
  feed: BatchSpec

  @property
  def clip_bytes(self) -> int:
    """Bytes of the features of a clip."""
    return math.prod(self.shape) * jnp.dtype(self.dtype).itemsize

  @property
  def shard_batches(self) -> int:
    """Batches of a shard."""
    return max(1, SHARD_BYTES // (self.clip_bytes * self.feed.batch_size))

  def list_shards(self, split: store.Split, view: int) -> dict[pathlib.Path, int]:
    """Returns the files of a view, in order, with their numbers of clips."""
    size, total = self.shard_batches * self.feed.batch_size, len(split.records)
    return {
      self.folder / f"{split.name}-{view}-{i:05d}.array_record": min(size, total - i * size)
      for i in range(-(-total // size))
    }

  def fill(self, split: store.Split, views: Mapping[int, MakeBatches], compute: Compute) -> None:
    """Computes the features that are missing; logs their size first.

    Raises:
      UserError: if they do not fit on the disk, or another run is computing them.
      Interrupted: if the process was asked to stop.
    """
    with files.file_lock(
      self.folder / "lock", f"{self.folder}: another run is computing these features; wait for it"
    ):
      self._fill(split, views, compute)

  def _fill(self, split: store.Split, views: Mapping[int, MakeBatches], compute: Compute) -> None:
    missing = [
      (view, i, path, count)
      for view in views
      for i, (path, count) in enumerate(self.list_shards(split, view).items())
      if not path.exists()
    ]
    if not missing:
      return
    clips = sum(count for *_, count in missing)
    size, free = clips * self.clip_bytes, shutil.disk_usage(self.folder).free
    log(
      f"features of the frozen trunk: {clips} clips of {split.name}, {size / 1e9:.2f} GB in"
      f" {self.folder}"
    )
    if size > free:
      raise UserError(
        f"{self.folder}: {size / 1e9:.1f} GB of features needed, but {free / 1e9:.1f} GB are free;"
        " free space, or lower data.cache_views in another workdir"
      )
    began, done = time.monotonic(), 0
    for view, i, path, count in missing:
      self._write(path, views[view](i * self.shard_batches), compute)
      done += count
      minutes = (time.monotonic() - began) / done * (clips - done) / 60
      log(f"  {done} of {clips} clips, {minutes:.0f} min left")

  def _write(self, path: pathlib.Path, batches: Batches, compute: Compute) -> None:
    with files.atomic_path(path) as temp_path:
      writer = array_record_module.ArrayRecordWriter(
        os.fspath(temp_path), "group_size:1,uncompressed"
      )
      try:
        for _, batch in zip(range(self.shard_batches), batches, strict=False):
          signals.raise_if_requested("the features so far are kept")
          video = batch["video"].reshape(-1, *batch["video"].shape[-4:])  # one view a clip
          features = np.ascontiguousarray(compute(video))
          if features.shape[1:] != self.shape or features.dtype != jnp.dtype(self.dtype):
            raise ValueError(f"features {features.dtype} {features.shape}; expected {self}")
          for row in np.flatnonzero(batch["valid"]):
            label = np.int32(batch["label"][row]).tobytes()
            writer.write(label + features[row].tobytes() + bytes(batch["id"][row]))
      finally:
        writer.close()
        batches.close()

  def train_batches(
    self, split: store.Split, views: tuple[int, ...], order: Callable, first_step: int
  ) -> Batches:
    """Yields training batches without end, as `pipeline.train_batches`; views take turns by epoch.

    `video` holds the features. `order` is `pipeline.make_order`.
    """

    def make_example(number: tf.Tensor) -> dict[str, tf.Tensor]:
      index, epoch, _ = order(number)
      return self._read(sources, index, epoch % len(views)) | {"valid": tf.constant(True)}

    shards = [self.list_shards(split, view) for view in views]
    sources = [_open(tuple(part.items())) for part in shards]
    numbers = tf.data.Dataset.range(first_step * self.feed.local_batch_size, tf.int64.max)
    all_shards = {path: count for part in shards for path, count in part.items()}
    yield from pipeline.iterate_batches(all_shards, numbers, make_example, self.feed, ADVICE)

  def center_batches(self, split: store.Split, feed: BatchSpec) -> Batches:
    """Yields the batches of one epoch in order, as `pipeline.eval_batches` with the centre view.

    `video` holds the features, (b, 1, t, h, w, c).
    """
    shards, count = self.list_shards(split, 0), len(split.records)
    sources = [_open(tuple(shards.items()))]

    def make_example(number: tf.Tensor) -> dict[str, tf.Tensor]:
      position = feed.global_position(number)
      index = tf.minimum(position, count - 1)
      example = self._read(sources, index, tf.constant(0, tf.int64))
      return example | {"video": example["video"][None], "valid": position < count}

    numbers = pipeline.number_epoch(count, feed, first_step=0)
    yield from pipeline.iterate_batches(shards, numbers, make_example, feed, ADVICE)

  def _read(self, sources, index, source) -> dict[str, tf.Tensor]:
    def read(index: np.int64, source: np.int64) -> tuple[Any, ...]:
      (record,) = sources[int(source)].__getitems__([int(index)])
      end = 4 + self.clip_bytes
      label = np.frombuffer(record[:4], np.int32)[0]
      return label, np.frombuffer(record[4:end], np.uint8), record[end:]

    types = [tf.int32, tf.uint8, tf.string]
    label, features, clip_id = tf.numpy_function(read, [index, source], types, stateful=False)
    dtype = tf.as_dtype(self.dtype)
    features = tf.reshape(tf.ensure_shape(features, [self.clip_bytes]), [-1, dtype.size])
    features = tf.reshape(tf.bitcast(features, dtype), self.shape)
    label, clip_id = tf.ensure_shape(label, []), tf.ensure_shape(clip_id, [])
    return {"video": features, "label": label, "id": clip_id}


@functools.cache  # TensorFlow never releases the source of a stream, see `PreparedDataset`
def _open(
  shards: tuple[tuple[pathlib.Path, int], ...],
) -> array_record_data_source.ArrayRecordDataSource:
  try:
    return array_record_data_source.ArrayRecordDataSource([str(path) for path, _ in shards])
  except (RuntimeError, OSError) as error:
    if message := store.find_corrupt_shard(dict(shards), ADVICE):
      raise UserError(message) from error
    raise


def open_cache(
  dataset_folder: pathlib.Path,
  settings: Mapping[str, Any],
  shape: tuple[int, ...],
  feed: BatchSpec,
) -> FeatureCache:
  """Opens the cache of these settings, which has its own folder; creates it if it is missing.

  Raises:
    UserError: if the folder holds features of other settings.
    OSError: if the data set's folder cannot be written.
  """
  content = json.dumps({**settings, "shape": shape}, indent=1, sort_keys=True)
  digest = hashlib.sha256(content.encode()).hexdigest()[:16]
  root = dataset_folder / "features"
  folder = root / digest
  path = folder / "settings.json"
  if path.exists() and path.read_text() != content:
    raise UserError(
      f"{folder}: holds features of other weights or settings, see {path.name}; delete the folder"
    )
  if not path.exists():
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic_open(path, "w") as file:
      file.write(content)
  others = sum(other.is_dir() and other.name != digest for other in root.iterdir())
  if others:
    log(f"{root}: holds features of {others} other settings; delete those that no run needs")
  return FeatureCache(folder, shape, settings["dtype"], feed)
