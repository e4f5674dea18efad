"""Computes optical flow between consecutive frames, and quantizes it to 8 bits."""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from u2s_jax.runtime.errors import UserError

ALGORITHMS = ("tvl1", "dis")
BOUND = 20.0  # pixels; larger displacements are clipped, as for two-stream networks


def make_algorithm(algorithm: str) -> Any:
  """Makes OpenCV's object for an algorithm, which is reused for all pairs of frames.

  Its `calc` returns the displacement of each pixel of the first of two grey frames in pixels,
  x (to the right) and y (down), float32 (h, w, 2).

  Args:
    algorithm: 'tvl1' (the convention; about half a second on one core for a pair of 320 x 240) or
      'dis' (hundreds of times faster, less smooth).

  Raises:
    UserError: if the algorithm is unknown, or OpenCV is installed without its contrib modules.
  """
  if algorithm == "dis":
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
  if algorithm != "tvl1":
    raise UserError(f"flow algorithm: {algorithm!r} is not one of {', '.join(ALGORITHMS)}")
  if not hasattr(cv2, "optflow"):
    raise UserError(
      "flow algorithm: 'tvl1' requires OpenCV's contrib modules; run `pip uninstall"
      " opencv-python-headless`, then `pip install opencv-contrib-python-headless`"
    )
  return cv2.optflow.DualTVL1OpticalFlow_create()


def quantize(flow: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
  """Quantizes displacements v in pixels, clipped to [-20, 20], to round(128 + 127 v / 20).

  The code is symmetric, so that mirroring a clip is exactly 256 minus the byte of x.
  """
  return np.rint(128.0 + 127.0 / BOUND * np.clip(flow, -BOUND, BOUND)).astype(np.uint8)
