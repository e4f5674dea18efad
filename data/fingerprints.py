"""What a clip looks like in a few bytes, and clips that look alike: copies, also resized ones.

A fingerprint is the perceptual hash of three frames (`imagehash.phash`: the signs of the lowest
frequencies of a grey thumbnail), 64 bits each.
"""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64
from PIL import Image

POSITIONS = (1 / 6, 1 / 2, 5 / 6)  # of the frames, as shares of the clip
EDGE = 32  # pixels of a thumbnail, as imagehash takes
LEAST_CONTRAST = 4.0  # grey levels, standard deviation; below it signs are noise
# Bits of 192 by which a copy may differ. Of 60 rendered clips of 64 pixels that were made 0.7 times
# as large and encoded anew at H.264's crf 32, two differ by 22 and no other by more than 20; of 48
# of real video none by more than 8. Of 2,000 rendered clips no two differ by less than 26.
MAX_DISTANCE = 20
BLOCK = 2**22  # pairs that are compared at a time
# Where so large a share of clips looks like one of another class, as on a fixed camera, looks do
# not tell copies from others.
BLIND, SAMPLE = 0.5, 1000


def load() -> None:
  """Imports what `of_frames` needs: SciPy, in a second that a decoder of flow does without."""
  import imagehash

  imagehash.phash(Image.new("L", (EDGE, EDGE)))  # imports the rest


def of_frames(frames: Sequence[bytes]) -> str:
  """Returns the fingerprint of a clip in hexadecimal digits, empty where it is too plain for one.

  Args:
    frames: JPEG files of its frames.
  """
  import imagehash

  hashes = []
  for position in POSITIONS:
    with Image.open(io.BytesIO(frames[int(position * len(frames))])) as picture:
      picture.draft("L", (2 * EDGE, 2 * EDGE))  # decodes no more than that takes
      grey = picture.convert("L")
    if np.std(grey) < LEAST_CONTRAST:
      return ""
    hashes.append(str(imagehash.phash(grey)))
  return "".join(hashes)


def copies(
  prints: Sequence[str], others: Sequence[str], max_distance: int = MAX_DISTANCE
) -> list[tuple[int, int, int]]:
  """Finds for every clip the one most like it among others, by comparing all.

  Args:
    prints: fingerprints; those that are empty are like no other.
    others: theirs.
    max_distance: bits.

  Returns:
    Of each clip that has one at most that far: index in `prints`, index in `others`, and the bits
    by which they differ; the most alike first.
  """
  rows, columns = (np.flatnonzero([bool(text) for text in side]) for side in (prints, others))
  if not (len(rows) and len(columns)):
    return []
  one, other = _words([prints[k] for k in rows]), _words([others[k] for k in columns])
  found, size = [], max(1, BLOCK // len(other))
  for begin in range(0, len(one), size):
    distance = _distances(one[begin : begin + size], other)
    nearest = distance.argmin(axis=1)
    for i, j in enumerate(nearest):
      if distance[i, j] <= max_distance:
        found.append((int(rows[begin + i]), int(columns[j]), int(distance[i, j])))
  return sorted(found, key=lambda pair: pair[2])


def share_alike(prints: Sequence[str], labels: Sequence[int]) -> float:
  """Returns the share of clips that look like a clip of another class, of up to `SAMPLE` clips.

  Args:
    prints: fingerprints; those that are empty do not count.
    labels: of the same clips.
  """
  known = [k for k, text in enumerate(prints) if text]
  known = known[:: -(-len(known) // SAMPLE) or 1]
  if not known:
    return 0.0
  words, classes = _words([prints[k] for k in known]), np.array([labels[k] for k in known])
  alike = _distances(words, words) <= MAX_DISTANCE
  return float((alike & (classes[:, None] != classes)).any(axis=1).mean())


def _words(prints: Sequence[str]) -> UInt64[np.ndarray, "n w"]:
  """Returns fingerprints as numbers of 64 bits."""
  joined = bytes.fromhex("".join(prints))
  return np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, len(POSITIONS))


def _distances(
  first: UInt64[np.ndarray, "n w"], second: UInt64[np.ndarray, "m w"]
) -> Int[np.ndarray, "n m"]:
  """Returns the bits by which each of `first` differs from each of `second`."""
  distance = np.zeros((len(first), len(second)), np.int16)
  for word in range(first.shape[1]):
    distance += np.bitwise_count(first[:, word, None] ^ second[None, :, word])
  return distance
