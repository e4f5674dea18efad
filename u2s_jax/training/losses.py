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
  """Returns the mean softmax cross-entropy of the examples that are `valid`; 0 if there are none.

  Args:
    logits: one row per example.
    labels: class indices in [0, m); ignored where `valid` is False.
    valid: False for padding.
    smoothing: label smoothing in [0, 1), see `optax.smooth_labels` (paper: 0).
  """
  # Padding may have the label -1, for which the loss would not be finite, nor its gradient.
  labels = jnp.where(valid, labels, 0)
  if smoothing:
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    losses = optax.softmax_cross_entropy(logits, smooth)
  else:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.sum(jnp.where(valid, losses, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
