"""The terms of the paper's Eq. 3."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Integer


def cross_entropy(
  logits: Float[Array, "n m"],
  labels: Integer[Array, " n"],
  valid: Bool[Array, " n"],
  smoothing: float = 0.0,
) -> Float[Array, ""]:
  """Returns the mean softmax cross-entropy over the examples that are `valid`; 0 where none is.

  Args:
    logits: one row an example.
    labels: class indices in [0, m); any value where `valid` is False.
    valid: False for padding.
    smoothing: share of the label, [0, 1), that goes to all classes alike (paper: 0).
  """
  labels = jnp.where(valid, labels, 0)
  if smoothing:
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    losses = optax.softmax_cross_entropy(logits, smooth)
  else:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.sum(jnp.where(valid, losses, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
