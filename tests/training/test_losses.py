"""Tests of the cross-entropy: by hand, with padding and with label smoothing."""

import jax.numpy as jnp
import numpy as np

from u2s_jax.training import steps

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]]))
LABELS = jnp.array([0, 2, 1])


def test_equals_mean_of_negative_log_probabilities():
  loss = steps.cross_entropy(LOGITS, LABELS, jnp.array([True, True, True]))
  np.testing.assert_allclose(loss, -np.log([0.5, 0.8, 0.6]).mean(), rtol=1e-6)


def test_ignores_padding():
  logits = LOGITS.at[1].set(jnp.inf)
  loss = steps.cross_entropy(logits, jnp.array([0, -1, 1]), jnp.array([True, False, True]))
  np.testing.assert_allclose(loss, -np.log([0.5, 0.6]).mean(), rtol=1e-6)


def test_is_zero_for_padding_only():
  assert steps.cross_entropy(LOGITS, LABELS, jnp.zeros(3, bool)) == 0


def test_label_smoothing_mixes_label_and_uniform():
  loss = steps.cross_entropy(LOGITS[:1], LABELS[:1], jnp.array([True]), smoothing=0.3)
  # 0.7 for the label and 0.1 for every class: weights 0.8, 0.1, 0.1 of 0.5, 0.25, 0.25.
  np.testing.assert_allclose(loss, -(0.8 * np.log(0.5) + 0.2 * np.log(0.25)), rtol=1e-6)
