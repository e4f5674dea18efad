"""The config as a run keeps it, in JSON; who opens a run may not be who made it."""

import json
import math
from numbers import Real
from types import NoneType
from typing import Any

import ml_collections

from configs import default
from u2s_jax.errors import UserError
from u2s_jax.stages import STAGES
from u2s_jax.workdir import Workdir

KINDS = {str: "text", bool: "true or false", NoneType: "value"}


def write(workdir: Workdir, config: ml_collections.ConfigDict) -> None:
  """Writes the config that a run begins with."""
  workdir.write_config(jsonable(config))


def read(workdir: Workdir) -> ml_collections.ConfigDict | None:
  """Returns the config that the run in `workdir` began with, None where there is none."""
  fields = workdir.read_config()
  if fields is None:
    return None
  try:
    _check_types(fields, jsonable(default.get_config()))
  except UserError as error:
    raise UserError(f"{workdir.config}: {error}") from error
  return ml_collections.ConfigDict(tuples(_complete(fields)))


def _check_types(fields: Any, defaults: Any, field: str = "") -> None:
  """Raises UserError where a field read from a file is of another type than its default.

  Args:
    fields: all or one of them, in JSON's types.
    defaults: of the same; None where there is none, as of a backbone's own fields.
    field: dotted name.
  """
  if isinstance(defaults, dict):
    if not isinstance(fields, dict):
      raise UserError(f"{field or 'it'}: {fields!r} is no section of fields")
    for name, value in fields.items():
      if field in (*STAGES, "model") and name not in defaults:  # arguments of `Stage` and `U2S`
        raise UserError(f"{field}.{name}: no such field")
      _check_types(value, defaults.get(name), f"{field}.{name}".removeprefix("."))
    return
  if isinstance(fields, dict):
    if defaults is not None:
      raise UserError(f"{field}: {fields!r} is a section of fields and should be one value")
    _check_types(fields, {}, field)
  elif isinstance(fields, list):
    if not isinstance(defaults, (list, NoneType)):
      raise UserError(f"{field}: {fields!r} is a list and should be one value")
    first = defaults[0] if defaults else None
    for value in fields:
      _check_types(value, first, field)
  elif isinstance(defaults, list):
    raise UserError(f"{field}: {fields!r} is no list")
  elif isinstance(defaults, Real) and not isinstance(defaults, bool):
    whole = isinstance(defaults, int)
    if isinstance(fields, bool) or not isinstance(fields, int if whole else Real):
      raise UserError(f"{field}: {fields!r} is no {'whole ' if whole else ''}number")
  elif fields is None or not isinstance(fields, type(defaults) if defaults is not None else object):
    raise UserError(f"{field}: {fields!r} is no {KINDS[type(defaults)]}")
  if isinstance(fields, Real) and not math.isfinite(fields):
    raise UserError(f"{field}: {fields} is no finite number")


def jsonable(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns a config as JSON gives it back: tuples are lists."""
  return json.loads(config.to_json_best_effort())


def _complete(fields: dict[str, Any]) -> dict[str, Any]:
  """Returns a run's fields with those that it did not know yet, at their defaults.

  A new field's default changes nothing, or old runs would mean something else. Fields of a backbone
  are its constructor's, not the default backbone's.
  """

  def fill(known, defaults, prefix=""):
    complete = dict(known)
    for key, value in defaults.items():
      if isinstance(value, dict) and prefix + key != "model.backbone":
        complete[key] = fill(known.get(key, {}), value, f"{prefix}{key}.")
      else:
        complete.setdefault(key, value)
    return complete

  return fill(fields, jsonable(default.get_config()))


def tuples(value: Any) -> Any:
  """Returns lists, which JSON makes of tuples, as tuples."""
  if isinstance(value, dict):
    return {key: tuples(item) for key, item in value.items()}
  return tuple(map(tuples, value)) if isinstance(value, list) else value


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns nested dicts as one, keys joined by dots."""
  flat = {}
  for key, value in tree.items():
    flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat
