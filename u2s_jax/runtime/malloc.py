"""Tunes the memory allocator of the C library for the whole process."""

import contextlib
import ctypes
import functools


@functools.cache
def tune_malloc() -> None:
  """Makes the C library keep freed memory for reuse instead of returning it to the kernel.

  Records, clips and batches are megabytes each (a batch of 20 clips is 54 MB), and a training step
  on the CPU uses 100 MB of temporary memory. Getting these from the kernel again each time, page by
  page, took 0.3 of the pipeline's 2 cores (187 instead of 209 clips a second, medians of 10 and 4
  runs), and 55 ms of system time of the 260 ms of CPU time of a demo step. Raising the threshold
  for mappings (M_MMAP_THRESHOLD) does not help: its maximum is too low.

  Call this before other threads allocate memory.
  """
  with contextlib.suppress(OSError, AttributeError):  # not glibc
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: bytes of free memory to keep
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no separate mappings for large blocks
    # M_ARENA_MAX: all threads share one arena. With one arena per thread, 16 streams in sequence,
    # as in 16 evaluations, left 1.6 GB of unused memory instead of 0.85.
    libc.mallopt(-8, 1)
