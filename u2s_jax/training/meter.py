"""Reports of a training run: mean metrics, speed, and a profile."""

import contextlib
import datetime
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float

from u2s_jax.run.run import Run
from u2s_jax.run.workdir import read_json_lines
from u2s_jax.runtime.console import log, log_live
from u2s_jax.runtime.files import Path, atomic_open, output_dir
from u2s_jax.stages import Stage

PROFILE_AFTER, PROFILE_STEPS = 10, 5  # steps, in the first stage that a process trains
STEPS_AHEAD = 2  # steps that the host may queue; each holds a batch in device memory


@runtime_checkable
class MetricWriter(Protocol):
  """Writes scalars and images for TensorBoard, such as `clu.metric_writers.MetricWriter`."""

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes numbers by name."""

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes images (n, h, w, 3) uint8 by name."""


class MetricsFile:
  """Writes scalars as JSON lines, one a step, and passes them and all images on.

  A run that resumes replaces the lines of the steps that it repeats.

  Args:
    path: the file to write.
    earlier: the file of the run so far, which may be `path`; may be missing.
    writer: the next writer.
  """

  def __init__(self, path: pathlib.Path, earlier: Path, writer: MetricWriter):
    self._path, self._earlier, self._writer = path, earlier, writer
    self._line: dict[str, Any] = {}
    self._started = False

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """See `MetricWriter`."""
    if self._line.get("step") != step:
      self.close()
      self._line = {} if self._started else self._take_over(step)
      self._started = True
    self._line |= {"step": step} | {name: float(value) for name, value in scalars.items()}
    self._writer.write_scalars(step, scalars)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """See `MetricWriter`."""
    self._writer.write_images(step, images)

  def close(self) -> None:
    """Writes the line of the last step."""
    if self._line:
      with open(self._path, "a") as file:
        file.write(json.dumps(self._line) + "\n")
      self._line = {}

  def _take_over(self, step: int) -> dict[str, Any]:
    """Keeps the lines before `step` and returns the one of `step`, if there is one."""
    lines = read_json_lines(self._earlier)
    kept = [json.dumps(line) + "\n" for line in lines if line["step"] < step]
    with atomic_open(self._path, "w") as file:
      file.writelines(kept)
    return next((line for line in lines if line["step"] == step), {})


