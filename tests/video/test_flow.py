"""The 8-bit code of optical flow."""

import numpy as np
import pytest

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import flow


def test_quantizes_displacements():
  pixels = np.array([0, 20, -20, 35, -1e9, 10, -10, 20 / 127, 0.07], np.float32)
  # 128 + 63.5 rounds to the even 192, 128 - 63.5 to the even 64.
  assert flow.quantize(pixels).tolist() == [128, 255, 1, 255, 1, 192, 64, 129, 128]


def test_code_of_the_opposite_motion_is_256_minus_the_code():
  pixels = np.linspace(-25, 25, 1001, dtype=np.float32)
  codes = flow.quantize(pixels).astype(int)
  np.testing.assert_array_equal(flow.quantize(-pixels), 256 - codes)


def test_rejects_unknown_algorithms():
  with pytest.raises(UserError, match="'farneback' is not one of tvl1, dis"):
    flow.make_algorithm("farneback")
