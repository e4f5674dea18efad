"""The staged training schedule (Section IV-B of the paper): networks, losses and learning rates."""

import dataclasses
import math
from numbers import Real
from typing import Any

from u2s_jax.runtime.errors import UserError

STAGES = ("universal", "specific", "joint")  # in the order of training
BEST = "best"  # folder, next to those of the stages, of the checkpoint kept by `eval.keep_best`
PREDICTIONS = ("universal", "bridge", "specific")  # of UN, MN, CSN
SUBNETWORKS = ("trunk", "universal", "specific", "mask", "non_local")
SPECIFIC_INITS = ("universal", "pretrained", "random")
DECAYS = ("epochs", "plateau", "cosine")
DECAY_FACTOR = 0.1  # Section IV-B: the learning rate "decreases by a factor of 10"


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training.

  Attributes:
    name: name of the stage, of its config section and of its checkpoint folder.
    networks: subnetworks that exist in this stage.
    trainable: the parts of them that are trained: a subnetwork, or one of its groups or layers,
      such as `universal/head`. All other parameters are frozen. BN uses and updates batch
      statistics only in subnetworks that are trainable as a whole.
    losses: predictions with a cross-entropy loss (Eq. 3): L_U, L_C, L_M.
    regularized: whether lambda * w_regular is added to the loss.
    init: how subnetworks that are new in this stage are initialised: 'random', 'pretrained' (the
      weights that the run started from) or the name of the subnetwork whose weights are copied.
    learning_rate: at the start of the stage or after its warm-up; positive.
    epochs: passes over the training set; 0 skips the stage, allowed for `universal` only.
    decay: 'epochs' divides the learning rate by 10 at each of `decay_epochs`; 'plateau' does so
      after `patience` validations without a lower error; 'cosine' decays it to 0 at the end of the
      stage.
    decay_epochs: when the learning rate decays, increasing: epochs, or values below 1, which are
      shares of the stage.
    patience: validations, >= 1.
    stop_patience: validations without a lower error after which the stage ends early; 0: never.
    warmup_epochs: epochs of linear warm-up from 0; >= 0, before the stage's end.
    classifier_rates: factors of the learning rate for kernel and bias of the classifiers; positive.
    classifier_deviation: standard deviation of the normally distributed initial kernel of
      classifiers that are new in this stage; >= 0.

  Raises:
    UserError: if a value is out of range.
  """

  name: str
  networks: tuple[str, ...]
  trainable: tuple[str, ...]
  losses: tuple[str, ...]
  regularized: bool
  init: str
  learning_rate: Real
  epochs: Real
  decay: str = "epochs"
  decay_epochs: tuple[Real, ...] = ()
  patience: int = 2
  stop_patience: int = 0
  warmup_epochs: Real = 0.0
  classifier_rates: tuple[Real, ...] = (1.0, 1.0)
  classifier_deviation: Real = 0.01

  def __post_init__(self) -> None:
    if not 0 < self.learning_rate < math.inf:
      raise UserError(f"{self.name}.learning_rate: {self.learning_rate} must be a positive number")
    if not 0 <= self.epochs < math.inf:
      raise UserError(f"{self.name}.epochs: {self.epochs} must be a number >= 0")
    # Stage 1 can be skipped, because a run can start from the end of another run's stage 1.
    if self.epochs == 0 and self.name != STAGES[0]:
      raise UserError(f"{self.name}.epochs: must be > 0; only {STAGES[0]} can be skipped")
    if self.decay not in DECAYS:
      raise UserError(f"{self.name}.decay: {self.decay!r} is not one of {DECAYS}")
    if self.patience < 1:
      raise UserError(f"{self.name}.patience: {self.patience} must be >= 1 validation")
    if self.stop_patience < 0:
      raise UserError(f"{self.name}.stop_patience: {self.stop_patience} must be >= 0 validations")
    if self.warmup_epochs and not 0 < self.warmup_epochs < self.epochs:
      raise UserError(
        f"{self.name}.warmup_epochs: {self.warmup_epochs} must be between 0 and the stage's end"
        f" ({self.name}.epochs = {self.epochs:g})"
      )
    rates, deviation = self.classifier_rates, self.classifier_deviation
    if len(rates) != 2 or not all(0 < rate < math.inf for rate in rates):
      raise UserError(
        f"{self.name}.classifier_rates: {tuple(rates)} must be two positive numbers, for kernel and"
        " bias"
      )
    if not 0 <= deviation < math.inf:
      raise UserError(f"{self.name}.classifier_deviation: {deviation} must be >= 0")

  def check_decays(self) -> None:
    """Checks that `decay_epochs` are increasing and before the stage's end.

    The constructor does not, so that runs of versions without this check can be resumed.

    Raises:
      UserError: if they are not.
    """
    if self.decay != "epochs" or not self.epochs:
      return
    field, decays = f"{self.name}.decay_epochs", self.decay_boundaries
    if not all(a < b for a, b in zip((0, *decays), decays, strict=False)):
      raise UserError(f"{field}: {tuple(self.decay_epochs)} must be positive and increasing")
    if decays and decays[-1] >= self.epochs:
      raise UserError(
        f"{field}: {decays[-1]:g} must be before the stage's end ({self.name}.epochs ="
        f" {self.epochs:g}); remove it from {field}, which may be ()"
      )

  @property
  def decay_boundaries(self) -> tuple[Real, ...]:
    """Epochs at which the learning rate decays."""
    return tuple(value * self.epochs if value < 1 else value for value in self.decay_epochs)

  @property
  def one_pass(self) -> bool:
    """Whether only the trunk and the universal network exist in this stage."""
    return "specific" not in self.networks

  def make_divergence_error(self, step: int, reason: str) -> UserError:
    """Returns the error for a value that is not finite at `step`, or since the last report."""
    return UserError(
      f"stage {self.name}, step {step}: {reason}; training stopped and the last good checkpoint is"
      f" kept; use a lower {self.name}.learning_rate in another workdir"
    )


@dataclasses.dataclass
class Plateau:
  """The validation error over a stage, for the decay on a plateau; saved in checkpoints.

  Attributes:
    best: lowest error so far, a fraction.
    waited: validations since `best` or the last decay.
    decays: number of decays of the learning rate.
    since_best: validations since `best`.
  """

  best: float = float("inf")
  waited: int = 0
  decays: int = 0
  since_best: int = 0

  def update(self, error: float, patience: int) -> None:
    """Updates the state with a validation error; decays after `patience` without a new minimum."""
    if error < self.best:
      self.best, self.waited, self.since_best = error, 0, 0
      return
    self.waited += 1
    self.since_best += 1
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
    decays = sum(epoch >= boundary for boundary in stage.decay_boundaries)
  return stage.learning_rate * DECAY_FACTOR**decays


def get_subnetwork(part: str) -> str:
  """Returns the subnetwork that contains a part of `Stage.trainable`."""
  return part.split("/")[0]


def make_stages(
  durations: dict[str, dict[str, Any]],
  *,
  attention: str = "mask",
  specific_init: str = "universal",
  control: bool = False,
  trainable: tuple[str, ...] = SUBNETWORKS,
) -> tuple[Stage, Stage, Stage]:
  """Returns the three stages: universal, specific, joint.

  Args:
    durations: by stage name, the fields of `Stage` from `learning_rate` on.
    attention: as in `models.u2s.U2S`; without a mask network there is no L_M and no regularizer.
    specific_init: `Stage.init` of the category-specific network.
    control: whether stages 2 and 3 continue to train the one-pass model, for the same epochs at the
      same learning rates: the baseline of every comparison with U2S.
    trainable: parts (see `Stage`) that are trained in the stages that train their subnetworks; all
      other parts keep their initial weights and BN statistics.

  Raises:
    UserError: if `specific_init` or a subnetwork is unknown, or a stage has nothing to train.
  """
  if specific_init not in SPECIFIC_INITS:
    raise UserError(f"model.specific_init: {specific_init!r} is not one of {SPECIFIC_INITS}")
  if unknown := {get_subnetwork(part) for part in trainable} - set(SUBNETWORKS):
    raise UserError(f"trainable: {min(unknown)!r} is not one of {', '.join(SUBNETWORKS)}")
  one_pass = ("trunk", "universal")
  attention_network = () if attention == "none" else (attention,)
  all_networks = (*one_pass, "specific", *attention_network)
  bridge = ("bridge",) if attention == "mask" else ()
  fields = {
    "universal": dict(networks=one_pass, trainable=one_pass, losses=("universal",)),
    "specific": dict(
      networks=all_networks,
      trainable=("specific", *attention_network),
      losses=("specific", *bridge),
    ),
    "joint": dict(
      networks=all_networks, trainable=all_networks, losses=("universal", "specific", *bridge)
    ),
  }
  if control:
    fields["specific"] = fields["joint"] = fields["universal"]
  for name, stage in fields.items():
    nets = stage["trainable"]
    selected = tuple(part for net in nets for part in trainable if get_subnetwork(part) == net)
    if not selected and durations[name]["epochs"]:
      raise UserError(
        f"trainable: selects nothing to train in stage {name}; add one of {', '.join(nets)}"
      )
    fields[name] = stage | {"trainable": selected}
  return tuple(
    Stage(
      name,
      regularized="bridge" in fields[name]["losses"],  # both terms are of the mask network
      init=specific_init if name == "specific" and not control else "random",
      **fields[name],
      **durations[name],
    )
    for name in STAGES
  )
