"""The category similarity matrix (CSM): which classes a trained network confuses (section III.A).

`zero_counts` runs on the device, in the pass that measures sparsity, and `selection` in every
forward pass; `channel_sparsity` is Eq. 1 by itself. The others run on the host, in NumPy:
`add_by_class` for every batch of that pass, the rest once, in float64.

The whole chain, for batches of features after the last ReLU:

  zeros, samples = add_by_class of zero_counts(features), and of ones, over the batches
  sparsity = class_sparsity(zeros, samples * T * H * W)
  similarity = similarity_matrix(sparsity)
  alpha = threshold(similarity, confusing_count(top_n_accuracy, target))
  csm = binarize(similarity, alpha)
"""

from numbers import Real

import flax.struct
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer, Num, PyTree

DISTANCES = ("cosine", "euclidean")
SELECTIONS = ("confusing", "own", "soft")
GUIDES = ("prediction", "label")


class CategorySimilarity(flax.struct.PyTreeNode):
  """The category similarity matrix and what it was made from.

  The fields are trees, because JAX also fills them with shapes and shardings.

  Attributes:
    matrix: the CSM (m, m), {0, 1} with diagonal 1: the 1s of column i are what class i is confused
      with.
    similarity: Eq. 2 (m, m), in [0, 1].
    topn_accuracy: of the one-pass model (m,), fractions for N = 1..m.
    alpha: the threshold, a scalar.
    n: the number of confusing classes aimed at, a scalar; 0 before the CSM is known.
  """

  matrix: PyTree
  similarity: PyTree
  topn_accuracy: PyTree
  alpha: PyTree
  n: PyTree


def no_similarity(num_classes: int) -> CategorySimilarity:
  """Returns what stands in for a CSM before it is known: no class is confused with another.

  Example:
    >>> no_similarity(2).matrix.tolist()
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
  """Share of a channel's responses that are zero, Eq. 1: 1 - share of nonzero responses.

  Args:
    features: Responses after a ReLU, of any float type, `(N, T, H, W, C)`.

  Returns:
    `(N, C)` float32 in [0, 1]: 0 where a channel always responds, 1 where it never does.

  Example:
    >>> features = jnp.array([0.0, 2.0, 0.0, 3.0]).reshape(1, 1, 2, 2, 1)
    >>> channel_sparsity(features).tolist()
    [[0.5]]
  """
  return zero_counts(features) / np.float32(np.prod(features.shape[1:4]))


def zero_counts(features: Float[Array, "n t h w c"]) -> Integer[Array, "n c"]:
  """Zero responses of each clip and channel: what Eq. 1's class means are made of.

  Args:
    features: Responses after a ReLU, of any float type, `(N, T, H, W, C)`.

  Returns:
    `(N, C)` int32, at most T * H * W, which must be below 2**31.

  Example:
    >>> zero_counts(jnp.array([0.0, 2.0, 0.0, 3.0]).reshape(1, 1, 2, 2, 1)).tolist()
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
  """Adds integers of each clip to the sum of its class, on the host.

  int64: exact for any order of batches and any number of clips, devices and hosts. On a device,
  where JAX computes in int32, a sum of zero responses would wrap after 2**31 / (T * H * W) clips of
  a class, 2.4 million at the paper's size.

  Args:
    sums: What the last call returned, which is changed in place; None: begin with 0.
    values: Of a batch, such as `zero_counts`.
    labels: Class indices; a clip whose label is outside [0, num_classes) is not counted.
    valid: False for the clips that only pad the batch.
    num_classes: M.

  Returns:
    The sums, int64.

  Example:
    >>> labels, valid = np.array([1, 1, 0]), np.array([True, True, False])
    >>> add_by_class(None, np.array([[1, 0], [2, 1], [5, 5]]), labels, valid, 2).tolist()
    [[0, 0], [3, 1]]
  """
  values = np.asarray(values)
  if sums is None:
    sums = np.zeros((num_classes, *values.shape[1:]), np.int64)
  counted = valid & (labels >= 0) & (labels < num_classes)
  np.add.at(sums, labels[counted], values[counted])
  return sums


def class_sparsity(
  sums: Num[ArrayLike, "m c"], counts: Num[ArrayLike, " m"]
) -> Float[np.ndarray, "m c"]:
  """Mean channel sparsity of each class, the vectors Xi_m of section III.A.

  Args:
    sums: `(M, C)` zero responses (or sparsities) summed over each class's samples.
    counts: `(M,)` what they are of: responses (or samples) of each class.

  Returns:
    `(M, C)` float64 in [0, 1].

  Raises:
    ValueError: A class has no sample; the message names the first such classes.

  Example:
    >>> class_sparsity(np.array([[1.0, 0.0], [1.5, 3.0]]), np.array([2, 3])).tolist()
    [[0.5, 0.0], [0.5, 1.0]]
  """
  sums, counts = np.asarray(sums, np.float64), np.asarray(counts)
  missing = np.flatnonzero(counts <= 0)
  if missing.size:
    names = ", ".join(map(str, missing[:5])) + (", ..." if missing.size > 5 else "")
    raise ValueError(
      f"{missing.size} of {counts.size} classes have no sample to measure their sparsity on: "
      f"class index {names}"
    )
  return sums / counts[:, None]


