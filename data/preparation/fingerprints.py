"""Perceptual hashes of clips, which detect copies even if they are resized or encoded again.

A fingerprint is the perceptual hash of three frames (`imagehash.phash`: the signs of the lowest
frequencies of a grey thumbnail), 64 bits each.
"""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64
from PIL import Image

POSITIONS = (1 / 6, 1 / 2, 5 / 6)  # of the frames, as shares of the clip
EDGE = 32  # pixels of a thumbnail, the size that imagehash uses
MIN_CONTRAST = 4.0  # standard deviation in grey levels; below it the signs are noise
# Bits of 192 by which a copy may differ. Of 60 rendered clips of 64 pixels that were resized to 0.7
# times their size and encoded by H.264 at crf 32, two differ by 22 bits and the others by up to 20;
# 48 clips of real video differ by up to 8. Any two of 2,000 rendered clips differ by at least 26.
MAX_DISTANCE = 20
BLOCK_SIZE = 2**22  # pairs that are compared at a time; bounds the memory
# If at least this share of clips looks like a clip of another class, as with a fixed camera,
# similarity is no sign of a copy. Measured on up to SAMPLE_SIZE clips.
MAX_SHARE_ALIKE, SAMPLE_SIZE = 0.5, 1000


def import_imagehash() -> None:
  """Imports imagehash and SciPy, which takes about a second and is not needed for flow."""
  import imagehash

  imagehash.phash(Image.new("L", (EDGE, EDGE)))  # its first call imports SciPy


def compute_fingerprint(frames: Sequence[bytes]) -> str:
  """Returns the fingerprint of a clip of JPEG frames as 48 hex digits; empty if it is too plain."""
  import imagehash

  hashes = []
  for position in POSITIONS:
    with Image.open(io.BytesIO(frames[int(position * len(frames))])) as image:
      image.draft("L", (2 * EDGE, 2 * EDGE))  # decodes at a reduced size, which is faster
      grey = image.convert("L")
    if np.std(grey) < MIN_CONTRAST:
      return ""
    hashes.append(str(imagehash.phash(grey)))
  return "".join(hashes)


def find_copies(
  prints: Sequence[str], others: Sequence[str], max_distance: int = MAX_DISTANCE
) -> list[tuple[int, int, int]]:
  """Finds the most similar clip among `others` for every clip, by exhaustive search.

  Empty fingerprints match nothing.

  Returns:
    (index in `prints`, index in `others`, bits that differ) of every clip that has a match, the
    most similar first.
  """
  rows, columns = (np.flatnonzero([bool(text) for text in side]) for side in (prints, others))
  if not (len(rows) and len(columns)):
    return []
  one, other = _to_words([prints[k] for k in rows]), _to_words([others[k] for k in columns])
  found, size = [], max(1, BLOCK_SIZE // len(other))
  for start in range(0, len(one), size):
    distance = _count_differing_bits(one[start : start + size], other)
    nearest = distance.argmin(axis=1)
    for i, j in enumerate(nearest):
      if distance[i, j] <= max_distance:
        found.append((int(rows[start + i]), int(columns[j]), int(distance[i, j])))
  return sorted(found, key=lambda pair: pair[2])


def compute_share_alike(prints: Sequence[str], labels: Sequence[int]) -> float:
  """Returns the share of clips, 0 to 1, that look like a clip of another class.

  Up to `SAMPLE_SIZE` clips are compared; those with an empty fingerprint do not count.
  """
  known = [k for k, text in enumerate(prints) if text]
  known = known[:: -(-len(known) // SAMPLE_SIZE) or 1]
  if not known:
    return 0.0
  words, classes = _to_words([prints[k] for k in known]), np.array([labels[k] for k in known])
  alike = _count_differing_bits(words, words) <= MAX_DISTANCE
  return float((alike & (classes[:, None] != classes)).any(axis=1).mean())


def _to_words(prints: Sequence[str]) -> UInt64[np.ndarray, "n w"]:
  """Converts fingerprints to integers of 64 bits."""
  joined = bytes.fromhex("".join(prints))
  return np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, len(POSITIONS))


def _count_differing_bits(
  first: UInt64[np.ndarray, "n w"], second: UInt64[np.ndarray, "m w"]
) -> Int[np.ndarray, "n m"]:
  """Returns the number of bits by which each of `first` differs from each of `second`."""
  distance = np.zeros((len(first), len(second)), np.int16)
  for word in range(first.shape[1]):
    distance += np.bitwise_count(first[:, word, None] ^ second[None, :, word])
  return distance
