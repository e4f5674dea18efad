"""The learning rate of a stage."""

import dataclasses
import math
from typing import Any

from u2s_jax.run import Run
from u2s_jax.stages import Stage

DECAY_FACTOR = 0.1  # Section IV-B: the learning rate "decreases by a factor of 10"


@dataclasses.dataclass
class Plateau:
  """Counts falls of the learning rate on a saturating validation error; saved in checkpoints.

  Attributes:
    best: lowest error seen, a fraction.
    waited: validations since then.
    decays: times the learning rate fell.
  """

  best: float = float("inf")
  waited: int = 0
  decays: int = 0

  def update(self, error: float, patience: int) -> None:
    """Takes a validation error; after `patience` of them without a new low it decays."""
    if error < self.best:
      self.best, self.waited = error, 0
      return
    self.waited += 1
    if self.waited >= patience:
      self.waited = 0
      self.decays += 1


def learning_rate(stage: Stage, epoch: float, plateau: Plateau) -> float:
  """Returns the learning rate of a stage.

  Args:
    stage: says how it falls.
    epoch: passes over the training set so far, and the fraction of the one that is going on.
    plateau: where it falls on a saturating error.
  """
  if epoch < stage.warmup_epochs:
    return stage.learning_rate * epoch / stage.warmup_epochs
  if stage.decay == "cosine":
    done = (epoch - stage.warmup_epochs) / (stage.epochs - stage.warmup_epochs)
    return stage.learning_rate * (1 + math.cos(math.pi * min(done, 1))) / 2
  decays = plateau.decays
  if stage.decay == "epochs":
    decays = sum(epoch >= boundary for boundary in stage.decay_epochs)
  return stage.learning_rate * DECAY_FACTOR**decays


def record(
  run: Run, stage: Stage, plateau: Plateau, best: float | None = None, *, validated: bool = True
) -> dict[str, Any]:
  """Returns what is saved beside a state, in JSON's types.

  Args:
    run: the run.
    stage: of the state.
    plateau: history of the learning rate.
    best: top-1 in percent of the stage's best checkpoint, None where none is kept.
    validated: whether nothing is to be evaluated before the next step.
  """
  return {
    "validated": validated,
    "plateau": dataclasses.asdict(plateau),
    "best": best,
    "total_steps": run.total_steps(stage),
    "stored": dict(run.source.stored),
    "data_digest": run.source.digest,
    "pixels": [run.network.pixel_mean, run.network.pixel_std],
  }
