"""The terms of the paper's Eq. 3."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer


def cross_entropy(
  logits: Float[Array, "n m"], labels: Integer[Array, " n"], valid: Bool[Array, " n"]
) -> Float[Array, ""]:
  """Returns the mean softmax cross-entropy over the examples that are `valid`; 0 where none is.

  Args:
    logits: one row an example.
    labels: class indices in [0, m); any value where `valid` is False.
    valid: False for padding.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
  return jnp.sum(jnp.where(valid, losses, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
