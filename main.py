"""Trains and evaluates U2S: `python main.py --config=configs/demo.py --workdir=...`.

`--mode=eval` evaluates a run again; other modes run `u2s_jax.serving.cli` or `u2s_jax.report.cli`.
"""

import data  # noqa: F401 - first: it sets environment variables that TensorFlow reads

# isort: split

import argparse
import contextlib
import pathlib
import sys
import traceback
from collections.abc import Sequence

import jax
import ml_collections
import tensorflow as tf
from absl import logging
from clu import metric_writers

from data.open import open_data
from u2s_jax.evaluation import evaluate
from u2s_jax.pretrained.pixel_statistics import fit_pixels
from u2s_jax.report import cli as report_cli
from u2s_jax.run import config_flags, settings, validation
from u2s_jax.run.run import Source, training_lock
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import command_line, devices, distributed, files, malloc, signals
from u2s_jax.runtime.console import silence_disk_errors
from u2s_jax.runtime.errors import UserError, describe_error, one_line_errors
from u2s_jax.serving import cli as serving_cli
from u2s_jax.training import steps, train
from u2s_jax.training.meter import MetricsFile
from u2s_jax.video import clips

DISTRIBUTED = "join the other processes; detected on Slurm and TPU pods"
TRAINING = {"--distributed": dict(action="store_true", help=DISTRIBUTED)}
MODES = {"train": TRAINING, "eval": TRAINING, **serving_cli.MODES, **report_cli.MODES}
EVENTS_EVERY = 20.0  # seconds between uploads of TensorBoard's files to a bucket


def main(argv: Sequence[str] | None = None) -> None:
  """Runs a mode; errors that a user can cause are one line."""
  argv = list(sys.argv[1:] if argv is None else argv)
  with one_line_errors():
    config_arguments, others = config_flags.split_arguments(argv)
    args = command_line.parse("main.py", __doc__, others, MODES)
    fields = {name.partition("=")[0] for name in config_arguments if name.startswith("-")}
    if fields - MODES[args.mode].keys() and MODES[args.mode] is not TRAINING:
      raise UserError(f"--config: belongs to --mode=train and eval, not to --mode={args.mode}")
  if args.mode in serving_cli.MODES:
    serving_cli.main(argv)
  elif args.mode in report_cli.MODES:
    report_cli.main(argv)
  else:
    run_on_all_hosts(args, config_arguments)


def run_on_all_hosts(args: argparse.Namespace, config_arguments: list[str]) -> None:
  """Trains or evaluates; SIGTERM and Ctrl-C end the process with status 75."""
  logging.set_verbosity(logging.WARNING)  # Orbax logs every file that it writes
  silence_disk_errors()
  malloc.tune_malloc()
  for kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], kind)  # TensorFlow would take the memory of the devices
  try:
    with signals.signal_handlers():
      train_or_evaluate(args, config_arguments)
  except signals.Interrupted as interrupted:
    resume = "; rerun the same command to resume" if args.mode == "train" else ""
    distributed.exit_process(f"{interrupted}{resume}")
  except Exception as error:
    line = describe_error(error)
    if line is None and not jax.distributed.is_initialized():
      raise
    distributed.exit_process(traceback.format_exc() if line is None else f"error: {line}", status=1)


def train_or_evaluate(args: argparse.Namespace, config_arguments: list[str]) -> None:
  """Reads and checks the config, joins the other processes, then trains or evaluates."""
  if args.mode == "eval":
    workdir, free = Workdir.open(args.workdir), settings.EVALUATION_FIELDS
    config, name = config_flags.read_saved_config(workdir, config_arguments), str(workdir.config)
  else:
    workdir, free = Workdir(files.parse_path(args.workdir)), settings.RESUMABLE_FIELDS
    config, changed, name = config_flags.read_config(config_arguments)
    config = settings.drop_late_decays(config, changed)
  distributed.join_processes(args.distributed, config.dead_process_seconds)
  files.make_dir(workdir.root)
  config = fit_pixels(settings.fit_devices(config, workdir), workdir)
  clips.read_config(config.data)  # raises before hours of preparation
  validation.check(config, workdir, free)
  if args.mode == "eval":
    source, tx = open_source(config, workdir), steps.sgd(**config.optimizer)
    evaluate.evaluate_latest(config, workdir, source, name, tx)
  elif not train.is_finished(workdir):  # a finished run may be on a read-only disk
    with training_lock(workdir):
      train_run(config, workdir, name)


def open_source(config: ml_collections.ConfigDict, workdir: Workdir) -> Source:
  """Opens the data set of a run."""
  devices.use_compilation_cache(workdir.compiled)
  return Source(**open_data(config, workdir.prepared, workdir.videos).fields())


def train_run(config: ml_collections.ConfigDict, workdir: Workdir, name: str) -> None:
  """Trains a run, with scalars and images for TensorBoard."""
  source = open_source(config, workdir)
  with contextlib.ExitStack() as stack:
    writers = []
    if jax.process_index() == 0:
      events = stack.enter_context(files.synced_dir(workdir.root, EVENTS_EVERY))
      writers = [metric_writers.SummaryWriter(str(events))]
    writer = stack.enter_context(contextlib.closing(metric_writers.AsyncMultiWriter(writers)))
    if jax.process_index() == 0:
      path = pathlib.Path(events) / workdir.metrics.name
      writer = stack.enter_context(contextlib.closing(MetricsFile(path, workdir.metrics, writer)))
    train.train(config, workdir, source, writer, name)


if __name__ == "__main__":
  main()
