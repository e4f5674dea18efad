"""Turns and medians: how every benchmark here times things that are to be compared."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax


def medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
  """Returns the median seconds of each run; they take turns, after one turn that warms up.

  Args:
    runs: by name; what they return is waited for.
    repeats: turns that count.
  """
  seconds = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      started = time.perf_counter()
      jax.block_until_ready(run())
      if repeat:
        seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(spent) for name, spent in seconds.items()}
