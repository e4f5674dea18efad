"""The terms of the paper's Eq. 3."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer


def cross_entropy(
  logits: Float[Array, "n m"], labels: Integer[Array, " n"], mask: Bool[Array, " n"]
) -> Float[Array, ""]:
  """Mean softmax cross-entropy over the examples that `mask` marks as real; 0 where it marks none.

  Args:
    logits: one row an example.
    labels: class indices in [0, m); any value where `mask` is False.
    mask: False for padding.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(mask, labels, 0))
  return jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
