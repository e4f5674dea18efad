"""The learning rate of a stage."""

import dataclasses
import math

from u2s_jax.stages import Stage

DECAY_FACTOR = 0.1  # Section IV-B: the learning rate "decreases by a factor of 10"


@dataclasses.dataclass
class Plateau:
  """State of the decay on a plateau of the validation error; saved in checkpoints.

  Attributes:
    best: lowest error so far, a fraction.
    waited: validations since `best` or the last decay.
    decays: number of decays of the learning rate.
  """

  best: float = float("inf")
  waited: int = 0
  decays: int = 0

  def update(self, error: float, patience: int) -> None:
    """Updates the state with a validation error; decays after `patience` without a new minimum."""
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
    epoch: passes over the training set so far, including the fraction of the current one.
    plateau: used if `stage.decay` is 'plateau'.
  """
  if epoch < stage.warmup_epochs:
    return stage.learning_rate * epoch / stage.warmup_epochs
  if stage.decay == "cosine":
    progress = (epoch - stage.warmup_epochs) / (stage.epochs - stage.warmup_epochs)
    return stage.learning_rate * (1 + math.cos(math.pi * min(progress, 1))) / 2
  decays = plateau.decays
  if stage.decay == "epochs":
    decays = sum(epoch >= boundary for boundary in stage.decay_epochs)
  return stage.learning_rate * DECAY_FACTOR**decays
