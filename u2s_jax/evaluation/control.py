"""The control beside a run: the one-pass model, trained as long at the same learning rates."""

import json
from collections.abc import Sequence

from u2s_jax.errors import UserError
from u2s_jax.evaluation import results, scores
from u2s_jax.run import VALIDATION_SPLIT
from u2s_jax.workdir import Workdir

NONE = (
  "No control beside it (--control=<workdir of a run with control=True>): the one-pass model"
  " trained for fewer epochs, so the difference is not what U2S adds."
)


def accuracy(control: Workdir, class_names: Sequence[str]) -> dict[str, float]:
  """Returns the accuracies of a control, `metrics.summarize` in percent.

  Args:
    control: the folder of a finished run with `control=True`.
    class_names: of the run that it is a control of.

  Raises:
    UserError: it is no such run.
  """
  where = f"--control {control.root}"
  config = control.read_config()
  if config is None or not control.summary.exists():
    raise UserError(f"{where}: no finished run")
  if not config.get("control"):
    raise UserError(f"{where}: it was not trained with control=True")
  names = scores.read(control.scores(VALIDATION_SPLIT)).class_names
  if list(map(str, names)) != list(class_names):
    raise UserError(f"{where}: its classes are others")
  return results.merged(json.loads(control.summary.read_text()))
