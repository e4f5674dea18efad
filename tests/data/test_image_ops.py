"""Operations on clips, against numbers worked out by hand."""

import colorsys

import numpy as np
import pytest
import tensorflow as tf

from data import image_ops


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
def test_a_window_lies_anywhere_with_equal_probability(draw, corner):
  # Of 5 rows a crop of 4 has 2 places, of 10 columns one of 8 has 3.
  window = image_ops.place(tf.constant([5, 10]), tf.constant([4, 8]), tf.constant(draw, tf.float64))
  assert window.numpy().tolist() == [*corner, 4, 8]


@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_a_window_is_decoding_all_and_cutting(channels):
  rng = np.random.default_rng(0)
  video = np.kron(rng.integers(0, 256, (3, 5, 6, channels)), np.ones((1, 8, 8, 1))).astype(np.uint8)
  frames = tf.stack([tf.io.encode_jpeg(frame, chroma_downsampling=False) for frame in video])
  whole = image_ops.decode(frames, channels=channels)
  assert whole.shape == video.shape
  window = image_ops.decode(frames, channels=channels, window=tf.constant([3, 9, 20, 25]))
  np.testing.assert_array_equal(window, whole[:, 3:23, 9:34])

  @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
  def any_number(frames):
    return image_ops.decode(frames, channels=channels)

  np.testing.assert_array_equal(any_number(frames), whole)
  np.testing.assert_array_equal(any_number(frames[:1]), whole[:1])


def test_resizing_averages_and_rounds():
  row = np.array([0, 80, 160, 240, 240, 240, 240, 255], np.uint8)
  video = tf.constant(np.tile(row[None, None, :, None], (2, 4, 1, 1)))
  half = image_ops.resize(video, 2, 4)
  # A triangle 4 pixels wide: 1/8, 3/8, 3/8, 1/8; at the ends what lies inside, to the sum of 1.
  # (3 * 0 + 3 * 80 + 160) / 7, (80 + 3 * 160 + 3 * 240 + 240) / 8, (8 * 240) / 8,
  # (240 + 3 * 240 + 3 * 255) / 7
  expected = [57, 190, 240, 246]
  np.testing.assert_array_equal(half[..., 0], np.tile(expected, (2, 2, 1)))
  double = image_ops.resize(video, 4, 16)[0, 0, :, 0]
  np.testing.assert_array_equal(double[:5], [0, 20, 60, 100, 140])
  np.testing.assert_array_equal(image_ops.resize(video, 4, 8), video)


@pytest.mark.parametrize(
  "height, width, short_edge, size",
  [
    (240, 320, 120, (120, 160)),
    (240, 427, 224, (224, 399)),  # 398.53
    (426, 240, 256, (454, 256)),  # 454.4
    (64, 64, 100, (100, 100)),
  ],
)
def test_the_short_edge_decides_the_size(height, width, short_edge, size):
  video = tf.fill([1, height, width, 1], tf.constant(7, tf.uint8))
  video = image_ops.resize_short_edge(video, short_edge)
  assert video.shape == (1, *size, 1) and (video.numpy() == 7).all()


def test_mirroring_inverts_the_x_of_flow():
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
    ((2, 0, 0, 0), (0.0, 0, 0, 0), [[0, 0, 0], [0, 0, 0]]),  # Not below 0.
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
def test_hue_turns_the_colour_circle(draw):
  pixels = np.array([[255, 0, 0], [100, 50, 200], [77, 77, 77]])
  turn = 0.3 * (2 * draw - 1)
  expected = []
  for pixel in pixels / 255:
    hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
    expected.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
  found = _jitter(pixels, (0, 0, 0, 0.3), (0, 0, 0, draw))
  np.testing.assert_allclose(found, 255 * np.array(expected), atol=0.51)


def test_one_change_for_all_frames():
  # The mean that contrast is measured from is that of the clip, so equal pixels stay equal.
  video = np.zeros((2, 1, 2, 3), np.uint8)
  video[0, 0, 0], video[1] = 100, 100
  video[1, 0, 1] = 200
  after = image_ops.color_jitter(
    tf.constant(video), (0.3, 0.9, 0.3, 0.1), tf.constant([0.9, 0.8, 0.1, 0.2], tf.float64)
  ).numpy()
  np.testing.assert_array_equal(after[0, 0, 0], after[1, 0, 0])
