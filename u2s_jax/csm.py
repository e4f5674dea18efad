"""The category similarity matrix (CSM): which classes a trained network confuses (section III.A).

`count_zeros`, `channel_sparsity` and `compute_selection` are JAX functions that run on the device.
All other functions run on the host, in NumPy and float64.

The computation, for batches of features after the last ReLU:

  zeros, samples = add_by_class of count_zeros(features), and of ones, over the batches
  sparsity = class_sparsity(zeros, samples * T * H * W)
  similarity = similarity_matrix(sparsity)
  alpha = threshold(similarity, confusing_count(top_n_accuracy, target))
  csm = binarize(similarity, alpha)
"""

from numbers import Real
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Num

DISTANCES = ("cosine", "euclidean")
SELECTIONS = ("confusing", "own", "soft")
GUIDES = ("prediction", "label")


class CategorySimilarity(flax.struct.PyTreeNode):
  """The category similarity matrix and the quantities it is computed from.

  Fields have a tree type because they may hold shapes or shardings instead of arrays.

  Attributes:
    matrix: the CSM (m, m), binary, unit diagonal; column i marks the confusion set of class i.
    similarity: (m, m), Eq. 2, in [0, 1].
    topn_accuracy: top-1 to top-m accuracy of the one-pass model (m,), fractions.
    alpha: the threshold, a scalar.
    n: the target number N of confusing classes, a scalar; 0 before the CSM is computed.
  """

  matrix: Any
  similarity: Any
  topn_accuracy: Any
  alpha: Any
  n: Any


