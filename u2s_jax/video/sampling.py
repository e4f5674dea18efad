"""Samples frames and crops, with NumPy or, inside tf.data, with tensors."""

import sys
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from u2s_jax.views import VIEWS

# A number, or a scalar tensor.
Integer = int | np.integer | Int[Any, ""]
Real = float | int | np.floating | Float[Any, ""]


def _is_tensor(value: Any) -> bool:
  # Without an import: if a value is a tensor, TensorFlow has been imported.
  tensorflow = sys.modules.get("tensorflow")
  return tensorflow is not None and tensorflow.is_tensor(value)


def _numpy_for(*values: Any) -> Any:
  if any(map(_is_tensor, values)):
    return sys.modules["tensorflow"].experimental.numpy
  return np


def class_shares(counts: Int[np.ndarray, " m"], balance: float) -> Int[np.ndarray, " m"]:
  """Computes how many clips of each class an epoch has; their sum is that of `counts`.

  Args:
    counts: clips of each class.
    balance: in [0, 1]; shares are in proportion to counts ** (1 - balance): 0 keeps `counts`, 1
      gives all classes that have clips the same share.

  >>> class_shares(np.array([90, 10]), 0.5)  # the square roots are 3 to 1
  array([75, 25])
  """
  weights = np.where(counts > 0, np.power(np.maximum(counts, 1), 1.0 - balance), 0.0)
  exact = weights * counts.sum() / weights.sum()
  shares = np.floor(exact).astype(np.int64)
  # Rounding by largest remainder; among equal ones the first.
  left = int(counts.sum() - shares.sum())
  shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
  return shares


def segment_indices(
  num_frames: Integer, num_segments: int, offset: Real | Float[Any, " num_segments"]
) -> Int[Any, " num_segments"]:
  """Chooses one frame from each of `num_segments` equal segments of a video.

  Index k is `floor((k + offset) * num_frames / num_segments)`, with `offset[k]` if each
  segment has its own.

  Args:
    num_frames: frames in the video, at least 1.
    num_segments: frames to choose; may be more than `num_frames`, frames then repeat.
    offset: position within the segments, in [0, 1): a number or a scalar tensor for all of them
      (the paper), or an array or tensor (num_segments,).

  Returns:
    int64 (num_segments,), ascending, in [0, num_frames); a tensor if an argument is one.

  Raises:
    ValueError: if `num_segments` is below 1, or `num_frames` is a number below 1.

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
  # In float32, 17 + 0.99999997 would be 18: the next segment, or past the end. In float64 only
  # offsets that are not exact in float32 can round up so, and at the end the minimum corrects them.
  position = np.arange(num_segments, dtype=np.float64) + xp.asarray(offset, dtype=np.float64)
  position = position * xp.asarray(num_frames, dtype=np.float64) / num_segments
  indices = xp.asarray(xp.floor(position), dtype=np.int64)
  return xp.minimum(indices, xp.asarray(num_frames, dtype=np.int64) - 1)


def crop_offsets(
  height: Integer, width: Integer, size: int, views: str
) -> list[tuple[Any, Any, bool]]:
  """Computes the corners of the square crops of evaluation views.

  Args:
    size: edge of the crops in pixels, at most `height` and `width` of the frame.
    views: `center`; `3crop`: start, centre and end of the longer side; `5crop`: top left, top
      right, bottom left, bottom right, centre; `10crop`: these five, then their mirror images.

  Returns:
    One (y, x, mirrored) for every view: the crop's top left corner, and whether it is mirrored left
    to right. Corners are numbers or tensors, as `height` and `width` are.

  Raises:
    ValueError: if `views` is not one of these, or `height` or `width` is a number below `size`.

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
  mirrored = VIEWS[views]  # for 10crop the same corners twice
  corners *= len(mirrored) // len(corners)
  return [(y, x, mirror) for (y, x), mirror in zip(corners, mirrored, strict=True)]
