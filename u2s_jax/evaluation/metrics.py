"""Classification accuracy, in NumPy on the host, from scores and labels.

Every function takes scores `(N, M)`, logits or probabilities, and labels `(N,)` in [0, M), and
raises ValueError if there is no video, lengths differ, a label is outside [0, M) (such as the -1 of
a test set without labels), or a score is NaN.

Among equal scores the lower class index is ranked first. So a network that gives all classes the
same score is as accurate as always guessing class 0.
"""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Integer


def top_k_accuracy(
  scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"], k: int
) -> float:
  """Returns the fraction of videos, in [0, 1], whose label is among the `k` highest scores.

  Raises:
    ValueError: if `k` is not in [1, M]; see also the module's docstring.

  Example:
    >>> top_k_accuracy(np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), np.array([0, 1]), 1)
    0.5
  """
  ranks = _ranks(scores, labels)
  if not 1 <= k <= np.shape(scores)[1]:
    raise ValueError(f"k: {k} must be in [1, {np.shape(scores)[1]}], the number of classes")
  return float(np.mean(ranks < k))


def chance_level(labels: Integer[np.ndarray, " n"]) -> float:
  """Returns the accuracy, in [0, 1], of always guessing the most frequent class of `labels`.

  Example:
    >>> chance_level(np.array([0, 1, 1, 2]))
    0.5
  """
  return float(np.bincount(labels).max() / len(labels))


def wilson_interval(accuracy: float, count: int) -> tuple[float, float]:
  """Returns the 95 % Wilson score interval of an accuracy in [0, 1] of `count` videos.

  Example:
    >>> [round(bound, 3) for bound in wilson_interval(0.5, 10)]
    [0.237, 0.763]
  """
  from scipy.stats import binomtest  # takes a second, which a prediction must not pay

  interval = binomtest(round(accuracy * count), count).proportion_ci(method="wilson")
  return float(interval.low), float(interval.high)


def bootstrap_difference(
  hits: Bool[np.ndarray, " n"], base_hits: Bool[np.ndarray, " n"]
) -> tuple[float, float]:
  """Returns the 95 % interval of the difference of two accuracies on the same videos.

  A paired bootstrap over the videos (percentiles, 9,999 draws with a fixed seed).

  Args:
    hits: whether a prediction is correct, for each video.
    base_hits: the same of the prediction that is subtracted.

  Example:
    >>> bootstrap_difference(np.array([True, True]), np.array([False, False]))
    (1.0, 1.0)
  """
  from scipy.stats import bootstrap  # see `wilson_interval`

  differences = hits.astype(float) - base_hits
  if len(set(differences.tolist())) == 1:  # no draw differs from another
    return (float(differences[0]),) * 2
  interval = bootstrap((differences,), np.mean, method="percentile", rng=0).confidence_interval
  return float(interval.low), float(interval.high)


def mean_class_accuracy(scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"]) -> float:
  """Returns the mean top-1 accuracy, in [0, 1], over the classes that occur in `labels`.

  Example:
    >>> mean_class_accuracy(np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]), np.array([0, 0, 1]))
    0.5
  """
  return float(np.nanmean(per_class_accuracy(scores, labels)[0]))


def per_class_accuracy(
  scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"]
) -> tuple[Float[np.ndarray, " m"], Integer[np.ndarray, " m"]]:
  """Returns the top-1 accuracy and the number of videos of each class.

  Returns:
    `(M,)` float64 fractions in [0, 1], NaN for a class without a video, and `(M,)` counts.

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
  """Returns top-1, top-2, ... top-M accuracy, from which the number of confusing classes follows.

  Returns:
    `(M,)` float64 fractions in [0, 1], non-decreasing; the last is 1.

  Example:
    >>> top_n_curve(np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), np.array([0, 1])).tolist()
    [0.5, 1.0, 1.0]
  """
  ranks = _ranks(scores, labels)
  return np.cumsum(np.bincount(ranks, minlength=np.shape(scores)[1])) / len(ranks)


def summarize(
  scores: Float[ArrayLike, "n m"], labels: Integer[ArrayLike, " n"]
) -> dict[str, float]:
  """Returns `{"top1", "top5", "mean_class"}` accuracy in percent; top5 is 100 if M < 5.

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
  """Returns the rank `(N,)` of each label among its video's scores, 0 for the highest."""
  scores, labels = np.asarray(scores), np.asarray(labels)
  num_videos, num_classes = scores.shape
  if labels.shape != (num_videos,):
    raise ValueError(f"labels: shape {labels.shape} must be ({num_videos},), one for each video")
  if not num_videos:
    raise ValueError("scores: no video; accuracy requires at least one")
  wrong = labels[(labels < 0) | (labels >= num_classes)]
  if wrong.size:
    raise ValueError(
      f"labels: {wrong.size} of {num_videos} are not in [0, {num_classes}), the first is {wrong[0]}"
      " (-1 means unknown, as in a test set)"
    )
  if np.isnan(scores).any():
    raise ValueError(f"scores: NaN for {np.isnan(scores).any(axis=1).sum()} videos")
  own = np.take_along_axis(scores, labels[:, None], axis=1)
  is_lower_class = np.arange(num_classes)[None] < labels[:, None]
  return np.sum((scores > own) | ((scores == own) & is_lower_class), axis=1)
