"""Converts the time stamps of a file or camera to seconds that never decrease."""

import math

JITTER = 0.2  # seconds; a smaller step back is a frame out of order, a larger one a clock restart
# A larger step ahead, in seconds, is a jump of the clock rather than a time without frames. The
# clocks of joined transport streams and of cameras do jump. Those of other files only do so by an
# error, and a player would not wait for hours either.
MAX_STEP, MAX_STEP_OF_FILES = 30.0, 10_000.0


class Clock:
  """Converts the time stamps of a video's frames, in presentation order, to seconds.

  After a jump of the time stamps, back or far ahead, an offset is added, so that the frame follows
  the end of the last one. Jumps are detected in decoding order, see `read`: after damage a decoder
  may return frames in a wrong order although the clock did not jump.

  Args:
    start: time stamp that becomes 0, seconds; None: that of the first frame.
    max_step: see `MAX_STEP`, seconds.

  Attributes:
    end: seconds until which the last frame is shown; NaN until a time is known.
    latest: the largest time stamp at which a frame ended, without offset, seconds.
  """

  def __init__(self, start: float | None, max_step: float):
    self.end: float = math.nan if start is None else 0.0
    self.latest: float = -math.inf
    self._start, self._max_step = start, max_step
    self._offset, self._last_stamp, self._last_seconds = 0.0, None, -math.inf
    self._last_read = None  # time stamp of the last packet
    self._pending_jumps = 0  # jumps of packets that are not yet seen in frames

  def read(self, stamp: float | None) -> bool:
    """Takes the time stamp of the next packet in decoding order; returns whether it jumps."""
    if stamp is None:
      return False
    is_jump = self._is_jump(self._last_read, stamp)
    self._last_read = stamp
    self._pending_jumps += is_jump
    return is_jump

  def seek(self) -> None:
    """Forgets the packets that were read: after a seek the next one may be from anywhere."""
    self._last_read, self._pending_jumps = None, 0

  def convert(self, stamp: float | None) -> float:
    """Returns the seconds of a time stamp without placing a frame there; -inf for None."""
    return -math.inf if stamp is None else stamp - (self._start or 0.0) + self._offset

  def place(self, stamp: float | None, duration: float) -> tuple[float, float]:
    """Places the next frame; one without a time stamp follows the last frame.

    Returns:
      Seconds since the start, NaN as long as no frame had a time stamp; and the seconds by which
      the time stamp jumps, 0 for no jump, negative for a jump back.
    """
    jump = 0.0
    if stamp is None:
      seconds = self.end
    else:
      if self._start is None:
        self._start = stamp
      if self._pending_jumps and self._is_jump(self._last_stamp, stamp):
        jump = self.convert(stamp) - self.end
        self._offset -= jump
        self._pending_jumps -= 1
      # A frame that is out of order gets the time of the last one.
      seconds = max(self.convert(stamp), self._last_seconds)
      self._last_stamp = stamp
      self.latest = max(self.latest, stamp + duration)
    self._last_seconds, self.end = seconds, seconds + duration
    return seconds, jump

  def _is_jump(self, last: float | None, stamp: float) -> bool:
    return last is not None and not -JITTER < stamp - last <= self._max_step
