"""Merges the scored windows of a long video into intervals of one class."""

import dataclasses
from collections.abc import Iterable, Iterator

from u2s_jax.runtime.errors import UserError
from u2s_jax.serving.predict import Prediction

TOLERANCE = 1e-6  # seconds; times are sums of floating-point numbers


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
  windows: Iterable[ScoredWindow | Gap],
  *,
  stride: float,
  threshold: float,
  shortest: float,
  hysteresis: float = 0.0,
) -> Iterator[Interval | Gap]:
  """Merges consecutive windows with the same best class.

  A window labels the time around its middle, half a stride to either side. The first one also
  labels the time from the video's beginning, the last one the time to its end. A gap counts as such
  an end and beginning. A change of the class that does not last is none: until windows with other
  classes cover `shortest` seconds they belong to the interval before them, and then have the class
  with the largest sum of scores.

  Args:
    windows: in order, with the gaps between them.
    stride: between the starts of two windows, seconds.
    threshold: least score of a window's best class, in [0, 1]; windows below it have no class.
    shortest: least length of an interval, seconds; only between two gaps it may be shorter.
    hysteresis: least lead of another class's score over that of the interval so far, in [0, 1].

  Yields:
    The intervals in order, each as soon as the next one has lasted; times without a class have
    none. Gaps too, those without a window between them merged. An error of `windows` is raised
    after the interval that it ends.
  """
  merger = _Merger(stride, threshold, shortest, hysteresis)
  gap = error = None
  try:
    for window in windows:
      if not isinstance(window, Gap):
        if gap:
          yield gap
          gap = None
        yield from merger.add(window)
      elif window.start == window.end:
        yield window
      else:
        yield from merger.finish()
        gap = Gap(gap.start, window.end, gap.reason) if gap else window
        merger = _Merger(stride, threshold, shortest, hysteresis, start=window.end)
  except (UserError, OSError) as video_error:  # raised below, after what was read before it
    error = video_error
  yield from merger.finish()
  if gap:
    yield gap
  if error is not None:
    raise error


@dataclasses.dataclass
class _Merger:
  """Merges the windows between two gaps, see `merge_windows`."""

  stride: float
  threshold: float
  shortest: float
  hysteresis: float
  start: float = 0.0  # of the current interval
  label: str | None = None  # of the current interval; None: no class
  current: list[ScoredWindow] = dataclasses.field(default_factory=list)
  # Windows after the current interval whose class is another one, but has not lasted.
  pending: list[ScoredWindow] = dataclasses.field(default_factory=list)
  pending_start: float = 0.0
  last: ScoredWindow | None = None

  def add(self, window: ScoredWindow) -> Iterator[Interval]:
    """Adds a window; yields the interval that has ended, if any."""
    # Half-way between the middles of this window and the last one.
    boundary, last, self.last = self.start, self.last, window
    if last is not None:
      boundary = window.start + (last.end - last.start - self.stride) / 2
    if self.current and self._continues(window):
      self.current += [*self.pending, window]
      self.pending = []
      return
    if not self.pending:
      self.pending_start = boundary
    self.pending.append(window)
    end = (window.start + window.end + self.stride) / 2
    if end - self.pending_start >= self.shortest - TOLERANCE:
      yield from self._change()

  def finish(self) -> Iterator[Interval]:
    """Yields the interval that ends with the last window."""
    if self.last is None:
      return
    if self.pending and self.current and self.last.end - self.pending_start < self.shortest:
      self.current += self.pending
    elif self.pending:
      yield from self._change()
    yield from self._end_interval(self.last.end)

  def _continues(self, window: ScoredWindow) -> bool:
    prediction = window.prediction
    if prediction.score < self.threshold or self.label is None:
      return self.label is None and prediction.score < self.threshold
    return prediction.score - _score_of(window, self.label) <= self.hysteresis

  def _change(self) -> Iterator[Interval]:
    """Lets the pending windows be an interval, or a part of the current one."""
    classed = [w for w in self.pending if w.prediction.score >= self.threshold]
    label = None
    if 2 * len(classed) >= len(self.pending):
      scores = sum(window.prediction.merged for window in classed)
      label = classed[0].prediction.class_names[int(scores.argmax())]
    if self.current and label == self.label:
      self.current += self.pending
    else:
      yield from self._end_interval(self.pending_start)
      self.start, self.label, self.current = self.pending_start, label, self.pending
    self.pending = []

  def _end_interval(self, end: float) -> Iterator[Interval]:
    if self.current and self.label is not None:
      scores = [_score_of(window, self.label) for window in self.current]
      yield Interval(self.start, end, self.label, sum(scores) / len(scores))


def _score_of(window: ScoredWindow, label: str) -> float:
  prediction = window.prediction
  return float(prediction.merged[prediction.class_names.index(label)])
