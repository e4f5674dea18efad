"""Merges the scored windows of a long video into intervals of one class."""

import dataclasses
from collections.abc import Iterable, Iterator

from u2s_jax.runtime.errors import UserError
from u2s_jax.serving.predict import Prediction


@dataclasses.dataclass(frozen=True)
class Interval:
  """An interval of a video with one class.

  Attributes:
    start: seconds since the video's first frame.
    end: seconds.
    label: name of the class.
    score: mean of the class's scores in its windows, in [0, 1].
  """

  start: float
  end: float
  label: str
  score: float


@dataclasses.dataclass(frozen=True)
class Gap:
  """A time of a video that has no windows, or a moment at which the video's clock jumps.

  Attributes:
    start: seconds since the video's first frame.
    end: seconds; equal to `start` if the clock jumps: nothing is missing.
    reason: a few words.
    label: None, as a gap has no class.
  """

  start: float
  end: float
  reason: str
  label: None = None


@dataclasses.dataclass(frozen=True)
class ScoredWindow:
  """A window of a video with its prediction; `start` and `end` as in `Interval`."""

  start: float
  end: float
  prediction: Prediction


def merge_windows(
  windows: Iterable[ScoredWindow | Gap], *, stride: float, threshold: float, shortest: float
) -> Iterator[Interval | Gap]:
  """Merges consecutive windows with the same best class.

  A window labels the time around its middle, half a stride to either side. The first one also
  labels the time from the video's beginning, the last one the time to its end. A gap counts as such
  an end and beginning.

  Args:
    windows: in order, with the gaps between them.
    stride: between the starts of two windows, seconds.
    threshold: least score of a window's best class, in [0, 1]; windows below it have no class.
    shortest: least length of an interval, seconds.

  Yields:
    The intervals in order, each as soon as it has ended; times without a class have none. Gaps too,
    those without a window between them merged. An error of `windows` is raised after the interval
    that it ends.
  """
  current: list[ScoredWindow] = []  # windows of the interval that has not ended
  start = 0.0

  def end_interval(end: float) -> Iterator[Interval]:
    if current and end - start >= shortest:
      label = current[0].prediction.label
      mean = sum(window.prediction.score for window in current) / len(current)
      yield Interval(start, end, label, mean)

  last = gap = error = None
  try:
    for window in windows:
      if isinstance(window, Gap):
        if window.start == window.end:
          yield window
          continue
        if last is not None:
          yield from end_interval(last.end)
        gap = Gap(gap.start, window.end, gap.reason) if gap else window
        current, start, last = [], window.end, None
        continue
      if gap:
        yield gap
        gap = None
      # Half-way between the middles of this window and the last one.
      boundary = start if last is None else window.start + (last.end - last.start - stride) / 2
      label = window.prediction.label if window.prediction.score >= threshold else None
      if label != (current[0].prediction.label if current else None):
        yield from end_interval(boundary)
        current, start = [], boundary
      if label is not None:
        current.append(window)
      last = window
  except (UserError, OSError) as video_error:  # raised below, after what was read before it
    error = video_error
  if last is not None:
    yield from end_interval(last.end)
  if gap:
    yield gap
  if error is not None:
    raise error
