"""Which frames of a video are used, and which part of them; for NumPy and inside tf.data alike."""

import sys
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from u2s_jax.views import VIEWS

# A number, or a scalar tensor.
Integer = int | np.integer | Int[Any, ""]
Real = float | int | np.floating | Float[Any, ""]


def _is_tensor(value: Any) -> bool:
  """Tells whether a value is TensorFlow's, which whoever has a tensor has imported."""
  tensorflow = sys.modules.get("tensorflow")
  return tensorflow is not None and tensorflow.is_tensor(value)


def _numpy_for(*values: Any) -> Any:
  """Returns NumPy, or TensorFlow's implementation of it when a value is a tensor."""
  if any(map(_is_tensor, values)):
    return sys.modules["tensorflow"].experimental.numpy
  return np


def class_shares(counts: Int[np.ndarray, " m"], balance: float) -> Int[np.ndarray, " m"]:
  """Returns how many clips of each class an epoch has; as many in all as there are.

  Args:
    counts: clips of each class.
    balance: 0: as many as there are; 1: of every class that has clips alike; between, in proportion
      to counts ** (1 - balance).

  >>> class_shares(np.array([90, 10]), 0.5)  # the square roots are 3 to 1
  array([75, 25])
  """
  weights = np.where(counts > 0, np.power(np.maximum(counts, 1), 1.0 - balance), 0.0)
  exact = weights * counts.sum() / weights.sum()
  shares = np.floor(exact).astype(np.int64)
  # The largest remainders get what is left; of equal ones the first.
  left = int(counts.sum() - shares.sum())
  shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
  return shares


def segment_indices(
  num_frames: Integer, num_segments: int, offset: Real | Float[Any, " num_segments"]
) -> Int[Any, " num_segments"]:
  """Chooses one frame of each of `num_segments` equal parts of a video.

  Index k is `floor((k + offset) * num_frames / num_segments)`, with `offset[k]` where each part
  has its own.

  Args:
    num_frames: frames in the video, at least 1; a number, or a scalar integer tensor.
    num_segments: frames to choose; may be more than `num_frames`, frames then repeat.
    offset: position within the parts, in [0, 1): a number or a scalar tensor, the same for all
      (the paper), or an array or tensor (num_segments,).

  Returns:
    int64 (num_segments,), ascending, in [0, num_frames); a tensor if an argument is one.

  Raises:
    ValueError: `num_segments` is below 1, or `num_frames` is a number below 1.

  Example:
    >>> segment_indices(10, 4, 0.5).tolist()
    [1, 3, 6, 8]
    >>> segment_indices(2, 4, 0.5).tolist()
    [0, 0, 1, 1]
    >>> segment_indices(10, 2, np.array([0.9, 0.0])).tolist()
    [4, 5]
  """
  if num_segments < 1:
    raise ValueError(f"num_segments is {num_segments}; it must be at least 1")
  if not _is_tensor(num_frames) and num_frames < 1:
    raise ValueError(f"num_frames is {num_frames}; a video needs at least 1 frame")
  xp = _numpy_for(num_frames, offset)
  # In float32, 17 + 0.99999997 is 18, the first frame of the next part, or past the end. In float64
  # only offsets that no float32 holds round so, and the minimum catches these at the end.
  position = np.arange(num_segments, dtype=np.float64) + xp.asarray(offset, dtype=np.float64)
  position = position * xp.asarray(num_frames, dtype=np.float64) / num_segments
  indices = xp.asarray(xp.floor(position), dtype=np.int64)
  return xp.minimum(indices, xp.asarray(num_frames, dtype=np.int64) - 1)


def crop_offsets(
  height: Integer, width: Integer, size: int, views: str
) -> list[tuple[Any, Any, bool]]:
  """Places the square crops of a test.

  Args:
    height: of the frame in pixels, at least `size`; a number or a scalar integer tensor.
    width: likewise.
    size: edge of the crops in pixels.
    views: `center`; `3crop`: start, centre and end of the longer side; `5crop`: top left, top
      right, bottom left, bottom right, centre; `10crop`: these five, then their mirror images.

  Returns:
    One (y, x, mirrored) for every view: the crop's top left corner, and whether its pixels are to
    be mirrored left to right. Corners are numbers or tensors, as `height` and `width` are.

  Raises:
    ValueError: `views` is not one of these names, or numbers `height`, `width` are below `size`.

  Example:
    >>> crop_offsets(240, 320, 224, "center")
    [(8, 48, False)]
  """
  if views not in VIEWS:
    raise ValueError(f"views is {views!r}; it must be one of {', '.join(VIEWS)}")
  if not (_is_tensor(height) or _is_tensor(width)) and min(height, width) < size:
    raise ValueError(f"a crop of {size} pixels does not fit a frame of {height} x {width}")
  bottom, right = height - size, width - size
  centre = (bottom // 2, right // 2)
  if views == "center":
    corners = [centre]
  elif views == "3crop":
    where = _numpy_for(height, width).where
    tall = height > width
    start = (where(tall, 0, centre[0]), where(tall, centre[1], 0))
    end = (where(tall, bottom, centre[0]), where(tall, centre[1], right))
    corners = [start, centre, end]
  else:
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
  mirrored = VIEWS[views]  # the same corners once more, where they are
  corners *= len(mirrored) // len(corners)
  return [(y, x, mirror) for (y, x), mirror in zip(corners, mirrored, strict=True)]
