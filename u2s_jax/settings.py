"""What a config means: the stages and networks it asks for, and whether it can work at all."""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections

from u2s_jax import csm, evaluate, sharding, stages
from u2s_jax.models.u2s import U2S
from u2s_jax.stages import Stage

STAGES = ("universal", "specific", "joint")
DTYPES = ("float32", "bfloat16")
PIXEL_FIELDS = ("pixel_mean", "pixel_std")
# Fields that change nothing that training computes: a run may go on with other values of them.
FREE_FIELDS = (
  "log_every_steps",
  "checkpoint_every_steps",
  "data.source_dir",
  "data.prepared_dir",
  "data.prepare_workers",
  "data.num_threads",
)
# An evaluation trains nothing, so how it looks at the run is free as well.
FREE_IN_EVALUATION = (*FREE_FIELDS, "eval")


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
  others = (*PIXEL_FIELDS, "specific_init")
  return {key: value for key, value in config.model.to_dict().items() if key not in others}


def build_model(config: ml_collections.ConfigDict, num_classes: int) -> U2S:
  """The networks that a config asks for; ValueError names a field that cannot be."""
  fields = model_fields(config)
  if fields["dtype"] not in DTYPES:
    raise ValueError(f"model.dtype: {fields['dtype']!r} is not one of {', '.join(DTYPES)}")
  return U2S(num_classes, **{**fields, "dtype": jnp.dtype(fields["dtype"])})


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
  sharding.check_batch_size("batch_size", config.batch_size)
  sharding.check_batch_size("eval.batch_size", config.eval.batch_size)
  if config.data.num_frames < 1:
    raise ValueError(f"data.num_frames: {config.data.num_frames} is not at least 1")
  if not 1 <= config.data.crop_size <= config.data.short_edge:
    raise ValueError(
      f"data.crop_size: {config.data.crop_size} is not between 1 and data.short_edge"
      f" ({config.data.short_edge})"
    )
  if config.csm.distance not in csm.DISTANCES:
    raise ValueError(f"csm.distance: {config.csm.distance!r} is not one of {csm.DISTANCES}")
  if not 0 < config.csm.target_accuracy <= 1:
    raise ValueError(f"csm.target_accuracy: {config.csm.target_accuracy} is no fraction in (0, 1]")
  schedule(config)
  build_model(config, num_classes=1)
  if config.eval.views not in evaluate.MIRRORED:
    raise ValueError(
      f"eval.views: {config.eval.views!r} is not one of {', '.join(evaluate.MIRRORED)}"
    )
  began = read(workdir)
  if began is None:
    return
  before, now = _flatten(began), _flatten(jsonable(config))
  for field in sorted(before.keys() | now.keys()):
    is_free = any(field == name or field.startswith(f"{name}.") for name in free)
    if not is_free and before.get(field) != now.get(field):
      raise ValueError(
        f"{path_of(workdir)}: this run began with {field} = {before.get(field)}, not"
        f" {now.get(field)}; set it back or take another --workdir"
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


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts to one, keys joined by dots."""
  flat = {}
  for key, value in tree.items():
    flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat
