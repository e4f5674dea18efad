"""Fingerprints of clips, and which of them are alike."""

import io

import numpy as np
from PIL import Image

from data import fingerprints


def jpeg(picture):
  file = io.BytesIO()
  Image.fromarray(picture).save(file, "JPEG", quality=95)
  return file.getvalue()


def test_distances_by_hand():
  first = ["0" * 48, "f" * 48, ""]
  second = ["", "0" * 47 + "1", "0" * 46 + "03", "f" * 47 + "0"]
  assert fingerprints.copies(first, second, 4) == [(0, 1, 1), (1, 3, 4)]
  assert fingerprints.copies(first, second, 3) == [(0, 1, 1)]
  assert fingerprints.copies(first, [""]) == fingerprints.copies([], second) == []


def test_blocks_change_nothing(monkeypatch):
  random = np.random.default_rng(0)
  first, second = ([random.bytes(24).hex() for _ in range(n)] for n in (40, 30))
  whole = fingerprints.copies(first, second, 96)
  monkeypatch.setattr(fingerprints, "BLOCK", 100)
  assert fingerprints.copies(first, second, 96) == whole and len(whole) == 40
  # The nearest by counting the digits of the numbers themselves.
  least = [min((int(a, 16) ^ int(b, 16)).bit_count() for b in second) for a in first]
  assert sorted((i, distance) for i, _, distance in whole) == [*enumerate(least)]


def test_share_of_clips_that_look_like_another_class(monkeypatch):
  random = np.random.default_rng(2)
  apart = [random.bytes(24).hex() for _ in range(6)]
  assert fingerprints.share_alike(apart, [0, 0, 0, 1, 1, 1]) == 0
  # Two of one class are copies; three of two classes are, and one of six has no fingerprint.
  assert fingerprints.share_alike([apart[0], apart[0], *apart[2:]], [0, 0, 0, 1, 1, 1]) == 0
  scene = [apart[0], apart[0], apart[0], *apart[1:3], ""]
  assert fingerprints.share_alike(scene, [0, 0, 1, 0, 1, 1]) == 3 / 5
  assert fingerprints.share_alike(["", ""], [0, 1]) == fingerprints.share_alike([], []) == 0
  monkeypatch.setattr(fingerprints, "SAMPLE", 10)
  assert fingerprints.share_alike([apart[0]] * 95, [k % 2 for k in range(95)]) == 0  # every tenth
  assert fingerprints.share_alike([apart[0]] * 95, [k // 48 for k in range(95)]) == 1


def test_three_frames_count_and_plain_ones_do_not():
  random = np.random.default_rng(1)
  pictures = [random.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(6)]
  frames = [jpeg(picture) for picture in pictures]
  whole = fingerprints.of_frames(frames)
  assert len(whole) == 48
  assert fingerprints.of_frames([frames[k] for k in (1, 3, 5)]) == whole
  assert fingerprints.of_frames(frames[:1]) == fingerprints.of_frames(frames[:1] * 3)
  plain = jpeg(np.full((64, 96, 3), 17, np.uint8))
  assert fingerprints.of_frames([*frames[:5], plain]) == ""
