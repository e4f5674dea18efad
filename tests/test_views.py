"""Tests of views and of the labels of mirrored clips."""

import pytest

from u2s_jax import views
from u2s_jax.runtime.errors import UserError


def test_only_ten_crops_contain_mirrored_views():
  counts = {name: (len(flags), sum(flags)) for name, flags in views.VIEWS.items()}
  assert counts == {"center": (1, 0), "3crop": (3, 0), "5crop": (5, 0), "10crop": (10, 5)}


def test_swaps_the_labels_of_a_pair():
  assert views.make_mirrored_labels(4, ((1, 3),)) == (0, 3, 2, 1)
  assert views.make_mirrored_labels(4, ((1, 3), (3, 1), (0, 2))) == (2, 3, 0, 1)
  assert views.make_mirrored_labels(2, ()) == (0, 1)


@pytest.mark.parametrize(
  ("pairs", "message"),
  [
    (((86, 87),), r"data.flip_label_map: \(86, 87\) contains the class 86; classes must be in"),
    (((0, 1), (1, 2)), "data.flip_label_map: class 1 is paired with both 0 and 2; remove one"),
    (((0, 1), (2, 0)), "data.flip_label_map: class 0 is paired with both 1 and 2; remove one"),
  ],
)
def test_rejects_invalid_pairs(pairs, message):
  with pytest.raises(UserError, match=message):
    views.make_mirrored_labels(4, pairs)
