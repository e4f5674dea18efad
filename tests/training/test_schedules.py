"""Tests of the learning rate of a stage."""

import numpy as np
import optax
import pytest

from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import Plateau, Stage, learning_rate


def stage(**fields):
  return Stage("universal", (), (), (), False, "random", 1e-3, 15.0, **fields)


@pytest.mark.parametrize(
  ("epoch", "rate"),
  [(0.0, 1e-3), (6.99, 1e-3), (7.0, 1e-4), (11.9, 1e-4), (12.0, 1e-5), (15.0, 1e-5)],
)
def test_decay_by_epochs(epoch, rate):
  decaying = stage(decay_epochs=(7.0, 12.0))
  assert learning_rate(decaying, epoch, Plateau()) == pytest.approx(rate)


def test_decay_on_a_plateau():
  plateau = Plateau()
  rates = []
  for error in [0.9, 0.8, 0.8, 0.85, 0.7, 0.7, 0.7, 0.7, 0.7]:
    plateau.update(error, patience=2)
    rates.append(learning_rate(stage(decay="plateau"), 1.0, plateau))
  # Two epochs without a new minimum: after the 4th, the 7th and the 9th error.
  expected = [1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6]
  np.testing.assert_allclose(rates, expected)


def test_warm_up_and_cosine_equal_optax():
  warm = stage(decay="cosine", warmup_epochs=3.0)
  expected = optax.warmup_cosine_decay_schedule(0.0, 1e-3, warmup_steps=30, decay_steps=150)
  for step in (0, 1, 15, 29, 30, 31, 90, 149, 150):
    rate = learning_rate(warm, step / 10, Plateau())
    assert rate == pytest.approx(float(expected(step)), rel=1e-4, abs=1e-12)


def test_warm_up_before_decay_by_epochs():
  warm = stage(decay_epochs=(7.0,), warmup_epochs=2.0)
  rates = [learning_rate(warm, e, Plateau()) for e in (0.0, 0.5, 2.0, 6.9, 7.0)]
  np.testing.assert_allclose(rates, [0, 2.5e-4, 1e-3, 1e-3, 1e-4])


@pytest.mark.parametrize("epochs", [-1.0, 15.5])
def test_rejects_a_warm_up_out_of_range(epochs):
  with pytest.raises(UserError, match="universal.warmup_epochs"):
    stage(warmup_epochs=epochs)
