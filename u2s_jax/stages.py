"""The staged schedule (Section IV-B of the paper) as data: what a stage trains, on which loss."""

import dataclasses

SPECIFIC_INITS = ("universal", "pretrained", "random")


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage of training.

  Attributes:
    name: the stage's name, also of its config section and of its checkpoint folder.
    networks: subnetworks that exist in this stage.
    trainable: those of them that are trained; the others keep parameters and BN statistics.
    losses: predictions that carry a cross-entropy (Eq. 3): L_U, L_C, L_M.
    regularized: whether lambda * w_regular is added.
    init: where subnetworks come from that the stage before did not have: 'random', 'pretrained'
      (what the run itself started from) or the name of the subnetwork whose weights they copy.
    learning_rate: at the stage's start.
    decay: 'epochs' divides the learning rate by 10 at each of `decay_epochs`; 'plateau' does so
      when the validation error has not fallen for `patience` epochs.
    decay_epochs: epochs after which the learning rate falls.
    patience: epochs.
    epochs: passes over the training set; 0 leaves the stage out.
  """

  name: str
  networks: tuple[str, ...]
  trainable: tuple[str, ...]
  losses: tuple[str, ...]
  regularized: bool
  init: str
  learning_rate: float
  epochs: float
  decay: str = "epochs"
  decay_epochs: tuple[float, ...] = ()
  patience: int = 2

  @property
  def one_pass(self) -> bool:
    """Whether the stage runs the universal network alone."""
    return "specific" not in self.networks


def schedule(
  durations: dict[str, dict], *, attention: str, specific_init: str, control: bool
) -> tuple[Stage, Stage, Stage]:
  """The three stages: universal, specific, joint.

  Args:
    durations: for each stage's name the fields of `Stage` from `learning_rate` on.
    attention: as in `models.u2s.U2S`; without a mask network there is no L_M and no regularizer.
    specific_init: 'universal' (a copy of its weights), 'pretrained' or 'random'.
    control: the second and third stage go on training the one-pass model for as many epochs at the
      same learning rates: what every comparison with U2S has to carry.

  Raises:
    ValueError: an unknown start or decay, or epochs that are not positive.
  """
  if specific_init not in SPECIFIC_INITS:
    raise ValueError(f"model.specific_init: {specific_init!r} is not one of {SPECIFIC_INITS}")
  one_pass = ("trunk", "universal")
  guide = () if attention == "none" else (attention,)
  everything = (*one_pass, "specific", *guide)
  bridge = ("bridge",) if attention == "mask" else ()
  what = {
    "universal": dict(networks=one_pass, trainable=one_pass, losses=("universal",)),
    "specific": dict(
      networks=everything, trainable=("specific", *guide), losses=("specific", *bridge)
    ),
    "joint": dict(
      networks=everything, trainable=everything, losses=("universal", "specific", *bridge)
    ),
  }
  if control:
    what["specific"] = what["joint"] = what["universal"]
  stages = []
  for name, fields in what.items():
    init = specific_init if name == "specific" and not control else "random"
    regularized = "bridge" in fields["losses"]  # both are the mask network's
    stages.append(Stage(name, regularized=regularized, init=init, **fields, **durations[name]))
    if stages[-1].decay not in ("epochs", "plateau"):
      raise ValueError(f"{name}.decay: {stages[-1].decay!r} is not 'epochs' or 'plateau'")
    # The first may be left out: a run can start from the end of another's.
    if stages[-1].epochs < 0 or stages[-1].epochs == 0 and name != "universal":
      raise ValueError(f"{name}.epochs: {stages[-1].epochs} is not positive")
  return tuple(stages)
