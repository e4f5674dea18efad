"""What a config means: its schedule, pretrained weights, and values derived from it."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import ml_collections

from u2s_jax import stages
from u2s_jax.models import build
from u2s_jax.run import default_config, saved_config
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices, files
from u2s_jax.runtime.console import log
from u2s_jax.stages import STAGES, Stage

PIXEL_FIELDS = ("pixel_mean", "pixel_std")
MASK_FIELDS = ("selection", "guide")  # of section `csm`
# Fields that do not affect the result of training: a run may resume with other values.
RESUMABLE_FIELDS = (
  "log_every_steps",
  "checkpoint_every_steps",
  "dead_process_seconds",
  "profile",
  "eval.classes",
  "eval.pairs",
  "eval.batch_size",
  "data.dir",
  "data.num_threads",
  "data.render.dir",
  "data.render.workers",
)
# Fields in which an evaluation may differ from its run: also the views, the masks and the data set.
EVALUATION_FIELDS = (
  *(*RESUMABLE_FIELDS, "eval", "data.render"),
  *(f"csm.{field}" for field in MASK_FIELDS),
)


def make_schedule(config: ml_collections.ConfigDict) -> tuple[Stage, Stage, Stage]:
  """Returns the stages of a config.

  Raises:
    UserError: if a field is invalid; names the field.
  """
  return stages.make_stages(
    {name: config[name].to_dict() for name in STAGES},
    attention=config.model.attention,
    specific_init=_resolve_specific_init(config),
    control=config.control,
    trainable=tuple(config.trainable),
  )


def resolve_stage1_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config that stage 1 was trained with, which may be that of another run.

  A run with `universal.epochs` = 0 takes stage 1 from the run in `init_from`, which may have done
  the same.

  Args:
    config: see `default_config.get_config`.

  Returns:
    A config; with `universal.epochs` = 0 if stage 1 comes from a file of weights, or from a run
    without a saved config.
  """
  while config.init_from and config.universal.epochs == 0:
    saved = saved_config.read(Workdir.from_checkpoint_path(files.resolve_weights(config.init_from)))
    if saved is None:
      break
    config = saved
  return config


def find_pretrained_weights(config: ml_collections.ConfigDict) -> str:
  """Returns the path, as in `init_from`, of the pretrained weights that the CSN starts from.

  Args:
    config: see `default_config.get_config`.

  Returns:
    The path of the weights that stage 1 started from; '' if stage 1 was trained from scratch.
  """
  return resolve_stage1_config(config).init_from


def _resolve_specific_init(config: ml_collections.ConfigDict) -> str:
  """Returns `model.specific_init`, or 'universal' if there are no pretrained weights."""
  if config.model.specific_init == "pretrained" and not find_pretrained_weights(config):
    return "universal"
  return config.model.specific_init


def describe_defaults() -> dict[str, Any]:
  """Returns `build.describe_architecture` of the default config, in JSON types.

  Backbone fields are left out: a checkpoint lacks only those that its backbone lacks.
  """
  description = build.describe_architecture(default_config.get_config().model)
  description = {
    key: value for key, value in description.items() if not key.startswith("backbone.")
  }
  return json.loads(json.dumps(description))


def count_channels(config: ml_collections.ConfigDict) -> int:
  """Returns the channels of a frame: 3 for RGB, x and y of each pair for optical flow."""
  return 2 * config.data.flow_pairs if config.data.modality == "flow" else 3


def fit_devices(config: ml_collections.ConfigDict, workdir: Workdir) -> ml_collections.ConfigDict:
  """Returns a config whose batch sizes are divisible by the devices, and prints what it changed.

  A larger training batch scales the learning rates in proportion (the linear scaling rule). A run
  resumes with the batch size that it started with, on any number of devices.

  Args:
    config: see `default_config.get_config`; not modified.
    workdir: directory of the run.
  """
  config = config.copy_and_resolve_references()
  num_devices, saved = jax.device_count(), saved_config.read(workdir)
  if config.eval.batch_size > 0:
    fitted_eval = devices.fit_batch_size(config.eval.batch_size, num_devices)
    if fitted_eval != config.eval.batch_size:
      log(
        f"eval.batch_size: {fitted_eval} instead of {config.eval.batch_size}, to fit {num_devices}"
        " devices; scores do not depend on it"
      )
    config.eval.batch_size = fitted_eval
  parts = config.accumulate_steps
  if config.batch_size < 1 or parts < 1:
    return config  # `validation.check` raises
  if saved is None:
    fitted_size = devices.fit_batch_size(config.batch_size, num_devices, parts)
    fitted = _with_batch_size(config, fitted_size)
  else:
    # The config file has the original size, `saved` the one fitted to the devices of the start.
    fitted = _with_batch_size(config, saved.batch_size)
    if any(fitted[name].learning_rate != saved[name].learning_rate for name in STAGES):
      return config  # a different experiment: `validation.check` raises
  if fitted.batch_size != config.batch_size:
    rates = ", ".join(f"{name} {fitted[name].learning_rate:g}" for name in STAGES)
    log(
      f"batch_size: {fitted.batch_size} instead of {config.batch_size}, to fit {num_devices}"
      f" devices; learning rates scaled in proportion: {rates}"
    )
  return fitted


def _with_batch_size(
  config: ml_collections.ConfigDict, batch_size: int
) -> ml_collections.ConfigDict:
  """Returns a copy with another batch size and learning rates scaled in proportion."""
  changed = config.copy_and_resolve_references()
  if batch_size == config.batch_size:
    return changed
  changed.batch_size = batch_size
  for name in STAGES:
    changed[name].learning_rate = config[name].learning_rate * batch_size / config.batch_size
  return changed


def drop_late_decays(
  config: ml_collections.ConfigDict, changed: Collection[str]
) -> ml_collections.ConfigDict:
  """Returns a config without learning rate decays at or after the end of shortened stages.

  A user who overrides only `specific.epochs` does not want an error about the decays of the
  original, longer stage.

  Args:
    config: see `default_config.get_config`; not modified.
    changed: dotted names of the fields that the user overrode.
  """
  config = config.copy_and_resolve_references()
  for name in STAGES:
    stage, field = config[name], f"{name}.decay_epochs"
    is_shortened = stage.epochs and f"{name}.epochs" in changed
    if stage.decay != "epochs" or not is_shortened or field in changed:
      continue
    kept = tuple(epoch for epoch in stage.decay_epochs if epoch < stage.epochs)
    if kept != tuple(stage.decay_epochs):
      log(
        f"{field}: {kept} instead of {tuple(stage.decay_epochs)}, since {name}.epochs is"
        f" {stage.epochs:g}"
      )
      stage.decay_epochs = kept
  return config


def describe_enlargement(
  config: ml_collections.ConfigDict, stored: Mapping[str, Any]
) -> str | None:
  """Returns a note if prepared frames must be upscaled, else None.

  Args:
    config: see `default_config.get_config`.
    stored: how the data set was prepared.
  """
  short_edge = stored.get("short_edge", math.inf)
  if short_edge >= config.data.short_edge:
    return None
  return (
    f"data.short_edge: frames were prepared with {short_edge} pixels and are upscaled to"
    f" {config.data.short_edge}; prepare them with short_edge={config.data.short_edge}, or set"
    f" data.short_edge={short_edge}"
  )
