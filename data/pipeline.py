"""Batches of clips from a prepared data set, by index: no shuffle buffers, nothing to save.

Element k of epoch e of a stage is example `index_shuffle(k, seed=(seed, stage, e))`, read at random
from ArrayRecord, and everything random about a clip is a function of (seed, stage, epoch, example).
So a stream that starts at step s is, bit for bit, what an uninterrupted one yields from step s.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from data import decode, folders, image_ops, memory, sampling, store


def num_examples(builder: tfds.core.DatasetBuilder, split: str) -> int:
  """Counts the clips of a split.

  Args:
    builder: as `store.open_dataset` opens it.
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
  short_edge: int | None = None,
  multi_scale: Sequence[Real] = (),
  color_jitter: Sequence[Real] = (0.0, 0.0, 0.0, 0.0),
  flip: bool = False,
  flip_label_map: Mapping[int, int] | Iterable[tuple[int, int]] | None = None,
  flow_pairs: int = 5,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Streams shuffled training batches, epoch after epoch; batches may span two epochs.

  One crop, one mirroring and one change of colours for all frames of a clip.

  Args:
    builder: as `store.open_dataset` opens it.
    split: a split's name, or a part of one as `train[:100]`.
    batch_size: clips of a GLOBAL batch; every process yields its own slice of it.
    num_frames: frames of a clip, or of flow the number of stacks.
    crop_size: edge of the random crop in pixels.
    seed: with `stage`, decides all that is random.
    stage: name or number of the training stage.
    first_step: batches of this stage to leave out, at no cost; 0 starts at the beginning.
    num_steps: batches to yield from there on; None for an endless stream.
    short_edge: pixels that the frames are resized to before they are cropped; None: as stored.
    multi_scale: shares of the short edge, in (0, 1], for the crop's height and width, which is then
      resized to `crop_size`, see `image_ops.crop_edges`; empty: off.
    color_jitter: see `image_ops.color_jitter`; hue up to 0.5.
    flip: whether to mirror half of the clips left to right.
    flip_label_map: pairs of classes that mirror into each other, each pair given once or both ways.
    flow_pairs: of optical flow, the consecutive pairs of a stack.
    process_index: which slice of the batch to yield.
    process_count: how many slices there are.
    num_threads: threads of the pipeline; None for as many as it finds useful.

  Returns:
    An iterator over `video` uint8 (b, num_frames, crop_size, crop_size, c), `label` int32 (b,),
    `mask` bool (b,), all true, and `id` bytes (b,), with b = batch_size / process_count. c is 3,
    or 2 * flow_pairs for flow: x and y of the first pair, of the second, and so on.

  Raises:
    ValueError: a bad argument, or a split without examples; one line, names the field.
  """
  count = num_examples(builder, split)
  stored, is_flow = builder.info.metadata["short_edge"], _is_flow(builder)
  wanted = stored if short_edge is None else short_edge
  sizes = (num_frames, flow_pairs, wanted, crop_size)
  local = _check_sizes(batch_size, *sizes, process_index, process_count, num_threads)
  if first_step < 0:
    raise ValueError(f"first_step is {first_step}; it must be at least 0")
  _check_augmentation(multi_scale, color_jitter, is_flow)
  mirrored_label = _mirrored_labels(builder.info.features["label"].num_classes, flip_label_map)
  # Of the window in stored pixels: resizing a part is cheaper than cutting from the resized whole.
  edges = image_ops.crop_edges(multi_scale, stored) or [(round(crop_size * stored / wanted),) * 2]
  # One number for seed and stage: the stateless ops take two, and the other one is the epoch.
  stage_seed = int.from_bytes(hashlib.sha256(f"{seed} {stage}".encode()).digest()[:4], "big")
  read = _reader(builder, split, num_frames, flow_pairs)

  def clip(number: tf.Tensor) -> dict[str, tf.Tensor]:
    # Of this process's clips to their place in the stage.
    position = number // local * batch_size + process_index * local + number % local
    seeds = tf.stack([tf.constant(stage_seed, tf.int64), position // count])
    # What `tf.random.experimental.index_shuffle` calls. The seed's first number and the rounds are
    # part of what a seed means: another one would be another order.
    index = tf.raw_ops.RandomIndexShuffle(
      index=position % count,
      seed=tf.pad(seeds, [[1, 0]]),
      max_index=tf.constant(count - 1, tf.int64),
      rounds=4,
    )
    clip_seed = tf.random.experimental.stateless_fold_in(seeds, index, alg="philox")
    draw = tf.random.stateless_uniform([4], clip_seed, dtype=tf.float64, alg="philox")
    frames, pairs, label, clip_id = read(index, draw[0])
    tf.debugging.assert_non_negative(
      label, f"split {split!r} has clips without a label: they cannot be trained on"
    )
    clip_seed = tf.random.experimental.stateless_fold_in(clip_seed, 1, alg="philox")
    more = tf.random.stateless_uniform([5], clip_seed, dtype=tf.float64, alg="philox")
    which = tf.cast(more[0] * len(edges), tf.int32) if len(edges) > 1 else 0
    chosen = tf.constant(edges)[which]
    window = image_ops.place(tf.io.extract_jpeg_shape(frames[0])[:2], chosen, draw[1:3])
    video = image_ops.decode(frames, channels=1 if is_flow else 3, window=window)
    if edges != [(crop_size, crop_size)]:
      video = image_ops.resize(video, crop_size, crop_size)
    if is_flow:
      video = _stacks(video, pairs)
    if any(color_jitter):
      video = image_ops.color_jitter(video, color_jitter, more[1:])
    if flip:
      coin = draw[3] < 0.5
      video = tf.cond(coin, lambda: image_ops.mirror(video, is_flow=is_flow), lambda: video)
      label = tf.where(coin, tf.gather(mirrored_label, label), label)
    channels = 2 * flow_pairs if is_flow else 3
    video = tf.ensure_shape(video, [num_frames, crop_size, crop_size, channels])
    label = tf.cast(label, tf.int32)
    return {"video": video, "label": label, "mask": tf.constant(True), "id": clip_id}

  stop = tf.int64.max if num_steps is None else (first_step + num_steps) * local
  return _run(tf.data.Dataset.range(first_step * local, stop), clip, local, num_threads)


def eval_batches(
  builder: tfds.core.DatasetBuilder,
  split: str,
  *,
  batch_size: int,
  num_frames: int,
  crop_size: int,
  views: str,
  short_edge: int | None = None,
  flow_pairs: int = 5,
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """Goes through a split once, in order, with fixed shapes.

  The last batch is filled up with copies of the last clip whose mask is False. All processes yield
  the same number of batches.

  Args:
    builder: as `store.open_dataset` opens it.
    split: a split's name, or a part of one as `validation[:100]`.
    batch_size: clips of a GLOBAL batch; every process yields its own slice of it.
    num_frames: frames of a clip, from the middle of its segments.
    crop_size: edge of the crops in pixels.
    views: `center`, `3crop`, `5crop` or `10crop`, as `sampling.crop_offsets` places them.
    short_edge: pixels that the frames are resized to before they are cropped; None: as stored.
    flow_pairs: of optical flow, the consecutive pairs of a stack.
    process_index: which slice of the batch to yield.
    process_count: how many slices there are.
    num_threads: threads of the pipeline; None for as many as it finds useful.

  Returns:
    An iterator over `video` uint8 (b, v, num_frames, crop_size, crop_size, c) for v views, `label`
    int32 (b,), -1 where unknown, `mask` bool (b,), False for padding, and `id` bytes (b,), with b =
    batch_size / process_count and c as in `train_batches`. Mirrored views have mirrored pixels; the
    label is untouched.

  Raises:
    ValueError: a bad argument, or a split without examples; one line, names the field.
  """
  count = num_examples(builder, split)
  stored, is_flow = builder.info.metadata["short_edge"], _is_flow(builder)
  wanted = stored if short_edge is None else short_edge
  sizes = (num_frames, flow_pairs, wanted, crop_size)
  local = _check_sizes(batch_size, *sizes, process_index, process_count, num_threads)
  if views not in sampling.VIEWS:
    raise ValueError(f"views is {views!r}; it must be one of {', '.join(sampling.VIEWS)}")
  read = _reader(builder, split, num_frames, flow_pairs)

  def clip(number: tf.Tensor) -> dict[str, tf.Tensor]:
    position = number // local * batch_size + process_index * local + number % local
    frames, pairs, label, clip_id = read(
      tf.minimum(position, count - 1), tf.constant(0.5, tf.float64)
    )
    whole = image_ops.decode(frames, channels=1 if is_flow else 3)
    if wanted != stored:
      whole = image_ops.resize_short_edge(whole, wanted)
    crops = _crops(_stacks(whole, pairs) if is_flow else whole, crop_size, views, is_flow)
    channels = 2 * flow_pairs if is_flow else 3
    video = tf.ensure_shape(
      crops, [sampling.VIEWS[views], num_frames, crop_size, crop_size, channels]
    )
    label = tf.cast(label, tf.int32)
    return {"video": video, "label": label, "mask": position < count, "id": clip_id}

  steps = -(-count // batch_size)
  return _run(tf.data.Dataset.range(steps * local), clip, local, num_threads)


def how_stored(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """What became of the frames when the data set was prepared; JSON-able."""
  fields = ("short_edge", "jpeg_quality", "flow_algorithm")
  return {field: builder.info.metadata.get(field) for field in fields}


def file_clip(
  path: str,
  *,
  num_frames: int,
  crop_size: int,
  short_edge: int,
  modality: str = "rgb",
  flow_pairs: int = 5,
  stored: Mapping[str, Any],
) -> UInt8[np.ndarray, "num_frames crop_size crop_size c"]:
  """The centre view of a video or image file: the very pixels as after `data.prepare`.

  Args:
    path: of the file.
    num_frames: see `eval_batches`.
    crop_size: see `eval_batches`.
    short_edge: see `eval_batches`.
    modality: 'rgb' or 'flow'.
    flow_pairs: see `eval_batches`.
    stored: from `how_stored`, of the data set that the network was trained on.

  Raises:
    ValueError: the file does not decode; one line, the reason alone.
    OSError: it cannot be read.
  """
  is_flow = modality == "flow"
  sizes = stored["short_edge"], stored["jpeg_quality"]
  if is_flow:
    frames = decode.flow_clip(path, *sizes, stored["flow_algorithm"])
  elif folders.is_image(path):
    frames = [decode.image_frame(path, *sizes)]
  else:
    frames = decode.rgb_clip(path, *sizes)
  chosen, pairs = _choose(len(frames), num_frames, flow_pairs, is_flow, 0.5)
  whole = image_ops.decode(tf.constant([frames[i] for i in chosen]), channels=1 if is_flow else 3)
  if short_edge != stored["short_edge"]:
    whole = image_ops.resize_short_edge(whole, short_edge)
  whole = _stacks(whole, tf.constant(pairs)) if is_flow else whole
  return _crops(whole, crop_size, "center", is_flow)[0].numpy()


def _crops(whole: tf.Tensor, size: int, views: str, is_flow: bool) -> tf.Tensor:
  """The views of a clip (t, h, w, c), (v, t, size, size, c)."""
  crops = []
  shape = tf.shape(whole)
  for y, x, mirrored in sampling.crop_offsets(shape[1], shape[2], size, views):
    crop = whole[:, y : y + size, x : x + size]
    crops.append(image_ops.mirror(crop, is_flow=is_flow) if mirrored else crop)
  return tf.stack(crops)


def _choose(
  count: int, num_frames: int, flow_pairs: int, is_flow: bool, offset: float
) -> tuple[np.ndarray, np.ndarray]:
  """Which of a clip's JPEG files are needed, and which pairs of them make each stack of flow."""
  if not is_flow:
    return sampling.segment_indices(count, num_frames, offset), np.zeros((0, 0), np.int64)
  count //= 2
  # Stacks start where a whole one fits; a shorter clip repeats its last pair.
  starts = sampling.segment_indices(max(count - flow_pairs + 1, 1), num_frames, offset)
  wanted = np.minimum(starts[:, None] + np.arange(flow_pairs), count - 1)
  # Neighbouring stacks overlap: each file is decoded once.
  used, pairs = np.unique(wanted, return_inverse=True)
  return np.stack([2 * used, 2 * used + 1], axis=1).ravel(), pairs.reshape(wanted.shape)


