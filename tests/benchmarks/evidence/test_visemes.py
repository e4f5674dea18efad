"""The CSM of the letters next to visemes, by hand."""

import string

import numpy as np
import pytest

from benchmarks.evidence import visemes
from u2s_jax.evaluation import scores
from u2s_jax.evaluation.scores import Scores
from u2s_jax.run.workdir import Workdir, write_npz
from u2s_jax.runtime.errors import UserError

LETTERS = list(string.ascii_uppercase)


def test_members_of_a_group_are_pairs_of_different_letters():
  members = visemes.find_group_pairs()
  pairs = {(a, b) for a, b in zip(*np.nonzero(members), strict=True)}
  index = LETTERS.index
  assert (index("B"), index("P")) in pairs and (index("P"), index("B")) in pairs
  assert (index("M"), index("N")) in pairs and (index("M"), index("P")) not in pairs
  # Groups of 8, 4, 7, 3, 2, 1 and 1 letters.
  assert len(pairs) == 8 * 7 + 4 * 3 + 7 * 6 + 3 * 2 + 2 and not members.diagonal().any()


def write_run(folder, names, similarity):
  run = Workdir(folder)
  labels, order = np.arange(len(names)), np.roll(np.arange(len(names)), 1)
  one_pass = Scores(
    labels.astype(str), labels, np.array(names), {"universal": np.eye(len(names))[order]}
  )
  scores.write(run.one_pass_scores("validation"), one_pass)
  write_npz(run.analysis("validation"), {"csm": similarity > 0.9, "similarity": similarity})
  return run


def test_a_run_is_read(tmp_path):
  similarity = np.eye(26)
  similarity[0, 1] = similarity[1, 0] = 0.95
  similarity[0, 25] = similarity[25, 0] = 0.92
  matrix, confusions, ranks = visemes.read_run(write_run(tmp_path, LETTERS, similarity))
  assert matrix.sum() == 4 and matrix[0, 25] and not matrix[0, 0]
  assert confusions.sum() == 26 and confusions[0, 25] == confusions[1, 0] == 1
  # Pairs in the order A / B, A / C, ..., A / Z, B / C, ...; the others are equally similar.
  assert ranks[:2].tolist() == [1, 3] and ranks[24] == 2 and len(ranks) == 325


def test_a_run_without_a_csm_of_the_letters_raises(tmp_path):
  with pytest.raises(UserError, match="has no CSM; choose a U2S run"):
    visemes.read_run(Workdir(tmp_path / "control"))
  with pytest.raises(UserError, match="the classes kick, punch are not A to Z"):
    visemes.read_run(write_run(tmp_path / "fights", ["kick", "punch"], np.eye(2)))


def test_confusions_are_counted_without_correct_predictions():
  predictions = np.eye(3)[[0, 1, 1, 2, 0]]
  counts = visemes.count_confusions(
    Scores(
      np.arange(5).astype(str),
      np.array([0, 0, 0, 2, 1]),
      np.array(LETTERS[:3]),
      {"universal": predictions},
    )
  )
  assert counts.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0]]


def test_share_inside_sets_and_its_chance():
  # Two pairs of four classes; all the weight of a run is on one, three quarters of another's.
  sets = np.kron(np.eye(2), np.ones((2, 2))).astype(bool) & ~np.eye(4, dtype=bool)
  first, second = np.zeros((4, 4)), np.zeros((4, 4))
  first[0, 1], second[2, 3], second[0, 3] = 4, 3, 1
  found, (mean, low, high) = visemes.compute_share_inside([first, second], [sets, sets])
  assert found == 7 / 8
  # A permutation maps a pair to each of the six pairs equally often, two of which are inside.
  assert mean == pytest.approx(1 / 3, abs=0.03) and low == 0 and high == 7 / 8
