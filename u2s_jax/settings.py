"""What a config means: the stages and networks it asks for, and whether it can work at all."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections

from u2s_jax import csm, evaluate, sharding, stages
from u2s_jax.models import backbones
from u2s_jax.models.u2s import U2S
from u2s_jax.stages import Stage

STAGES = ("universal", "specific", "joint")
DTYPES = ("float32", "bfloat16")
MODALITIES = ("rgb", "flow")
SPLITS = ("train", "validation", "test")
PIXEL_FIELDS = ("pixel_mean", "pixel_std")
COMPUTE_FIELDS = ("dtype", "convolution", "remat")  # of `model`: how, not what
# Fields that change nothing that training computes: a run may go on with other values of them.
FREE_FIELDS = (
  "log_every_steps",
  "checkpoint_every_steps",
  "profile",
  "eval.classes",
  "eval.pairs",
  "data.dir",
  "data.num_threads",
  "data.render.dir",
  "data.render.workers",
)
# An evaluation trains nothing, so how it looks at the run is free as well, and which masks it
# combines.
MASK_FIELDS = ("selection", "guide")  # of `csm`
FREE_IN_EVALUATION = (*FREE_FIELDS, "eval", *(f"csm.{field}" for field in MASK_FIELDS))


def schedule(config: ml_collections.ConfigDict) -> tuple[Stage, Stage, Stage]:
  """The stages that a config asks for; ValueError names a field that cannot be."""
  return stages.schedule(
    {name: config[name].to_dict() for name in STAGES},
    attention=config.model.attention,
    specific_init=config.model.specific_init,
    control=config.control,
  )


def model_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of the config's `model` section that are arguments of `U2S`."""
  others = (*PIXEL_FIELDS, *COMPUTE_FIELDS, "specific_init")
  return {key: value for key, value in config.model.to_dict().items() if key not in others}


def build_model(config: ml_collections.ConfigDict, num_classes: int) -> U2S:
  """The networks that a config asks for; ValueError names a field that cannot be."""
  fields, how = model_fields(config), {field: config.model[field] for field in COMPUTE_FIELDS}
  if how["dtype"] not in DTYPES:
    raise ValueError(f"model.dtype: {how['dtype']!r} is not one of {', '.join(DTYPES)}")
  how["dtype"] = jnp.dtype(how["dtype"])
  backbone = backbones.build(**fields.pop("backbone"), **how)
  return U2S(num_classes, backbone, dtype=how["dtype"], **fields)


def input_channels(config: ml_collections.ConfigDict) -> int:
  """Channels of the frames that a config asks for: x and y of each pair of optical flow."""
  return 2 * config.data.flow_pairs if config.data.modality == "flow" else 3


