"""Command lines and timing of all benchmarks: compared runs take turns, and medians count."""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping


def make_parser(description: str) -> argparse.ArgumentParser:
  """Returns a parser that shows a module's docstring as it is."""
  return argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def measure_medians(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
  """Returns the median seconds of each run until the arrays that it returns are computed.

  The runs take turns, `repeats` times after one warm-up.
  """
  import jax  # not in the processes that `benchmarks.input` measures

  seconds = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      started = time.perf_counter()
      jax.block_until_ready(run())
      if repeat:
        seconds[name].append(time.perf_counter() - started)
  return {name: statistics.median(spent) for name, spent in seconds.items()}


def measure_rate(run: Callable[[], object], seconds: float) -> float:
  """Returns how often `run` finishes per second, called for `seconds`."""
  started, count = time.perf_counter(), 0
  while (spent := time.perf_counter() - started) < seconds:
    run()
    count += 1
  return count / spent
