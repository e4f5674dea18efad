"""The staged schedule (Section IV-B of the paper) as data: what a stage trains, on which loss."""

import dataclasses
import math
from numbers import Real

from u2s_jax.errors import UserError

STAGES = ("universal", "specific", "joint")  # in the order of training
BEST = "best"  # beside the stages' checkpoints: the one that `eval.keep_best` chose
PREDICTIONS = ("universal", "bridge", "specific")  # of UN, MN, CSN
SUBNETWORKS = ("trunk", "universal", "specific", "mask", "non_local")
SPECIFIC_INITS = ("universal", "pretrained", "random")
DECAYS = ("epochs", "plateau", "cosine")


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training.

  Attributes:
    name: the stage's name, also of its config section and of its checkpoint folder.
    networks: subnetworks that exist in this stage.
    trainable: parts of them that are trained: a subnetwork, or one of its groups or layers, as
      `universal/head`. What is outside keeps its parameters; BN uses and moves batch statistics
      only in subnetworks that are named as a whole.
    losses: predictions that carry a cross-entropy (Eq. 3): L_U, L_C, L_M.
    regularized: whether lambda * w_regular is added.
    init: where subnetworks come from that the stage before did not have: 'random', 'pretrained'
      (what the run itself started from) or the name of the subnetwork whose weights they copy.
    learning_rate: at the stage's start, or behind its warm-up; positive.
    epochs: passes over the training set; 0, for `universal` alone, leaves the stage out.
    decay: 'epochs' divides the learning rate by 10 at each of `decay_epochs`; 'plateau' does so
      when the validation error has not fallen for `patience` validations; 'cosine' lets it fall
      to 0 at the stage's end.
    decay_epochs: epochs after which the learning rate falls, rising, before the stage's end.
    patience: validations, at least 1.
    warmup_epochs: in which the learning rate rises from 0; at least 0, before the stage's end.
    classifier_rates: factors of the learning rate, of kernel and bias of the networks' classifiers;
      positive.
    classifier_deviation: of the initial kernel of classifiers that begin in this stage, normally
      distributed; at least 0.

  Raises:
    UserError: a value outside these ranges.
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
  warmup_epochs: Real = 0.0
  classifier_rates: tuple[Real, ...] = (1.0, 1.0)
  classifier_deviation: Real = 0.01

  def __post_init__(self):
    if not 0 < self.learning_rate < math.inf:
      raise UserError(f"{self.name}.learning_rate: {self.learning_rate} is no positive number")
    if not 0 <= self.epochs < math.inf:
      raise UserError(f"{self.name}.epochs: {self.epochs} is no number of epochs")
    if self.epochs == 0 and self.name != STAGES[0]:  # a run can start from the end of another's
      raise UserError(f"{self.name}.epochs: 0 leaves the stage out, which only {STAGES[0]} may be")
    if self.decay not in DECAYS:
      raise UserError(f"{self.name}.decay: {self.decay!r} is not one of {DECAYS}")
    if self.patience < 1:
      raise UserError(f"{self.name}.patience: {self.patience} is not at least 1 validation")
    if self.warmup_epochs and not 0 < self.warmup_epochs < self.epochs:
      raise UserError(
        f"{self.name}.warmup_epochs: {self.warmup_epochs} is not between 0 and the stage's end"
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
    """Checks that the learning rate falls in order and before the stage's end.

    Not where a stage is made: runs that began without this check go on.

    Raises:
      UserError: it does not.
    """
    if self.decay != "epochs" or not self.epochs:
      return
    field, decays = f"{self.name}.decay_epochs", tuple(self.decay_epochs)
    if not all(a < b for a, b in zip((0, *decays), decays, strict=False)):
      raise UserError(f"{field}: {decays} are not positive and rising")
    if decays and decays[-1] >= self.epochs:
      raise UserError(
        f"{field}: {decays[-1]:g} is not before the stage's end ({self.name}.epochs ="
        f" {self.epochs:g}); remove it from {field}, which may be ()"
      )

  @property
  def one_pass(self) -> bool:
    """Whether the stage runs the universal network alone."""
    return "specific" not in self.networks

  def diverged(self, step: int, reason: str) -> UserError:
    """Makes the error for a run found not finite at `step`, maybe since the last log."""
    return UserError(
      f"stage {self.name}, step {step}: {reason}; stopped, the last good checkpoint stays; take a"
      f" lower {self.name}.learning_rate in another workdir"
    )


def subnetwork(part: str) -> str:
  """Returns the subnetwork that a part of `Stage.trainable` is of."""
  return part.split("/")[0]


def schedule(
  durations: dict[str, dict],
  *,
  attention: str = "mask",
  specific_init: str = "universal",
  control: bool = False,
  trainable: tuple[str, ...] = SUBNETWORKS,
) -> tuple[Stage, Stage, Stage]:
  """Returns the three stages: universal, specific, joint.

  Args:
    durations: for each stage's name the fields of `Stage` from `learning_rate` on.
    attention: as in `models.u2s.U2S`; without a mask network there is no L_M and no regularizer.
    specific_init: 'universal' (a copy of its weights), 'pretrained' or 'random'.
    control: the second and third stage go on training the one-pass model for as many epochs at the
      same learning rates: what every comparison with U2S has to carry.
    trainable: parts (see `Stage`) that learn in the stages that train their subnetworks; all else
      keeps the weights that it starts from, and its BN statistics.

  Raises:
    UserError: an unknown start or subnetwork, a stage that would train nothing, or as `Stage`.
  """
  if specific_init not in SPECIFIC_INITS:
    raise UserError(f"model.specific_init: {specific_init!r} is not one of {SPECIFIC_INITS}")
  if unknown := {subnetwork(part) for part in trainable} - set(SUBNETWORKS):
    raise UserError(f"trainable: {min(unknown)!r} is not one of {', '.join(SUBNETWORKS)}")
  one_pass = ("trunk", "universal")
  attending = () if attention == "none" else (attention,)
  everything = (*one_pass, "specific", *attending)
  bridge = ("bridge",) if attention == "mask" else ()
  fields = {
    "universal": dict(networks=one_pass, trainable=one_pass, losses=("universal",)),
    "specific": dict(
      networks=everything, trainable=("specific", *attending), losses=("specific", *bridge)
    ),
    "joint": dict(
      networks=everything, trainable=everything, losses=("universal", "specific", *bridge)
    ),
  }
  if control:
    fields["specific"] = fields["joint"] = fields["universal"]
  for name, stage in fields.items():
    learning = tuple(
      part for network in stage["trainable"] for part in trainable if subnetwork(part) == network
    )
    if not learning and durations[name]["epochs"]:
      raise UserError(
        f"trainable: none of {', '.join(stage['trainable'])} learns, so stage {name} has nothing"
        " to do"
      )
    fields[name] = stage | {"trainable": learning}
  return tuple(
    Stage(
      name,
      regularized="bridge" in fields[name]["losses"],  # both are the mask network's
      init=specific_init if name == "specific" and not control else "random",
      **fields[name],
      **durations[name],
    )
    for name in STAGES
  )
