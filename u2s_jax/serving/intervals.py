"""From windows of a long video to intervals of one class."""

import dataclasses
from collections.abc import Iterable, Iterator

from u2s_jax.errors import UserError
from u2s_jax.serving.predict import Prediction


@dataclasses.dataclass(frozen=True)
class Interval:
  """A part of a video with one class.

  Attributes:
    start: seconds since the video's first frame.
    end: seconds.
    label: name of the class.
    score: mean of the class's scores, in [0, 1].
  """

  start: float
  end: float
  label: str
  score: float


@dataclasses.dataclass(frozen=True)
class Gap:
  """A part of a video that nothing was seen of, or a moment at which the video's clock jumps.

  Attributes:
    start: seconds since the video's first frame.
    end: seconds; equal to the start where the clock jumps: nothing is missing there.
    reason: why, in a few words.
    label: None: it has no class.
  """

  start: float
  end: float
  reason: str
  label: None = None


@dataclasses.dataclass(frozen=True)
class ScoredWindow:
  """What a run says of a window of a video.

  Attributes:
    start: seconds since the video's first frame.
    end: seconds.
    prediction: for it.
  """

  start: float
  end: float
  prediction: Prediction


def merged(
  windows: Iterable[ScoredWindow | Gap], *, stride: float, threshold: float, shortest: float
) -> Iterator[Interval | Gap]:
  """Merges neighbouring windows whose best class is the same.

  A window speaks for its middle: half a stride to either side of it, the first one also for the
  video's beginning and the last one for its end. A gap is such an end, and such a beginning.

  Args:
    windows: in order, with the gaps between them.
    stride: between their starts, seconds.
    threshold: least score of a window's best class, in [0, 1]; windows below it have none.
    shortest: least length of an interval, seconds.

  Yields:
    The intervals in order, each as soon as it has ended; between them may be time without a class.
    The gaps too, those without a window between them as one. Errors of `windows` come after the
    interval that is open then.
  """
  run: list[ScoredWindow] = []
  begun = 0.0

  def interval(end: float) -> Iterator[Interval]:
    if run and end - begun >= shortest:
      label = run[0].prediction.label
      mean = sum(window.prediction.score for window in run) / len(run)
      yield Interval(begun, end, label, mean)

  last = gap = error = None
  try:
    for window in windows:
      if isinstance(window, Gap):
        if window.start == window.end:
          yield window
          continue
        if last is not None:
          yield from interval(last.end)
        gap = Gap(gap.start, window.end, gap.reason) if gap else window
        run, begun, last = [], window.end, None
        continue
      if gap:
        yield gap
        gap = None
      middle = begun if last is None else window.start + (last.end - last.start - stride) / 2
      label = window.prediction.label if window.prediction.score >= threshold else None
      if label != (run[0].prediction.label if run else None):
        yield from interval(middle)
        run, begun = [], middle
      if label is not None:
        run.append(window)
      last = window
  except (UserError, OSError) as broken:  # the video breaks off, and what was seen of it counts
    error = broken
  if last is not None:
    yield from interval(last.end)
  if gap:
    yield gap
  if error is not None:
    raise error
