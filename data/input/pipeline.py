"""Batches of clips from a prepared data set, addressed by index, without shuffle buffers or state.

Element k of epoch e of a stage is example `index_shuffle(k, seed=(seed, stage, e))`, read by random
access from ArrayRecord. All augmentation of a clip is a function of (seed, stage, epoch, example).
So a stream that starts at step s equals, bit for bit, an uninterrupted one from step s on.
"""

import atexit
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from data.input import image_ops, store
from u2s_jax.runtime import malloc
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import clip_views, clips, sampling
from u2s_jax.video.clips import Augmentation, ClipSpec
from u2s_jax.views import VIEWS, make_mirrored_labels

Batches = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class BatchSpec:
  """Batch settings of a stream, and the share of this process.

  Raises:
    UserError: if the batch size is not a multiple of `process_count`, or a value is out of range.
  """

  batch_size: int  # clips of a GLOBAL batch; every process yields its own slice of it
  process_index: int = 0  # the slice to yield
  process_count: int = 1
  num_threads: int = 0  # of the pipeline; 0 lets TensorFlow choose

  def __post_init__(self):
    if self.batch_size < 1 or self.batch_size % self.process_count:
      raise UserError(
        f"batch_size: {self.batch_size} is not divisible by {self.process_count} processes; use a"
        f" multiple of {self.process_count}"
      )
    if not 0 <= self.process_index < self.process_count:
      raise UserError(f"process_index: {self.process_index} must be in [0, {self.process_count})")
    if self.num_threads < 0:
      raise UserError(f"data.num_threads: {self.num_threads} must be >= 0")

  @property
  def local_batch_size(self) -> int:
    """Number of clips of this process's slice."""
    return self.batch_size // self.process_count

  def global_position(self, number: tf.Tensor) -> tf.Tensor:
    """Returns the position in the global stream of this process's clip `number`."""
    local = self.local_batch_size
    return number // local * self.batch_size + self.process_index * local + number % local


def train_batches(
  split: store.Split,
  clip: ClipSpec,
  augmentation: Augmentation,
  feed: BatchSpec,
  *,
  seed: int,
  stage: int,
  first_step: int,
) -> Batches:
  """Returns an infinite iterator over shuffled training batches; a batch may span two epochs.

  All frames of a clip share one crop, one mirroring and one change of colours. `seed` and `stage`
  determine the order and the augmentation. The first `first_step` batches are skipped at no cost.

  Returns:
    An iterator over `video` uint8 (b, num_frames, crop_size, crop_size, c), `label` int32 (b,),
    `valid` bool (b,), all true, and `id` bytes (b,), with b = batch_size / process_count. c is 3,
    or 2 * flow_pairs for flow: x and y of the first pair, of the second, and so on.

  Raises:
    UserError: if `augmentation.flip_label_map` does not fit the classes.
  """
  choose = make_order(split, augmentation.balance, feed, seed, stage)
  read = _make_augmented_reader(split, clip, augmentation)

  def make_example(number: tf.Tensor) -> dict[str, tf.Tensor]:
    index, _, clip_seed = choose(number)
    return read(index, clip_seed)

  numbers = tf.data.Dataset.range(first_step * feed.local_batch_size, tf.int64.max)
  return iterate_batches(split.shards, numbers, make_example, feed)


def augmented_batches(
  split: store.Split,
  clip: ClipSpec,
  augmentation: Augmentation,
  feed: BatchSpec,
  *,
  seed: int,
  view: int,
  first_step: int = 0,
) -> Batches:
  """Returns an iterator over one epoch in order, as `eval_batches`, but augmented as in training.

  `seed` and `view` determine the augmentation. `video` is that of `train_batches`.
  """
  count = len(split.records)
  read = _make_augmented_reader(split, clip, augmentation)
  view_seed = tf.stack(
    [tf.constant(_hash_seed(f"{seed} view"), tf.int64), tf.constant(view, tf.int64)]
  )

  def make_example(number: tf.Tensor) -> dict[str, tf.Tensor]:
    position = feed.global_position(number)
    index = tf.minimum(position, count - 1)
    return read(index, _fold_in(view_seed, index)) | {"valid": position < count}

  return iterate_batches(split.shards, number_epoch(count, feed, first_step), make_example, feed)


