"""Signals that arrive at odd moments; what a run does with them is in `test_main`."""

import gc
import signal
import time

import pytest

from u2s_jax import interruption


def test_a_signal_within_the_garbage_collector_is_not_lost():
  """What its callbacks raise is printed and forgotten by Python; JAX has one."""

  def callback(phase, info):
    gc.callbacks.remove(callback)
    signal.raise_signal(signal.SIGTERM)

  with pytest.raises(interruption.Interrupted, match="SIGTERM"), interruption.handled():
    gc.callbacks.append(callback)
    gc.collect()
    for _ in range(1000):
      time.sleep(0.001)
