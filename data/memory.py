"""What the C library does with freed memory, for the whole process."""

import contextlib
import ctypes
import functools


@functools.cache
def keep_freed() -> None:
  """Has the C library keep what is freed, for the next batch, instead of giving it back at once.

  Records, clips and batches are megabytes each (a batch of 20 clips 54 MB), the temporary memory of
  a training step on the CPU is 100. To get them from the kernel anew each time, page by page, took
  0.3 of 2 cores of the pipeline (187 clips a second instead of 209, medians of 10 and 4 runs), and
  55 ms of system time of a demo step's 260 ms of CPU time. The threshold for mappings could not be
  set that high. Best called before other threads allocate.
  """
  with contextlib.suppress(OSError, AttributeError):  # no glibc
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much to keep, in bytes
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for large blocks
    # M_ARENA_MAX: what one thread frees, all can use. With an arena for each thread, 16 streams one
    # after the other, as of 16 evaluations, left 1.6 GB behind instead of 0.85.
    libc.mallopt(-8, 1)
