"""What a config means: its schedule, pretrained weights, and values derived from it."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import ml_collections

from u2s_jax import stages
from u2s_jax.run import saved_config
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
  specific_init = config.model.specific_init
  if specific_init == "pretrained" and not find_pretrained_weights(config):
    specific_init = "universal"
  return stages.make_stages(
    {name: config[name].to_dict() for name in STAGES},
    attention=config.model.attention,
    specific_init=specific_init,
    control=config.control,
    trainable=tuple(config.trainable),
  )


def resolve_stage1_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config that stage 1 was trained with, which may be that of another run.

  A run with `universal.epochs` = 0 takes stage 1 from the run in `init_from`, which may have done
  the same. The result also has 0 epochs if stage 1 comes from a file of weights, or from a run
  without a saved config.
  """
  while config.init_from and config.universal.epochs == 0:
    saved = saved_config.read(Workdir.from_checkpoint_path(files.resolve_weights(config.init_from)))
    if saved is None:
      break
    config = saved
  return config


def find_pretrained_weights(config: ml_collections.ConfigDict) -> str:
  """Returns the `init_from` that stage 1, and with it the CSN, started from; '' if from scratch."""
  return resolve_stage1_config(config).init_from


def count_channels(config: ml_collections.ConfigDict) -> int:
  """Returns the channels of a frame: 3 for RGB, x and y of each pair for optical flow."""
  return 2 * config.data.flow_pairs if config.data.modality == "flow" else 3


def fit_devices(config: ml_collections.ConfigDict, workdir: Workdir) -> ml_collections.ConfigDict:
  """Returns a config whose batch sizes are divisible by the devices, and prints what it changed.

  A larger training batch scales the learning rates in proportion (the linear scaling rule). A run
  resumes with the batch size that it started with, on any number of devices.
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
    batch_size = devices.fit_batch_size(config.batch_size, num_devices, parts)
  else:
    # The config file has the original size, `saved` the one fitted to the devices of the start.
    batch_size = saved.batch_size
  if batch_size == config.batch_size:
    return config
  fitted = config.copy_and_resolve_references()
  fitted.batch_size = batch_size
  for name in STAGES:
    fitted[name].learning_rate = config[name].learning_rate * batch_size / config.batch_size
  if saved and any(fitted[name].learning_rate != saved[name].learning_rate for name in STAGES):
    return config  # a different experiment: `validation.check` raises
  rates = ", ".join(f"{name} {fitted[name].learning_rate:g}" for name in STAGES)
  log(
    f"batch_size: {batch_size} instead of {config.batch_size}, to fit {num_devices} devices;"
    f" learning rates scaled in proportion: {rates}"
  )
  return fitted


def drop_late_decays(
  config: ml_collections.ConfigDict, changed: Collection[str]
) -> ml_collections.ConfigDict:
  """Returns a config without learning rate decays at or after the end of shortened stages.

  A user who overrides only `specific.epochs` does not want an error about the decays of the
  original, longer stage.

  Args:
    changed: dotted names of the fields that the user overrode.
  """
  config = config.copy_and_resolve_references()
  for name in STAGES:
    stage, field = config[name], f"{name}.decay_epochs"
    is_shortened = stage.epochs and f"{name}.epochs" in changed
    if stage.decay != "epochs" or not is_shortened or field in changed:
      continue
    # Values below 1 are shares of the stage.
    kept = tuple(epoch for epoch in stage.decay_epochs if epoch < max(stage.epochs, 1))
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
  """Returns a note if frames prepared as `stored` says must be upscaled, else None."""
  short_edge = stored.get("short_edge", math.inf)
  if short_edge >= config.data.short_edge:
    return None
  return (
    f"data.short_edge: frames were prepared with {short_edge} pixels and are upscaled to"
    f" {config.data.short_edge}; prepare them with short_edge={config.data.short_edge}, or set"
    f" data.short_edge={short_edge}"
  )
