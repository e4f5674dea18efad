"""Reads `--config` and its overrides `--config.<field>=<value>`."""

import itertools
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from u2s_jax.models import backbones
from u2s_jax.run import saved_config
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError, check_repeated


def read_config(arguments: Sequence[str]) -> tuple[ml_collections.ConfigDict, Collection[str], str]:
  """Reads the config of an experiment, `--config=<file>[:<variant>]`, and applies overrides.

  Returns:
    The config, the dotted names of the overridden fields, and the file name.

  Raises:
    UserError: if the file, variant or a field does not exist, or a value is invalid.
  """
  _check_file(arguments)
  values = _parse(config_flags.DEFINE_config_file, arguments)
  if values.config is None:
    raise UserError("--config: missing; choose an experiment, see configs/")
  flag = values["config"]
  return values.config, config_flags.get_override_values(flag), flag.config_filename


def read_saved_config(workdir: Workdir, arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """Reads the config that a run was trained with and applies overrides; a file is ignored.

  Raises:
    UserError: if there is no saved config, a field does not exist, or a value is invalid.
  """
  config = saved_config.read(workdir)
  if config is None:
    raise UserError(f"--workdir {workdir.root}: no {workdir.config.name}; train first")
  fields = [argument for argument in arguments if argument.lstrip("-").startswith("config.")]
  if len(fields) < len(arguments):
    log("note: --config is ignored: an evaluation uses the config of the run, with overrides")
  trained_on, stored = config.data.dir, config.model.backbone.get("name", "")
  values = _parse(config_flags.DEFINE_config_dict, fields, config)
  named = config_flags.get_override_values(values["config"]).get("model.backbone.name")
  backbones.check_trusted(stored, named)
  config = values.config
  if "render" in config.data and config.data.dir != trained_on:
    with config.unlocked():
      del config.data.render  # these options belong to the data set of the training
  return config


def _parse(define: Callable[..., Any], arguments: Sequence[str], *default: Any) -> flags.FlagValues:
  """Parses `--config` as a flag of ml_collections, whose exceptions become UserError."""
  values, argv = flags.FlagValues(), ["main.py", *arguments]
  try:
    define("config", *default, flag_values=values, sys_argv=argv)
    values(argv)
  except flags.Error as error:
    # If the config file raised, the message is a traceback: its last line is the error.
    last_line = str(error).strip().splitlines()[-1]
    raise UserError(last_line.strip().removeprefix("ValueError: ")) from error
  except (AttributeError, KeyError) as error:  # no such field, or no such section
    reason = error
    while isinstance(reason, Exception):  # ml_collections wraps the message in exceptions
      reason = reason.args[-1] if reason.args else type(reason).__name__
    raise UserError(f"--config: {' '.join(str(reason).split())}") from error
  check_repeated(argv, {name for name in values if isinstance(values[name], flags.MultiFlag)})
  return values


def _check_file(arguments: Sequence[str]) -> None:
  """Raises UserError if the file of `--config` does not exist, before ml_collections fails."""
  for argument, following in itertools.pairwise([*arguments, ""]):
    name, has_value, value = argument.partition("=")
    if name.lstrip("-") == "config":
      path = pathlib.Path((value if has_value else following).partition(":")[0])
      if not path.is_file():
        names = sorted(other.stem for other in pathlib.Path("configs").glob("[!_]*.py"))
        known = ", ".join(name for name in names if name != "default")
        raise UserError(
          f"--config: {path}: no such file" + (f"; configs/ has {known}" if known else "")
        )
