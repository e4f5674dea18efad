"""Checks of a config: whether its values are valid, and whether they match the run."""

import math

import jax
import ml_collections

from u2s_jax import csm
from u2s_jax.models.network import build_network
from u2s_jax.run import checkpoint, saved_config
from u2s_jax.run.saved_config import flatten, to_json
from u2s_jax.run.settings import (
  MASK_FIELDS,
  PIXEL_FIELDS,
  RESUMABLE_FIELDS,
  count_channels,
  make_schedule,
)
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices, files
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import STAGES, get_subnetwork
from u2s_jax.video.listing import MODALITIES, SPLITS
from u2s_jax.views import VIEWS

# Limits of fields that determine memory use: a larger value is a mistake, or an attack by whoever
# made the run.
MAX_VALUES = {
  "batch_size": 2**16,
  "accumulate_steps": 2**16,
  "data.num_frames": 2**12,
  "data.flow_pairs": 2**8,
  "data.short_edge": 2**13,
  "data.crop_size": 2**13,
  "data.num_threads": 2**12,
  "eval.batch_size": 2**16,
  "eval.pairs": 2**16,
  "data.cache_views": 2**10,
  "model.backbone.width": 2**12,
  "model.backbone.spatial_blocks": 2**8,
  "model.backbone.temporal_blocks": 2**8,
  "model.backbone.frames": 2**12,
  "model.non_local_width": 2**14,
}
POSITIVE_FIELDS = (
  "log_every_steps",
  "checkpoint_every_steps",
  "accumulate_steps",
  "eval.every_epochs",
)


def check(
  config: ml_collections.ConfigDict,
  workdir: Workdir,
  free_fields: tuple[str, ...] = RESUMABLE_FIELDS,
) -> None:
  """Checks a config before data are prepared, which can take hours.

  Covers all sections but `data`, which `video.clips` checks.

  Args:
    workdir: if it has a `config.json`, the config must match it.
    free_fields: fields, or sections, that may differ from `config.json`.

  Raises:
    UserError: if a field is invalid or differs from the run; names the field.
  """
  checkpoint.check_path(workdir.checkpoints)
  fields = flatten(config.to_dict())
  for field in POSITIVE_FIELDS:
    if fields[field] < 1:
      raise UserError(f"{field}: {fields[field]} must be >= 1")
  saved, is_training = saved_config.read(workdir), "eval" not in free_fields
  if is_training:
    unit = jax.device_count() * config.accumulate_steps
    if saved is not None and saved.batch_size % unit:
      raise UserError(
        f"{workdir.config}: the batch_size {saved.batch_size} of this run is not divisible by"
        f" {unit} (devices times accumulate_steps); use another number of devices"
      )
    devices.check_batch_size("batch_size", config.batch_size, config.accumulate_steps)
  devices.check_batch_size("eval.batch_size", config.eval.batch_size)
  check_values(config)
  if config.eval.split != "validation" and is_training:
    raise UserError(
      f"eval.split: {config.eval.split!r} is only for an evaluation; training requires 'validation'"
    )
  # On all hosts and before any branch: it is a collective operation.
  newest = checkpoint.find_newest(workdir.checkpoints, STAGES)
  if saved is None:
    if newest:
      raise UserError(
        f"{workdir.config}: missing, but checkpoints exist; restore the file or choose another"
        " workdir"
      )
    check_start(config)
    for stage in make_schedule(config):
      stage.check_decays()
  else:
    _check_same_run(config, saved, workdir, free_fields)
  # A run that was started before this check existed may resume with its views.
  if saved is None or config.eval.views != saved.eval.views:
    _check_mirrors(config.eval.views, config.data)


def check_values(config: ml_collections.ConfigDict) -> None:
  """Checks everything that does not depend on devices and files, except the section `data`.

  Raises:
    UserError: if a field is invalid; names the field.
  """
  fields = flatten(config.to_dict())
  for field, maximum in MAX_VALUES.items():
    if fields.get(field, 0) > maximum:
      raise UserError(f"{field}: {fields[field]} is too large; the maximum is {maximum}")
  _check_pixels(config)
  _check_optimizer(config)
  make_schedule(config)
  build_network(config, num_classes=1)
  _check_csm(config)
  _check_cache(config)
  _check_view_names(config.eval.views)
  if config.eval.split not in SPLITS:
    raise UserError(f"eval.split: {config.eval.split!r} is not one of {', '.join(SPLITS)}")


def _check_cache(config: ml_collections.ConfigDict) -> None:
  data = config.data
  if data.cache_views < 0:
    raise UserError(f"data.cache_views: {data.cache_views} must be >= 0")
  if data.cache_features and jax.process_count() > 1:
    raise UserError("data.cache_features: not available with several processes; set it to False")
  if data.cache_views and not data.cache_features:
    raise UserError("data.cache_views: requires data.cache_features=True")
  trained = {part for stage in make_schedule(config) for part in stage.trainable}
  parts = sorted(part for part in trained if get_subnetwork(part) == "trunk")
  if data.cache_features and parts:
    raise UserError(
      f"data.cache_features: requires a frozen trunk, but {parts[0]!r} is trained; remove it from"
      " trainable"
    )