def make_identity_similarity(num_classes: int) -> CategorySimilarity:
  """Returns the placeholder before the CSM is computed: no class is confused with another.

  Example:
    >>> make_identity_similarity(2).matrix.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  return CategorySimilarity(
    matrix=jnp.eye(num_classes),
    similarity=jnp.eye(num_classes),
    topn_accuracy=jnp.zeros(num_classes),
    alpha=jnp.ones(()),
    n=jnp.zeros((), jnp.int32),
  )


def channel_sparsity(features: Float[Array, "n t h w c"]) -> Float[Array, "n c"]:
  """Computes the fraction of zero responses of each channel after a ReLU, Eq. 1, in float32.

  Example:
    >>> features = jnp.array([0.0, 2.0, 0.0, 3.0]).reshape(1, 1, 2, 2, 1)
    >>> channel_sparsity(features).tolist()
    [[0.5]]
  """
  return count_zeros(features) / np.float32(np.prod(features.shape[1:4]))


def count_zeros(features: Float[Array, "n t h w c"]) -> Integer[Array, "n c"]:
  """Counts the zero responses of each clip and channel, from which Eq. 1 is averaged by class.

  The counts are int32: T * H * W must be below 2**31.

  Example:
    >>> count_zeros(jnp.array([0.0, 2.0, 0.0, 3.0]).reshape(1, 1, 2, 2, 1)).tolist()
    [[2]]
  """
  # XLA fuses comparison and reduction, so no integer copy of the features is ever stored.
  return jnp.sum(features == 0, axis=(1, 2, 3), dtype=jnp.int32)


def add_by_class(
  sums: Integer[np.ndarray, "m ..."] | None,
  values: Integer[ArrayLike, "n ..."],
  labels: Integer[np.ndarray, " n"],
  valid: Bool[np.ndarray, " n"],
  num_classes: int,
) -> Integer[np.ndarray, "m ..."]:
  """Adds the integers of each clip to the sums of its class, on the host.

  The sums are exact for any order of batches and any number of clips, devices and hosts.

  Args:
    sums: Result of the previous call, int64, updated in place; None starts from 0.
    values: One entry or row per clip, such as `count_zeros`.
    labels: Class indices; a clip whose label is outside [0, num_classes) is not counted.
    valid: False for clips that pad the batch.

  Example:
    >>> labels, valid = np.array([1, 1, 0]), np.array([True, True, False])
    >>> add_by_class(None, np.array([[1, 0], [2, 1], [5, 5]]), labels, valid, 2).tolist()
    [[0, 0], [3, 1]]
  """
  values = np.asarray(values)
  if sums is None:
    # On a device JAX computes in int32: a sum of zero responses would wrap after
    # 2**31 / (T * H * W) clips of a class, 2.4 million at the paper's size.
    sums = np.zeros((num_classes, *values.shape[1:]), np.int64)
  counted = valid & (labels >= 0) & (labels < num_classes)
  np.add.at(sums, labels[counted], values[counted])
  return sums


def class_sparsity(
  sums: Num[ArrayLike, "m c"], counts: Num[ArrayLike, " m"]
) -> Float[np.ndarray, "m c"]:
  """Computes the mean channel sparsity of each class, the vectors Xi_m of section III.A.

  Args:
    sums: Zero responses (or sparsities) summed over each class's samples.
    counts: Number of all responses (or of samples) of each class.

  Raises:
    ValueError: If a class has no sample; the message lists the first such classes.

  Example:
    >>> class_sparsity(np.array([[1.0, 0.0], [1.5, 3.0]]), np.array([2, 3])).tolist()
    [[0.5, 0.0], [0.5, 1.0]]
  """
  sums, counts = np.asarray(sums, np.float64), np.asarray(counts)
  missing = np.flatnonzero(counts <= 0)
  if missing.size:
    names = ", ".join(map(str, missing[:5])) + (", ..." if missing.size > 5 else "")
    raise ValueError(
      f"counts: {missing.size} of {counts.size} classes have no sample (class index {names});"
      " sparsity requires at least one sample per class"
    )
  return sums / counts[:, None]


def similarity_matrix(
  sparsity: Float[ArrayLike, "m c"], distance: str = "cosine"
) -> Float[np.ndarray, "m m"]:
  """Computes the similarity of every pair of classes, Eq. 2: s = 1 - f_dist(Xi_i, Xi_j).

  Args:
    sparsity: Channel sparsity of each class, in [0, 1].
    distance: `'cosine'`, f_dist = (1 - cos) / 2, or `'euclidean'`, f_dist = l2 / sqrt(C).

  Returns:
    float64 in [0, 1], symmetric, diagonal exactly 1. With the cosine distance a zero vector has
    cos = 0, hence similarity 0.5, with every other class.

  Raises:
    ValueError: If `distance` is unknown.

  Example:
    >>> similarity_matrix(np.array([[1.0, 0.0], [0.0, 1.0]])).tolist()
    [[1.0, 0.5], [0.5, 1.0]]
    >>> similarity_matrix(np.array([[0.0, 0.0], [1.0, 1.0]]), "euclidean").tolist()
    [[1.0, 0.0], [0.0, 1.0]]
  """
  sparsity = np.asarray(sparsity, np.float64)
  if distance == "cosine":
    norm = np.linalg.norm(sparsity, axis=1, keepdims=True)
    unit = sparsity / np.where(norm > 0, norm, 1)
    similarity = (1 + unit @ unit.T) / 2
  elif distance == "euclidean":
    # Row by row: an (M, M, C) array takes half a GiB for 174 classes, and the expansion
    # |a|^2 + |b|^2 - 2ab suffers from cancellation.
    length = np.stack([np.linalg.norm(sparsity - row, axis=1) for row in sparsity])
    similarity = 1 - length / np.sqrt(sparsity.shape[1])
  else:
    raise ValueError(f"distance: {distance!r} is not one of {', '.join(DISTANCES)}")
  similarity = np.clip((similarity + similarity.T) / 2, 0, 1)
  # The last bits depend on the summation order: rounded, values that are equal in exact arithmetic
  # compare equal, which `threshold` relies on.
  similarity = np.round(similarity, 12)
  np.fill_diagonal(similarity, 1)
  return similarity


def confusing_count(topn_accuracy: Float[ArrayLike, " m"], target: Real) -> int:
  """Returns the number N of confusing classes, the smallest N with top-N accuracy >= target.

  Section IV.B of the paper.

  Args:
    topn_accuracy: Top-1 to top-M accuracy, fractions in [0, 1].
    target: Accuracy in (0, 1]. The paper uses 0.85 (Something-Something V2), 0.95 (UCF101,
      Stanford Cars) and 0.9 (HMDB51, Stanford Dogs).

  Raises:
    ValueError: If `target` or an accuracy is out of range, or no accuracy reaches `target`.

  Example:
    >>> confusing_count(np.array([0.5, 0.8, 0.9, 1.0]), 0.85)
    3
  """
  curve = np.asarray(topn_accuracy)
  if not 0 < target <= 1:
    raise ValueError(f"target: {target} must be a fraction in (0, 1]")
  if not np.all((curve >= 0) & (curve <= 1)):
    raise ValueError(
      f"topn_accuracy: values from {curve.min()} to {curve.max()} must be fractions in [0, 1], not"
      " percent"
    )
  # NumPy converts a Python float to the curve's dtype: in float32, 0.95 is below float64's 0.95.
  sufficient = np.flatnonzero(curve >= float(target))
  if not sufficient.size:
    best = f"its maximum is {curve.max()}" if curve.size else "it is empty"
    raise ValueError(
      f"topn_accuracy: never reaches the target {target} ({best}); choose a lower target"
    )
  return int(sufficient[0]) + 1


def threshold(similarity: Float[ArrayLike, "m m"], average_confusing: Real) -> float:
  """Returns the threshold alpha that selects `average_confusing` classes per class on average.

  The mean number of off-diagonal entries > alpha per class is as close as possible to
  `average_confusing`; of two equally close thresholds the one that selects fewer entries is
  returned. Equal entries are selected together, so with many ties the mean can differ from
  `average_confusing` considerably: report `(binarize(similarity, alpha).sum() - M) / M` as well.

  Args:
    similarity: In [0, 1].
    average_confusing: N >= 0: 0 selects no entry, M - 1 or more selects all.

  Returns:
    alpha, the midpoint between the two adjacent values. The value next to the highest one is 1,
    the value next to the lowest one is 0; if the lowest one is 0, alpha = -1 selects it.

  Raises:
    ValueError: If `average_confusing` is negative or NaN.

  Example:
    >>> similarity = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]])
    >>> round(threshold(similarity, 2 / 3), 2)
    0.65
  """
  if not average_confusing >= 0:
    raise ValueError(f"average_confusing: {average_confusing} must be >= 0")
  similarity = np.asarray(similarity, np.float64)
  size = len(similarity)
  values, repeats = np.unique(similarity[~np.eye(size, dtype=bool)], return_counts=True)
  # Entry k: how many entries a threshold below the k highest distinct values selects.
  selected = np.append(0, np.cumsum(repeats[::-1]))
  # argmin returns the first minimum, hence the smaller set.
  cut = len(values) - int(np.argmin(np.abs(selected - float(average_confusing) * size)))
  low = values[cut - 1] if cut > 0 else 0.0
  high = values[cut] if cut < len(values) else 1.0
  if low == high == 0:
    return -1.0
  alpha = low + (high - low) / 2
  # Two adjacent floats have no midpoint; the lower one separates them as well.
  return float(alpha if alpha < high else low)


def binarize(similarity: Float[ArrayLike, "m m"], alpha: Real) -> Float[np.ndarray, "m m"]:
  """Returns the CSM: 1 if two classes are confusing (similarity > alpha) or the same, else 0.

  Example:
    >>> binarize(np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]]), 0.65).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
  """
  # In float64, because alpha in float32 may round up to a value that must exceed it.
  csm = (np.asarray(similarity, np.float64) > float(alpha)).astype(np.float32)
  np.fill_diagonal(csm, 1)
  return csm


def compute_selection(
  matrix: Num[Array, "m m"], similarity: Float[Array, "m m"], kind: str
) -> Num[Array, "m m"]:
  """Returns the weights that combine the masks, one column per guiding class; runs on the device.

  Args:
    kind: `"confusing"`, the binary CSM (the paper); `"own"`, the guiding class's mask alone (Table
      III b); `"soft"`, the similarities (Table III c), min-max normalised over the off-diagonal
      entries; if these are all equal, the same as `"own"`.

  Example:
    >>> similarity = jnp.array([[1.0, 0.9, 0.8], [0.9, 1.0, 0.85], [0.8, 0.85, 1.0]])
    >>> compute_selection(jnp.eye(3), similarity, "soft").round(2).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.5, 1.0]]
  """
  own = jnp.eye(len(matrix))
  if kind == "own":
    return own
  if kind == "confusing":
    return matrix
  # Normalised, because similarities of non-negative sparsities are all close to 1 and would weight
  # all classes nearly the same. Adding to the diagonal excludes it from minimum and maximum.
  low = jnp.min(similarity + own)
  span = jnp.max(similarity - 2 * own) - low
  return jnp.where(own == 1, 1.0, (similarity - low) / jnp.where(span > 0, span, 1.0))


def confusing_classes(csm: Num[ArrayLike, "m m"]) -> Integer[np.ndarray, "m k"]:
  """Lists the classes that each class is confused with: the CSM's positive off-diagonal entries.

  Rows are int32, in ascending order and padded with -1 to the size of the largest confusion set.

  Example:
    >>> confusing_classes(np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1]])).tolist()
    [[1, 2], [0, -1], [0, -1]]
  """
  positive = np.asarray(csm) > 0
  np.fill_diagonal(positive, False)
  counts = positive.sum(axis=1)
  # nonzero is in row-major order, so an entry's column in the table is its index minus that of the
  # first entry of its row.
  row, column = np.nonzero(positive)
  table = np.full((len(positive), counts.max(initial=0)), -1, np.int32)
  table[row, np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)] = column
  return table


def find_most_similar(
  similarity: Float[ArrayLike, "m m"], count: int
) -> list[tuple[int, int, float]]:
  """Returns at most `count` pairs of classes with the highest similarity, (i, j, similarity).

  i < j; in descending order of similarity, ties in order of (i, j).

  Example:
    >>> find_most_similar(np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]]), 1)
    [(0, 1, 0.9)]
  """
  values = np.asarray(similarity)
  first, second = np.triu_indices(len(values), k=1)
  order = np.argsort(-values[first, second], kind="stable")[:count]
  return [(int(first[k]), int(second[k]), float(values[first[k], second[k]])) for k in order]


def mean_similarity(similarity: Float[ArrayLike, "m m"]) -> Float[np.ndarray, " m"]:
  """Computes the similarity of each class to all others, Eq. 7: min-max norm of sum_j (S - I).

  0 for the most distinct class, 1 for the most confusing. All 0 if the classes do not differ, as
  with a single class.

  Example:
    >>> similarity = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]])
    >>> mean_similarity(similarity).round(2).tolist()
    [0.71, 1.0, 0.0]
  """
  off_diagonal = np.array(similarity, np.float64)
  np.fill_diagonal(off_diagonal, 0)
  sums = off_diagonal.sum(axis=1)
  sums = sums - sums.min()
  # Sums that differ by rounding alone count as equal: the norm would amplify rounding to [0, 1].
  return sums / sums.max() if sums.max() > 1e-9 * len(sums) else np.zeros_like(sums)