def _is_flow(builder: tfds.core.DatasetBuilder) -> bool:
  return builder.info.metadata["modality"] == "flow"


def _check_sizes(
  batch_size: int,
  num_frames: int,
  flow_pairs: int,
  short_edge: int,
  crop_size: int,
  process_index: int,
  process_count: int,
  num_threads: int | None,
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
  if flow_pairs < 1:
    raise ValueError(f"flow_pairs is {flow_pairs}; it must be at least 1")
  if not 1 <= crop_size <= short_edge:
    raise ValueError(
      f"crop_size {crop_size} does not fit the short edge of {short_edge} pixels: "
      "crop less, or set a larger short_edge"
    )
  if num_threads is not None and num_threads < 1:
    raise ValueError(f"num_threads is {num_threads}; it must be at least 1, or None")
  return batch_size // process_count


def _check_augmentation(
  multi_scale: Sequence[Real], color_jitter: Sequence[Real], is_flow: bool
) -> None:
  for scale in multi_scale:
    if not 0 < scale <= 1:
      raise ValueError(f"multi_scale has {scale}; it must be a share of the short edge in (0, 1]")
  if len(color_jitter) != 4 or min(color_jitter) < 0 or color_jitter[3] > 0.5:
    raise ValueError(
      f"color_jitter is {tuple(color_jitter)}; it must be brightness, contrast, saturation and hue,"
      " at least 0, hue at most 0.5"
    )
  if is_flow and any(color_jitter):
    raise ValueError(f"color_jitter is {tuple(color_jitter)}, but optical flow has no colours")


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


def _reader(
  builder: tfds.core.DatasetBuilder, split: str, num_frames: int, flow_pairs: int
) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, ...]]:
  """A function from an example's index and the offset of `sampling.segment_indices` to its parts.

  These are the JPEG files that are needed, string (n,); which pairs of flow each channel is made
  of, int64 (num_frames, flow_pairs), as indices of pairs among those files; label; id. Of RGB there
  are num_frames files, repeated as they are needed, and no pairs.

  NumPy chooses the frames, inside the function that reads: a clip has several times as many as are
  needed, and each copy of all of them on the way through TensorFlow costs as much as decoding one.
  """
  source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  is_flow = _is_flow(builder)

  def read(index: np.int64, offset: np.float64) -> tuple[Any, ...]:
    clip_id, label, frames = store.parse(source[int(index)])
    chosen, pairs = _choose(len(frames), num_frames, flow_pairs, is_flow, float(offset))
    # `object`, because NumPy's own byte strings lose zeros at their end.
    chosen = np.array([frames[i] for i in chosen.tolist()], dtype=object)
    return chosen, pairs, np.int64(label), clip_id

  def read_in_graph(index: tf.Tensor, offset: tf.Tensor) -> tuple[tf.Tensor, ...]:
    types = [tf.string, tf.int64, tf.int64, tf.string]
    frames, pairs, label, clip_id = tf.numpy_function(read, [index, offset], types, stateful=False)
    frames.set_shape([None if is_flow else num_frames])
    pairs.set_shape([num_frames, flow_pairs] if is_flow else [0, 0])
    label.set_shape([])
    clip_id.set_shape([])
    return frames, pairs, label, clip_id

  return read_in_graph


def _stacks(components: tf.Tensor, pairs: tf.Tensor) -> tf.Tensor:
  """Stacks of flow from its components.

  Args:
    components: (2 n, h, w, 1), x and y of n pairs.
    pairs: (t, p), which of them each stack is made of.

  Returns:
    (t, h, w, 2 p): x and y of the first pair, of the second, ...
  """
  files = tf.reshape(tf.stack([2 * pairs, 2 * pairs + 1], axis=-1), [-1, 2 * pairs.shape[1]])
  stacks = tf.gather(components[..., 0], files)  # (t, 2 p, h, w)
  return tf.transpose(stacks, [0, 2, 3, 1])


def _run(
  numbers: tf.data.Dataset, clip: Callable, local: int, num_threads: int | None
) -> Iterator[dict[str, np.ndarray]]:
  """Makes clip after clip, in parallel, and batches them in order."""
  memory.keep_freed()
  dataset = numbers.map(clip, num_parallel_calls=num_threads or tf.data.AUTOTUNE)
  dataset = dataset.batch(local, drop_remainder=True).prefetch(2)
  options = tf.data.Options()
  options.deterministic = True
  if num_threads:
    options.threading.private_threadpool_size = num_threads
  return dataset.with_options(options).as_numpy_iterator()
