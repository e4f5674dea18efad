"""A clip's views in NumPy, compared with numbers by hand and with TensorFlow's pixels."""

import io

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from u2s_jax.video import clip_views, images
from u2s_jax.video.clips import ClipSpec
from u2s_jax.video.decode import Storage
from u2s_jax.views import VIEWS


def test_resize_averages_and_rounds():
  row = np.array([0, 80, 160, 240, 240, 240, 240, 255], np.uint8)
  video = np.tile(row[None, None, :, None], (2, 4, 1, 1))
  half = clip_views.resize(video, 2, 4)
  # A triangle 4 pixels wide: 1/8, 3/8, 3/8, 1/8; at the edges cropped and normalized.
  # (3 * 0 + 3 * 80 + 160) / 7, (80 + 3 * 160 + 3 * 240 + 240) / 8, (8 * 240) / 8,
  # (240 + 3 * 240 + 3 * 255) / 7
  np.testing.assert_array_equal(half[..., 0], np.tile([57, 190, 240, 246], (2, 2, 1)))
  double = clip_views.resize(video, 4, 16)[0, 0, :, 0]
  np.testing.assert_array_equal(double[:5], [0, 20, 60, 100, 140])
  np.testing.assert_array_equal(clip_views.resize(video, 4, 8), video)


@pytest.mark.parametrize("size", [(224, 299), (120, 160), (100, 100), (300, 200)])
def test_resize_differs_from_tensorflow_by_at_most_one_level(size):
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
def test_resizes_to_a_short_edge(height, width, short_edge, size):
  video = np.full((1, height, width, 1), 7, np.uint8)
  video = clip_views.resize_short_edge(video, short_edge)
  assert video.shape == (1, *size, 1) and (video == 7).all()


def test_decodes_the_same_bits_as_tensorflow_and_pillow():
  """With TensorFlow's default decoders differ by up to 20 levels; sizes, grey, chroma vary."""
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


def test_names_the_frame_that_is_no_jpeg():
  good = images.encode_jpeg(Image.new("RGB", (8, 8)), 95)
  with pytest.raises(ValueError, match="^frame 1: cannot be decoded as JPEG$"):
    clip_views.decode_jpegs([good, b"no JPEG"], 3)


def test_ignores_exif_orientation_of_stored_frames():
  """A converter may keep the tag after it turned the pixels."""
  exif = Image.Exif()
  exif[0x0112] = 6  # Orientation: turned by 90 degrees
  file = io.BytesIO()
  Image.new("RGB", (48, 32), "red").save(file, "JPEG", exif=exif)
  assert clip_views.decode_jpegs([file.getvalue()], 3).shape == (1, 32, 48, 3)


def test_reads_an_image_like_a_prepared_one(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (40, 52, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "image.png")
  storage, clip = Storage(short_edge=40), ClipSpec(2, 24, 32)
  for views, flags in VIEWS.items():
    video = clip_views.read_views(str(tmp_path / "image.png"), clip, storage, views)
    assert video.shape == (flags.count(False), 2, 24, 24, 3)
  jpeg = images.encode_image(str(tmp_path / "image.png"), 40, storage.jpeg_quality)
  frame = Image.open(io.BytesIO(jpeg)).resize((42, 32), Image.Resampling.BILINEAR)  # 41.6
  expected = np.asarray(frame)[4:28, 9:33]
  video = clip_views.read_views(str(tmp_path / "image.png"), clip, storage, "center")
  np.testing.assert_array_equal(video, np.broadcast_to(expected, (1, 2, 24, 24, 3)))
