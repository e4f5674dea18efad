"""Every kind of file gives all of its frames, in the shape in which a player shows them."""

import io

import av
import numpy as np
import pytest
from PIL import Image

from data import decode
from data.decode import Storage
from tests.data import corpus


def closeness(jpeg, expected):
  """Correlation of the grey values with those of a picture, after it is resized."""
  seen = Image.open(io.BytesIO(jpeg)).convert("L")
  wanted = Image.fromarray(expected).convert("L").resize(seen.size)
  return np.corrcoef(np.asarray(seen).ravel(), np.asarray(wanted).ravel())[0, 1]


@pytest.mark.parametrize("name", [*corpus.VIDEOS, *corpus.FOLDERS])
def test_a_video_of_every_kind(tmp_path, name):
  codec = corpus.VIDEOS.get(name, {}).get("codec")
  if codec and codec not in av.codecs_available:
    pytest.skip(f"PyAV has no encoder {codec}")
  path = str(corpus.write(tmp_path, name))
  frames = decode.whole(path, Storage("rgb", corpus.HEIGHT, 95))
  assert len(frames) == corpus.COUNT
  shape = corpus.SHAPES.get(name, (corpus.HEIGHT, corpus.WIDTH))
  for jpeg in frames:
    assert Image.open(io.BytesIO(jpeg)).size == shape[::-1]
  if not name.startswith("turned"):  # of those `test_display` compares every pixel
    size = corpus.VIDEOS.get(name, {}).get("size", (corpus.HEIGHT, corpus.WIDTH))
    pictures = corpus.pictures(corpus.COUNT, *size)
    for jpeg, picture in zip(frames, pictures, strict=True):
      assert closeness(jpeg, picture) > 0.97


@pytest.mark.parametrize("name", corpus.IMAGES)
def test_an_image_of_every_kind(tmp_path, name):
  path = str(corpus.write(tmp_path, name))
  (jpeg,) = decode.frames_of(path, Storage("rgb", corpus.HEIGHT, 95), is_image=True)
  assert Image.open(io.BytesIO(jpeg)).size == (corpus.WIDTH, corpus.HEIGHT)
  assert closeness(jpeg, corpus.pictures()[0]) > (0.4 if "bits" in name else 0.95)
