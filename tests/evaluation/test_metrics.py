"""Accuracies: by hand, against a stable sort, and invalid input."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.evaluation import metrics

SCORES = np.array(
  [
    [0.7, 0.2, 0.1],  # label 0: first
    [0.5, 0.3, 0.2],  # label 1: second
    [0.2, 0.3, 0.5],  # label 2: first
    [0.6, 0.3, 0.1],  # label 2: third
  ]
)
LABELS = np.array([0, 1, 2, 2])


def _rank(row, label):
  """Returns the 1-based rank of the label in a stable sort by descending score."""
  order = sorted(range(len(row)), key=lambda j: (-row[j], j))
  return order.index(label) + 1


@pytest.mark.parametrize(("k", "expected"), [(1, 0.5), (2, 0.75), (3, 1.0)])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_top_k_by_hand(k, expected, convert):
  accuracy = metrics.top_k_accuracy(convert(SCORES), convert(LABELS), k)
  assert accuracy == expected
  assert isinstance(accuracy, float)


def test_mean_class_by_hand():
  # Class 0: 1 of 1, class 1: 0 of 1, class 2: 1 of 2.
  assert metrics.mean_class_accuracy(SCORES, LABELS) == pytest.approx(0.5)
  # Class 1 without a video is left out: (1 + 1/2) / 2.
  present = [0, 2, 3]
  assert metrics.mean_class_accuracy(SCORES[present], LABELS[present]) == pytest.approx(0.75)


def test_mean_class_differs_from_top1_for_unequal_classes():
  scores = np.array([[0.9, 0.1]] * 4)
  labels = np.array([0, 0, 0, 1])
  assert metrics.top_k_accuracy(scores, labels, 1) == 0.75
  assert metrics.mean_class_accuracy(scores, labels) == 0.5


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_per_class_by_hand(convert):
  accuracy, videos = metrics.per_class_accuracy(convert(SCORES), convert(LABELS))
  np.testing.assert_array_equal(accuracy, [1, 0, 0.5])
  np.testing.assert_array_equal(videos, [1, 1, 2])
  accuracy, videos = metrics.per_class_accuracy(SCORES[:2], LABELS[:2])
  np.testing.assert_array_equal(accuracy, [1, 0, math.nan])
  np.testing.assert_array_equal(videos, [1, 1, 0])
  assert accuracy.dtype == np.float64


def test_top_n_curve_by_hand():
  np.testing.assert_array_equal(metrics.top_n_curve(SCORES, LABELS), [0.5, 0.75, 1])


def test_curve_and_top_k_against_a_stable_sort():
  rng = np.random.default_rng(0)
  scores = rng.integers(0, 4, (30, 7)) / 4  # many ties
  labels = rng.integers(0, 7, 30)
  ranks = [_rank(row, label) for row, label in zip(scores, labels, strict=True)]
  curve = metrics.top_n_curve(scores, labels)
  assert curve.shape == (7,)
  for k in range(1, 8):
    expected = sum(rank <= k for rank in ranks) / 30
    assert curve[k - 1] == pytest.approx(expected)
    assert metrics.top_k_accuracy(scores, labels, k) == pytest.approx(expected)


def test_ties_rank_the_lower_class_first():
  scores = np.zeros((4, 4), np.float32)
  np.testing.assert_array_equal(metrics.top_n_curve(scores, np.arange(4)), [0.25, 0.5, 0.75, 1])
  assert metrics.top_k_accuracy(scores, np.array([3, 3, 3, 3]), 3) == 0


def test_infinite_scores_are_ranked():
  scores = np.array([[-np.inf, 0.0, np.inf]])
  assert [_rank(scores[0], label) for label in range(3)] == [3, 2, 1]
  for label, hit in [(0, 0.0), (1, 0.0), (2, 1.0)]:
    assert metrics.top_k_accuracy(scores, np.array([label]), 1) == hit


def test_summarize():
  assert metrics.summarize(SCORES, LABELS) == {
    "top1": 50.0,
    "top5": 100.0,
    "mean_class": pytest.approx(50.0),
  }
  scores = np.tile(np.arange(6, 0, -1.0), (6, 1))  # label j is ranked j-th
  assert metrics.summarize(scores, np.arange(6)) == {
    "top1": pytest.approx(100 / 6),
    "top5": pytest.approx(500 / 6),
    "mean_class": pytest.approx(100 / 6),
  }


def test_summarize_a_single_class():
  summary = metrics.summarize(np.ones((2, 1)), np.zeros(2, int))
  assert summary == {"top1": 100, "top5": 100, "mean_class": 100}


FUNCTIONS = [
  lambda scores, labels: metrics.top_k_accuracy(scores, labels, 1),
  metrics.mean_class_accuracy,
  metrics.per_class_accuracy,
  metrics.top_n_curve,
  metrics.summarize,
]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
  ("scores", "labels", "message"),
  [
    (SCORES, [0, -1, -1, 2], "labels: 2 of 4 .* the first is -1 .*unknown"),
    (SCORES, [0, 1, 2, 3], r"labels: 1 of 4 are not in \[0, 3\), the first is 3"),
    (np.zeros((0, 3)), [], "scores: no video"),
    (np.where(SCORES == 0.7, math.nan, SCORES), LABELS, "scores: NaN for 1 videos"),
  ],
)
def test_invalid_input_raises(function, scores, labels, message):
  with pytest.raises(ValueError, match=message):
    function(scores, np.asarray(labels, int))


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_outside_the_number_of_classes_raises(k):
  with pytest.raises(ValueError, match=r"^k: -?\d must be in \[1, 3\]"):
    metrics.top_k_accuracy(SCORES, LABELS, k)


def test_bootstrap_interval_of_a_paired_difference():
  """100 videos, of which one prediction has 30 right, the other 10 of these and no others."""
  hits, base = np.arange(100) < 30, np.arange(100) < 10
  low, high = metrics.bootstrap_difference(hits, base)
  half = 1.96 * np.sqrt(0.2 * 0.8 / 100)  # of a share of 0.2
  assert low == pytest.approx(0.2 - half, abs=0.015) and high == pytest.approx(
    0.2 + half, abs=0.015
  )
  assert metrics.bootstrap_difference(base, hits) == pytest.approx((-high, -low), abs=0.011)
  assert metrics.bootstrap_difference(hits, hits) == (0.0, 0.0)
