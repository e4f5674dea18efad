"""Signals that arrive at odd moments; what a run does with them is in `test_main`."""

import contextlib
import gc
import signal
import time

import pytest

from u2s_jax import interruption


@contextlib.contextmanager
def signalled_within_the_collector():
  """Sends SIGTERM in a callback of the garbage collector's, whose exceptions Python forgets."""

  def callback(phase, info):
    gc.callbacks.remove(callback)
    signal.raise_signal(signal.SIGTERM)

  with interruption.handled():
    gc.callbacks.append(callback)
    gc.collect()
    yield


def test_a_signal_within_the_garbage_collector_is_not_lost():
  with (
    pytest.raises(interruption.Interrupted, match="SIGTERM"),
    signalled_within_the_collector(),
  ):
    for _ in range(1000):
      time.sleep(0.001)


def test_a_signal_that_is_repeated_within_a_second_counts_once():
  with pytest.raises(interruption.Interrupted, match="SIGTERM"), interruption.handled():
    with interruption.deferred():
      for _ in range(4):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.03)
      assert interruption.reached(1)  # a second one ended the process before
      raise interruption.Interrupted


def test_it_does_not_end_a_block_that_asks_for_it():
  asked = []
  with (
    pytest.raises(interruption.Interrupted, match="SIGTERM"),
    signalled_within_the_collector(),
    interruption.deferred(),
  ):
    for _ in range(200):
      time.sleep(0.001)
    asked.append(interruption.reached(1))
  assert asked == [True]
