"""The control beside a run: the one-pass model, trained as long at the same learning rates."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from u2s_jax.errors import UserError
from u2s_jax.evaluation import results, scores
from u2s_jax.run import VALIDATION_SPLIT
from u2s_jax.saved_config import flatten
from u2s_jax.workdir import Workdir

NONE = (
  "No control beside it (--control=<workdir of a run with control=True>): the one-pass model"
  " trained for fewer epochs, so the difference is not what U2S adds."
)


# What "as long" and "of the same clips" mean; stage 1 may be another run's.
SAME = ("specific.epochs", "joint.epochs", "batch_size", "eval.views")


def accuracy(
  control: Workdir, class_names: Sequence[str], config: Mapping[str, Any]
) -> dict[str, float]:
  """Returns the accuracies of a control, `metrics.summarize` in percent.

  Args:
    control: the folder of a finished run with `control=True`.
    class_names: of the run that it is a control of.
    config: of that run.

  Raises:
    UserError: it is no such run.
  """
  where = f"--control {control.root}"
  its = control.read_config()
  if its is None or not control.summary.exists():
    raise UserError(f"{where}: no finished run")
  if not its.get("control"):
    raise UserError(f"{where}: it was not trained with control=True")
  its, ours = flatten(its), flatten(config)
  for field in SAME:
    if its[field] != ours[field]:
      raise UserError(f"{where}: {field} = {its[field]}, not the run's {ours[field]}")
  names = scores.read(control.scores(VALIDATION_SPLIT)).class_names
  if list(map(str, names)) != list(class_names):
    raise UserError(f"{where}: its classes are others")
  return results.merged(json.loads(control.summary.read_text()))
