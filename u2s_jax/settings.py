"""What a config means: the stages and networks it asks for, and whether it can work at all."""

import json
import math
import operator
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from configs import default
from u2s_jax import checkpoint, csm, devices, files, saved_config, stages
from u2s_jax.console import log
from u2s_jax.errors import UserError
from u2s_jax.models import backbones
from u2s_jax.models.network import Network
from u2s_jax.models.u2s import U2S
from u2s_jax.pretrained.read import read as read_weights
from u2s_jax.saved_config import flatten, jsonable, tuples
from u2s_jax.stages import STAGES, Stage
from u2s_jax.views import VIEWS
from u2s_jax.workdir import Workdir

DTYPES = ("float32", "bfloat16")
MODALITIES = ("rgb", "flow")
SPLITS = ("train", "validation", "test")
PIXEL_FIELDS = ("pixel_mean", "pixel_std")
COMPUTE_FIELDS = ("dtype", "convolution", "remat")  # of `model`: how, not what
MASK_FIELDS = ("selection", "guide")  # of `csm`
# Of numbers that memory grows with: more is a slip, or meant to harm who opens a stranger's run.
LARGEST = {
  "batch_size": 2**16,
  "accumulate_steps": 2**16,
  "data.num_frames": 2**12,
  "data.flow_pairs": 2**8,
  "data.short_edge": 2**13,
  "data.crop_size": 2**13,
  "data.num_threads": 2**12,
  "eval.batch_size": 2**16,
  "eval.pairs": 2**16,
  "model.backbone.width": 2**12,
  "model.non_local_width": 2**14,
}
# Fields that change nothing that training computes: a run may go on with other values of them.
FREE_FIELDS = (
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
# An evaluation trains nothing, so how it looks at the run is free as well, which masks it combines,
# and which data it is given.
FREE_IN_EVALUATION = (
  *(*FREE_FIELDS, "eval", "data.render"),
  *(f"csm.{field}" for field in MASK_FIELDS),
)


def schedule(config: ml_collections.ConfigDict) -> tuple[Stage, Stage, Stage]:
  """Returns the stages that a config asks for; UserError names a field that cannot be."""
  return stages.schedule(
    {name: config[name].to_dict() for name in STAGES},
    attention=config.model.attention,
    specific_init=_specific_init(config),
    control=config.control,
    trainable=tuple(config.trainable),
  )


def config_of_stage_1(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns the config that stage 1 was trained with: another run's where that is taken as it is.

  Args:
    config: see `configs/default.py`.

  Returns:
    One with `universal.epochs` = 0 where that run, or the file, does not say.
  """
  while config.init_from and config.universal.epochs == 0:
    began = saved_config.read(Workdir.holding(files.weights(config.init_from)))
    if began is None:
      break
    config = began
  return config


def pretrained_weights(config: ml_collections.ConfigDict) -> str:
  """Returns what the CSN's pretrained weights are read from, in words of `init_from`.

  Args:
    config: see `configs/default.py`.

  Returns:
    A path, that of the weights that stage 1 started from; empty where these were random.
  """
  return config_of_stage_1(config).init_from


def _specific_init(config: ml_collections.ConfigDict) -> str:
  """Returns where the CSN starts, which no pretrained weights may decide."""
  if config.model.specific_init == "pretrained" and not pretrained_weights(config):
    return "universal"
  return config.model.specific_init


def build_network(config: ml_collections.ConfigDict, num_classes: int) -> Network:
  """Returns the networks that a config asks for; UserError names a field that cannot be."""
  fields, how = _model_fields(config), {field: config.model[field] for field in COMPUTE_FIELDS}
  if how["dtype"] not in DTYPES:
    raise UserError(f"model.dtype: {how['dtype']!r} is not one of {', '.join(DTYPES)}")
  how["dtype"] = jnp.dtype(how["dtype"])
  if "name" not in fields["backbone"]:
    raise UserError(f"model.backbone.name: not set; it is one of {', '.join(backbones.BACKBONES)}")
  backbone = backbones.build(**tuples(fields.pop("backbone")), **how)
  return Network(
    U2S(num_classes, backbone, dtype=how["dtype"], **fields),
    **{field: tuple(config.model[field]) for field in PIXEL_FIELDS},
    **{field: config.csm[field] for field in MASK_FIELDS},
  )


def describe_model(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what decides on the networks' parameters, by dotted name below `model`."""
  return flatten(_model_fields(config))


def describe_defaults() -> dict[str, Any]:
  """Returns `describe_model` of the default config, in JSON's types, but for the backbone's fields.

  A backbone's field that a checkpoint does not have is no field of that backbone.
  """
  described = describe_model(default.get_config())
  described = {key: value for key, value in described.items() if not key.startswith("backbone.")}
  return json.loads(json.dumps(described))


def _model_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the fields of the config's `model` section that are arguments of `U2S`."""
  others = (*PIXEL_FIELDS, *COMPUTE_FIELDS, "specific_init")
  return {key: value for key, value in config.model.to_dict().items() if key not in others}


def input_channels(config: ml_collections.ConfigDict) -> int:
  """Returns the channels of the frames: x and y of each pair of optical flow, or 3."""
  return 2 * config.data.flow_pairs if config.data.modality == "flow" else 3


def fit_devices(config: ml_collections.ConfigDict, workdir: Workdir) -> ml_collections.ConfigDict:
  """Returns the config with batches that the devices at hand divide, and says what it changed.

  A training batch that they do not divide is made larger, and the learning rates with it: so that a
  clip moves the weights as far. A run goes on with the batch that it began with.

  Args:
    config: see `configs/default.py`; stays as it is.
    workdir: the run's folder.
  """
  config = config.copy_and_resolve_references()
  count, began = jax.device_count(), saved_config.read(workdir)
  if config.eval.batch_size > 0:
    fitted_eval = devices.fit_batch_size(config.eval.batch_size, count)
    if fitted_eval != config.eval.batch_size:
      log(
        f"eval.batch_size: {fitted_eval} clips in place of {config.eval.batch_size}, for the"
        f" {count} devices; the scores do not depend on it"
      )
    config.eval.batch_size = fitted_eval
  parts = config.accumulate_steps
  if config.batch_size < 1 or parts < 1:
    return config  # `check` says so
  if began is None:
    fitted = _with_batch_size(config, devices.fit_batch_size(config.batch_size, count, parts))
  else:  # as it was fitted to the devices that the run began on
    fitted = _with_batch_size(config, began.batch_size)
    if any(fitted[name].learning_rate != began[name].learning_rate for name in STAGES):
      return config  # another experiment: `check` says so
  if fitted.batch_size != config.batch_size:
    rates = ", ".join(f"{name} {fitted[name].learning_rate:g}" for name in STAGES)
    log(
      f"batch_size: {fitted.batch_size} clips in place of {config.batch_size}, for the {count}"
      f" devices; learning rates in proportion: {rates}"
    )
  return fitted


def fit_pixels(config: ml_collections.ConfigDict, workdir: Workdir) -> ml_collections.ConfigDict:
  """Returns the config with the starting weights' pixel statistics where its own are empty.

  A run goes on with those that it began with.

  Args:
    config: see `configs/default.py`; stays as it is.
    workdir: the run's folder.

  Raises:
    UserError: there are no weights to start from, or they do not say their statistics.
  """
  empty = [field for field in PIXEL_FIELDS if not config.model[field]]
  if not empty:
    return config
  config, began = config.copy_and_resolve_references(), saved_config.read(workdir)
  if began is not None:
    for field in empty:
      config.model[field] = began.model[field]
    return config
  field = f"model.{empty[0]}"
  if not config.init_from:
    raise UserError(f"{field}: empty, but init_from is not set; set {field}, or init_from")
  _check_start(config)
  weights = read_weights(files.weights(config.init_from), one_pass=config.universal.epochs == 0)
  channels = input_channels(config)
  if weights.pixels is None or weights.channels != channels:
    raise UserError(
      f"{field}: empty, but {weights.origin} does not say it for {channels} channels; set {field}"
    )
  for field, values in zip(PIXEL_FIELDS, weights.pixels, strict=True):
    if field in empty:
      config.model[field] = values * (channels // len(values))
      log(f"model.{field}: {_rounded(config.model[field])}, of {weights.origin}")
  return config


def _rounded(values):
  """Returns numbers with four digits, as text."""
  return f"({', '.join(f'{value:.4g}' for value in values)})"


def _with_batch_size(config, batch_size):
  """Returns the config with another batch, the learning rates in proportion."""
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
  """Returns the config without decays at or after the end of a stage that was shortened.

  Whoever sets `specific.epochs` alone has not asked for the decays of the longer stage.

  Args:
    config: see `configs/default.py`; stays as it is.
    changed: fields that the user set, by dotted name.
  """
  config = config.copy_and_resolve_references()
  for name in STAGES:
    stage, field = config[name], f"{name}.decay_epochs"
    shortened = stage.epochs and f"{name}.epochs" in changed
    if stage.decay != "epochs" or not shortened or field in changed:
      continue
    kept = tuple(epoch for epoch in stage.decay_epochs if epoch < stage.epochs)
    if kept != tuple(stage.decay_epochs):
      log(
        f"{field}: {kept} in place of {tuple(stage.decay_epochs)}, as {name}.epochs is"
        f" {stage.epochs:g}"
      )
      stage.decay_epochs = kept
  return config


def check(
  config: ml_collections.ConfigDict, workdir: Workdir, free: tuple[str, ...] = FREE_FIELDS
) -> None:
  """Checks a config before any data is prepared, which can take hours.

  All but the section `data`, which `data.clips` checks.

  Args:
    config: see `configs/default.py`.
    workdir: the run's folder; a `config.json` in it is the one that the run began with.
    free: fields, or sections, that may differ from it.

  Raises:
    UserError: a config that cannot work, or not the run's; names the first such field.
  """
  checkpoint.check_path(workdir.checkpoints)
  counts = ("log_every_steps", "checkpoint_every_steps", "accumulate_steps", "eval.every_epochs")
  for field in counts:
    value = operator.attrgetter(field)(config)
    if value < 1:
      raise UserError(f"{field}: {value} is not at least 1")
  began = saved_config.read(workdir)
  trains = "eval" not in free
  unit = jax.device_count() * config.accumulate_steps
  if trains and began is not None and began.batch_size % unit:
    raise UserError(
      f"{workdir.config}: this run began with batch_size = {began.batch_size}, which {unit}"
      " (devices times accumulate_steps) do not divide; go on with a number of devices that does"
    )
  if trains:
    devices.check_batch_size("batch_size", config.batch_size, config.accumulate_steps)
  devices.check_batch_size("eval.batch_size", config.eval.batch_size)
  check_values(config)
  if config.eval.split != "validation" and trains:
    raise UserError(
      f"eval.split: {config.eval.split!r} is for an evaluation only; training needs 'validation'"
    )
  newest = checkpoint.newest(workdir.checkpoints, STAGES)  # on all hosts, whatever each one sees
  if began is None:
    if newest:
      raise UserError(
        f"{workdir.config}: missing, but there are checkpoints; restore the file or choose another"
        " workdir"
      )
    _check_start(config)
    for stage in schedule(config):
      stage.check_decays()
  else:
    _check_same_run(config, began, workdir.config, free)
  # A run goes on in the views that it began with, whatever they are.
  if began is None or config.eval.views != began.eval.views:
    _check_mirrors(config.eval.views, config.data)


def check_values(config: ml_collections.ConfigDict) -> None:
  """Checks what does not depend on devices and folders, but for the section `data`.

  Args:
    config: see `configs/default.py`.

  Raises:
    UserError: a config that cannot work; names the first such field.
  """
  for field, most in LARGEST.items():
    section, _, name = field.rpartition(".")
    value = operator.attrgetter(section)(config).get(name, 0) if section else config[name]
    if value > most:
      raise UserError(f"{field}: {value} is more than {most}, the most that is taken")
  _check_pixels(config)
  _check_optimizer(config)
  schedule(config)
  build_network(config, num_classes=1)
  _check_csm(config)
  _check_evaluation(config)


def _check_pixels(config):
  """Raises UserError for means and deviations that do not fit the channels."""
  if config.data.modality not in MODALITIES:
    raise UserError(f"data.modality: {config.data.modality!r} is not one of {MODALITIES}")
  channels = input_channels(config)
  for field in PIXEL_FIELDS:
    if len(config.model[field]) not in (1, channels):
      raise UserError(
        f"model.{field}: {len(config.model[field])} values for the {channels} channels of"
        f" {config.data.modality}; give {channels}, or 1 for all"
      )
  if len(config.model.pixel_mean) != len(config.model.pixel_std):
    raise UserError(
      f"model.pixel_std: {len(config.model.pixel_std)} values, but model.pixel_mean has"
      f" {len(config.model.pixel_mean)}; give as many"
    )


def _check_optimizer(config):
  """Raises UserError for numbers that would let a step go uphill or nowhere."""
  momentum, decay = config.optimizer.momentum, config.optimizer.weight_decay
  if not 0 <= momentum < 1:
    raise UserError(f"optimizer.momentum: {momentum} is not in [0, 1)")
  for field, value in (
    ("optimizer.weight_decay", decay),
    ("optimizer.clip_norm", config.optimizer.clip_norm),
    ("regularizer_weight", config.regularizer_weight),
  ):
    if not 0 <= value < math.inf:
      raise UserError(f"{field}: {value} is no number of at least 0")
  if not 0 <= config.label_smoothing < 1:
    raise UserError(f"label_smoothing: {config.label_smoothing} is not in [0, 1)")


def _check_csm(config):
  """Raises UserError for a CSM that cannot be made, or masks that cannot be combined."""
  if config.csm.distance not in csm.DISTANCES:
    raise UserError(f"csm.distance: {config.csm.distance!r} is not one of {csm.DISTANCES}")
  if not 0 < config.csm.target_accuracy <= 1:
    raise UserError(f"csm.target_accuracy: {config.csm.target_accuracy} is no fraction in (0, 1]")
  if config.csm.n < 0:
    raise UserError(f"csm.n: {config.csm.n} is negative; 0 lets csm.target_accuracy decide")
  for field, values in zip(MASK_FIELDS, (csm.SELECTIONS, csm.GUIDES), strict=True):
    if config.csm[field] not in values:
      raise UserError(f"csm.{field}: {config.csm[field]!r} is not one of {values}")
    if config.csm[field] != values[0] and config.model.attention != "mask":
      raise UserError(
        f"csm.{field}: {config.csm[field]!r} is about masks, but model.attention is"
        f" {config.model.attention!r}"
      )


def enlargement(config: ml_collections.ConfigDict, stored: Mapping[str, Any]) -> str | None:
  """Returns a line on frames that are enlarged, None where they are not.

  Args:
    config: see `configs/default.py`.
    stored: how the data set was prepared.
  """
  short_edge = stored.get("short_edge", math.inf)
  if short_edge >= config.data.short_edge:
    return None
  return (
    f"data.short_edge: the data were prepared with {short_edge} pixels, so frames are enlarged to"
    f" {config.data.short_edge}; prepare them with short_edge={config.data.short_edge}, or set"
    f" data.short_edge={short_edge}"
  )


def check_views(views: str, data: ml_collections.ConfigDict) -> None:
  """Checks the views of a test.

  Args:
    views: `eval.views`.
    data: the config's section.

  Raises:
    UserError: there are no such views, or mirrored ones where classes may have a side.
  """
  _check_names(views)
  _check_mirrors(views, data)


def _check_names(views):
  """Raises UserError for views that there are not."""
  if views not in VIEWS:
    raise UserError(f"eval.views: {views!r} is not one of {', '.join(VIEWS)}")


def _check_evaluation(config):
  """Raises UserError for views or a split that there are not."""
  _check_names(config.eval.views)
  if config.eval.split not in SPLITS:
    raise UserError(f"eval.split: {config.eval.split!r} is not one of {', '.join(SPLITS)}")


def _check_mirrors(views, data):
  """Raises UserError for mirrored views where classes may have a side."""
  if any(VIEWS[views]) and not (data.flip or data.flip_label_map):
    raise UserError(
      f"eval.views: {views!r} mirrors views, but the network never sees a mirrored clip and classes"
      " may have a side; take '5crop', or set data.flip (no class has one) or data.flip_label_map"
    )


def _check_start(config):
  """Raises UserError for a run's beginning that lacks weights; only that reads them."""
  if config.init_from:
    if not files.weights(config.init_from).exists():
      raise UserError(f"init_from: {config.init_from}: no such file or folder")
    return
  if config.universal.epochs == 0:
    raise UserError("universal.epochs: 0, but there is no init_from to take the weights from")


def _check_same_run(config, began, path, free):
  """Raises UserError for fields that are not as in the config that the run began with."""
  before, now = flatten(jsonable(began)), flatten(jsonable(config))
  differences = [
    f"{field} = {before.get(field)}, not {now.get(field)}"
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field)
    and not any(field == name or field.startswith(f"{name}.") for name in free)
  ]
  if differences:
    raise UserError(
      f"{path}: this run began with {'; '.join(differences)}; restore these fields or choose"
      " another workdir"
    )
