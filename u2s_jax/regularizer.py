"""Category regularization: pushes the mask weights of confusing classes apart (section III.B).

`category_regularizer` is the definition; training computes `pairs_regularizer`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer, Num

BLOCK = 2**22  # numbers that are gathered at once, at least one class's


def weight_similarity(kernel: Float[ArrayLike, "c m"]) -> Float[Array, "m m"]:
  """Similarity of the mask weights of every pair of classes, Eq. 4: s = (1 + cos) / 2.

  Args:
    kernel: `(C, M)` weights of the mask network, a column w_i for each class.

  Returns:
    `(M, M)` float32 in [0, 1]; 0 for opposite, 0.5 for orthogonal, 1 for parallel columns. A zero
    column (norm below 1e-12) has cos = 0 with every column, itself too. The gradient is finite
    everywhere.

  Example:
    >>> weight_similarity(jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]])).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]
  """
  unit = _unit_columns(kernel)
  return _similarity(jnp.matmul(unit.T, unit, precision=jax.lax.Precision.HIGHEST))


def _unit_columns(kernel):
  """Columns of length 1, or 0."""
  kernel = jnp.asarray(kernel, jnp.float32)
  square = jnp.sum(kernel**2, axis=0, keepdims=True)
  # Replaced before the root, not after it: the root's gradient at 0 is infinite, and infinity
  # times the zero of an unselected branch is NaN.
  return kernel * jax.lax.rsqrt(jnp.where(square > 1e-24, square, 1.0))


def _similarity(cosine):
  return jnp.clip((1 + cosine) / 2, 0, 1)


def category_regularizer(
  kernel: Float[ArrayLike, "c m"], csm: Num[ArrayLike, "m m"]
) -> Float[Array, ""]:
  """Mean weight similarity over the pairs of confusing classes, w_regular of Eq. 5 and 6.

  Args:
    kernel: `(C, M)` weights of the mask network.
    csm: `(M, M)` category similarity matrix. Every positive entry off the diagonal counts as one
      pair, so a soft CSM selects all pairs.

  Returns:
    Scalar float32 in [0, 1], 0 where no class has a confusing class. The paper weighs it by
    lambda = 0.5.

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
  kernel: Float[ArrayLike, "c m"], neighbours: Integer[ArrayLike, "m k"]
) -> Float[Array, ""]:
  """`category_regularizer` in time that grows with the pairs, M K, in place of M^2.

  Block by block of classes, in forward and backward pass: the columns of all pairs at once would be
  K times the kernel.

  Args:
    kernel: `(C, M)` weights of the mask network.
    neighbours: `(M, K)` of `csm.neighbours`: the classes confused with each, -1 behind the last.

  Returns:
    Scalar float32 in [0, 1], 0 where there are no pairs.

  Example:
    >>> neighbours = jnp.array([[2], [-1], [0]])
    >>> float(pairs_regularizer(jnp.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), neighbours))
    0.0
  """
  neighbours = jnp.asarray(neighbours)
  rows = _unit_columns(kernel).T
  (classes, width), size = neighbours.shape, rows.shape[1]
  if not width:
    return jnp.zeros(())

  @jax.checkpoint
  def one_class(operands):
    row, others = operands
    cosine = jnp.matmul(rows[others], row, precision=jax.lax.Precision.HIGHEST)
    return jnp.sum(jnp.where(others >= 0, _similarity(cosine), 0))

  block = max(1, min(classes, BLOCK // (width * size)))
  sums = jax.lax.map(one_class, (rows, neighbours), batch_size=block)
  return jnp.sum(sums) / jnp.maximum(jnp.sum(neighbours >= 0), 1)
