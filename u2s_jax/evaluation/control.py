"""The control of a run: the one-pass model, trained for as many epochs at the same rates."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from u2s_jax.evaluation import results, scores
from u2s_jax.run import saved_config, settings
from u2s_jax.run.run import VALIDATION_SPLIT
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError

NO_CONTROL = (
  "No control was given (a run with control=True): the one-pass model was trained for fewer epochs,"
  " so the difference is not what U2S adds."
)
_USE_SAME_DATA = "name a control that was trained on the same data set"
# Fields and sections that may differ: those of networks that a control lacks, those that change no
# accuracy, and the seed. `_check_stage_1` compares the fields of stage 1.
_INDEPENDENT_FIELDS = (
  *settings.RESUMABLE_FIELDS,
  *("control", "seed", "regularizer_weight", "csm", "init_from", "universal", "trainable"),
  *("model.attention", "model.mask_activation", "model.mask_limit", "model.detached"),
  *("model.non_local_width", "model.specific_init", "model.convolution", "model.remat"),
  *("eval.split", "eval.keep_best", "eval.every_epochs"),
)
# What stage 1 depends on, without the seed.
_STAGE_1_FIELDS = ("init_from", "universal", "optimizer", "batch_size", "data", "model.backbone")
# Fields of stages 2 and 3 that may differ as well, but are then reported.
_RATE_FIELDS = ("learning_rate", "decay", "decay_epochs", "patience", "warmup_epochs")


@dataclasses.dataclass(frozen=True)
class Control:
  """Results of a finished control.

  Attributes:
    accuracies: `metrics.summarize`, in percent.
    rates: describes the rates that differ from the run's; empty if there are none.
  """

  accuracies: dict[str, float]
  rates: str


def read(control: Workdir, run: Workdir) -> Control:
  """Reads the control of a run and checks that the two are comparable.

  Both must have the same backbone, input, optimizer, batch size, epochs, data set and validation
  clips. Stage 1 must be shared or configured alike. Both runs must be finished.

  Raises:
    UserError: if `control` is not such a run with `control=True`; names the first field that
      differs.
  """
  where = f"control {control.root}"
  control_config, run_config = saved_config.read(control), saved_config.read(run)
  if control_config is None or not control.summary.exists():
    raise UserError(f"{where}: not a finished run; train it to its end first")
  if not control_config.control:
    raise UserError(f"{where}: was not trained with control=True; name a run that was")
  control_fields, run_fields = map(_comparable_fields, (control_config, run_config))
  rates = {f"{stage}.{rate}" for stage in ("specific", "joint") for rate in _RATE_FIELDS}
  differing = _find_differences(control_fields, run_fields)
  for field, values in differing.items():
    if field not in rates:
      raise UserError(
        f"{where}: {field} is {values[0]}, but {values[1]} in the run; train the control with the"
        " run's setting"
      )
  _check_clips(where, control, run)
  _check_stage_1(where, control, run)
  summary = json.loads(control.summary.read_text())
  differing_rates = [
    f"{field} {own} (the run's: {other})" for field, (own, other) in differing.items()
  ]
  return Control(results.get_merged_accuracies(summary), ", ".join(differing_rates))


def _comparable_fields(config: ConfigDict) -> dict[str, Any]:
  """Returns the fields of a config that must be equal for a fair comparison, by dotted name."""
  fields = _flatten(config)
  parts = [part for part in config.trainable if part.split("/")[0] in ("trunk", "universal")]
  fields = {field: fields[field] for field in fields if not _is_in(field, _INDEPENDENT_FIELDS)}
  return fields | {"trainable": sorted(parts)}


def _flatten(config: ConfigDict) -> dict[str, Any]:
  return saved_config.flatten(saved_config.to_json(config))


def _is_in(field: str, names: Sequence[str]) -> bool:
  """Returns whether a dotted field is one of `names` or lies in a section among them."""
  return any(field == name or field.startswith(f"{name}.") for name in names)


def _find_differences(
  first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
  """Returns both values of every field that differs, sorted by its name."""
  pairs = {name: (first.get(name), second.get(name)) for name in sorted({*first, *second})}
  return {name: values for name, values in pairs.items() if values[0] != values[1]}


def _check_clips(where: str, control: Workdir, run: Workdir) -> None:
  """Raises UserError if classes, training clips or validation clips differ."""
  control_scores, run_scores = (scores.read(w.scores(VALIDATION_SPLIT)) for w in (control, run))
  if list(control_scores.class_names) != list(run_scores.class_names):
    raise UserError(f"{where}: classes differ from the run's; {_USE_SAME_DATA}")
  control_labels, run_labels = (
    dict(zip(s.ids.tolist(), s.labels.tolist(), strict=True)) for s in (control_scores, run_scores)
  )
  if control_labels != run_labels:
    first = min(str(clip) for clip, _ in control_labels.items() ^ run_labels.items())
    raise UserError(
      f"{where}: validation clips differ from the run's ({len(control_labels)}, the run has"
      f" {len(run_labels)}; {first!r} is missing in one or has another label); {_USE_SAME_DATA}"
    )
  summaries = [json.loads(workdir.summary.read_text()) for workdir in (control, run)]
  control_data, run_data = (summary.get("data") for summary in summaries)
  if control_data and run_data and control_data["digest"] != run_data["digest"]:
    raise UserError(
      f"{where}: data set {control_data}, but {run_data} in the run; {_USE_SAME_DATA}"
    )
  # Summaries of earlier versions have no counts: nothing is compared then.
  counts = [summary.get("training_clips", ()) for summary in summaries]
  for name, control_count, run_count in zip(run_scores.class_names, *counts, strict=False):
    if control_count != run_count:
      raise UserError(
        f"{where}: class {str(name)!r} has {control_count} training clips, but {run_count} in the"
        f" run; {_USE_SAME_DATA}"
      )


def _check_stage_1(where: str, control: Workdir, run: Workdir) -> None:
  """Raises UserError if stage 1 is neither shared nor configured alike."""
  one_pass = [scores.read(workdir.one_pass_scores(VALIDATION_SPLIT)) for workdir in (control, run)]
  control_scores, run_scores = (s.predictions["universal"][np.argsort(s.ids)] for s in one_pass)
  # Equal scores mean one stage 1, whichever run it was trained in; the tolerance is for evaluations
  # on other devices.
  if control_scores.shape == run_scores.shape and np.allclose(
    control_scores, run_scores, atol=1e-3
  ):
    return
  control_fields, run_fields = (
    _flatten(settings.resolve_stage1_config(saved_config.read(workdir)))
    for workdir in (control, run)
  )
  for field, (own, other) in _find_differences(control_fields, run_fields).items():
    if _is_in(field, _STAGE_1_FIELDS) and field not in settings.RESUMABLE_FIELDS:
      raise UserError(
        f"{where}: stage 1 differs: {field} is {own}, but {other} in the run; start both from one"
        " stage 1"
      )
