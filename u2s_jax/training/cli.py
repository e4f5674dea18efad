"""The modes train and eval of `main.py`, which passes what requires TensorFlow."""

import argparse
import contextlib
import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import logging

from u2s_jax.evaluation import evaluate
from u2s_jax.pretrained.pixel_statistics import fit_pixels
from u2s_jax.run import config_flags, settings, validation
from u2s_jax.run.run import Source, training_lock
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices, distributed, files, malloc, signals
from u2s_jax.runtime.console import log, silence_disk_errors
from u2s_jax.runtime.errors import describe_error
from u2s_jax.training import steps, train
from u2s_jax.training.meter import MetricsFile
from u2s_jax.video import clips

EVENTS_EVERY = 20.0  # seconds between uploads of TensorBoard's files to a bucket
OpenSource = Callable[[ml_collections.ConfigDict, Workdir], Source]
# Returns a `meter.MetricWriter` with `close`, for a directory or, on all hosts but one, None.
MakeWriter = Callable[[pathlib.Path | None], Any]


def run_on_all_hosts(
  args: argparse.Namespace,
  config_arguments: list[str],
  open_source: OpenSource,
  make_writer: MakeWriter,
) -> None:
  """Trains or evaluates; SIGTERM and Ctrl-C end the process with status 75.

  Args:
    args: `mode`, `workdir` and `distributed`.
    config_arguments: `--config` with its overrides.
  """
  logging.set_verbosity(logging.WARNING)  # Orbax logs every file that it writes
  silence_disk_errors()
  malloc.tune_malloc()
  try:
    with signals.signal_handlers():
      train_or_evaluate(args, config_arguments, open_source, make_writer)
  except signals.Interrupted as interrupted:
    resume = "; rerun the same command to resume" if args.mode == "train" else ""
    distributed.exit_process(f"{interrupted}{resume}")
  except Exception as error:
    line = describe_error(error)
    if line is None and not jax.distributed.is_initialized():
      raise
    distributed.exit_process(traceback.format_exc() if line is None else f"error: {line}", status=1)


def train_or_evaluate(
  args: argparse.Namespace,
  config_arguments: list[str],
  open_source: OpenSource,
  make_writer: MakeWriter,
) -> None:
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
    devices.use_compilation_cache(workdir.compiled)
    source, tx = open_source(config, workdir), steps.sgd(**config.optimizer)
    evaluate.evaluate_latest(config, workdir, source, name, tx)
  elif not train.is_finished(workdir):  # a finished run may be on a read-only disk
    with training_lock(workdir):
      devices.use_compilation_cache(workdir.compiled)
      train_run(config, workdir, name, open_source(config, workdir), make_writer)


def train_run(
  config: ml_collections.ConfigDict,
  workdir: Workdir,
  name: str,
  source: Source,
  make_writer: MakeWriter,
) -> None:
  """Trains a run, with its scalars in TensorBoard's files and in `Workdir.metrics`."""
  with contextlib.ExitStack() as stack:
    events, is_first = None, jax.process_index() == 0
    if is_first:
      events = pathlib.Path(stack.enter_context(files.synced_dir(workdir.root, EVENTS_EVERY)))
    writer = stack.enter_context(contextlib.closing(make_writer(events)))
    if is_first:
      metrics = MetricsFile(events / workdir.metrics.name, workdir.metrics, writer)
      writer = stack.enter_context(contextlib.closing(metrics))
    train.train(config, workdir, source, writer, name)
  log(f"next: --mode=report or --mode=predict --video=<file>, with --workdir={workdir.root}")
