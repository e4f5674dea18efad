"""Handles SIGTERM and Ctrl-C with a flag that is checked between steps, batches and clips.

Nothing is interrupted in the middle: a computation or compilation in C++ finishes first.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which repeated signals count as one: `timeout` and some clusters send two at once.
REPEAT_SECONDS = 1.0
_received: signal.Signals | None = None
_received_at = 0.0  # `time.monotonic()` in seconds


class Interrupted(BaseException):
  """The process was asked to stop.

  Not an `Exception`, so that handlers and retries of errors do not catch it. The message ends with
  `progress`, what has been saved.
  """

  def __init__(self, progress: str = ""):
    sender = _received.name if _received else "by another process"
    super().__init__(f"interrupted ({sender})" + (f", {progress}" if progress else ""))


@contextlib.contextmanager
def signal_handlers() -> Iterator[None]:
  """Handles SIGTERM and SIGINT until the block exits; does nothing in other threads."""
  global _received
  if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
    yield
    return
  previous = {number: signal.signal(number, _on_signal) for number in SIGNALS}
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
    _received = None


def is_requested() -> bool:
  """Returns whether this process was asked to stop."""
  return _received is not None


def raise_if_requested(progress: str = "") -> None:
  """Raises `Interrupted` if this process was asked to stop."""
  if is_requested():
    raise Interrupted(progress)


def _on_signal(number: int, frame: object) -> None:
  global _received, _received_at
  if _received is None:
    _received, _received_at = signal.Signals(number), time.monotonic()
    # Not `print`: the signal may arrive while the buffer of `sys.stderr` is being written.
    os.write(2, f"{_received.name}: stopping; a second signal stops at once\n".encode())
  elif time.monotonic() - _received_at > REPEAT_SECONDS:
    os._exit(128 + number)