def similarity_matrix(
  sparsity: Float[ArrayLike, "m c"], distance: str = "cosine"
) -> Float[np.ndarray, "m m"]:
  """Similarity of every pair of classes, Eq. 2: s = 1 - f_dist(Xi_i, Xi_j).

  Args:
    sparsity: `(M, C)` channel sparsity of each class, in [0, 1].
    distance: `'cosine'`, f_dist = (1 - cos) / 2, or `'euclidean'`, f_dist = l2 / sqrt(C).

  Returns:
    `(M, M)` float64 in [0, 1], symmetric, diagonal exactly 1. By cosine a zero vector has
    cos = 0, hence similarity 0.5, with every other class.

  Raises:
    ValueError: `distance` is neither of the two.

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
    # Row by row: (M, M, C) at once is half a GiB for 174 classes, and |a|^2 + |b|^2 - 2ab cancels.
    length = np.stack([np.linalg.norm(sparsity - row, axis=1) for row in sparsity])
    similarity = 1 - length / np.sqrt(sparsity.shape[1])
  else:
    raise ValueError(f"distance must be 'cosine' or 'euclidean', not {distance!r}")
  similarity = np.clip((similarity + similarity.T) / 2, 0, 1)
  # The last bits depend on the order of the additions: without them, equal values are equal.
  similarity = np.round(similarity, 12)
  np.fill_diagonal(similarity, 1)
  return similarity


def confusing_count(topn_accuracy: Float[ArrayLike, " m"], target: Real) -> int:
  """Number N of confusing classes: the smallest N with top-N accuracy >= target (section IV.B).

  Args:
    topn_accuracy: `(M,)` top-1 to top-M accuracy, fractions in [0, 1].
    target: Accuracy to reach, in (0, 1]. The paper: 0.85 (Something-Something V2), 0.95 (UCF101,
      Stanford Cars), 0.9 (HMDB51, Stanford Dogs).

  Returns:
    N in [1, M].

  Raises:
    ValueError: `target` or an accuracy is no such fraction, or the curve never reaches `target`.

  Example:
    >>> confusing_count(np.array([0.5, 0.8, 0.9, 1.0]), 0.85)
    3
  """
  curve = np.asarray(topn_accuracy)
  if not 0 < target <= 1:
    raise ValueError(f"target must be a fraction in (0, 1], not {target}")
  if not np.all((curve >= 0) & (curve <= 1)):
    raise ValueError("topn_accuracy must be fractions in [0, 1], not percent")
  # A Python float takes the curve's own precision: float32's 0.95 is below float64's.
  reached = np.flatnonzero(curve >= float(target))
  if not reached.size:
    best = f"its highest value is {curve.max()}" if curve.size else "it is empty"
    raise ValueError(f"top-N accuracy never reaches the target {target}: {best}")
  return int(reached[0]) + 1


def threshold(similarity: Float[ArrayLike, "m m"], average_confusing: Real) -> float:
  """Threshold alpha by which a class has `average_confusing` confusing classes on average.

  Chosen among all cuts between two distinct values: the mean number of off-diagonal entries
  > alpha per class is as close as possible to `average_confusing`. Equal entries, the two of a
  symmetric pair among them, enter or stay out together. Of two equally close cuts the one with
  fewer entries is taken. Where values are equal the mean may miss `average_confusing` by much:
  report `(binarize(similarity, alpha).sum() - M) / M` beside it.

  Args:
    similarity: `(M, M)` in [0, 1].
    average_confusing: N >= 0: 0 selects no entry, M - 1 or more selects all.

  Returns:
    alpha, midway between the two neighbouring values. Above the highest value the neighbour is
    1, below the lowest it is 0; a lowest value of 0 is selected by alpha = -1.

  Raises:
    ValueError: `average_confusing` is negative or not a number.

  Example:
    >>> similarity = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]])
    >>> round(threshold(similarity, 2 / 3), 2)
    0.65
  """
  if not average_confusing >= 0:
    raise ValueError(f"average_confusing must be >= 0, not {average_confusing}")
  similarity = np.asarray(similarity, np.float64)
  size = len(similarity)
  values, repeats = np.unique(similarity[~np.eye(size, dtype=bool)], return_counts=True)
  selected = np.append(0, np.cumsum(repeats[::-1]))  # by a cut below the 0, 1, 2, ... highest
  # argmin takes the first of equals, hence the smaller set.
  cut = len(values) - int(np.argmin(np.abs(selected - float(average_confusing) * size)))
  low = values[cut - 1] if cut > 0 else 0.0
  high = values[cut] if cut < len(values) else 1.0
  if low == high == 0:
    return -1.0
  alpha = low + (high - low) / 2
  # Between two neighbouring floats there is no middle: the lower one separates them as well.
  return float(alpha if alpha < high else low)


def binarize(similarity: Float[ArrayLike, "m m"], alpha: Real) -> Float[np.ndarray, "m m"]:
  """The CSM: 1 where two classes are confusing (similarity > alpha) and on the diagonal, else 0.

  Args:
    similarity: `(M, M)` in [0, 1], symmetric.
    alpha: What `threshold` returned.

  Returns:
    `(M, M)` float32 of {0, 1}, symmetric as `similarity` is.

  Example:
    >>> binarize(np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]]), 0.65).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
  """
  # In float64: a float32 alpha may round up to the value that it shall select.
  csm = (np.asarray(similarity, np.float64) > float(alpha)).astype(np.float32)
  np.fill_diagonal(csm, 1)
  return csm


def selection(
  matrix: Num[Array, "m m"], similarity: Float[Array, "m m"], kind: str
) -> Num[Array, "m m"]:
  """Weights by which masks are combined, a column for each guiding class; on the device.

  Args:
    matrix: The binary CSM.
    similarity: Eq. 2.
    kind: `"confusing"`, the binary CSM (the paper); `"own"`, the guiding class's mask alone (Table
      III b); `"soft"`, the similarities (Table III c), min-max normalised over the entries off the
      diagonal: similarities of non-negative sparsities all lie near 1 and would weigh all classes
      alike. Where they do not differ at all, every class is its own.

  Returns:
    `(M, M)` in [0, 1] with a diagonal of 1.

  Example:
    >>> similarity = jnp.array([[1.0, 0.9, 0.8], [0.9, 1.0, 0.85], [0.8, 0.85, 1.0]])
    >>> selection(jnp.eye(3), similarity, "soft").round(2).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.5], [0.0, 0.5, 1.0]]
  """
  own = jnp.eye(len(matrix))
  if kind == "own":
    return own
  if kind == "confusing":
    return matrix
  low = jnp.min(similarity + own)
  span = jnp.max(similarity - 2 * own) - low
  return jnp.where(own == 1, 1.0, (similarity - low) / jnp.where(span > 0, span, 1.0))


def neighbours(csm: Num[ArrayLike, "m m"]) -> Integer[np.ndarray, "m k"]:
  """The classes that each class is confused with: the positives off the CSM's diagonal, by row.

  Args:
    csm: `(M, M)`.

  Returns:
    `(M, K)` int32, rising, -1 behind the last; K is the most that a class has.

  Example:
    >>> neighbours(np.array([[1, 1, 1], [1, 1, 0], [1, 0, 1]])).tolist()
    [[1, 2], [0, -1], [0, -1]]
  """
  positive = np.asarray(csm) > 0
  np.fill_diagonal(positive, False)
  counts = positive.sum(axis=1)
  row, column = np.nonzero(positive)
  table = np.full((len(positive), counts.max(initial=0)), -1, np.int32)
  table[row, np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)] = column
  return table


def most_similar(similarity: Float[ArrayLike, "m m"], count: int) -> list[tuple[int, int, float]]:
  """The pairs of classes with the highest similarity.

  Args:
    similarity: Symmetric `(M, M)`; the diagonal is left out.
    count: Pairs to return; all M (M - 1) / 2 where there are fewer.

  Returns:
    `(i, j, similarity)` with i < j, the highest first; of equal ones the lower classes first.

  Example:
    >>> most_similar(np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]]), 1)
    [(0, 1, 0.9)]
  """
  values = np.asarray(similarity)
  first, second = np.triu_indices(len(values), k=1)
  order = np.argsort(-values[first, second], kind="stable")[:count]
  return [(int(first[k]), int(second[k]), float(values[first[k], second[k]])) for k in order]


def mean_similarity(similarity: Float[ArrayLike, "m m"]) -> Float[np.ndarray, " m"]:
  """Similarity of each class with all others, Eq. 7: Norm(sum_j S - I), Norm being min-max.

  Args:
    similarity: `(M, M)` in [0, 1].

  Returns:
    `(M,)` float64 in [0, 1]: 0 for the most distinct class, 1 for the most confusing. All 0
    where the classes do not differ, as with a single class.

  Example:
    >>> similarity = np.array([[1.0, 0.9, 0.2], [0.9, 1.0, 0.4], [0.2, 0.4, 1.0]])
    >>> mean_similarity(similarity).round(2).tolist()
    [0.71, 1.0, 0.0]
  """
  off_diagonal = np.array(similarity, np.float64)
  np.fill_diagonal(off_diagonal, 0)
  sums = off_diagonal.sum(axis=1)
  sums = sums - sums.min()
  # Sums that differ by rounding alone are equal; the norm would blow the rounding up to [0, 1].
  return sums / sums.max() if sums.max() > 1e-9 * len(sums) else np.zeros_like(sums)
