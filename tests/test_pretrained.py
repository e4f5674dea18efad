"""Weights from elsewhere; those of another run are in `test_train.py`, beside the runs."""

import numpy as np
import pytest

from u2s_jax import pretrained


def test_average_by_hand():
  kernel = np.zeros((1, 1, 2, 3, 2), np.float32)
  kernel[0, 0, 0, :, 0] = 1, 2, 6  # mean 3
  kernel[0, 0, 1, :, 1] = -1, 0, 4  # mean 1
  averaged = pretrained.average_first_convolution(kernel, 10)
  assert averaged.shape == (1, 1, 2, 10, 2) and averaged.dtype == np.float32
  np.testing.assert_array_equal(averaged[0, 0, 0, :, 0], [3] * 10)
  np.testing.assert_array_equal(averaged[0, 0, 1, :, 1], [1] * 10)


@pytest.mark.parametrize("channels", [1, 2, 10])
def test_a_uniform_input_gives_the_response_in_proportion(channels):
  kernel = np.random.default_rng(0).normal(size=(1, 7, 7, 3, 4))
  averaged = pretrained.average_first_convolution(kernel, channels)
  np.testing.assert_allclose(averaged.sum((1, 2, 3)), kernel.sum((1, 2, 3)) * channels / 3)
