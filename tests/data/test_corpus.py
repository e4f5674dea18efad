"""Files of all formats decode to all of their frames, in the shape in which players show them."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from tests.data import corpus
from u2s_jax.video import decode
from u2s_jax.video.decode import Storage


def correlate(jpeg, expected):
  """Returns the correlation of grey values with an image that is resized to the same size."""
  decoded = Image.open(io.BytesIO(jpeg)).convert("L")
  resized = Image.fromarray(expected).convert("L").resize(decoded.size)
  return np.corrcoef(np.asarray(decoded).ravel(), np.asarray(resized).ravel())[0, 1]


@pytest.mark.parametrize("name", [*corpus.VIDEOS, *corpus.FOLDERS])
def test_decodes_all_video_formats(tmp_path, name):
  codec = corpus.VIDEOS.get(name, {}).get("codec")
  if codec and codec not in av.codecs_available:
    pytest.skip(f"PyAV has no encoder {codec}")
  path = str(corpus.write_file(tmp_path, name))
  frames = decode.decode_file(path, Storage("rgb", corpus.HEIGHT, 95))
  assert len(frames) == corpus.COUNT
  shape = corpus.SHAPES.get(name, (corpus.HEIGHT, corpus.WIDTH))
  for jpeg in frames:
    assert Image.open(io.BytesIO(jpeg)).size == shape[::-1]
  if not name.startswith("turned"):  # `test_display` compares all pixels of these
    size = corpus.VIDEOS.get(name, {}).get("size", (corpus.HEIGHT, corpus.WIDTH))
    images = corpus.make_images(corpus.COUNT, *size)
    for jpeg, image in zip(frames, images, strict=True):
      assert correlate(jpeg, image) > 0.97


@pytest.mark.parametrize("name", corpus.IMAGES)
def test_decodes_all_image_formats(tmp_path, name):
  path = str(corpus.write_file(tmp_path, name))
  (jpeg,) = decode.decode_file(path, Storage("rgb", corpus.HEIGHT, 95), is_image=True)
  assert Image.open(io.BytesIO(jpeg)).size == (corpus.WIDTH, corpus.HEIGHT)
  assert correlate(jpeg, corpus.make_images()[0]) > (0.4 if "bits" in name else 0.95)
