"""Joins the processes of a run, stops them at the same step, and ends them after a failure.

JAX's coordination service sends heartbeats. If one process misses them, JAX aborts all others.
"""

import contextlib
import importlib.util
import math
import os
import pathlib
import signal
import sys
from typing import NoReturn

import jax
from jax.experimental import multihost_utils

from u2s_jax.runtime import signals
from u2s_jax.runtime.errors import INTERRUPTED, UserError

MIN_TIMEOUT = 10.0  # seconds; a busy process may send its heartbeats late
PCI = pathlib.Path("/sys/bus/pci/devices")
GOOGLE_VENDOR = "0x1ae0"
OTHER_CLASSES = ("0x01", "0x02", "0x03")  # PCI classes: storage, network, display
_num_checks = 0  # calls of `should_stop`, equal on all processes


def join_processes(requested: bool, timeout: float) -> None:
  """Joins the other processes of a run, if there are any.

  Detects Slurm steps with several tasks and TPU hosts. If JAX cannot detect the processes, set the
  environment variables `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.

  Args:
    requested: whether to join others even if none are detected.
    timeout: seconds without a heartbeat, at least `MIN_TIMEOUT`, after which a process counts as
      dead.

  Raises:
    UserError: if the timeout or a variable is invalid, or the processes cannot be joined.
  """
  if not MIN_TIMEOUT <= timeout < math.inf:
    raise UserError(f"dead_process_seconds: {timeout:g} must be >= {MIN_TIMEOUT:g}")
  is_slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
  # With a TPU, JAX detects whether it belongs to one host or to a pod.
  if requested or is_slurm or has_tpu():
    num_processes, process_id = (
      _read_number(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID")
    )
    try:
      jax.distributed.initialize(
        num_processes=num_processes,
        process_id=process_id,
        heartbeat_timeout_seconds=round(timeout),
      )
    except (ValueError, jax.errors.JaxRuntimeError) as error:
      raise UserError(f"cannot join the other processes: {error}") from error
    if jax.process_count() > 1:
      # JAX's preemption notifier handles SIGTERM from now on; forward Ctrl-C to it.
      signal.signal(signal.SIGINT, lambda number, frame: signal.raise_signal(signal.SIGTERM))


def should_stop() -> bool:
  """Returns whether to stop now; all processes of a run agree.

  All processes must call this equally often: after every step and every evaluation batch.
  """
  global _num_checks
  _num_checks += 1
  if jax.process_count() > 1:
    return multihost_utils.reached_preemption_sync_point(_num_checks)
  return signals.is_requested()


def exit_process(message: str, status: int = INTERRUPTED) -> NoReturn:
  """Prints a line and ends the process."""
  # After an error the other processes may be in the middle of a collective computation. Python's
  # exit would wait for them in `jax.distributed.shutdown`. `exit_now` skips that: this process's
  # heartbeats stop, and JAX aborts the others.
  if status != INTERRUPTED and jax.distributed.is_initialized():
    exit_now(message, status)
  print(message, file=sys.stderr, flush=True)
  sys.exit(status)


def exit_now(message: str, status: int) -> NoReturn:
  """Prints a line and ends the process, from any thread and without cleanup."""
  print(message, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(status)


def has_tpu() -> bool:
  """Returns whether a TPU is attached and the package `libtpu` is installed."""
  if importlib.util.find_spec("libtpu") is None:
    return False
  # Device files are no evidence: virtual machines have /dev/vfio, laptops' NPUs /dev/accel. Other
  # PCI devices of Google are virtual network cards and disks.
  for device in PCI.glob("*"):
    with contextlib.suppress(OSError):
      vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
      if vendor == GOOGLE_VENDOR and not kind.startswith(OTHER_CLASSES):
        return True
  return False


def _read_number(variable: str) -> int | None:
  """Returns the number in an environment variable, None if it is not set."""
  text = os.environ.get(variable)
  if not text:
    return None
  if not text.isdecimal():
    raise UserError(f"{variable}: {text!r} must be a number")
  return int(text)
