"""Classification accuracy, in NumPy on the host, from scores and labels.

Every function takes scores `(N, M)`, the higher the likelier, logits and probabilities alike, and
labels `(N,)` in [0, M). All raise ValueError for no video at all, for lengths that differ, for a
label outside [0, M), such as the -1 of a test set without answers, and for scores that are NaN,
which no comparison would rank.

Where several classes have the same score, the lower class index is ranked first. So a network that
gives all classes one score gets its ties right as often as a guess of class 0, never always.
"""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Integer


def top_k_accuracy(
  scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"], k: int
) -> float:
  """Fraction of videos whose label is among the `k` highest scores.

  Args:
    scores: `(N, M)`.
    labels: `(N,)` in [0, M).
    k: 1 to M.

  Returns:
    Fraction in [0, 1].

  Raises:
    ValueError: `k` is outside [1, M], or as at the top of this module.

  Example:
    >>> top_k_accuracy(np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), np.array([0, 1]), 1)
    0.5
  """
  ranks = _ranks(scores, labels)
  if not 1 <= k <= np.shape(scores)[1]:
    raise ValueError(f"k must be in [1, {np.shape(scores)[1]}], the number of classes, not {k}")
  return float(np.mean(ranks < k))


def mean_class_accuracy(scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"]) -> float:
  """Mean over the classes that occur in `labels` of each class's top-1 accuracy.

  Args:
    scores: `(N, M)`.
    labels: `(N,)` in [0, M).

  Returns:
    Fraction in [0, 1].

  Raises:
    ValueError: As at the top of this module.

  Example:
    >>> mean_class_accuracy(np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]), np.array([0, 0, 1]))
    0.5
  """
  return float(np.nanmean(per_class_accuracy(scores, labels)[0]))


def per_class_accuracy(
  scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"]
) -> tuple[Float[np.ndarray, " m"], Integer[np.ndarray, " m"]]:
  """Each class's top-1 accuracy.

  Args:
    scores: `(N, M)`.
    labels: `(N,)` in [0, M).

  Returns:
    `(M,)` float64 fractions in [0, 1], NaN for a class without a video, and `(M,)` videos.

  Raises:
    ValueError: As at the top of this module.

  Example:
    >>> scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    >>> accuracies, videos = per_class_accuracy(scores, np.array([0, 0, 1]))
    >>> accuracies.tolist(), videos.tolist()
    ([1.0, 0.0], [2, 1])
  """
  hits = _ranks(scores, labels) == 0
  num_classes = np.shape(scores)[1]
  videos = np.bincount(labels, minlength=num_classes)
  correct = np.bincount(labels, weights=hits, minlength=num_classes)
  return correct / np.where(videos, videos, np.nan), videos


def top_n_curve(
  scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"]
) -> Float[np.ndarray, " m"]:
  """Top-1, top-2, ... top-M accuracy, which decides how many classes are confusing.

  Args:
    scores: `(N, M)`.
    labels: `(N,)` in [0, M).

  Returns:
    `(M,)` float64 fractions in [0, 1], never falling; the last is 1.

  Raises:
    ValueError: As at the top of this module.

  Example:
    >>> top_n_curve(np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), np.array([0, 1])).tolist()
    [0.5, 1.0, 1.0]
  """
  ranks = _ranks(scores, labels)
  return np.cumsum(np.bincount(ranks, minlength=np.shape(scores)[1])) / len(ranks)


def summarize(
  scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"]
) -> dict[str, float]:
  """The three accuracies of every table, in percent.

  Args:
    scores: `(N, M)`.
    labels: `(N,)` in [0, M).

  Returns:
    `{"top1", "top5", "mean_class"}`, in [0, 100]; with fewer than 5 classes "top5" is 100.

  Raises:
    ValueError: As at the top of this module.

  Example:
    >>> scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])
    >>> summarize(scores, np.array([0, 0, 1, 1]))
    {'top1': 75.0, 'top5': 100.0, 'mean_class': 75.0}
  """
  return {
    "top1": 100 * top_k_accuracy(scores, labels, 1),
    "top5": 100 * top_k_accuracy(scores, labels, min(5, np.shape(scores)[1])),
    "mean_class": 100 * mean_class_accuracy(scores, labels),
  }


def _ranks(scores, labels):
  """Place of each label among its video's scores: 0 for the highest, `(N,)`."""
  scores, labels = np.asarray(scores), np.asarray(labels)
  num_videos, num_classes = scores.shape
  if labels.shape != (num_videos,):
    raise ValueError(f"{num_videos} videos have scores, but labels have shape {labels.shape}")
  if not num_videos:
    raise ValueError("no video to measure the accuracy of")
  wrong = labels[(labels < 0) | (labels >= num_classes)]
  if wrong.size:
    raise ValueError(
      f"{wrong.size} of {num_videos} labels are not in [0, {num_classes}), the first is "
      f"{wrong[0]} (-1 means a video without an answer, as in a test set)"
    )
  if np.isnan(scores).any():
    raise ValueError(f"scores of {np.isnan(scores).any(axis=1).sum()} videos are NaN")
  own = np.take_along_axis(scores, labels[:, None], axis=1)
  before = np.arange(num_classes)[None] < labels[:, None]
  return np.sum((scores > own) | ((scores == own) & before), axis=1)
