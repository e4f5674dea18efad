"""Measures CPU time without progress, to detect a process that hangs."""

import time

_last: float | None = None  # CPU seconds of the process at the last progress; None if idle


def start() -> None:
  """Starts measuring, when a request begins."""
  global _last
  _last = time.process_time()


def stop() -> None:
  """Stops measuring; called when no work is pending."""
  global _last
  _last = None


def report_progress() -> None:
  """Resets the time without progress; called after each decoded frame."""
  if _last is not None:
    start()


def stalled_seconds() -> float:
  """Returns CPU seconds used since the last progress; 0 if no work is pending."""
  last = _last
  return 0.0 if last is None else time.process_time() - last
