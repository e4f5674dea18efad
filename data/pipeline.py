"""Batches of clips from a prepared data set, by index: no shuffle buffers, nothing to save.

Element k of epoch e of a stage is example `index_shuffle(k, seed=(seed, stage, e))`, read at random
from ArrayRecord, and everything random about a clip is a function of (seed, stage, epoch, example).
So a stream that starts at step s is, bit for bit, what an uninterrupted one yields from step s.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from data import sampling


def num_examples(builder: tfds.core.DatasetBuilder, split: str) -> int:
  """Counts the clips of a split.

  Args:
    builder: a prepared builder.
    split: a split's name, or a part of one as `train[:100]`.

  Returns:
    The number of clips, at least 1.

  Raises:
    ValueError: there is no such split, or it is empty.
  """
  name = split.split("[")[0]
  if name not in builder.info.splits:
    raise ValueError(
      f"split {split!r} is not in {builder.data_dir}, which has {', '.join(builder.info.splits)}"
    )
  count = builder.info.splits[split].num_examples
  if not count:
    raise ValueError(f"split {split!r} of {builder.data_dir} is empty")
  return count


def train_batches(
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  batch_size: int,
  num_frames: int,
  crop_size: int,
  seed: int,
  stage: int | str,
  first_step: int,
  num_steps: int | None = None,
  flip: bool = False,
  flip_label_map: Mapping[int, int] | Iterable[tuple[int, int]] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Streams shuffled training batches, epoch after epoch; batches may span two epochs.

  Args:
    builder: a prepared builder.
    split: a split's name, or a part of one as `train[:100]`.
    batch_size: clips of a GLOBAL batch; every process yields its own slice of it.
    num_frames: frames of a clip.
    crop_size: edge of the random crop in pixels, one crop for the whole clip.
    seed: with `stage`, decides all that is random.
    stage: name or number of the training stage.
    first_step: batches of this stage to leave out, at no cost; 0 starts at the beginning.
    num_steps: batches to yield from there on; None for an endless stream.
    flip: whether to mirror half of the clips left to right.
    flip_label_map: pairs of classes that mirror into each other, each pair given once or both ways.
    process_index: which slice of the batch to yield.
    process_count: how many slices there are.
    num_threads: threads of the pipeline; None for as many as it finds useful.

  Returns:
    An iterator over `video` uint8 (b, num_frames, crop_size, crop_size, 3), `label` int32 (b,),
    `mask` bool (b,), all true, and `id` bytes (b,), with b = batch_size / process_count.

  Raises:
    ValueError: a bad argument, or a split without examples; one line, names the field.
  """
  count = num_examples(builder, split)
  local = _check_sizes(builder, batch_size, num_frames, crop_size, process_index, process_count)
  mirrored_label = _mirrored_labels(builder.info.features["label"].num_classes, flip_label_map)
  # One number for seed and stage: the stateless ops take two, and the other one is the epoch.
  stage_seed = int.from_bytes(hashlib.sha256(f"{seed} {stage}".encode()).digest()[:4], "big")

  def positions(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
    position = step * batch_size + process_index * local + tf.range(local, dtype=tf.int64)
    epoch = position // count
    seeds = tf.stack([tf.fill([local], tf.constant(stage_seed, tf.int64)), epoch], axis=1)
    # The op behind `tf.random.experimental.index_shuffle`, which fails for a seed per element (it
    # pads the wrong axis), and a batch may be of two epochs. 4 rounds are that function's.
    index = tf.raw_ops.RandomIndexShuffle(
      index=position % count,
      seed=tf.pad(seeds, [[0, 0], [1, 0]]),
      max_index=tf.constant(count - 1, tf.int64),
      rounds=4,
    )
    return index, tf.ones([local], tf.bool), seeds

  def clip(record: tf.Tensor, index: tf.Tensor, mask: tf.Tensor, seeds: tf.Tensor) -> dict:
    example = builder.info.features.deserialize_example(record)
    tf.debugging.assert_non_negative(
      example["label"], f"split {split!r} has clips without a label: they cannot be trained on"
    )
    clip_seed = tf.random.experimental.stateless_fold_in(seeds, index, alg="philox")
    draw = tf.random.stateless_uniform([4], clip_seed, dtype=tf.float64, alg="philox")
    frames = _choose(example, num_frames, draw[0])
    shape = tf.io.extract_jpeg_shape(frames[0])
    # The product of a number just below 1 and an integer may round up to it, hence the minimum.
    room = shape[:2] - crop_size
    corner = tf.minimum(tf.cast(draw[1:3] * tf.cast(room + 1, tf.float64), tf.int32), room)
    window = tf.concat([corner, [crop_size, crop_size]], axis=0)
    video = tf.stack(
      [tf.image.decode_and_crop_jpeg(frames[t], window, channels=3) for t in range(num_frames)]
    )
    video.set_shape([num_frames, crop_size, crop_size, 3])
    label = example["label"]
    if flip:
      coin = draw[3] < 0.5
      video = tf.cond(coin, lambda: tf.reverse(video, [2]), lambda: video)
      label = tf.where(coin, tf.gather(mirrored_label, label), label)
    label = tf.cast(label, tf.int32)
    return {"video": video, "label": label, "mask": mask, "id": example["id"]}

  stop = tf.int64.max if num_steps is None else first_step + num_steps
  steps = tf.data.Dataset.range(first_step, stop)
  return _run(builder, split, steps, positions, clip, local, num_threads)


def eval_batches(
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  batch_size: int,
  num_frames: int,
  crop_size: int,
  views: str,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Goes through a split once, in order, with fixed shapes.

  The last batch is filled up with copies of the last clip whose mask is False. All processes yield
  the same number of batches.

  Args:
    builder: a prepared builder.
    split: a split's name, or a part of one as `validation[:100]`.
    batch_size: clips of a GLOBAL batch; every process yields its own slice of it.
    num_frames: frames of a clip, from the middle of its segments.
    crop_size: edge of the crops in pixels.
    views: `center`, `3crop`, `5crop` or `10crop`, as `sampling.crop_offsets` places them.
    process_index: which slice of the batch to yield.
    process_count: how many slices there are.
    num_threads: threads of the pipeline; None for as many as it finds useful.

  Returns:
    An iterator over `video` uint8 (b, v, num_frames, crop_size, crop_size, 3) for v views, `label`
    int32 (b,), -1 where unknown, `mask` bool (b,), False for padding, and `id` bytes (b,), with b =
    batch_size / process_count. Mirrored views have mirrored pixels; the label is untouched.

  Raises:
    ValueError: a bad argument, or a split without examples; one line, names the field.
  """
  count = num_examples(builder, split)
  local = _check_sizes(builder, batch_size, num_frames, crop_size, process_index, process_count)
  if views not in sampling.VIEWS:
    raise ValueError(f"views is {views!r}; it must be one of {', '.join(sampling.VIEWS)}")

  def positions(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
    position = step * batch_size + process_index * local + tf.range(local, dtype=tf.int64)
    return tf.minimum(position, count - 1), position < count, tf.zeros([local, 2], tf.int64)

  def clip(record: tf.Tensor, index: tf.Tensor, mask: tf.Tensor, seeds: tf.Tensor) -> dict:
    del index, seeds
    example = builder.info.features.deserialize_example(record)
    frames = _choose(example, num_frames, 0.5)
    whole = tf.stack([tf.io.decode_jpeg(frames[t], channels=3) for t in range(num_frames)])
    crops = []
    shape = tf.shape(whole)
    for y, x, mirrored in sampling.crop_offsets(shape[1], shape[2], crop_size, views):
      crop = whole[:, y : y + crop_size, x : x + crop_size]
      crops.append(crop[:, :, ::-1] if mirrored else crop)
    video = tf.ensure_shape(tf.stack(crops), [len(crops), num_frames, crop_size, crop_size, 3])
    label = tf.cast(example["label"], tf.int32)
    return {"video": video, "label": label, "mask": mask, "id": example["id"]}

  steps = tf.data.Dataset.range(-(-count // batch_size))
  return _run(builder, split, steps, positions, clip, local, num_threads)


def _check_sizes(
  builder: tfds.core.DatasetBuilder,
  batch_size: int,
  num_frames: int,
  crop_size: int,
  process_index: int,
  process_count: int,
) -> int:
  """Checks the arguments both streams share; returns the batch size of one process."""
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size {batch_size} does not divide among {process_count} processes: "
      f"make it a multiple of {process_count}"
    )
  if not 0 <= process_index < process_count:
    raise ValueError(f"process_index {process_index} is not below process_count {process_count}")
  if num_frames < 1:
    raise ValueError(f"num_frames is {num_frames}; it must be at least 1")
  short_edge = builder.info.metadata["short_edge"]
  if not 1 <= crop_size <= short_edge:
    raise ValueError(
      f"crop_size {crop_size} does not fit the stored short edge of {short_edge} pixels: "
      "crop less, or prepare the data with a larger short_edge"
    )
  return batch_size // process_count


def _mirrored_labels(
  num_classes: int, pairs: Mapping[int, int] | Iterable[tuple[int, int]] | None
) -> np.ndarray:
  """Returns int64 (num_classes,): the label that a mirrored clip of each label has."""
  mirrored = np.arange(num_classes, dtype=np.int64)
  pairs = pairs.items() if isinstance(pairs, Mapping) else pairs or ()
  for pair in pairs:
    for old, new in (tuple(pair), tuple(pair)[::-1]):
      if not 0 <= old < num_classes:
        raise ValueError(f"flip_label_map names the class {old}, but there are {num_classes}")
      if mirrored[old] not in (old, new):
        raise ValueError(f"flip_label_map pairs the class {old} with {mirrored[old]} and {new}")
      mirrored[old] = new
  return mirrored


def _choose(example: dict[str, tf.Tensor], num_frames: int, offset: Any) -> tf.Tensor:
  """Returns the JPEG bytes of the sampled frames, string (num_frames,)."""
  indices = sampling.segment_indices(example["num_frames"], num_frames, offset)
  return tf.gather(example["frames"], indices)


def _run(
  builder: tfds.core.DatasetBuilder,
  split: str,
  steps: tf.data.Dataset,
  positions: Any,
  clip: Any,
  local: int,
  num_threads: int | None,
) -> Iterator[dict[str, np.ndarray]]:
  """Reads the records of every step at once, then decodes clip by clip, in parallel, in order."""
  source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)

  def read(index: np.ndarray) -> np.ndarray:
    # `object`, because NumPy's own byte strings lose zeros at their end.
    return np.array(source.__getitems__(index.tolist()), dtype=object)

  def records(step: tf.Tensor) -> tuple[tf.Tensor, ...]:
    index, mask, seeds = positions(step)
    data = tf.numpy_function(read, [index], tf.string, stateful=False)
    data.set_shape([local])
    return data, index, mask, seeds

  dataset = steps.map(records, num_parallel_calls=2).unbatch()
  dataset = dataset.map(clip, num_parallel_calls=num_threads or tf.data.AUTOTUNE)
  dataset = dataset.batch(local, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.deterministic = True
  if num_threads:
    options.threading.private_threadpool_size = num_threads
  return dataset.with_options(options).as_numpy_iterator()
