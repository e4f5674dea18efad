"""Views, and which class a mirrored clip shows."""

import pytest

from u2s_jax import views
from u2s_jax.errors import UserError


def test_only_ten_crops_have_mirrored_ones():
  counts = {name: (len(flags), sum(flags)) for name, flags in views.VIEWS.items()}
  assert counts == {"center": (1, 0), "3crop": (3, 0), "5crop": (5, 0), "10crop": (10, 5)}


def test_pairs_mirror_into_each_other():
  assert views.mirrored_labels(4, ((1, 3),)) == (0, 3, 2, 1)
  assert views.mirrored_labels(4, ((1, 3), (3, 1), (0, 2))) == (2, 3, 0, 1)
  assert views.mirrored_labels(2, ()) == (0, 1)


@pytest.mark.parametrize(
  ("pairs", "message"),
  [
    (((86, 87),), r"data.flip_label_map: \(86, 87\) names the class 86, but there are 4"),
    (((0, 1), (1, 2)), "data.flip_label_map: it pairs the class 1 with 0 and with 2; leave one"),
    (((0, 1), (2, 0)), "data.flip_label_map: it pairs the class 0 with 1 and with 2; leave one"),
  ],
)
def test_pairs_that_cannot_be(pairs, message):
  with pytest.raises(UserError, match=message):
    views.mirrored_labels(4, pairs)
