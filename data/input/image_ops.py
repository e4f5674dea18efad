"""Augmentations of the frames of a training clip, as pure TensorFlow functions.

Random numbers are arguments: the caller draws them, once for the whole clip.
"""

from collections.abc import Sequence
from numbers import Real

import numpy as np
import tensorflow as tf

from u2s_jax.video import clip_views

GREY = (0.2989, 0.5870, 0.1140)  # weights of red, green and blue, as of tf.image.rgb_to_grayscale
MARGIN = 2  # additional columns decoded on both sides of a crop


def crop_edges(scales: Sequence[Real], short_edge: int) -> list[tuple[int, int]]:
  """Returns the sizes that a multi-scale crop chooses from, as in Temporal Segment Networks.

  These are (height, width) in pixels for all pairs of `scales`, sorted fractions of the short edge,
  that are at most one step apart.
  """
  edges = [max(1, round(scale * short_edge)) for scale in scales]
  return [
    (height, width)
    for i, height in enumerate(edges)
    for j, width in enumerate(edges)
    if abs(i - j) <= 1
  ]


def place_crop(shape: tf.Tensor, edges: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
  """Places a crop uniformly at random in a frame.

  Args:
    shape: int32 (2,), height and width of the frame in pixels, at least `edges`.
    edges: int32 (2,), height and width of the crop.
    draw: float64 (2,), uniform in [0, 1).

  Returns:
    int32 (4,): top, left, height, width.
  """
  last = shape - edges
  # The product of a number just below 1 and an integer may round up to it, hence the minimum.
  corner = tf.minimum(tf.cast(draw * tf.cast(last + 1, tf.float64), tf.int32), last)
  return tf.concat([corner, edges], axis=0)


def decode(frames: tf.Tensor, *, channels: int, window: tf.Tensor) -> tf.Tensor:
  """Decodes a window of the JPEG frames of a clip.

  Args:
    frames: string (t,), JPEG files of one size; t may be unknown when the graph is built.
    channels: 3, or 1 for grey.
    window: int32 (4,), top, left, height and width.

  Returns:
    uint8 (t, height, width, channels), bitwise equal to a crop of `clip_views.decode_jpegs`.
  """
  top, left, height, width = tf.unstack(window)
  # The decoder interpolates chroma between columns, and at the edges of its window the neighbours
  # are missing: without a margin the first and last columns would differ from a full decode.
  first = tf.maximum(left - MARGIN, 0)
  end = tf.minimum(left + width + MARGIN, tf.io.extract_jpeg_shape(frames[0])[1])
  wide_window = tf.stack([top, first, height, end - first])

  # Not TensorFlow's default, whose fast transform differs from other decoders.
  options = {"channels": channels, "dct_method": "INTEGER_ACCURATE"}

  def decode_one(frame: tf.Tensor) -> tf.Tensor:
    return tf.image.decode_and_crop_jpeg(frame, wide_window, **options)

  if frames.shape[0] is None:
    spec = tf.TensorSpec([None, None, channels], tf.uint8)
    video = tf.map_fn(decode_one, frames, fn_output_signature=spec)
  else:
    video = tf.stack([decode_one(frame) for frame in tf.unstack(frames)])
  return video[:, :, left - first : left - first + width]


def resize(video: tf.Tensor, height: int, width: int) -> tf.Tensor:
  """Resizes a uint8 clip (t, h, w, c), with c 1 or 3, by `clip_views.resize`."""

  def resize_array(pixels: np.ndarray) -> np.ndarray:
    return clip_views.resize(pixels, height, width)

  resized = tf.numpy_function(resize_array, [video], tf.uint8, stateful=False)
  return tf.ensure_shape(resized, [video.shape[0], height, width, video.shape[3]])


def mirror(video: tf.Tensor, *, is_flow: bool) -> tf.Tensor:
  """Mirrors a uint8 clip (..., h, w, c) left to right.

  For flow, whose channels are x, y, x, y, ... as quantized by `flow.quantize`, this inverts the
  sign of x.
  """
  # Reshaped to three dimensions, for which TensorFlow's kernel takes a quarter of the time.
  rows = tf.reshape(video, tf.concat([[-1], tf.shape(video)[-2:]], axis=0))
  video = tf.reshape(tf.reverse(rows, [1]), tf.shape(video))
  if not is_flow:
    return video
  # The code of -v is 256 minus the code of v, which is at least 1; JPEG may have made it 0.
  inverted = tf.zeros([], tf.uint8) - tf.maximum(video, tf.ones([], tf.uint8))
  is_x = tf.range(tf.shape(video)[-1]) % 2 == 0
  return tf.where(is_x, inverted, video)


def color_jitter(video: tf.Tensor, strengths: Sequence[Real], draw: tf.Tensor) -> tf.Tensor:
  """Changes brightness, contrast, saturation and hue, in this order, of all frames alike.

  Args:
    video: uint8 (t, h, w, 3).
    strengths: maximum relative change of brightness, contrast and saturation, and maximum change of
      hue as a fraction of the colour circle; 0 disables a change.
    draw: float64 (4,), uniform in [0, 1); 0.5 is no change.
  """
  pixels = tf.cast(video, tf.float32) / 255
  change = tf.cast(2 * draw - 1, tf.float32) * tf.constant(strengths, tf.float32)
  brightness, contrast, saturation = tf.unstack(tf.maximum(1 + change[:3], 0))
  if strengths[0]:
    pixels = tf.clip_by_value(pixels * brightness, 0, 1)
  if strengths[1]:
    mean = tf.reduce_mean(_to_grey(pixels))
    pixels = tf.clip_by_value(mean + contrast * (pixels - mean), 0, 1)
  if strengths[2]:
    grey = _to_grey(pixels)
    pixels = tf.clip_by_value(grey + saturation * (pixels - grey), 0, 1)
  if strengths[3]:
    pixels = tf.image.adjust_hue(pixels, change[3])
  return tf.cast(tf.round(255 * tf.clip_by_value(pixels, 0, 1)), tf.uint8)


def _to_grey(pixels: tf.Tensor) -> tf.Tensor:
  return tf.reduce_sum(pixels * tf.constant(GREY), axis=-1, keepdims=True)
