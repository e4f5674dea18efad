"""The control of a run: the one-pass model, trained as long at the same learning rates."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from u2s_jax import saved_config, settings
from u2s_jax.errors import UserError
from u2s_jax.evaluation import results, scores
from u2s_jax.run import VALIDATION_SPLIT
from u2s_jax.workdir import Workdir

NONE = (
  "No control beside it (a run with control=True): the one-pass model trained for fewer epochs, so"
  " the difference is not what U2S adds."
)
SAME_DATA = "name a control of the same data set"
# Fields, or sections, that a control may have of its own: what it does not have networks for, what
# changes no accuracy, and the seed. Stage 1 has rules of its own, see `_check_stage_1`.
FREE = (
  *settings.FREE_FIELDS,
  *("control", "seed", "regularizer_weight", "csm", "init_from", "universal", "trainable"),
  *("model.attention", "model.mask_activation", "model.mask_limit", "model.detached"),
  *("model.non_local_width", "model.specific_init", "model.convolution", "model.remat"),
  *("eval.split", "eval.keep_best", "eval.every_epochs"),
)
# Of stages 2 and 3: a control may be given other rates, which are then said.
RATES = ("learning_rate", "decay", "decay_epochs", "patience", "warmup_epochs")


@dataclasses.dataclass(frozen=True)
class Control:
  """A finished control.

  Attributes:
    accuracies: `metrics.summarize`, in percent.
    rates: what its schedule differs in, for a reader; empty where it is the run's.
  """

  accuracies: dict[str, float]
  rates: str


def read(control: Workdir, run: Workdir) -> Control:
  """Reads the control of a run and checks that comparing the two is fair.

  Both must have the same backbone, input, optimizer, batch, epochs and data set, and the same
  validation clips; stage 1 must be the same one, or be configured alike.

  Args:
    control: the folder of a finished run with `control=True`.
    run: the folder of the finished run that it is compared with.

  Raises:
    UserError: it is no such run, with the first field that differs.
  """
  where = f"control {control.root}"
  theirs, ours = saved_config.read(control), saved_config.read(run)
  if theirs is None or not control.summary.exists():
    raise UserError(f"{where}: not a finished run; train it to its end first")
  if not theirs.control:
    raise UserError(f"{where}: was not trained with control=True; name a run that was")
  fields = [_compared(config) for config in (theirs, ours)]
  rates = {f"{stage}.{rate}" for stage in ("specific", "joint") for rate in RATES}
  for field in sorted(fields[0].keys() | fields[1].keys()):
    its, own = (of_run.get(field) for of_run in fields)
    if its != own and field not in rates:
      raise UserError(f"{where}: {field} = {its}, not the run's {own}; train it with the run's")
  _check_clips(where, control, run)
  _check_stage_1(where, control, run)
  different = [
    f"{field} {fields[0][field]} (the run's: {fields[1][field]})"
    for field in sorted(rates)
    if fields[0].get(field) != fields[1].get(field)
  ]
  summary = json.loads(control.summary.read_text())
  return Control(results.merged(summary), ", ".join(different))


def _compared(config: Any) -> dict[str, Any]:
  """Returns the fields of a config that a comparison depends on, by dotted name."""
  fields = saved_config.flatten(saved_config.jsonable(config))
  compared = {
    field: value
    for field, value in fields.items()
    if not any(field == name or field.startswith(f"{name}.") for name in FREE)
  }
  one_pass = ("trunk", "universal")
  parts = [part for part in config.trainable if part.split("/")[0] in one_pass]
  return compared | {"trainable": sorted(parts)}


def _check_clips(where: str, control: Workdir, run: Workdir) -> None:
  """Raises UserError for another data set: other classes, training or validation clips."""
  its, own = (scores.read(of_run.scores(VALIDATION_SPLIT)) for of_run in (control, run))
  if list(its.class_names) != list(own.class_names):
    raise UserError(f"{where}: classes differ from the run's; {SAME_DATA}")
  labels = [dict(zip(read.ids.tolist(), read.labels.tolist(), strict=True)) for read in (its, own)]
  if labels[0] != labels[1]:
    first = min(str(clip) for clip, _ in labels[0].items() ^ labels[1].items())
    raise UserError(
      f"{where}: validation clips differ from the run's ({len(labels[0])}, the run has"
      f" {len(labels[1])}; {first!r} is not in both with one label); {SAME_DATA}"
    )
  summaries = [json.loads(of_run.summary.read_text()) for of_run in (control, run)]
  digests = [summary.get("data") for summary in summaries]  # earlier versions' have none
  if None not in digests and digests[0]["digest"] != digests[1]["digest"]:
    raise UserError(f"{where}: data set {digests[0]}, the run's {digests[1]}; {SAME_DATA}")
  counts = [summary.get("training_clips", ()) for summary in summaries]
  for name, theirs, ours in zip(own.class_names, *counts, strict=False):
    if theirs != ours:
      raise UserError(
        f"{where}: class {str(name)!r} has {theirs} training clips, the run's {ours}; {SAME_DATA}"
      )


def _check_stage_1(where: str, control: Workdir, run: Workdir) -> None:
  """Raises UserError where stage 1 is neither the same one nor configured alike."""
  split = VALIDATION_SPLIT
  its, own = (scores.read(of_run.one_pass_scores(split)) for of_run in (control, run))
  order, own_order = np.argsort(its.ids), np.argsort(own.ids)
  a, b = its.predictions["universal"][order], own.predictions["universal"][own_order]
  if a.shape == b.shape and np.allclose(a, b, atol=1e-3):
    return  # one stage 1, whichever run it was trained in
  first = [settings.config_of_stage_1(saved_config.read(of_run)) for of_run in (control, run)]
  fields = [_stage_1(config) for config in first]
  for field in sorted(fields[0].keys() | fields[1].keys()):
    its, own = (of_run.get(field) for of_run in fields)
    if its != own:
      raise UserError(
        f"{where}: its stage 1 is another one, with {field} = {its}, not the run's {own}; start"
        " both from one stage 1"
      )


def _stage_1(config: Any) -> Mapping[str, Any]:
  """Returns what decides on stage 1, but for the seed."""
  fields = saved_config.flatten(saved_config.jsonable(config))
  kept = ("init_from", "universal", "optimizer", "batch_size", "data", "model.backbone")
  return {
    field: value
    for field, value in fields.items()
    if any(field == name or field.startswith(f"{name}.") for name in kept)
    and field not in settings.FREE_FIELDS
  }
