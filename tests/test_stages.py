"""Tests of the training schedule and its learning rates."""

import dataclasses

import numpy as np
import optax
import pytest

from u2s_jax import stages
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import Plateau, Stage, learning_rate

DURATIONS = {
  name: {"learning_rate": 1e-3, "epochs": 2.0} for name in ("universal", "specific", "joint")
}


def schedule(**settings):
  defaults = {"attention": "mask", "specific_init": "universal", "control": False}
  return stages.make_stages(DURATIONS, **defaults | settings)


def test_stages_are_those_of_the_paper():
  universal, specific, joint = schedule()
  assert universal.one_pass and not specific.one_pass and not joint.one_pass
  assert universal.losses == ("universal",) and not universal.regularized
  assert set(specific.losses) == {"specific", "bridge"} and specific.regularized
  assert set(joint.losses) == {"universal", "specific", "bridge"} and joint.regularized
  assert set(specific.trainable) == {"specific", "mask"}
  assert set(joint.trainable) == set(joint.networks) == {"trunk", "universal", "specific", "mask"}


def test_stages_without_a_mask_network():
  _, specific, joint = schedule(attention="none")
  assert specific.trainable == ("specific",) and specific.losses == ("specific",)
  assert not joint.regularized and joint.losses == ("universal", "specific")
  _, specific, _ = schedule(attention="non_local")
  assert specific.trainable == ("specific", "non_local") and not specific.regularized


def test_control_trains_the_one_pass_model_for_the_same_epochs():
  for control, stage in zip(schedule(control=True), schedule(), strict=True):
    assert control.one_pass and control.losses == ("universal",)
    assert control.trainable == ("trunk", "universal")
    for field in ("name", "learning_rate", "epochs", "decay", "decay_epochs"):
      assert getattr(control, field) == getattr(stage, field)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("decay", "linear", "specific.decay: 'linear' is not one of .'epochs', 'plateau', 'cosine'."),
    ("epochs", 0.0, "specific.epochs: must be > 0; only universal can be skipped"),
    ("epochs", -1.0, "specific.epochs: -1.0 must be a number >= 0"),
    ("learning_rate", float("nan"), "specific.learning_rate: nan must be a positive number"),
    ("learning_rate", 0.0, "specific.learning_rate: 0.0 must be a positive number"),
    ("patience", 0, "specific.patience: 0 must be >= 1 validation"),
    ("classifier_rates", (5.0,), r"specific.classifier_rates: \(5.0,\) must be two positive num"),
    ("classifier_rates", (5.0, 0.0), r"specific.classifier_rates: \(5.0, 0.0\) must be two"),
    ("classifier_rates", (5.0, float("inf")), "specific.classifier_rates: .* must be two positive"),
    ("classifier_deviation", -0.1, "specific.classifier_deviation: -0.1 must be >= 0"),
    ("decay_epochs", (15, 6), r"specific.decay_epochs: \(15, 6\) must be positive and increasing"),
    ("decay_epochs", (0.0,), r"specific.decay_epochs: \(0.0,\) must be positive and increasing"),
    ("decay_epochs", (1.0, 2.0), "specific.decay_epochs: 2 must be before the stage's end"),
  ],
)
def test_rejects_invalid_values(field, value, message):
  durations = {**DURATIONS, "specific": {**DURATIONS["specific"], field: value}}
  with pytest.raises(UserError, match=message):
    stages.make_stages(durations)[1].check_decays()


def test_rejects_an_unknown_initialisation():
  with pytest.raises(UserError, match="specific_init: 'x' is not one of"):
    schedule(specific_init="x")


def test_trainable_selects_parts_of_each_stage():
  universal, specific, joint = schedule(trainable=("universal", "specific", "mask"))
  assert universal.trainable == ("universal",) and set(specific.trainable) == {"specific", "mask"}
  assert set(joint.trainable) == {"universal", "specific", "mask"} and "trunk" in joint.networks
  universal, specific, joint = schedule(trainable=("mask", "specific/group3", "universal/head"))
  assert universal.trainable == ("universal/head",)
  assert specific.trainable == ("specific/group3", "mask")
  assert joint.trainable == ("universal/head", "specific/group3", "mask")
  with pytest.raises(UserError, match="trainable: 'head' is not one of trunk, universal"):
    schedule(trainable=("head",))
  with pytest.raises(UserError, match="nothing to train in stage specific; add one of specific"):
    schedule(trainable=("trunk", "universal"))


def stage(**fields):
  return Stage("universal", (), (), (), False, "random", 1e-3, 15.0, **fields)


@pytest.mark.parametrize(
  ("epoch", "rate"),
  [(0.0, 1e-3), (6.99, 1e-3), (7.0, 1e-4), (11.9, 1e-4), (12.0, 1e-5), (15.0, 1e-5)],
)
def test_decay_by_epochs(epoch, rate):
  decaying = stage(decay_epochs=(7.0, 12.0))
  assert learning_rate(decaying, epoch, Plateau()) == pytest.approx(rate)


@pytest.mark.parametrize(
  ("epochs", "boundaries"), [(15.0, (7.5, 12.0)), (2.0, (1.0, 12.0)), (40.0, (20.0, 12.0))]
)
def test_decays_below_1_are_shares_of_the_stage(epochs, boundaries):
  shares = dataclasses.replace(stage(decay_epochs=(0.5, 12.0)), epochs=epochs)
  assert shares.decay_boundaries == boundaries
  assert learning_rate(shares, boundaries[0], Plateau()) <= 1.001e-4
  assert learning_rate(shares, min(boundaries) - 0.01, Plateau()) == 1e-3
  if epochs == 15.0:
    shares.check_decays()
  else:
    with pytest.raises(UserError, match="universal.decay_epochs"):
      shares.check_decays()


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
