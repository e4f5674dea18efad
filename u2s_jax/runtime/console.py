"""Prints to the terminal, and silences the disk errors that libraries print."""

import logging
import shutil
import sys
import threading
import warnings
from typing import Any

import jax

from u2s_jax.runtime.errors import describe_disk_error, escape

CLOSED_LOOP = "Event loop is closed"  # asyncio's message
CLEAR_LINE = "\r\x1b[K"  # moves the cursor to the start of the line and erases it


def silence_disk_errors() -> None:
  """Stops libraries from printing disk errors; the command reports them in one line.

  On a full disk Orbax, TensorStore and asyncio print hundreds of lines, from several threads.
  """

  def is_other_record(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return describe_disk_error(error or RuntimeError(f"{record.msg} {record.args}")) is None

  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(is_other_record)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  unraisable_hook, thread_hook = sys.unraisablehook, threading.excepthook

  def handle_unraisable(args: Any) -> None:
    # TensorStore finishes its reads after an error has closed the event loop.
    is_closed_loop = isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == CLOSED_LOOP
    if not is_closed_loop and describe_disk_error(args.exc_value) is None:
      unraisable_hook(args)

  def handle_thread_error(args: Any) -> None:
    # Nothing is lost: Orbax raises the error again in `wait_until_finished`.
    if describe_disk_error(args.exc_value) is None:
      thread_hook(args)

  sys.unraisablehook, threading.excepthook = handle_unraisable, handle_thread_error


def log(message: str) -> None:
  """Prints a line on host 0, replacing the line of `log_live`."""
  message = escape(message)
  if jax.process_index() == 0:
    print(f"{CLEAR_LINE}{message}" if sys.stdout.isatty() else message, flush=True)


def log_live(message: str) -> None:
  """Prints a line on host 0 that the next one replaces; without a terminal, a normal line."""
  if not sys.stdout.isatty():
    log(message)
  elif jax.process_index() == 0:
    columns = shutil.get_terminal_size().columns - 1
    print(CLEAR_LINE + escape(message)[:columns], end="", flush=True)
