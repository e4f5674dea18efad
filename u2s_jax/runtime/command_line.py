"""Parses command lines with several modes, each with its own flags."""

import argparse
import difflib
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from u2s_jax.runtime.errors import UserError, check_repeated

# Mode -> flag -> keyword arguments of `argparse.ArgumentParser.add_argument`.
Modes = Mapping[str, Mapping[str, Mapping[str, Any]]]


class Parser(argparse.ArgumentParser):
  """A parser that raises instead of exiting with usage lines."""

  def error(self, message: str) -> NoReturn:
    raise UserError(message.removeprefix("argument "))


def parse(
  program: str, description: str, argv: Sequence[str] | None, modes: Modes
) -> argparse.Namespace:
  """Parses a command line `[--mode=<mode>] --workdir=<path> ...`.

  Args:
    argv: the arguments, without the program's name; None for those of this process.
    modes: the flags of each mode; the first mode is the default.

  Raises:
    UserError: if a flag is unknown, belongs to another mode, or is missing, invalid or repeated.
  """
  argv = sys.argv[1:] if argv is None else argv
  finder = Parser(allow_abbrev=False, add_help=False)
  finder.add_argument("--mode", nargs="?", const="", default=next(iter(modes)))
  mode = finder.parse_known_args(argv)[0].mode  # decides what flags the parser knows
  if mode not in modes:
    raise UserError(f"--mode: {mode!r} is not one of {', '.join(modes)}")
  parser = Parser(program, description=description, allow_abbrev=False)
  parser.add_argument("--mode", choices=modes, default=mode)
  parser.add_argument("--workdir", help="directory of the run; required")
  for flag, keywords in modes[mode].items():
    parser.add_argument(flag, **keywords)
  repeatable = {
    flag.lstrip("-") for flag, keywords in modes[mode].items() if keywords.get("action") == "append"
  }
  check_repeated(["", *argv], repeatable)
  args, unknown = parser.parse_known_args(argv)
  for argument in unknown:
    if not argument.startswith("-"):
      raise UserError(f"{argument}: unexpected argument; write --<flag>={argument}")
    flag = argument.partition("=")[0]
    owners = [f"--mode={other}" for other, flags in modes.items() if flag in flags]
    if owners:
      raise UserError(f"{flag}: belongs to {' and '.join(owners)}, not to --mode={mode}")
    similar = difflib.get_close_matches(flag, ["--mode", "--workdir", *modes[mode]], n=1)
    hint = f"did you mean {similar[0]}?" if similar else f"--mode={mode} --help lists the flags"
    raise UserError(f"{flag}: unknown flag; {hint}")
  if args.workdir is None:
    raise UserError("--workdir: missing; name the directory of the run")
  return args


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits a command line into `--config` with its overrides, and all other arguments."""
  config, others, pairs = [], [], itertools.pairwise([*argv, ""])
  for argument, following in pairs:
    name, has_value, _ = argument.partition("=")
    name = "--" + name.lstrip("-").removeprefix("no") if name.startswith("-") else name
    if name != "--config" and not name.startswith("--config."):
      others.append(argument)
      continue
    config.append(argument)
    if not has_value and following and not following.startswith("-"):
      config.append(following)
      next(pairs)
  return config, others
