"""A clip's views in NumPy, against numbers by hand and the pixels of evaluation."""

import io

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data import clip_views, images
from data.clips import ClipSpec
from data.decode import Storage
from u2s_jax.views import VIEWS


def test_resizing_averages_and_rounds():
  row = np.array([0, 80, 160, 240, 240, 240, 240, 255], np.uint8)
  video = np.tile(row[None, None, :, None], (2, 4, 1, 1))
  half = clip_views.resize(video, 2, 4)
  # A triangle 4 pixels wide: 1/8, 3/8, 3/8, 1/8; at the ends what lies inside, to the sum of 1.
  # (3 * 0 + 3 * 80 + 160) / 7, (80 + 3 * 160 + 3 * 240 + 240) / 8, (8 * 240) / 8,
  # (240 + 3 * 240 + 3 * 255) / 7
  np.testing.assert_array_equal(half[..., 0], np.tile([57, 190, 240, 246], (2, 2, 1)))
  double = clip_views.resize(video, 4, 16)[0, 0, :, 0]
  np.testing.assert_array_equal(double[:5], [0, 20, 60, 100, 140])
  np.testing.assert_array_equal(clip_views.resize(video, 4, 8), video)


@pytest.mark.parametrize("size", [(224, 299), (120, 160), (100, 100), (300, 200)])
def test_resizing_differs_from_tensorflow_by_one_level_at_most(size):
  video = np.random.default_rng(0).integers(0, 256, (2, 60, 80, 3), np.uint8)
  video = np.stack([cv2.resize(frame, (320, 240)) for frame in video])
  expected = tf.image.resize(video, size, antialias=True)
  assert np.abs(clip_views.resize(video, *size) - np.round(expected)).max() <= 1


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
  video = np.full((1, height, width, 1), 7, np.uint8)
  video = clip_views.resize_short_edge(video, short_edge)
  assert video.shape == (1, *size, 1) and (video == 7).all()


def test_a_thousand_frames_have_the_bits_of_every_other_decoder():
  """Decoders differ by up to 20 levels under TensorFlow's default; sizes, grey, chroma vary."""
  rng = np.random.default_rng(0)
  for number in range(1000):
    size = tuple(rng.integers(1, 90, 2).tolist())
    grey = number % 5 == 0  # as optical flow
    # Smooth with noise, as frames are: pure noise would clip at 0 and 255.
    pixels = np.asarray(
      Image.fromarray(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)).resize(size)
    )
    noise = rng.integers(-20, 21, pixels.shape)
    image = Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
    image = image.convert("L") if grey else image
    file, channels = io.BytesIO(), 1 if grey else 3
    options = {} if grey else {"subsampling": number % 3}
    image.save(file, "JPEG", quality=int(rng.integers(30, 101)), **options)
    jpeg = file.getvalue()
    (frame,) = clip_views.decode_jpegs([jpeg], channels)
    expected = tf.io.decode_jpeg(jpeg, channels=channels, dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(frame, expected)
    with Image.open(io.BytesIO(jpeg)) as picture:
      np.testing.assert_array_equal(frame, np.asarray(picture).reshape(frame.shape))


def test_a_file_that_is_no_jpeg_is_named():
  good = images.jpeg(Image.new("RGB", (8, 8)), 95)
  with pytest.raises(ValueError, match="^frame 1: does not decode as JPEG$"):
    clip_views.decode_jpegs([good, b"no JPEG"], 3)


def test_frames_stay_upright_whatever_exif_says():
  """A converter may have kept the tag of pixels that it turned."""
  exif = Image.Exif()
  exif[0x0112] = 6  # Orientation: turned by 90 degrees
  file = io.BytesIO()
  Image.new("RGB", (48, 32), "red").save(file, "JPEG", exif=exif)
  assert clip_views.decode_jpegs([file.getvalue()], 3).shape == (1, 32, 48, 3)


def test_an_image_is_read_as_it_is_stored(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "image.png")
  storage, clip = Storage(short_edge=40), ClipSpec(2, 24, 32)
  for views, flags in VIEWS.items():
    video = clip_views.read_views(str(tmp_path / "image.png"), clip, storage, views)
    assert video.shape == (flags.count(False), 2, 24, 24, 3)
  jpeg = images.jpeg_of(str(tmp_path / "image.png"), 40, storage.jpeg_quality)
  frame = Image.open(io.BytesIO(jpeg)).resize((42, 32), Image.Resampling.BILINEAR)  # 41.6
  expected = np.asarray(frame)[4:28, 9:33]
  video = clip_views.read_views(str(tmp_path / "image.png"), clip, storage, "center")
  np.testing.assert_array_equal(video, np.broadcast_to(expected, (1, 2, 24, 24, 3)))
