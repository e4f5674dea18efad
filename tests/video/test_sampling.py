"""Frame indices and crops, compared with tables worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from u2s_jax.video import sampling
from u2s_jax.views import VIEWS

CASES = [  # num_frames, num_segments, offset, indices
  (10, 5, 0.0, [0, 2, 4, 6, 8]),
  (10, 5, 0.5, [1, 3, 5, 7, 9]),
  (10, 4, 0.5, [1, 3, 6, 8]),
  (7, 3, 0.25, [0, 2, 5]),
  (8, 8, 0.9, [0, 1, 2, 3, 4, 5, 6, 7]),
  (3, 8, 0.5, [0, 0, 0, 1, 1, 2, 2, 2]),
  (1, 4, 0.99, [0, 0, 0, 0]),
  (2, 3, 0.0, [0, 0, 1]),
  (100, 1, 0.5, [50]),
]


@pytest.mark.parametrize("num_frames, num_segments, offset, expected", CASES)
def test_segment_indices(num_frames, num_segments, offset, expected):
  indices = sampling.segment_indices(num_frames, num_segments, offset)
  assert isinstance(indices, np.ndarray)
  np.testing.assert_array_equal(indices, expected)

  def graph(n):
    return sampling.segment_indices(n, num_segments, tf.constant(offset, tf.float32))

  (traced,) = tf.data.Dataset.from_tensors(tf.constant(num_frames)).map(graph)
  np.testing.assert_array_equal(traced, expected)


def test_offsets_just_below_one_stay_in_their_segment():
  for offset in (np.nextafter(np.float32(1), np.float32(0)), np.nextafter(1.0, 0.0)):
    for num_segments in (1, 3, 8, 18, 64):
      for num_frames in (1, 2, 17, 18, 48, 1000):
        indices = sampling.segment_indices(num_frames, num_segments, offset)
        tensor = sampling.segment_indices(num_frames, num_segments, tf.constant(offset))
        np.testing.assert_array_equal(indices, tensor)
        assert indices[0] >= 0 and indices[-1] == num_frames - 1
        assert (np.diff(indices) >= 0).all()
  np.testing.assert_array_equal(
    sampling.segment_indices(18, 18, np.nextafter(np.float32(1), np.float32(0))), range(18)
  )


def test_offsets_per_segment():
  own = np.array([0.9, 0.0, 0.5])
  # (0 + 0.9) 10 / 3, (1 + 0) 10 / 3, (2 + 0.5) 10 / 3
  expected = [3, 3, 8]
  np.testing.assert_array_equal(sampling.segment_indices(10, 3, own), expected)
  (traced,) = tf.data.Dataset.from_tensors(own).map(lambda o: sampling.segment_indices(10, 3, o))
  np.testing.assert_array_equal(traced, expected)
  np.testing.assert_array_equal(
    sampling.segment_indices(7, 5, np.full(5, 0.5)), sampling.segment_indices(7, 5, 0.5)
  )


def test_offsets_per_segment_stay_valid_and_in_order():
  rng, largest = np.random.default_rng(0), np.nextafter(1.0, 0.0)
  for num_segments in (1, 3, 8, 18):
    for num_frames in (1, 2, 17, 18, 1000):
      for offsets in rng.choice([0.0, 0.3, largest], (20, num_segments)):
        indices = sampling.segment_indices(num_frames, num_segments, offsets)
        tensor = sampling.segment_indices(num_frames, num_segments, tf.constant(offsets))
        np.testing.assert_array_equal(indices, tensor)
        assert 0 <= indices[0] and indices[-1] < num_frames and (np.diff(indices) >= 0).all()


@pytest.mark.parametrize(
  ("balance", "shares"),
  [
    (0.0, [90, 10, 0]),
    (1.0, [50, 50, 0]),
    (0.5, [75, 25, 0]),  # the square roots are 3 to 1
  ],
)
def test_class_shares(balance, shares):
  np.testing.assert_array_equal(sampling.class_shares(np.array([90, 10, 0]), balance), shares)


def test_class_shares_add_up():
  counts = np.array([7, 3, 1])
  np.testing.assert_array_equal(sampling.class_shares(counts, 1.0), [4, 4, 3])


def test_rejects_invalid_counts():
  with pytest.raises(ValueError, match="num_frames is 0"):
    sampling.segment_indices(0, 4, 0.5)
  with pytest.raises(ValueError, match="num_segments is 0"):
    sampling.segment_indices(4, 0, 0.5)


@pytest.mark.parametrize("as_scalar", [int, tf.constant])
def test_crop_offsets(as_scalar):
  def crops(height, width, views):
    found = sampling.crop_offsets(as_scalar(height), as_scalar(width), 8, views)
    return [(int(y), int(x), mirrored) for y, x, mirrored in found]

  five = [(0, 0, False), (0, 12, False), (2, 0, False), (2, 12, False), (1, 6, False)]
  assert crops(10, 20, "center") == [(1, 6, False)]
  assert crops(10, 20, "3crop") == [(1, 0, False), (1, 6, False), (1, 12, False)]
  assert crops(20, 10, "3crop") == [(0, 1, False), (6, 1, False), (12, 1, False)]
  assert crops(10, 20, "5crop") == five
  assert crops(10, 20, "10crop") == five + [(y, x, True) for y, x, _ in five]
  for views, number in ((name, len(flags)) for name, flags in VIEWS.items()):
    assert len(crops(8, 8, views)) == number


def test_rejects_invalid_crops():
  with pytest.raises(ValueError, match="4crop.*center, 3crop, 5crop, 10crop"):
    sampling.crop_offsets(10, 20, 8, "4crop")
  with pytest.raises(ValueError, match="crop of 12 pixels does not fit a frame of 10 x 20"):
    sampling.crop_offsets(10, 20, 12, "center")
