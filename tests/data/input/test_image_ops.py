"""Augmentation ops, compared with values computed by hand."""

import colorsys

import cv2
import numpy as np
import pytest
import tensorflow as tf

from data.input import image_ops
from u2s_jax.video import clip_views


def test_crop_edges_are_pairs_of_neighbours():
  edges = image_ops.crop_edges((1, 0.875, 0.75, 0.66), 256)
  neighbours = [(256, 224), (224, 256), (224, 192), (192, 224), (192, 169), (169, 192)]
  squares = [(256, 256), (224, 224), (192, 192), (169, 169)]
  assert sorted(edges) == sorted(neighbours + squares)
  assert image_ops.crop_edges((0.5,), 30) == [(15, 15)]
  assert image_ops.crop_edges((), 30) == []


@pytest.mark.parametrize(
  "draw, corner",
  [
    ((0.0, 0.0), (0, 0)),
    ((0.49, 0.34), (0, 1)),
    ((0.5, 0.67), (1, 2)),
    ((np.nextafter(1, 0), np.nextafter(1, 0)), (1, 2)),
  ],
)
def test_place_crop_is_uniform(draw, corner):
  # A crop of 4 rows out of 5 has 2 places, one of 8 columns out of 10 has 3.
  window = image_ops.place_crop(
    tf.constant([5, 10]), tf.constant([4, 8]), tf.constant(draw, tf.float64)
  )
  assert window.numpy().tolist() == [*corner, 4, 8]


SAMPLINGS = ("411", "420", "422", "440", "444")