def check(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, free: tuple[str, ...] = FREE_FIELDS
) -> None:
  """Finds what is wrong with a config before any data is prepared, which can take hours.

  Args:
    config: as in `configs/sthv2.py`.
    workdir: the run's folder; a `config.json` there is the one that the run began with.
    free: fields, or sections, that may differ from it.

  Raises:
    ValueError: a config that cannot work, or not the run's; names the first such field.
  """
  for field in ("log_every_steps", "checkpoint_every_steps"):
    if config[field] < 1:
      raise ValueError(f"{field}: {config[field]} is not at least 1")
  if config.accumulate_steps < 1:
    raise ValueError(f"accumulate_steps: {config.accumulate_steps} is not at least 1")
  sharding.check_batch_size("batch_size", config.batch_size, config.accumulate_steps)
  sharding.check_batch_size("eval.batch_size", config.eval.batch_size)
  if config.data.num_frames < 1:
    raise ValueError(f"data.num_frames: {config.data.num_frames} is not at least 1")
  if not 1 <= config.data.crop_size <= config.data.short_edge:
    raise ValueError(
      f"data.crop_size: {config.data.crop_size} is not between 1 and data.short_edge"
      f" ({config.data.short_edge})"
    )
  _check_pixels(config)
  if config.csm.distance not in csm.DISTANCES:
    raise ValueError(f"csm.distance: {config.csm.distance!r} is not one of {csm.DISTANCES}")
  if not 0 < config.csm.target_accuracy <= 1:
    raise ValueError(f"csm.target_accuracy: {config.csm.target_accuracy} is no fraction in (0, 1]")
  if config.csm.n < 0:
    raise ValueError(f"csm.n: {config.csm.n} is negative; 0 lets csm.target_accuracy decide")
  for field, values in zip(MASK_FIELDS, (csm.SELECTIONS, csm.GUIDES), strict=True):
    if config.csm[field] not in values:
      raise ValueError(f"csm.{field}: {config.csm[field]!r} is not one of {values}")
    if config.csm[field] != values[0] and config.model.attention != "mask":
      raise ValueError(
        f"csm.{field}: {config.csm[field]!r} is about masks, but model.attention is"
        f" {config.model.attention!r}"
      )
  schedule(config)
  build_model(config, num_classes=1)
  if config.eval.views not in evaluate.MIRRORED:
    raise ValueError(
      f"eval.views: {config.eval.views!r} is not one of {', '.join(evaluate.MIRRORED)}"
    )
  if config.eval.split not in SPLITS:
    raise ValueError(f"eval.split: {config.eval.split!r} is not one of {', '.join(SPLITS)}")
  if config.eval.split != "validation" and "eval" not in free:
    raise ValueError(
      f"eval.split: {config.eval.split!r} is for --mode=eval only; training needs 'validation'"
    )
  began = read(workdir)
  if began is None:
    # Only a run's very beginning reads it.
    if config.init_from and not pathlib.Path(config.init_from).exists():
      raise ValueError(f"init_from: {config.init_from}: no such file or folder")
    if not config.init_from and config.universal.epochs == 0:
      raise ValueError("universal.epochs: 0, but there is no init_from to take the weights from")
    if not config.init_from and config.model.specific_init == "pretrained":
      raise ValueError("model.specific_init: 'pretrained', but there is no init_from")
    return
  before, now = _flatten(began), _flatten(jsonable(config))
  for field in sorted(before.keys() | now.keys()):
    is_free = any(field == name or field.startswith(f"{name}.") for name in free)
    if not is_free and before.get(field) != now.get(field):
      raise ValueError(
        f"{path_of(workdir)}: this run began with {field} = {before.get(field)}, not"
        f" {now.get(field)}; set it back or take another --workdir"
      )


def _check_pixels(config):
  """Raises ValueError for fields that do not fit the modality or make no pixels."""
  data = config.data
  if data.modality not in MODALITIES:
    raise ValueError(f"data.modality: {data.modality!r} is not one of {', '.join(MODALITIES)}")
  if data.flow_pairs < 1:
    raise ValueError(f"data.flow_pairs: {data.flow_pairs} is not at least 1")
  channels = input_channels(config)
  for field in PIXEL_FIELDS:
    if len(config.model[field]) not in (1, channels):
      raise ValueError(
        f"model.{field}: {len(config.model[field])} values for the {channels} channels of"
        f" {data.modality}; give {channels}, or 1 for all"
      )
  if len(config.model.pixel_mean) != len(config.model.pixel_std):
    raise ValueError(
      f"model.pixel_std: {len(config.model.pixel_std)} values, but model.pixel_mean has"
      f" {len(config.model.pixel_mean)}; give as many"
    )
  wrong = [scale for scale in data.multi_scale if not 0 < scale <= 1]
  if wrong:
    raise ValueError(f"data.multi_scale: {wrong[0]} is no share of the short edge in (0, 1]")
  if len(data.color_jitter) != 4 or min(data.color_jitter) < 0 or data.color_jitter[3] > 0.5:
    raise ValueError(
      f"data.color_jitter: {tuple(data.color_jitter)} is not four numbers >= 0: brightness,"
      " contrast, saturation, hue (up to 0.5)"
    )
  if data.modality == "flow" and any(data.color_jitter):
    raise ValueError(
      f"data.color_jitter: {tuple(data.color_jitter)}, but flow has no colours; set it to 0s"
    )


def path_of(workdir: pathlib.Path) -> pathlib.Path:
  """Where a run's config lies."""
  return workdir / "config.json"


def read(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The config that the run in `workdir` began with, None where there is none.

  Raises:
    ValueError: the file is damaged.
  """
  path = path_of(workdir)
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(f"{path}: damaged ({error}); delete it if the config is the same") from error


def jsonable(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """A config as JSON gives it back: tuples are lists."""
  return json.loads(config.to_json_best_effort())


def config_of_run(workdir: pathlib.Path) -> ml_collections.ConfigDict | None:
  """The config that the run in `workdir` began with, None where there is none."""
  fields = read(workdir)
  return None if fields is None else ml_collections.ConfigDict(_tuples(fields))


def _tuples(value: Any) -> Any:
  """Lists, which JSON makes of tuples, as tuples."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts to one, keys joined by dots."""
  flat = {}
  for key, value in tree.items():
    flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat
