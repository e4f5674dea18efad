"""Optical flow between neighbouring frames, and its code in 8 bits."""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from u2s_jax.errors import UserError

ALGORITHMS = ("tvl1", "dis")
BOUND = 20.0  # pixels; larger displacements are clipped, as the two-stream networks' flow is


def make(algorithm: str) -> Any:
  """Makes OpenCV's object for an algorithm, to be reused from pair to pair.

  Args:
    algorithm: 'tvl1' (the field's convention; about half a second a pair of 320 x 240 and core) or
      'dis' (hundreds of times faster, less smooth).

  Raises:
    UserError: unknown, or OpenCV is installed without its contrib modules.
  """
  if algorithm == "dis":
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  if algorithm != "tvl1":
    raise UserError(f"flow algorithm: {algorithm!r} is not one of {', '.join(ALGORITHMS)}")
  if not hasattr(cv2, "optflow"):
    raise UserError(
      "TV-L1 flow needs OpenCV's contrib modules: pip uninstall opencv-python-headless, "
      "then pip install opencv-contrib-python-headless"
    )
  return cv2.optflow.DualTVL1OpticalFlow_create()


def compute(
  maker: Any, before: UInt8[np.ndarray, "h w"], after: UInt8[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 2"]:
  """Computes where each pixel of `before` lies in `after`, relative to its place.

  Args:
    maker: from `make`.
    before: grey frame.
    after: the next one.

  Returns:
    Displacement in pixels, x (to the right) and y (down).
  """
  return maker.calc(before, after, None)


def quantize(flow: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
  """Codes displacements in bytes: 128 is zero, 1 and 255 are -20 and 20 pixels.

  Symmetric, so that a mirrored clip's x is 256 minus the byte, exactly.

  Args:
    flow: pixels; clipped to [-20, 20].

  Returns:
    128 + 127 v / 20, rounded, in [1, 255].
  """
  return np.rint(128.0 + 127.0 / BOUND * np.clip(flow, -BOUND, BOUND)).astype(np.uint8)
