"""What has to be done again and again beside the main thread."""

import contextlib
import threading
import traceback
from collections.abc import Callable, Iterator

from u2s_jax.errors import bucket_error


@contextlib.contextmanager
def repeated(action: Callable[[], None], every: float) -> Iterator[None]:
  """Calls an action, in a thread of its own, as long as the block lasts.

  Where one call fails the next may not: an error is printed, but that of a bucket out of reach.

  Args:
    action: called without arguments; the block's end waits for a call that is under way.
    every: seconds in front of each call.
  """
  stop = threading.Event()

  def run() -> None:
    while not stop.wait(every):
      try:
        action()
      except Exception as error:
        if bucket_error(error) is None:
          traceback.print_exception(error)

  thread = threading.Thread(target=run, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
