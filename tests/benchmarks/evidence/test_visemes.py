"""The CSM of the letters next to visemes, by hand."""

import string

import numpy as np
import pytest

from benchmarks.evidence import visemes
from u2s_jax.evaluation.scores import Scores
from u2s_jax.runtime.errors import UserError

LETTERS = list(string.ascii_uppercase)


def test_members_of_a_group_are_pairs_of_different_letters():
  members = visemes.group_members(LETTERS)
  pairs = {(a, b) for a, b in zip(*np.nonzero(members), strict=True)}
  index = LETTERS.index
  assert (index("B"), index("P")) in pairs and (index("P"), index("B")) in pairs
  assert (index("M"), index("N")) in pairs and (index("M"), index("P")) not in pairs
  # Groups of 8, 4, 7, 3, 2, 1 and 1 letters.
  assert len(pairs) == 8 * 7 + 4 * 3 + 7 * 6 + 3 * 2 + 2 and not members.diagonal().any()


def test_other_classes_raise():
  with pytest.raises(UserError, match="the classes kick, punch are not the letters A to Z"):
    visemes.group_members(["kick", "punch"])


def test_confusions_are_counted_without_correct_predictions():
  scores = np.eye(3)[[0, 1, 1, 2, 0]]
  counts = visemes.count_confusions(
    Scores(
      np.arange(5).astype(str),
      np.array([0, 0, 0, 2, 1]),
      np.array(LETTERS[:3]),
      {"universal": scores},
    )
  )
  assert counts.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0]]


def test_share_inside_sets_and_its_chance():
  # Two pairs of four classes; all the weight of a run is on one, three quarters of another's.
  sets = np.kron(np.eye(2), np.ones((2, 2))).astype(bool) & ~np.eye(4, dtype=bool)
  first, second = np.zeros((4, 4)), np.zeros((4, 4))
  first[0, 1], second[2, 3], second[0, 3] = 4, 3, 1
  found, (mean, low, high) = visemes.share_inside([first, second], [sets, sets])
  assert found == 7 / 8
  # A permutation maps a pair to each of the six pairs equally often, two of which are inside.
  assert mean == pytest.approx(1 / 3, abs=0.03) and low == 0 and high == 7 / 8
