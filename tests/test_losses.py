"""Cross-entropy by hand and with padding."""

import jax.numpy as jnp
import numpy as np

from u2s_jax import losses

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]]))
LABELS = jnp.array([0, 2, 1])


def test_mean_of_the_negative_log_probabilities():
  loss = losses.cross_entropy(LOGITS, LABELS, jnp.array([True, True, True]))
  np.testing.assert_allclose(loss, -np.log([0.5, 0.8, 0.6]).mean(), rtol=1e-6)


def test_padding_counts_for_nothing():
  logits = LOGITS.at[1].set(jnp.inf)
  loss = losses.cross_entropy(logits, jnp.array([0, -1, 1]), jnp.array([True, False, True]))
  np.testing.assert_allclose(loss, -np.log([0.5, 0.6]).mean(), rtol=1e-6)


def test_only_padding_is_zero():
  assert losses.cross_entropy(LOGITS, LABELS, jnp.zeros(3, bool)) == 0


def test_a_smoothed_label_is_a_mixture():
  loss = losses.cross_entropy(LOGITS[:1], LABELS[:1], jnp.array([True]), smoothing=0.3)
  # 0.7 of the label and 0.1 of every class: 0.8, 0.1, 0.1 of 0.5, 0.25, 0.25.
  np.testing.assert_allclose(loss, -(0.8 * np.log(0.5) + 0.2 * np.log(0.25)), rtol=1e-6)
