"""Fingerprints of clips and the search for similar ones."""

import io

import numpy as np
from PIL import Image

from data.preparation import fingerprints
from data.preparation.fingerprints import compute_fingerprint, compute_share_alike, find_copies


def encode_jpeg(image):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=95)
  return file.getvalue()


def test_distances_of_known_fingerprints():
  first = ["0" * 48, "f" * 48, ""]
  second = ["", "0" * 47 + "1", "0" * 46 + "03", "f" * 47 + "0"]
  assert find_copies(first, second, 4) == [(0, 1, 1), (1, 3, 4)]
  assert find_copies(first, second, 3) == [(0, 1, 1)]
  assert find_copies(first, [""]) == find_copies([], second) == []


def test_result_does_not_depend_on_block_size(monkeypatch):
  random = np.random.default_rng(0)
  first, second = ([random.bytes(24).hex() for _ in range(n)] for n in (40, 30))
  expected = find_copies(first, second, 96)
  monkeypatch.setattr(fingerprints, "BLOCK_SIZE", 100)
  assert find_copies(first, second, 96) == expected and len(expected) == 40
  # The nearest by counting bits of Python integers.
  nearest = [min((int(a, 16) ^ int(b, 16)).bit_count() for b in second) for a in first]
  assert sorted((i, distance) for i, _, distance in expected) == [*enumerate(nearest)]


def test_share_of_clips_similar_to_another_class(monkeypatch):
  random = np.random.default_rng(2)
  distinct = [random.bytes(24).hex() for _ in range(6)]
  assert compute_share_alike(distinct, [0, 0, 0, 1, 1, 1]) == 0
  # Two of one class are copies; three of two classes are, and one of six has no fingerprint.
  assert compute_share_alike([distinct[0], distinct[0], *distinct[2:]], [0, 0, 0, 1, 1, 1]) == 0
  scene = [distinct[0], distinct[0], distinct[0], *distinct[1:3], ""]
  assert compute_share_alike(scene, [0, 0, 1, 0, 1, 1]) == 3 / 5
  assert compute_share_alike(["", ""], [0, 1]) == compute_share_alike([], []) == 0
  monkeypatch.setattr(fingerprints, "SAMPLE_SIZE", 10)
  assert compute_share_alike([distinct[0]] * 95, [k % 2 for k in range(95)]) == 0  # every tenth
  assert compute_share_alike([distinct[0]] * 95, [k // 48 for k in range(95)]) == 1


def test_uses_three_frames_and_rejects_plain_ones():
  random = np.random.default_rng(1)
  images = [random.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(6)]
  frames = [encode_jpeg(image) for image in images]
  expected = compute_fingerprint(frames)
  assert len(expected) == 48
  assert compute_fingerprint([frames[k] for k in (1, 3, 5)]) == expected
  assert compute_fingerprint(frames[:1]) == compute_fingerprint(frames[:1] * 3)
  plain = encode_jpeg(np.full((64, 96, 3), 17, np.uint8))
  assert compute_fingerprint([*frames[:5], plain]) == ""
