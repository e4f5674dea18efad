"""What a run says while it trains: lines on the terminal, the meter, the board, the profile."""

import contextlib
import datetime
import logging
import math
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from u2s_jax.errors import disk_error, printable
from u2s_jax.files import Path, filled
from u2s_jax.stages import Stage

CLOSED = "Event loop is closed"
CLEAR = "\r\x1b[K"  # to the line's beginning, and clears it
PROFILE_AFTER, PROFILE_STEPS = 10, 5  # of the first stage that a process trains
STEPS_AHEAD = 2  # steps the host may queue: each keeps a batch in the device's memory


class Board(NamedTuple):
  """Takes what TensorBoard shows; steps count through all stages.

  Attributes:
    write_scalars: takes a step and numbers by name.
    write_images: takes a step and images (n, h, w, 3) uint8 by name.
  """

  write_scalars: Callable[[int, dict[str, float]], None]
  write_images: Callable[[int, dict[str, np.ndarray]], None]


def leave_disk_errors_to_the_end() -> None:
  """Keeps libraries from printing a disk's error: the command ends with it, in one line.

  On a full disk Orbax, TensorStore and asyncio print hundreds of lines, each from another thread.
  """

  def wanted(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    return disk_error(error or RuntimeError(f"{record.msg} {record.args}")) is None

  for name in ("absl", "asyncio"):
    logging.getLogger(name).addFilter(wanted)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
  unraisable, of_thread = sys.unraisablehook, threading.excepthook

  def print_unraisable(args: Any) -> None:
    # What TensorStore says to an event loop that an error ended.
    closed = isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == CLOSED
    if not closed and disk_error(args.exc_value) is None:
      unraisable(args)

  def print_of_thread(args: Any) -> None:  # Orbax raises it again where its save is waited for
    if disk_error(args.exc_value) is None:
      of_thread(args)

  sys.unraisablehook, threading.excepthook = print_unraisable, print_of_thread


def log(message: str) -> None:
  """Prints a line on host 0's terminal, in place of a live one."""
  message = printable(message)
  if jax.process_index() == 0:
    print(f"{CLEAR}{message}" if sys.stdout.isatty() else message, flush=True)


def log_live(message: str) -> None:
  """Prints a line that the next one replaces; where there is no terminal, a plain line."""
  if not sys.stdout.isatty():
    log(message)
  elif jax.process_index() == 0:
    columns = shutil.get_terminal_size().columns - 1
    print(CLEAR + printable(message)[:columns], end="", flush=True)


class Meter:
  """Gathers a stage's metrics and its speed, and tells their means.

  The device is never waited for but to keep it at most `STEPS_AHEAD` steps behind: means that are
  due after a step are told once the device has its next one.

  Args:
    stage: that is trained.
    first: steps done before.
    total: steps of the stage.
    batch_size: clips of a step.
    num_train: clips of an epoch.
    write_scalars: takes the stage's step and means by name.
  """

  def __init__(
    self,
    stage: Stage,
    first: int,
    total: int,
    *,
    batch_size: int,
    num_train: int,
    write_scalars: Callable[[int, dict[str, float]], None],
  ):
    self._stage, self._first, self._total = stage, first, total
    self._batch_size, self._num_train = batch_size, num_train
    self._write_scalars = write_scalars
    self._waiting: list[Mapping[str, Float[Array, ""]]] = []
    self._due: Callable[[], None] | None = None
    self.restart(first)

  def ends_epoch(self, step: int, every: int = 1) -> bool:
    """Tells whether a step is the stage's last, or the first at or behind an epoch's last clip.

    Args:
      step: of the stage, from 1.
      every: epochs that are counted as one.
    """
    clips = self._num_train * every
    before, after = (math.floor(k * self._batch_size / clips) for k in (step - 1, step))
    return step == self._total or after > before

  def restart(self, step: int) -> None:
    """Measures the speed from `step` on: compilation and evaluation are no part of it."""
    self._started, self._counted = time.monotonic(), step

  def add(self, step: int, scalars: Mapping[str, Float[Array, ""]]) -> None:
    """Takes the metrics of a step that the device has just been given; raises as `flush`."""
    self.flush()
    self._waiting.append(scalars)
    if len(self._waiting) > STEPS_AHEAD:
      jax.block_until_ready(self._waiting[-1 - STEPS_AHEAD])
    if step == self._first + 1:
      jax.block_until_ready(scalars)
      self.restart(step)

  def tell_later(self, step: int, rate: float) -> None:
    """Tells the means since the last time, once the next step is under way or at `flush`."""
    waiting, self._waiting = self._waiting, []
    started, counted = self._started, self._counted

    def tell():
      means = self._means(step, waiting) | {"learning_rate": rate}
      if step > counted:
        seconds = max(time.monotonic() - started, 1e-9)
        means["clips_per_second"] = (step - counted) * self._batch_size / seconds
      self._write_scalars(step, {f"{self._stage.name}/{k}": v for k, v in means.items()})
      (log if self.ends_epoch(step) else log_live)(self._line(step, means))

    self._due = tell

  def flush(self) -> None:
    """Tells what is due.

    Raises:
      UserError: a mean is not finite.
    """
    due, self._due = self._due, None
    if due:
      due()

  def _means(self, step, waiting):
    fetched = jax.device_get(waiting)
    means = {name: float(np.mean([scalars[name] for scalars in fetched])) for name in fetched[0]}
    for name, value in means.items():
      if not math.isfinite(value):
        raise self._stage.diverged(step, f"{name} is {value}")
    return means

  def _line(self, step: int, means: Mapping[str, float]) -> str:
    """Returns the line for the terminal; ETA is the stage's end."""
    stage, epoch = self._stage, step * self._batch_size / self._num_train
    line = f"  {stage.name} epoch {epoch:.1f}/{stage.epochs:g} step {step}/{self._total}"
    if "clips_per_second" in means:
      left = datetime.timedelta(
        seconds=round((self._total - step) * self._batch_size / means["clips_per_second"])
      )
      line += f"  {means['clips_per_second']:.0f} clips/s  ETA {left}"
    line += f"  lr {means['learning_rate']:.2g}  loss {means['loss']:.3f}:"
    for name in stage.losses:
      line += f"  {name} {means[f'loss_{name}']:.3f} ({100 * means[f'accuracy_{name}']:.1f} %)"
    if "regularizer" in means:
      line += f"  regularizer {means['regularizer']:.3f}"
    return line


class Profiler:
  """Writes one profile of a few training steps, which ui.perfetto.dev opens.

  Args:
    folder: for the profile, of `files.named`.
    enabled: whether there is to be one.
  """

  def __init__(self, folder: Path, enabled: bool):
    self._folder, self._wanted = folder, enabled
    self._written = contextlib.ExitStack()
    self._last: int | None = None  # step whose end ends the profile

  def after(self, step: int, first: int, total: int, scalars: Mapping[str, Array]) -> None:
    """Begins or ends the profile where `step` is the one for it.

    Args:
      step: that the device has just been given.
      first: steps of the stage that were done before.
      total: steps of the stage.
      scalars: results of the step.
    """
    if self._last is not None and step in (self._last, total):
      jax.block_until_ready(scalars)
      jax.profiler.stop_trace()
      self._written.close()
      self._last = None
      log(f"profile of {PROFILE_STEPS} steps: {self._folder}; see ui.perfetto.dev")
    elif self._wanted and step == min(first + PROFILE_AFTER, total - 1):
      jax.block_until_ready(scalars)
      folder = self._written.enter_context(filled(self._folder))
      jax.profiler.start_trace(folder, create_perfetto_trace=True)
      self._wanted, self._last = False, step + PROFILE_STEPS
