"""Reads and writes the config of a run as JSON; checks types, since a file may be untrusted."""

import json
import math
from numbers import Real
from types import NoneType
from typing import Any

import ml_collections
from flax import traverse_util

from u2s_jax.models.backbones import get_field_defaults
from u2s_jax.run import default_config
from u2s_jax.run.workdir import Workdir, write_json
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import STAGES

TYPE_NAMES: dict[type, str] = {str: "a string", bool: "true or false", NoneType: "a value"}


def flatten(fields: dict[str, Any]) -> dict[str, Any]:
  """Returns nested dicts as one dict whose keys are joined by dots."""
  return traverse_util.flatten_dict(fields, sep=".")


def write(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
  """Writes the config of a new run."""
  write_json(workdir.config, to_json(config))


def read(workdir: Workdir) -> ml_collections.ConfigDict | None:
  """Returns the config that a run started with, None if there is none.

  Raises:
    UserError: if the file is damaged or a field has the wrong type.
  """
  if not workdir.config.exists():
    return None
  try:
    fields = json.loads(workdir.config.read_text())
  except ValueError as error:
    raise UserError(
      f"{workdir.config}: damaged ({error}); restore it or choose another workdir"
    ) from error
  defaults = to_json(default_config.get_config())
  try:
    _check_types(fields, {**defaults, "model": {**defaults["model"], "backbone": {"name": ""}}})
    # Backbones have fields of the same name, but of other types. Fields without a default are those
    # of the default backbone; the types of another package's backbone are unknown.
    backbone = fields.get("model", {}).get("backbone", {})
    types, name = {}, backbone.get("name", "")
    if ":" not in name:
      own_types = json.loads(json.dumps(get_field_defaults(name)))
      types = defaults["model"]["backbone"] | own_types
    _check_types(backbone, types, "model.backbone")
  except UserError as error:
    raise UserError(f"{workdir.config}: {error}") from error
  return ml_collections.ConfigDict(to_tuples(_complete(fields, defaults)))


def _check_types(fields: Any, defaults: Any, field: str = "") -> None:
  """Checks recursively that fields read from a file have the types of their defaults.

  Args:
    defaults: default of `fields`; None if it has none, as fields of other backbones.
    field: dotted name of `fields`, '' for the whole config.

  Raises:
    UserError: for the first field of the wrong type.
  """
  if isinstance(defaults, dict):
    if not isinstance(fields, dict):
      raise UserError(f"{field or 'config'}: {fields!r} must be a section of fields")
    for name, value in fields.items():
      # These sections become keyword arguments of `Stage` and `U2S`.
      if field in (*STAGES, "model") and name not in defaults:
        raise UserError(f"{field}.{name}: unknown field")
      _check_types(value, defaults.get(name), f"{field}.{name}".removeprefix("."))
    return
  if isinstance(fields, dict):
    if defaults is not None:
      raise UserError(f"{field}: must be a single value, not the section {fields!r}")
    _check_types(fields, {}, field)
  elif isinstance(fields, list):
    if not isinstance(defaults, (list, NoneType)):
      raise UserError(f"{field}: {fields!r} must be a single value, not a list")
    first = defaults[0] if defaults else None
    for value in fields:
      _check_types(value, first, field)
  elif isinstance(defaults, list):
    raise UserError(f"{field}: {fields!r} must be a list")
  elif isinstance(defaults, Real) and not isinstance(defaults, bool):
    is_integer = isinstance(defaults, int)
    if isinstance(fields, bool) or not isinstance(fields, int if is_integer else Real):
      raise UserError(f"{field}: {fields!r} must be {'an integer' if is_integer else 'a number'}")
  elif fields is None or not isinstance(fields, type(defaults) if defaults is not None else object):
    raise UserError(f"{field}: {fields!r} must be {TYPE_NAMES[type(defaults)]}")
  if isinstance(fields, Real) and not math.isfinite(fields):
    raise UserError(f"{field}: {fields} must be finite")


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a config as nested dicts of JSON types, with lists instead of tuples."""
  return json.loads(config.to_json_best_effort())


def _complete(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of a run with the defaults of fields that were added after it started.

  The default of an added field must therefore be the behaviour of earlier versions. The backbone's
  missing fields are not filled in: another backbone has other fields.
  """
  complete = defaults | saved
  for name, value in defaults.items():
    if isinstance(value, dict) and name != "backbone":
      complete[name] = _complete(saved.get(name, {}), value)
  return complete


def to_tuples(value: Any) -> Any:
  """Returns nested dicts with tuples instead of lists."""
  if isinstance(value, dict):
    return {key: to_tuples(item) for key, item in value.items()}
  return tuple(map(to_tuples, value)) if isinstance(value, list) else value
