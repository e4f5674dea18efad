"""Ends a process in order when it is asked to: by a cluster's SIGTERM or by Ctrl-C.

The main thread ends with `Interrupted` wherever it is; within `deferred` it goes on, and asks
`reached` where it may end. A compiler does not come back to Python for minutes: then a thread ends
the process after `GRACE` seconds. A second signal, more than a second later, ends it at once.
"""

import contextlib
import ctypes
import dataclasses
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils

from u2s_jax.errors import INTERRUPTED, SAME_SIGNAL

GRACE = 15.0  # seconds
AGAIN = 0.05  # seconds until an exception that got lost is raised again
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclasses.dataclass
class _State:
  asked: int | None = None  # the signal
  deferring: bool = False
  ending: bool = False  # the main thread knows, so nobody else has to end the process
  jax_handler: Callable[[int], None] | None = None  # of JAX's preemption service


_state = _State()


class Interrupted(BaseException):
  """The process was asked to end. No `Exception`, so that nothing on the way takes it for one.

  Args:
    place: what is saved, for the user.
  """

  def __init__(self, place: str = ""):
    who = signal.Signals(_state.asked).name if _state.asked else "by another process"
    super().__init__(f"interrupted ({who})" + (f", {place}" if place else ""))


@contextlib.contextmanager
def handled() -> Iterator[None]:
  """Handles the signals within the block; outside the main thread, where Python cannot, none."""
  global _state
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  _state = _State()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  handlers = {number: signal.signal(number, _handle) for number in SIGNALS}
  # Python writes a signal's number there at once, also while the main thread compiles.
  wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  watcher = threading.Thread(target=_watch, args=(reader,), daemon=True)
  watcher.start()
  unraisable, main_thread = sys.unraisablehook, threading.get_ident()

  def interrupt() -> None:
    if _state.deferring:  # since then: `reached`, or the block's end, tells it
      return
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
      ctypes.c_ulong(main_thread), ctypes.py_object(Interrupted)
    )

  def raise_again(args: Any) -> None:
    if isinstance(args.exc_value, Interrupted):  # a callback of the garbage collector's took it
      threading.Timer(AGAIN, interrupt).start()  # it may not hit this function
    else:
      unraisable(args)

  sys.unraisablehook = raise_again
  try:
    yield
  finally:
    sys.unraisablehook = unraisable
    for number, handler in handlers.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(wakeup)
    os.write(writer, b"\0")
    watcher.join()
    os.close(reader)
    os.close(writer)


def share_with_jax() -> None:
  """Takes SIGTERM back from JAX's preemption service, and passes it on.

  Where a run has several processes the service takes it over; but it waits for the next step of all
  of them, however long they compile or evaluate.
  """
  libc = ctypes.CDLL(None)
  libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
  theirs = libc.signal(signal.SIGTERM, None)
  if theirs:
    _state.jax_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)  # it sets a flag
  signal.signal(signal.SIGTERM, _handle)


@contextlib.contextmanager
def deferred(deferring: bool = True) -> Iterator[None]:
  """Lets the block end where `reached` says so; `deferred(False)` inside of it: anywhere."""
  before, _state.deferring = _state.deferring, deferring
  try:
    if not deferring:
      _end_if_asked()
    yield
  finally:
    _state.deferring = before
  if not before:
    _end_if_asked()


def reached(step: int) -> bool:
  """Tells whether to save and end after a step: all processes of a run after the same.

  Args:
    step: done, counted through all stages.
  """
  asked = _state.asked is not None
  if jax.process_count() > 1:
    asked = multihost_utils.reached_preemption_sync_point(step)
  _state.ending |= asked
  return asked


def leave(message: str, status: int = INTERRUPTED) -> NoReturn:
  """Prints a line and ends the process."""
  if jax.distributed.is_initialized():  # others may still compute: not to be waited for
    end_now(message, status)
  print(message, file=sys.stderr, flush=True)
  sys.exit(status)


def end_now(message: str, status: int = INTERRUPTED) -> NoReturn:
  """Prints a line and ends the process from whichever thread, in the midst of what it does."""
  print(message, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(status)


def _handle(number, frame):
  if _state.asked is None:
    _state.asked = number
    if not _state.deferring:
      _end_if_asked()


def _end_if_asked():
  if _state.asked is not None:
    _state.ending = True
    raise Interrupted


def _watch(reader):
  """Ends the process where the main thread does not, or at a second signal."""
  deadline = None
  while True:
    waits = deadline is not None and not _state.ending
    timeout = max(0.0, deadline - time.monotonic()) if waits else None
    if not select.select([reader], [], [], timeout)[0]:
      if not _state.ending:
        try:
          # Not 2: `peers` may keep that for C++.
          os.write(sys.stderr.fileno(), b"interrupted in the midst of a computation\n")
        finally:
          os._exit(INTERRUPTED)
      continue
    number = os.read(reader, 1)[0]
    if number == 0:
      return
    if number not in SIGNALS:
      continue
    if deadline is not None:
      if time.monotonic() < deadline - GRACE + SAME_SIGNAL:
        continue
      os._exit(128 + number)
    deadline = time.monotonic() + GRACE
    if number == signal.SIGTERM and _state.jax_handler:
      _state.jax_handler(number)