def make_order(
  split: store.Split, balance: float, feed: BatchSpec, seed: int, stage: int
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
  """Returns a function from the number of a training clip of this process to what it shows.

  That is its index in the split, the epoch, and the seed of its augmentation. `balance` is that of
  `Augmentation`; `seed` and `stage` determine the order.
  """
  count = len(split.records)
  sample = _make_balanced_sampler(split.labels(), balance) if balance else None
  stage_seed = _hash_seed(f"{seed} {stage}")

  def choose(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    position = feed.global_position(number)
    epoch = position // count
    seeds = tf.stack([tf.constant(stage_seed, tf.int64), epoch])
    # A random permutation of [0, count) evaluated at one index: no buffer to fill, and resuming at
    # any step is free. This is the op of `tf.random.experimental.index_shuffle`; the padded seed
    # and the number of rounds determine the order, so changing them would break resumed runs.
    place = tf.raw_ops.RandomIndexShuffle(
      index=position % count,
      seed=tf.pad(seeds, [[1, 0]]),
      max_index=tf.constant(count - 1, tf.int64),
      rounds=4,
    )
    index = sample(place, epoch) if sample else place
    # From the shuffled place and not the index: a clip that balancing repeats gets other draws.
    return index, epoch, _fold_in(seeds, place)

  return choose


def _hash_seed(text: str) -> int:
  """Returns a seed of 32 bits: a stateless op has two, and the other is the epoch or the view."""
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _make_augmented_reader(
  split: store.Split, clip: ClipSpec, augmentation: Augmentation
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
  """Returns a function from the index of a clip and a seed to the augmented clip.

  Raises:
    UserError: if `augmentation.flip_label_map` does not fit the classes.
  """
  stored = split.short_edge
  label_pairs = augmentation.flip_label_map if augmentation.flip else ()
  mirrored_label = np.array(make_mirrored_labels(len(split.class_names), label_pairs))
  # Sizes of the crop in stored pixels: cropping before resizing is cheaper.
  edges = image_ops.crop_edges(augmentation.multi_scale, stored)
  edges = edges or [(round(clip.crop_size * stored / clip.short_edge),) * 2]

  def read(index: tf.Tensor, clip_seed: tf.Tensor) -> dict[str, tf.Tensor]:
    draw = _draw_uniform(4, clip_seed)
    offset = draw[0]
    if augmentation.offset_per_segment:
      # From a separate seed, so that all other draws equal those with one offset per clip.
      offset = _draw_uniform(clip.num_frames, _fold_in(clip_seed, 2))
    frames, pairs, label, clip_id = _read_frames(split, clip, index, offset)
    tf.debugging.assert_non_negative(
      label, f"split {split.name!r}: has clips without a label; train on a labelled split"
    )
    more = _draw_uniform(5, _fold_in(clip_seed, 1))
    size = tf.cast(more[0] * len(edges), tf.int32) if len(edges) > 1 else 0
    shape = tf.io.extract_jpeg_shape(frames[0])[:2]
    window = image_ops.place_crop(shape, tf.constant(edges)[size], draw[1:3])
    video = image_ops.decode(frames, channels=1 if clip.is_flow else 3, window=window)
    if edges != [(clip.crop_size, clip.crop_size)]:
      video = image_ops.resize(video, clip.crop_size, clip.crop_size)
    if clip.is_flow:
      video = _stack_flow(video, pairs)
    if any(augmentation.color_jitter):
      video = image_ops.color_jitter(video, augmentation.color_jitter, more[1:])
    if augmentation.flip:
      is_mirrored = draw[3] < 0.5
      video = tf.cond(
        is_mirrored, lambda: image_ops.mirror(video, is_flow=clip.is_flow), lambda: video
      )
      label = tf.where(is_mirrored, tf.gather(mirrored_label, label), label)
    video = tf.ensure_shape(video, clip.shape)
    return _make_example(video, label, tf.constant(True), clip_id)

  return read


def _fold_in(seed: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
  return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")


def _draw_uniform(count: int, seed: tf.Tensor) -> tf.Tensor:
  return tf.random.stateless_uniform([count], seed, dtype=tf.float64, alg="philox")


def _make_balanced_sampler(
  labels: Int[np.ndarray, " n"], balance: float
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Returns a function from a place in an epoch, in [0, n), and the epoch to a clip's index.

  Each class gets a share of the places. If it is smaller than the number of its clips, the next
  epoch continues with the others; if it is larger, clips repeat.
  """
  counts = np.bincount(labels)
  shares = sampling.class_shares(counts, balance)
  by_class = tf.constant(np.argsort(labels, kind="stable"))
  ends = tf.constant(np.cumsum(shares))
  first = tf.constant(np.cumsum(counts) - counts)
  counts, shares = tf.constant(counts), tf.constant(shares)

  def choose(place: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
    label = tf.searchsorted(ends, [place], side="right")[0]
    share = shares[label]
    turn = epoch * share + place - (ends[label] - share)
    return by_class[first[label] + turn % counts[label]]

  return choose


def eval_batches(
  split: store.Split, clip: ClipSpec, feed: BatchSpec, views: str, first_step: int = 0
) -> Batches:
  """Returns an iterator over one epoch of a split, in order, with fixed shapes.

  Frames are the middle ones of their segments. The last batch is padded with copies of the last
  clip whose `valid` is False. All processes yield the same number of batches. Those of `10crop`
  hold the five views that are not mirrored; the device mirrors them.

  Returns:
    An iterator over `video` uint8 (b, v, num_frames, crop_size, crop_size, c) for v views, `label`
    int32 (b,), -1 if unknown, `valid` bool (b,), False for padding, and `id` bytes (b,), with b
    and c as in `train_batches`.

  Raises:
    UserError: if `views` is unknown.
  """
  if views not in VIEWS:
    raise UserError(f"eval.views: {views!r} is not one of {', '.join(VIEWS)}")
  count = len(split.records)

  def read(index: np.int64) -> tuple[Any, ...]:
    clip_id, label, frames = store.parse_record(split.records[int(index)])
    video = clip_views.make_views(frames, clip, split.short_edge, views)
    return video, np.int64(label), clip_id

  def make_example(number: tf.Tensor) -> dict[str, tf.Tensor]:
    position, types = feed.global_position(number), [tf.uint8, tf.int64, tf.string]
    index = tf.minimum(position, count - 1)
    video, label, clip_id = tf.numpy_function(read, [index], types, stateful=False)
    video.set_shape([VIEWS[views].count(False), *clip.shape])
    return _make_example(video, label, position < count, clip_id)

  return iterate_batches(split.shards, number_epoch(count, feed, first_step), make_example, feed)


def number_epoch(count: int, feed: BatchSpec, first_step: int) -> tf.data.Dataset:
  """Numbers this process's clips from a batch to the end of an epoch, padded."""
  steps = -(-count // feed.batch_size)
  return tf.data.Dataset.range(first_step * feed.local_batch_size, steps * feed.local_batch_size)


def _make_example(
  video: tf.Tensor, label: tf.Tensor, valid: tf.Tensor, clip_id: tf.Tensor
) -> dict[str, tf.Tensor]:
  label, clip_id = tf.ensure_shape(label, []), tf.ensure_shape(clip_id, [])
  return {"video": video, "label": tf.cast(label, tf.int32), "valid": valid, "id": clip_id}


def _read_frames(
  split: store.Split, clip: ClipSpec, index: tf.Tensor, offset: tf.Tensor
) -> tuple[tf.Tensor, ...]:
  """Reads the needed frames of the clip at an index; `offset` is that of the frames.

  Returns the JPEG files, string (n,), and the pairs of flow in each stack, int64 (num_frames,
  flow_pairs), see `clips.choose_frames`; the label; and the id.

  The frames are chosen inside the NumPy function that reads a record. A record holds several times
  as many frames as are needed, and copying all of them through TensorFlow costs as much as
  decoding one.
  """

  def read(index: np.int64, offset: np.float64 | np.ndarray) -> tuple[Any, ...]:
    clip_id, label, frames = store.parse_record(split.records[int(index)])
    chosen, pairs = clips.choose_frames(len(frames), clip, offset)
    # `object`, because NumPy's byte strings lose trailing zeros.
    chosen = np.array([frames[i] for i in chosen.tolist()], dtype=object)
    return chosen, pairs, np.int64(label), clip_id

  types = [tf.string, tf.int64, tf.int64, tf.string]
  frames, pairs, label, clip_id = tf.numpy_function(read, [index, offset], types, stateful=False)
  frames.set_shape([None if clip.is_flow else clip.num_frames])
  pairs.set_shape([clip.num_frames, clip.flow_pairs] if clip.is_flow else [0, 0])
  return frames, pairs, label, clip_id


def _stack_flow(components: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
  """Stacks x and y of n pairs of flow, (2 n, h, w, 1), by the indices (t, p) of each stack's pairs.

  Returns (t, h, w, 2 p): x and y of the first pair, of the second, ...
  """
  files = tf.reshape(tf.stack([2 * pairs, 2 * pairs + 1], axis=-1), [-1, 2 * pairs.shape[1]])
  stacks = tf.gather(components[..., 0], files)  # (t, 2 p, h, w)
  return tf.transpose(stacks, [0, 2, 3, 1])


def iterate_batches(
  shards: Mapping[pathlib.Path, int],
  numbers: tf.data.Dataset,
  make_example: Callable,
  feed: BatchSpec,
  advice: str = store.ADVICE,
) -> Batches:
  """Yields batches of `make_example(number)`, computed in parallel, in the order of `numbers`.

  `shards` are the files that are read, with their numbers of records; `advice` says how to restore
  a damaged one.

  Raises:
    UserError: if a shard is missing or damaged.
  """
  malloc.tune_malloc()
  stopped = tf.Variable(False)
  # AutoGraph would write a temporary file for every function and never delete it.
  plain = tf.autograph.experimental.do_not_convert
  dataset = numbers.take_while(plain(lambda number: tf.logical_not(stopped)))
  dataset = dataset.map(
    plain(make_example), num_parallel_calls=feed.num_threads or tf.data.AUTOTUNE
  )
  dataset = dataset.batch(feed.local_batch_size, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.deterministic = True
  if feed.num_threads:
    options.threading.private_threadpool_size = feed.num_threads
  batches = dataset.with_options(options).as_numpy_iterator()

  def stop() -> None:
    """Drains the iterator, so that no reader thread is inside `numpy_function` when it is deleted.

    TensorFlow's destructor holds the GIL while it waits for the reader threads, and these need the
    GIL to leave `numpy_function`: a deadlock. After `stopped` is set no new clips start, so the
    loop ends after the clips in flight.
    """
    stopped.assign(True)
    while True:
      try:
        next(batches)
      except StopIteration:
        return
      except tf.errors.OpError:
        continue  # the error of a prefetched clip that is not needed any more

  # If the consumer never closes this generator, its `finally` runs at interpreter shutdown, when
  # reader threads can no longer acquire the GIL. `atexit` runs earlier.
  atexit.register(stop)
  try:
    yield from batches
  except tf.errors.OpError as error:
    # `numpy_function` passes the exception of a reader thread on as text only.
    is_read_error = store.DAMAGE.search(str(error)) or "No such file" in str(error)
    if is_read_error and (message := store.find_corrupt_shard(shards, advice)):
      raise UserError(message) from error
    raise
  finally:
    stop()
    atexit.unregister(stop)
