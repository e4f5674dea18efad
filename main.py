"""Trains and evaluates U2S: `python main.py --config=configs/demo.py --workdir=...`.

`--mode=eval` evaluates a run again; other modes run `u2s_jax.serving.cli` or `u2s_jax.report.cli`.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from u2s_jax.report import cli as report_cli
from u2s_jax.runtime import command_line
from u2s_jax.runtime.errors import UserError, one_line_errors
from u2s_jax.serving import flags as serving_flags

if TYPE_CHECKING:
  import ml_collections

  from u2s_jax.run.run import Source
  from u2s_jax.run.workdir import Workdir

DISTRIBUTED = "join the other processes; detected on Slurm and TPU pods"
TRAINING = {"--distributed": dict(action="store_true", help=DISTRIBUTED)}
MODES = {"train": TRAINING, "eval": TRAINING, **serving_flags.MODES, **report_cli.MODES}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs a mode; errors that a user can cause are one line."""
  argv = list(sys.argv[1:] if argv is None else argv)
  with one_line_errors():
    config_arguments, others = command_line.split_arguments(argv)
    args = command_line.parse("main.py", __doc__, others, MODES)
    fields = {name.partition("=")[0] for name in config_arguments if name.startswith("-")}
    if fields - MODES[args.mode].keys() and MODES[args.mode] is not TRAINING:
      raise UserError(f"--config: belongs to --mode=train and eval, not to --mode={args.mode}")
  # Imported only now: JAX and TensorFlow take seconds, and neither `--help` nor a prediction needs
  # TensorFlow.
  if args.mode in serving_flags.MODES:
    from u2s_jax.serving import cli

    cli.main(argv)
  elif args.mode in report_cli.MODES:
    report_cli.main(argv)
  else:
    import data  # noqa: F401 - first: it sets environment variables that TensorFlow reads

    # isort: split
    import tensorflow as tf

    from u2s_jax.training import cli

    for kind in ("GPU", "TPU"):
      tf.config.set_visible_devices([], kind)  # TensorFlow would take the memory of the devices
    cli.run_on_all_hosts(args, config_arguments, open_source, make_writer)


def open_source(config: "ml_collections.ConfigDict", workdir: "Workdir") -> "Source":
  """Opens the data set of a run."""
  from data.open import open_data
  from u2s_jax.run.run import Source

  return Source(**open_data(config, workdir.prepared, workdir.videos).fields())


def make_writer(folder: pathlib.Path | None) -> Any:
  """Returns a writer of scalars and images for TensorBoard; None: one that writes nothing."""
  from clu import metric_writers

  writers = [metric_writers.SummaryWriter(str(folder))] if folder else []
  return metric_writers.AsyncMultiWriter(writers)


if __name__ == "__main__":
  main()