def check_views(views: str, data: ml_collections.ConfigDict) -> None:
  """Checks the views of an evaluation, given the section `data` of its config.

  Raises:
    UserError: if the views are unknown, or mirrored while classes may depend on left and right.
  """
  _check_view_names(views)
  _check_mirrors(views, data)


def check_start(config: ml_collections.ConfigDict) -> None:
  """Checks that a new run has the weights that it starts from.

  Raises:
    UserError: if `init_from` does not exist, or is missing while stage 1 is not trained.
  """
  if config.init_from and not files.resolve_weights(config.init_from).exists():
    raise UserError(f"init_from: {config.init_from}: no such file or directory")
  if not config.init_from and config.universal.epochs == 0:
    raise UserError("universal.epochs: 0 requires init_from, the weights of stage 1; set it")


def _check_pixels(config: ml_collections.ConfigDict) -> None:
  """Raises UserError if pixel means and deviations do not match the channels."""
  if config.data.modality not in MODALITIES:
    raise UserError(f"data.modality: {config.data.modality!r} is not one of {MODALITIES}")
  channels = count_channels(config)
  for field in PIXEL_FIELDS:
    if len(config.model[field]) not in (1, channels):
      raise UserError(
        f"model.{field}: {len(config.model[field])} values for the {channels} channels of"
        f" {config.data.modality}; give {channels}, or 1 for all"
      )
  if len(config.model.pixel_mean) != len(config.model.pixel_std):
    raise UserError(
      f"model.pixel_std: {len(config.model.pixel_std)} values, but model.pixel_mean has"
      f" {len(config.model.pixel_mean)}; the counts must match"
    )


def _check_optimizer(config: ml_collections.ConfigDict) -> None:
  fields = flatten(config.to_dict())
  for field in ("optimizer.momentum", "label_smoothing"):
    if not 0 <= fields[field] < 1:
      raise UserError(f"{field}: {fields[field]} must be in [0, 1)")
  for field in ("optimizer.weight_decay", "optimizer.clip_norm", "regularizer_weight"):
    if not 0 <= fields[field] < math.inf:  # also rejects NaN
      raise UserError(f"{field}: {fields[field]} must be >= 0 and finite")


def _check_csm(config: ml_collections.ConfigDict) -> None:
  if config.csm.distance not in csm.DISTANCES:
    raise UserError(f"csm.distance: {config.csm.distance!r} is not one of {csm.DISTANCES}")
  if not 0 < config.csm.target_accuracy <= 1:
    raise UserError(f"csm.target_accuracy: {config.csm.target_accuracy} must be in (0, 1]")
  if config.csm.n < 0:
    raise UserError(f"csm.n: {config.csm.n} must be >= 0; with 0 csm.target_accuracy determines N")
  for field, values in zip(MASK_FIELDS, (csm.SELECTIONS, csm.GUIDES), strict=True):
    if config.csm[field] not in values:
      raise UserError(f"csm.{field}: {config.csm[field]!r} is not one of {values}")
    if config.csm[field] != values[0] and config.model.attention != "mask":
      raise UserError(
        f"csm.{field}: {config.csm[field]!r} requires model.attention = 'mask', not"
        f" {config.model.attention!r}"
      )


def _check_view_names(views: str) -> None:
  if views not in VIEWS:
    raise UserError(f"eval.views: {views!r} is not one of {', '.join(VIEWS)}")


def _check_mirrors(views: str, data: ml_collections.ConfigDict) -> None:
  """Raises UserError for mirrored views if the network never sees mirrored clips."""
  if any(VIEWS[views]) and not (data.flip or data.flip_label_map):
    raise UserError(
      f"eval.views: {views!r} mirrors views, but training does not mirror clips, since classes may"
      " depend on left and right; use '5crop', or set data.flip (if no class does) or"
      " data.flip_label_map"
    )


def _check_same_run(
  config: ml_collections.ConfigDict,
  saved: ml_collections.ConfigDict,
  workdir: Workdir,
  free_fields: tuple[str, ...],
) -> None:
  """Raises UserError that lists the fields in which a config differs from that of the run."""
  before, now = flatten(to_json(saved)), flatten(to_json(config))
  differences = [
    f"{field} = {before.get(field)}, not {now.get(field)}"
    for field in sorted(before.keys() | now.keys())
    if before.get(field) != now.get(field)
    and not any(field == name or field.startswith(f"{name}.") for name in free_fields)
  ]
  if differences:
    raise UserError(
      f"{workdir.config}: this run was started with {'; '.join(differences)}; restore these fields"
      " or choose another workdir"
    )
