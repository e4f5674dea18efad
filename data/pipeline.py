"""Batches of clips from a prepared data set, by index: no shuffle buffers, nothing to save.

Element k of epoch e of a stage is example `index_shuffle(k, seed=(seed, stage, e))`, read at random
from ArrayRecord, and everything random about a clip is a function of (seed, stage, epoch, example).
So a stream that starts at step s is, bit for bit, what an uninterrupted one yields from step s.
"""

import atexit
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from data import clip_views, clips, image_ops, memory, sampling, store
from data.clips import Augmentation, ClipSpec
from u2s_jax.errors import UserError
from u2s_jax.views import VIEWS, mirrored_labels

Batches = Iterator[dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Feed:
  """How a stream is cut into batches, and shared among processes.

  Attributes:
    batch_size: clips of a GLOBAL batch; every process yields its own slice of it.
    process_index: which slice to yield.
    process_count: how many slices there are.
    num_threads: threads of the pipeline; 0 for as many as it finds useful.

  Raises:
    UserError: a batch that does not divide, or a value out of range.
  """

  batch_size: int
  process_index: int = 0
  process_count: int = 1
  num_threads: int = 0

  def __post_init__(self):
    if self.batch_size < 1 or self.batch_size % self.process_count:
      raise UserError(
        f"batch_size: {self.batch_size} does not divide among {self.process_count} processes: make"
        f" it a multiple of {self.process_count}"
      )
    if not 0 <= self.process_index < self.process_count:
      raise UserError(
        f"process_index {self.process_index} is not below process_count {self.process_count}"
      )
    if self.num_threads < 0:
      raise UserError(f"data.num_threads: {self.num_threads} is negative")

  @property
  def local(self) -> int:
    """Clips of this process's slice."""
    return self.batch_size // self.process_count

  def position(self, number: tf.Tensor) -> tf.Tensor:
    """Returns the place in the whole stream of a number of this process's clips."""
    return (
      number // self.local * self.batch_size + self.process_index * self.local + number % self.local
    )


def train_batches(
  split: store.Split,
  clip: ClipSpec,
  augmentation: Augmentation,
  feed: Feed,
  *,
  seed: int,
  stage: int,
  first_step: int,
) -> Batches:
  """Streams shuffled training batches, epoch after epoch, without end; one may span two epochs.

  One crop, one mirroring and one change of colours for all frames of a clip.

  Args:
    split: of a prepared data set.
    clip: what a clip has to be.
    augmentation: what chance does to it.
    feed: how the stream is cut into batches.
    seed: with `stage`, decides all that is random.
    stage: number of the training stage.
    first_step: batches of this stage to leave out, at no cost; 0 starts at the beginning.

  Returns:
    An iterator over `video` uint8 (b, num_frames, crop_size, crop_size, c), `label` int32 (b,),
    `valid` bool (b,), all true, and `id` bytes (b,), with b = batch_size / process_count. c is 3,
    or 2 * flow_pairs for flow: x and y of the first pair, of the second, and so on.

  Raises:
    UserError: classes that cannot mirror into each other as asked for.
  """
  count, stored = len(split.records), split.short_edge
  chosen = _balanced(split.labels(), augmentation.balance) if augmentation.balance else None
  pairs_that_mirror = augmentation.flip_label_map if augmentation.flip else ()
  mirrored_label = np.array(mirrored_labels(len(split.class_names), pairs_that_mirror))
  # Of the window in stored pixels: resizing a part is cheaper than cutting from the resized whole.
  edges = image_ops.crop_edges(augmentation.multi_scale, stored)
  edges = edges or [(round(clip.crop_size * stored / clip.short_edge),) * 2]
  # One number for seed and stage: the stateless ops take two, and the other one is the epoch.
  stage_seed = int.from_bytes(hashlib.sha256(f"{seed} {stage}".encode()).digest()[:4], "big")
  read = _reader(split, clip)

  def make(number: tf.Tensor) -> dict[str, tf.Tensor]:
    position = feed.position(number)
    seeds = tf.stack([tf.constant(stage_seed, tf.int64), position // count])
    # What `tf.random.experimental.index_shuffle` calls. The seed's first number and the rounds are
    # part of what a seed means: another one would be another order.
    place = tf.raw_ops.RandomIndexShuffle(
      index=position % count,
      seed=tf.pad(seeds, [[1, 0]]),
      max_index=tf.constant(count - 1, tf.int64),
      rounds=4,
    )
    index = chosen(place, position // count) if chosen else place
    clip_seed = tf.random.experimental.stateless_fold_in(seeds, place, alg="philox")
    draw = tf.random.stateless_uniform([4], clip_seed, dtype=tf.float64, alg="philox")
    offset = draw[0]
    if augmentation.offset_per_segment:
      # A seed of its own: all else that is random stays as it is with one offset.
      offset_seed = tf.random.experimental.stateless_fold_in(clip_seed, 2, alg="philox")
      shape = [clip.num_frames]
      offset = tf.random.stateless_uniform(shape, offset_seed, dtype=tf.float64, alg="philox")
    frames, pairs, label, clip_id = read(index, offset)
    tf.debugging.assert_non_negative(
      label, f"split {split.name!r} has clips without a label: they cannot be trained on"
    )
    clip_seed = tf.random.experimental.stateless_fold_in(clip_seed, 1, alg="philox")
    more = tf.random.stateless_uniform([5], clip_seed, dtype=tf.float64, alg="philox")
    which = tf.cast(more[0] * len(edges), tf.int32) if len(edges) > 1 else 0
    window = image_ops.place(
      tf.io.extract_jpeg_shape(frames[0])[:2], tf.constant(edges)[which], draw[1:3]
    )
    video = image_ops.decode(frames, channels=1 if clip.is_flow else 3, window=window)
    if edges != [(clip.crop_size, clip.crop_size)]:
      video = image_ops.resize(video, clip.crop_size, clip.crop_size)
    if clip.is_flow:
      video = _stacks(video, pairs)
    if any(augmentation.color_jitter):
      video = image_ops.color_jitter(video, augmentation.color_jitter, more[1:])
    if augmentation.flip:
      coin = draw[3] < 0.5
      video = tf.cond(coin, lambda: image_ops.mirror(video, is_flow=clip.is_flow), lambda: video)
      label = tf.where(coin, tf.gather(mirrored_label, label), label)
    video = tf.ensure_shape(video, clip.shape)
    return _example(video, label, tf.constant(True), clip_id)

  return _run(split, tf.data.Dataset.range(first_step * feed.local, tf.int64.max), make, feed)


def _balanced(
  labels: Int[np.ndarray, " n"], balance: float
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
  """Returns a function from a place in an epoch, in [0, n), and the epoch to a clip's index.

  Each class has its share of the places. Where that is less than its clips, the next epoch goes on
  with the others; where it is more, they come again.
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


def eval_batches(split: store.Split, clip: ClipSpec, feed: Feed, views: str) -> Batches:
  """Goes through a split once, in order, with fixed shapes.

  The last batch is filled up with copies of the last clip whose `valid` is False. All processes
  yield the same number of batches.

  Args:
    split: of a prepared data set.
    clip: what a clip has to be; its frames are from the middle of their segments.
    feed: how the stream is cut into batches.
    views: `center`, `3crop`, `5crop` or `10crop`, as `sampling.crop_offsets` places them. The
      device makes mirrored views: of `10crop` the batches hold the five that are not mirrored.

  Returns:
    An iterator over `video` uint8 (b, v, num_frames, crop_size, crop_size, c) for v views, `label`
    int32 (b,), -1 where unknown, `valid` bool (b,), False for padding, and `id` bytes (b,), with b
    and c as in `train_batches`.

  Raises:
    UserError: no such views.
  """
  if views not in VIEWS:
    raise UserError(f"eval.views: {views!r} is not one of {', '.join(VIEWS)}")
  count = len(split.records)

  def read(index: np.int64) -> tuple[Any, ...]:
    clip_id, label, frames = store.parse(split.records[int(index)])
    video = clip_views.views_of_frames(frames, clip, split.short_edge, views)
    return video, np.int64(label), clip_id

  def make(number: tf.Tensor) -> dict[str, tf.Tensor]:
    position, types = feed.position(number), [tf.uint8, tf.int64, tf.string]
    index = tf.minimum(position, count - 1)
    video, label, clip_id = tf.numpy_function(read, [index], types, stateful=False)
    video.set_shape([VIEWS[views].count(False), *clip.shape])
    label.set_shape([])
    clip_id.set_shape([])
    return _example(video, label, position < count, clip_id)

  steps = -(-count // feed.batch_size)
  return _run(split, tf.data.Dataset.range(steps * feed.local), make, feed)


def _example(
  video: tf.Tensor, label: tf.Tensor, valid: tf.Tensor, clip_id: tf.Tensor
) -> dict[str, tf.Tensor]:
  """Returns what batches are made of."""
  return {"video": video, "label": tf.cast(label, tf.int32), "valid": valid, "id": clip_id}


def _reader(
  split: store.Split, clip: ClipSpec
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]]:
  """Returns a function from a clip's index and the offsets of its frames to its parts.

  These are the JPEG files that are needed, string (n,); which pairs of flow each stack is made
  of, int64 (num_frames, flow_pairs), as indices of pairs among those files; label; id. Of RGB there
  are num_frames files, repeated as they are needed, and no pairs.

  NumPy chooses the frames, inside the function that reads: a clip has several times as many as are
  needed, and each copy of all of them on the way through TensorFlow costs as much as decoding one.
  """
  records = split.records

  def read(index: np.int64, offset: np.float64 | np.ndarray) -> tuple[Any, ...]:
    clip_id, label, frames = store.parse(records[int(index)])
    chosen, pairs = clips.choose_frames(len(frames), clip, offset)
    # `object`, because NumPy's own byte strings lose zeros at their end.
    chosen = np.array([frames[i] for i in chosen.tolist()], dtype=object)
    return chosen, pairs, np.int64(label), clip_id

  def read_in_graph(index: tf.Tensor, offset: tf.Tensor) -> tuple[tf.Tensor, ...]:
    types = [tf.string, tf.int64, tf.int64, tf.string]
    frames, pairs, label, clip_id = tf.numpy_function(read, [index, offset], types, stateful=False)
    frames.set_shape([None if clip.is_flow else clip.num_frames])
    pairs.set_shape([clip.num_frames, clip.flow_pairs] if clip.is_flow else [0, 0])
    label.set_shape([])
    clip_id.set_shape([])
    return frames, pairs, label, clip_id

  return read_in_graph


def _stacks(components: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
  """Makes stacks of flow from its components.

  Args:
    components: (2 n, h, w, 1), x and y of n pairs.
    pairs: (t, p), which of them each stack is made of.

  Returns:
    (t, h, w, 2 p): x and y of the first pair, of the second, ...
  """
  files = tf.reshape(tf.stack([2 * pairs, 2 * pairs + 1], axis=-1), [-1, 2 * pairs.shape[1]])
  stacks = tf.gather(components[..., 0], files)  # (t, 2 p, h, w)
  return tf.transpose(stacks, [0, 2, 3, 1])


def _run(split: store.Split, numbers: tf.data.Dataset, make: Callable, feed: Feed) -> Batches:
  """Makes clip after clip, in parallel, and batches them in order; names a damaged shard."""
  memory.keep_freed()
  stopped = tf.Variable(False)
  dataset = numbers.take_while(lambda number: tf.logical_not(stopped))
  dataset = dataset.map(make, num_parallel_calls=feed.num_threads or tf.data.AUTOTUNE)
  dataset = dataset.batch(feed.local, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.deterministic = True
  if feed.num_threads:
    options.threading.private_threadpool_size = feed.num_threads
  batches = dataset.with_options(options).as_numpy_iterator()

  def stop() -> None:
    """Ends the clips that are being made.

    TensorFlow deletes an iterator while it holds Python's lock, and waits for those clips, which
    need that lock in `numpy_function`: it would wait forever.
    """
    stopped.assign(True)
    while True:
      try:
        next(batches)
      except StopIteration:
        return
      except tf.errors.OpError:
        continue  # of a clip that nobody asked for

  atexit.register(stop)  # threads no longer get the lock when Python deletes what is left
  try:
    yield from batches
  except tf.errors.OpError as error:
    may_be = store.DAMAGE.search(str(error)) or "No such file" in str(error)
    if may_be and (line := store.damage(split.shards)):
      raise UserError(line) from error
    raise
  finally:
    stop()
    atexit.unregister(stop)
