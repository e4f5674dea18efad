"""Temperature scaling of the merged scores, and their calibration error (Guo et al. 2017)."""

from typing import Any

import numpy as np
from jaxtyping import Float, Integer

BINS = 15
TEMPERATURES = (0.05, 20.0)  # range of the search
FLOOR = 1e-12  # least score whose logarithm is taken


def apply_temperature(
  scores: Float[np.ndarray, "n m"], temperature: float
) -> Float[np.ndarray, "n m"]:
  """Returns softmax(log(scores) / temperature): flatter for temperatures above 1."""
  if temperature == 1:
    return scores
  logits = np.log(np.maximum(scores, FLOOR)) / temperature
  powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return powers / powers.sum(axis=-1, keepdims=True)


def fit_temperature(scores: Float[np.ndarray, "n m"], labels: Integer[np.ndarray, " n"]) -> float:
  """Returns the temperature with the lowest mean negative log-likelihood of the labels."""
  from scipy.optimize import minimize_scalar  # see `metrics.wilson_interval`

  rows = np.arange(len(labels))

  def loss(log_temperature: float) -> float:
    scaled = apply_temperature(scores, float(np.exp(log_temperature)))
    return float(-np.mean(np.log(np.maximum(scaled[rows, labels], FLOOR))))

  found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
  return float(np.exp(found.x))


def calibration_error(scores: Float[np.ndarray, "n m"], labels: Integer[np.ndarray, " n"]) -> float:
  """Returns the expected calibration error, in [0, 1].

  The mean difference between the best class's score and its accuracy, over 15 bins of the score,
  weighted by their clips.
  """
  confidence, hits = scores.max(axis=1), scores.argmax(axis=1) == labels
  bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
  differences = np.bincount(bins, weights=hits - confidence, minlength=BINS)
  return float(np.abs(differences).sum() / len(labels))


def summarize(
  scores: Float[np.ndarray, "n m"], labels: Integer[np.ndarray, " n"], calibrate: bool
) -> dict[str, Any]:
  """Returns the calibration error in percent, and the temperature if it is to be fitted.

  With a temperature also `calibrated_error`: each half of the clips with the temperature that was
  fitted on the other half.
  """
  summary = {"error": 100 * calibration_error(scores, labels)}
  if not calibrate or len(labels) < 2:
    return summary
  halves = [np.arange(len(labels)) % 2 == k for k in (0, 1)]
  scaled = scores.copy()
  for half, other in (halves, halves[::-1]):
    scaled[half] = apply_temperature(scores[half], fit_temperature(scores[other], labels[other]))
  return summary | {
    "temperature": fit_temperature(scores, labels),
    "calibrated_error": 100 * calibration_error(scaled, labels),
  }
