"""Command lines with several modes."""

import pytest

from u2s_jax.runtime import command_line
from u2s_jax.runtime.errors import UserError

MODES = {"train": {}, "predict": {"--threshold": dict(type=float), "--video": {}}}


def test_parses_the_flags_of_a_mode():
  args = command_line.parse("p", "", ["--mode=predict", "--workdir=w", "--threshold=0.5"], MODES)
  assert (args.mode, args.workdir, args.threshold) == ("predict", "w", 0.5)


def test_a_misspelt_flag_is_named_before_a_missing_one():
  with pytest.raises(UserError, match="--workdr: unknown flag; did you mean --workdir"):
    command_line.parse("p", "", ["--workdr=w"], MODES)
  with pytest.raises(UserError, match="--workdir: missing"):
    command_line.parse("p", "", [], MODES)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--mode=predict", "--treshold=1"], "--treshold: unknown flag; did you mean --threshold?"),
    (["--mode=predict", "--zzz"], "--zzz: unknown flag; --mode=predict --help lists the flags"),
    (["--mode=predict", "a=1.mp4"], "a=1.mp4: unexpected argument; write --<flag>=a=1.mp4"),
    (["--threshold=1"], "--threshold: belongs to --mode=predict, not to --mode=train"),
    (["--mode=predict", "--threshold=x"], "--threshold: invalid float value: 'x'"),
    (["--mode=walk"], "--mode: 'walk' is not one of train, predict"),
  ],
)
def test_rejects(arguments, message):
  with pytest.raises(UserError) as error:
    command_line.parse("p", "", ["--workdir=w", *arguments], MODES)
  assert str(error.value) == message