class Meter:
  """Collects the metrics of a stage and reports their means and the speed.

  The host runs at most `STEPS_AHEAD` steps ahead of the device. Means are reported after the next
  step has been dispatched, so that fetching them does not stall the device.

  Args:
    first: steps of the stage that are already done.
  """

  def __init__(self, run: Run, stage: Stage, first: int, writer: MetricWriter):
    self._stage, self._first, self._total = stage, first, run.count_steps(stage)
    later = run.stages[run.stages.index(stage) + 1 :]
    self._later_steps = sum(map(run.count_steps, later))
    self._batch_size, self._num_train = run.config.batch_size, run.source.num_train
    self._writer, self._step_offset = writer, run.count_steps_before(stage)
    self._pending: list[Mapping[str, Float[Array, ""]]] = []
    self._report: Callable[[], None] | None = None
    self.restart(first)

  def ends_epoch(self, step: int, every: int = 1) -> bool:
    """Returns whether `step`, from 1, ends a period of `every` epochs; the last one always does."""
    clips = self._num_train * every
    before, after = (math.floor(k * self._batch_size / clips) for k in (step - 1, step))
    return step == self._total or after > before

  def restart(self, step: int) -> None:
    """Restarts the speed measurement at `step`, to exclude compilation and evaluation."""
    self._started, self._counted = time.monotonic(), step

  def add(self, step: int, metrics: Mapping[str, Float[Array, ""]]) -> None:
    """Adds the metrics of a step that has just been dispatched; raises like `flush`."""
    self.flush()
    self._pending.append(metrics)
    if len(self._pending) > STEPS_AHEAD:
      jax.block_until_ready(self._pending[-1 - STEPS_AHEAD])
    # The first step compiles.
    if step == self._first + 1:
      jax.block_until_ready(metrics)
      self.restart(step)

  def report_async(self, step: int, rate: float) -> None:
    """Schedules a report of the means since the last report, for the next `add` or `flush`."""
    pending, self._pending = self._pending, []
    started, counted = self._started, self._counted

    def report():
      means = self._compute_means(step, pending) | {"learning_rate": rate}
      if step > counted:
        seconds = max(time.monotonic() - started, 1e-9)
        means["clips_per_second"] = (step - counted) * self._batch_size / seconds
      scalars = {f"{self._stage.name}/{name}": value for name, value in means.items()}
      self._writer.write_scalars(self._step_offset + step, scalars)
      (log if self.ends_epoch(step) else log_live)(self._format_line(step, means))

    self._report = report

  def flush(self) -> None:
    """Writes the scheduled report, if any.

    Raises:
      UserError: if a mean is not finite.
    """
    report, self._report = self._report, None
    if report:
      report()

  def _compute_means(self, step, pending):
    fetched = jax.device_get(pending)
    means = {name: float(np.mean([scalars[name] for scalars in fetched])) for name in fetched[0]}
    for name, value in means.items():
      if not math.isfinite(value):
        raise self._stage.make_divergence_error(step, f"{name} is {value}")
    return means

  def _format_line(self, step: int, means: Mapping[str, float]) -> str:
    """Returns the line for the terminal.

    Its times are those to the end of the stage and of the run, at the stage's speed, without
    validations.
    """
    stage, epoch = self._stage, step * self._batch_size / self._num_train
    line = f"  {stage.name} epoch {epoch:.1f}/{stage.epochs:g} step {step}/{self._total}"
    if "clips_per_second" in means:
      speed = means["clips_per_second"]
      line += f"  {speed:.0f} clips/s  ETA {self._format_time(self._total - step, speed)}"
      if self._later_steps:
        run_steps = self._total - step + self._later_steps
        line += f" (run {self._format_time(run_steps, speed)})"
    line += f"  lr {means['learning_rate']:.2g}  loss {means['loss']:.3f}:"
    for name in stage.losses:
      line += f"  {name} {means[f'loss_{name}']:.3f} ({100 * means[f'accuracy_{name}']:.1f} %)"
    if "regularizer" in means:
      line += f"  regularizer {means['regularizer']:.3f}"
    return line

  def _format_time(self, steps: int, clips_per_second: float) -> str:
    return str(datetime.timedelta(seconds=round(steps * self._batch_size / clips_per_second)))


class Profiler:
  """Writes one profile of a few training steps to a directory, which ui.perfetto.dev opens."""

  def __init__(self, folder: Path, enabled: bool):
    self._folder, self._pending = folder, enabled
    self._output = contextlib.ExitStack()
    self._last: int | None = None  # last step of the current recording

  def after_step(
    self, step: int, first: int, total: int, metrics: Mapping[str, Float[Array, ""]]
  ) -> None:
    """Starts or stops the profile after a step that has just been dispatched.

    Args:
      first: steps of the stage that were done before this process.
      metrics: outputs of the step, which are ready once the device has finished it.
    """
    if self._last is not None and step in (self._last, total):
      jax.block_until_ready(metrics)
      jax.profiler.stop_trace()
      self._output.close()
      self._last = None
      log(f"profile of {PROFILE_STEPS} steps: {self._folder}; see ui.perfetto.dev")
    # At the latest before the last step, so that short stages have a profile, too.
    elif self._pending and step == min(first + PROFILE_AFTER, total - 1):
      jax.block_until_ready(metrics)
      folder = self._output.enter_context(output_dir(self._folder))
      jax.profiler.start_trace(folder, create_perfetto_trace=True)
      self._pending, self._last = False, step + PROFILE_STEPS
