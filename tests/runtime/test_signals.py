"""Tests of SIGTERM and Ctrl-C; `test_main` tests how a run handles them."""

import signal
import subprocess
import sys
import time

import pytest

from u2s_jax.runtime import signals


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_signal_sets_the_flag(number, capfd):
  before = signal.getsignal(number)
  with signals.signal_handlers():
    signals.raise_if_requested()
    assert not signals.is_requested()
    signal.raise_signal(number)
    assert signals.is_requested()
    with pytest.raises(signals.Interrupted, match=rf"^interrupted \({number.name}\), saved$"):
      signals.raise_if_requested("saved")
  assert capfd.readouterr().err == f"{number.name}: stopping; a second signal stops at once\n"
  assert signal.getsignal(number) == before and not signals.is_requested()


PROGRAM = """
import signal, time
from u2s_jax.runtime import signals
with signals.signal_handlers():
  for pause in {pauses}:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(pause)
  print(signals.is_requested())
"""


@pytest.mark.parametrize(
  ("pauses", "status", "printed"),
  [([0.03, 0.03, 0.03], 0, "True\n"), ([1.2, 0.0], 128 + signal.SIGTERM, "")],
)
def test_repeated_signals_within_a_second_count_as_one(pauses, status, printed):
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM.format(pauses=pauses)], capture_output=True, text=True
  )
  assert (result.returncode, result.stdout) == (status, printed), result.stderr


def test_interrupted_is_not_an_exception():
  """Retries and cleanups that catch `Exception` must not catch it."""
  assert not issubclass(signals.Interrupted, Exception)
  assert str(signals.Interrupted()) == "interrupted (by another process)"


def test_signal_does_not_interrupt_a_system_call():
  with signals.signal_handlers():
    signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    begin = time.monotonic()
    time.sleep(0.2)
    assert time.monotonic() - begin >= 0.2 and signals.is_requested()
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
