"""Timing for all benchmarks: compared runs take turns, and medians count."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax


def measure_medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
  """Returns the median seconds of each run; the runs take turns, after one warm-up.

  Args:
    runs: by name; waits for the arrays that they return.
    repeats: turns after the warm-up.
  """
  seconds = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      started = time.perf_counter()
      jax.block_until_ready(run())
      if repeat:
        seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(spent) for name, spent in seconds.items()}