def _jpeg(pixels, sampling, progressive=0, restart=0):
  options = [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
  options += [cv2.IMWRITE_JPEG_RST_INTERVAL, restart]
  if sampling != "grey":
    sampling = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
  return cv2.imencode(".jpg", pixels, options)[1].tobytes()


@pytest.mark.parametrize("sampling", [*SAMPLINGS, "grey"])
def test_decoded_window_equals_crop_of_full_decode(sampling):
  """Chroma is interpolated between columns, so a decoder needs a margin around the window."""
  rng = np.random.default_rng(0)
  channels = 1 if sampling == "grey" else 3
  spec = [tf.TensorSpec([1], tf.string), tf.TensorSpec([4], tf.int32)]
  decode = tf.function(lambda f, w: image_ops.decode(f, channels=channels, window=w), spec)
  for (height, width), progressive, restart in (
    ((37, 53), 0, 0), ((32, 48), 1, 0), ((33, 47), 0, 3), ((1, 1), 0, 0), ((3, 40), 0, 0)
  ):  # fmt: skip
    pixels = rng.integers(0, 256, (height, width, 3)[: 2 if channels == 1 else 3]).astype(np.uint8)
    frame = _jpeg(pixels, sampling, progressive, restart)
    (whole,) = clip_views.decode_jpegs([frame], channels)
    assert whole.shape == (height, width, channels)
    reference = tf.io.decode_jpeg(frame, channels=channels, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(whole, reference)
    windows = [(0, 0, height, width), (0, 0, height, 1), (0, width - 1, height, 1)]
    for _ in range(40):
      h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
      windows.append((rng.integers(height - h + 1), rng.integers(width - w + 1), h, w))
    for top, left, h, w in windows:
      window = decode(tf.constant([frame]), tf.constant([top, left, h, w], tf.int32))[0]
      np.testing.assert_array_equal(window, whole[top : top + h, left : left + w])


def test_decodes_unknown_number_of_frames():
  frames = [_jpeg(np.full((16, 24, 3), 20 * k, np.uint8), "444") for k in range(3)]

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
  def decode(frames):
    return image_ops.decode(frames, channels=3, window=tf.constant([1, 2, 8, 9]))

  assert decode(tf.constant(frames)).shape == (3, 8, 9, 3)
  np.testing.assert_array_equal(
    decode(tf.constant(frames[1:2])), np.full((1, 8, 9, 3), 20, np.uint8)
  )


def test_training_and_evaluation_resize_equally():
  video = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
  (resized,) = tf.data.Dataset.from_tensors(video).map(lambda v: image_ops.resize(v, 24, 20))
  assert resized.shape == (2, 24, 20, 3)
  np.testing.assert_array_equal(resized, clip_views.resize(video, 24, 20))


def test_mirror_inverts_x_of_flow():
  video = np.array([[0, 1, 128], [1, 2, 128], [255, 3, 100]], np.uint8)  # (w, c): x, y, x
  video = tf.constant(video[None, None])
  np.testing.assert_array_equal(image_ops.mirror(video, is_flow=False), video[:, :, ::-1])
  mirrored = image_ops.mirror(video, is_flow=True)
  np.testing.assert_array_equal(mirrored[0, 0], [[1, 3, 156], [255, 2, 128], [255, 1, 128]])
  np.testing.assert_array_equal(image_ops.mirror(mirrored, is_flow=True)[0, 0, 1:], video[0, 0, 1:])


def _jitter(pixels, strengths, draw):
  video = tf.constant(np.array(pixels, np.uint8)[None, None])
  return image_ops.color_jitter(video, strengths, tf.constant(draw, tf.float64))[0, 0].numpy()


@pytest.mark.parametrize(
  "strengths, draw, expected",
  [
    ((0, 0, 0, 0), (0.9, 0.9, 0.9, 0.9), [[100, 50, 200], [250, 250, 250]]),
    ((0.4, 0.4, 0.4, 0.4), (0.5, 0.5, 0.5, 0.5), [[100, 50, 200], [250, 250, 250]]),
    # 1.2 times, at most 255.
    ((0.4, 0, 0, 0), (0.75, 0, 0, 0), [[120, 60, 240], [255, 255, 255]]),
    ((2, 0, 0, 0), (0.0, 0, 0, 0), [[0, 0, 0], [0, 0, 0]]),  # clipped at 0
    # Grey is 82.04 and 249.98, on average 166.01; 0.5 times the distance from it.
    ((0, 1, 0, 0), (0, 0.25, 0, 0), [[133, 108, 183], [208, 208, 208]]),
    # 0.5 times the distance from 82.04.
    ((0, 0, 1, 0), (0, 0, 0.25, 0), [[91, 66, 141], [250, 250, 250]]),
    # Brightness first: grey is then 98.45 and 254.97, on average 176.71.
    ((0.4, 1, 0, 0), (0.75, 0.25, 0, 0), [[148, 118, 208], [216, 216, 216]]),
  ],
)
def test_colour_jitter(strengths, draw, expected):
  found = _jitter([[100, 50, 200], [250, 250, 250]], strengths, draw)
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("draw", [0.0, 0.2, 0.7, 0.999])
def test_hue_rotates_the_colour_circle(draw):
  pixels = np.array([[255, 0, 0], [100, 50, 200], [77, 77, 77]])
  turn = 0.3 * (2 * draw - 1)
  expected = []
  for pixel in pixels / 255:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
  found = _jitter(pixels, (0, 0, 0, 0.3), (0, 0, 0, draw))
  np.testing.assert_allclose(found, 255 * np.array(expected), atol=0.51)


def test_colour_jitter_is_equal_for_all_frames():
  # Contrast is relative to the mean of the whole clip, so equal pixels stay equal.
  video = np.zeros((2, 1, 2, 3), np.uint8)
  video[0, 0, 0], video[1] = 100, 100
  video[1, 0, 1] = 200
  after = image_ops.color_jitter(
    tf.constant(video), (0.3, 0.9, 0.3, 0.1), tf.constant([0.9, 0.8, 0.1, 0.2], tf.float64)
  ).numpy()
  np.testing.assert_array_equal(after[0, 0, 0], after[1, 0, 0])
