"""Temperature scaling and the expected calibration error, by hand and on sampled labels."""

import json

import numpy as np
import pytest

from tests.memory_run import make_config, train
from u2s_jax.evaluation import calibration, scores
from u2s_jax.run.workdir import Workdir
from u2s_jax.serving import predict
from u2s_jax.serving.model import Model


def test_calibration_error_by_hand():
  # Two bins: 0.9 with one of two correct, 0.6 with all of two correct.
  values = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
  error = calibration.calibration_error(values, np.array([0, 1, 1, 1]))
  assert error == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
  assert calibration.calibration_error(np.eye(2), np.array([0, 1])) == 0


def test_temperature_by_hand():
  scaled = calibration.apply_temperature(np.array([[0.8, 0.2]]), 2.0)
  assert scaled == pytest.approx(np.array([[2 / 3, 1 / 3]]))  # roots of 4 to 1
  values = np.array([[0.7, 0.3]])
  assert calibration.apply_temperature(values, 1.0) is values


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_finds_the_temperature_that_the_labels_were_drawn_with(temperature):
  rng = np.random.default_rng(0)
  true = rng.dirichlet(np.ones(4), size=20_000)
  labels = (true.cumsum(1) > rng.uniform(size=(len(true), 1))).argmax(1)
  values = calibration.apply_temperature(true, 1 / temperature)
  assert calibration.fit_temperature(values, labels) == pytest.approx(temperature, rel=0.05)
  summary = calibration.summarize(values, labels, calibrate=True)
  assert summary["calibrated_error"] < 1.5
  if temperature != 1:
    assert summary["error"] > 5


def test_calibrated_run_predicts_with_its_temperature(tmp_path):
  train(make_config(**{"eval.calibrate": True}), tmp_path)
  summary = json.loads((tmp_path / "summary.json").read_text())["calibration"]
  final = scores.read(tmp_path / "scores/validation.npz")
  assert summary["temperature"] == calibration.fit_temperature(final.merged, final.labels)
  trained = predict.load(Workdir.open(tmp_path))
  assert trained.temperature == summary["temperature"] != 1
  frames = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3)).astype(np.uint8)
  prediction = Model(trained).predict(frames)
  raw = np.mean([*prediction.scores.values()], axis=0, dtype=np.float64)
  expected = raw ** (1 / trained.temperature)
  np.testing.assert_allclose(prediction.merged, expected / expected.sum(), rtol=1e-6)
  np.testing.assert_array_equal(prediction.fused(("universal",)), prediction.scores["universal"])
