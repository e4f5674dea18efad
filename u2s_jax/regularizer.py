"""Category regularization: pushes the mask weights of confusing classes apart (section III.B).

`category_regularizer` is the definition; training uses `pairs_regularizer`, which is faster.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Num

BLOCK = 2**22  # most elements gathered at once; a single class may take more


def weight_similarity(kernel: Float[ArrayLike, "c m"]) -> Float[Array, "m m"]:
  """Computes the similarity of the mask weights of all pairs of classes, Eq. 4: s = (1 + cos) / 2.

  0 for opposite, 0.5 for orthogonal, 1 for parallel columns w_i of the kernel. A zero column (norm
  below 1e-12) has cos = 0 with every column, including itself. The gradient is finite everywhere.

  Example:
    >>> weight_similarity(jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]
  """
  unit = _normalize_columns(kernel)
  return _rescale_cosine(jnp.matmul(unit.T, unit, precision=jax.lax.Precision.HIGHEST))


def _normalize_columns(kernel):
  """Scales columns to norm 1; returns columns of norm below 1e-12 unchanged."""
  kernel = jnp.asarray(kernel, jnp.float32)
  square = jnp.sum(kernel**2, axis=0, keepdims=True)
  # The zero is replaced before the root, not after it: the root's gradient at 0 is infinite, and
  # infinity times the zero gradient of the branch not selected is NaN.
  return kernel * jax.lax.rsqrt(jnp.where(square > 1e-24, square, 1.0))


def _rescale_cosine(cosine):
  return jnp.clip((1 + cosine) / 2, 0, 1)


def category_regularizer(
  kernel: Float[ArrayLike, "c m"], csm: Num[ArrayLike, "m m"]
) -> Float[Array, ""]:
  """Computes the mean weight similarity of the pairs of confusing classes, w_regular of Eq. 5-6.

  In [0, 1], 0 if no class has a confusing class. The paper weights it by lambda = 0.5.

  Args:
    kernel: weights of the mask network.
    csm: category similarity matrix. Every positive off-diagonal entry counts as one pair, so a soft
      CSM selects all pairs.

  Example:
    >>> csm = jnp.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    >>> float(category_regularizer(jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), csm))
    0.0
  """
  csm = jnp.asarray(csm)
  pairs = (csm > 0) & ~jnp.eye(csm.shape[0], dtype=bool)
  total = jnp.sum(jnp.where(pairs, weight_similarity(kernel), 0))
  return total / jnp.maximum(jnp.sum(pairs), 1)


def pairs_regularizer(
  kernel: Float[ArrayLike, "c m"], pairs: Integer[ArrayLike, "m k"]
) -> Float[Array, ""]:
  """Computes `category_regularizer` from a list of pairs, in O(M K C) instead of O(M^2 C).

  Args:
    kernel: weights of the mask network.
    pairs: `csm.confusing_classes`: each class's confusing classes, padded with -1.

  Example:
    >>> pairs = jnp.array([[2], [-1], [0]])
    >>> float(pairs_regularizer(jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), pairs))
    0.0
  """
  pairs = jnp.asarray(pairs)
  rows = _normalize_columns(kernel).T
  (classes, width), size = pairs.shape, rows.shape[1]
  if not width:
    return jnp.zeros(())

  # Rematerialized and in blocks of classes, because the gathered columns of all pairs take K times
  # the memory of the kernel, and the backward pass would keep them.
  @jax.checkpoint
  def sum_similarities(operands):
    row, others = operands
    cosine = jnp.matmul(rows[others], row, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(jnp.where(others >= 0, _rescale_cosine(cosine), 0))

  block = max(1, min(classes, BLOCK // (width * size)))
  sums = jax.lax.map(sum_similarities, (rows, pairs), batch_size=block)
  return jnp.sum(sums) / jnp.maximum(jnp.sum(pairs >= 0), 1)
