"""SGD with momentum and weight decay as PyTorch's, and the learning rate of a stage."""

import dataclasses

import optax

from u2s_jax.stages import Stage

DECAY_FACTOR = 0.1  # Section IV-B: the learning rate "decreases by a factor of 10"


def sgd(momentum: float, weight_decay: float) -> optax.GradientTransformation:
  """Direction of a step: momentum over (gradient + weight_decay * parameter).

  The caller multiplies by minus the learning rate, which stays outside the momentum as in PyTorch.
  Like PyTorch's SGD it decays every parameter, BN's too.
  """
  return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum))


@dataclasses.dataclass
class Plateau:
  """Counts falls of the learning rate on a saturating validation error; saved in checkpoints.

  Attributes:
    best: lowest error seen, a fraction.
    waited: epochs since then.
    decays: times the learning rate fell.
  """

  best: float = float("inf")
  waited: int = 0
  decays: int = 0

  def update(self, error: float, patience: int) -> None:
    """Takes an epoch's validation error; after `patience` epochs without a new low it decays."""
    if error < self.best:
      self.best, self.waited = error, 0
      return
    self.waited += 1
    if self.waited >= patience:
      self.waited = 0
      self.decays += 1


def learning_rate(stage: Stage, epoch: float, plateau: Plateau) -> float:
  """Learning rate of `stage` after `epoch` (a fraction of) passes over the training set."""
  decays = plateau.decays
  if stage.decay == "epochs":
    decays = sum(epoch >= boundary for boundary in stage.decay_epochs)
  return stage.learning_rate * DECAY_FACTOR**decays
