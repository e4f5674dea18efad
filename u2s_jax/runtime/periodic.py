"""Calls a function periodically in a background thread."""

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator

from u2s_jax.runtime.errors import describe_bucket_error


@contextlib.contextmanager
def run_periodically(action: Callable[[], None], every: float) -> Iterator[None]:
  """Calls a function periodically, in a background thread, until the block exits.

  An error does not stop later calls. It is printed, unless a bucket cannot be reached.

  Args:
    action: the end of the block waits for a call in progress.
    every: seconds to wait before each call.
  """
  stop = threading.Event()

  def run() -> None:
    while not stop.wait(every):
      try:
        action()
      except Exception as error:
        if describe_bucket_error(error) is None:
          traceback.print_exception(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
