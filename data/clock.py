"""Presentation times: from the time stamps of a file or camera to seconds that only rise."""

import math

JITTER = 0.2  # seconds; what is less far back is out of order by mistake, the clock did not restart
# Seconds ahead of the last frame that are taken for a jump of the clock rather than for a time
# without frames. Joined transport streams and cameras have jumps; the other containers have none
# but by a fault, and a player does not wait for hours either.
MAX_STEP, MAX_STEP_OF_FILES = 30.0, 10_000.0


class Clock:
  """Turns the time stamps of a video's frames, in presentation order, into seconds.

  Where the time stamps jump, back or far ahead, an offset is added from there on, so that the frame
  follows the end of the last one. Whether they do is seen in the order of decoding: a decoder that
  has met damage gives frames of an undisturbed clock in a wrong order.

  Args:
    start: time stamp that becomes 0, seconds; None: that of the first frame.
    max_step: seconds, see `MAX_STEP`.

  Attributes:
    end: seconds until which the last frame is shown; NaN until a time is known.
    latest: the largest time stamp at which a frame ended, without offset, seconds.
  """

  def __init__(self, start: float | None, max_step: float):
    self.end = math.nan if start is None else 0.0
    self.latest = -math.inf
    self._start, self._max_step = start, max_step
    self._offset, self._stamp, self._seconds = 0.0, None, -math.inf
    self._read, self._jumps = None, 0  # the last packet's time stamp; jumps that frames are to make

  def read(self, stamp: float | None) -> bool:
    """Takes the time stamp of the next packet in the order of decoding; returns whether it jumps.

    Args:
      stamp: seconds; None: it has none.
    """
    if stamp is None:
      return False
    step, self._read = stamp - (stamp if self._read is None else self._read), stamp
    jumps = self._jumps_by(step)
    self._jumps += jumps
    return jumps

  def seek(self) -> None:
    """Forgets the packets that were read: the next one may be from anywhere."""
    self._read, self._jumps = None, 0

  def convert(self, stamp: float | None) -> float:
    """Returns the seconds of a time stamp that is not yet placed; -inf where there is none."""
    return -math.inf if stamp is None else stamp - (self._start or 0.0) + self._offset

  def place(self, stamp: float | None, duration: float) -> tuple[float, float]:
    """Returns the seconds of the next frame, and by how many its time stamp jumps.

    Args:
      stamp: the frame's time stamp in seconds; None: it has none, and follows the last frame.
      duration: of the frame, seconds.

    Returns:
      Seconds since the start, NaN where no frame had a time stamp yet; and the jump, 0 for none,
      negative for one back.
    """
    jump = 0.0
    if stamp is None:
      seconds = self.end
    else:
      if self._start is None:
        self._start = stamp
      if self._jumps and self._stamp is not None and self._jumps_by(stamp - self._stamp):
        jump = self.convert(stamp) - self.end
        self._offset -= jump
        self._jumps -= 1
      # Where the order is wrong by mistake a time waits for the others.
      seconds = max(self.convert(stamp), self._seconds)
      self._stamp = stamp
      self.latest = max(self.latest, stamp + duration)
    self._seconds, self.end = seconds, seconds + duration
    return seconds, jump

  def _jumps_by(self, step: float) -> bool:
    return not -JITTER < step <= self._max_step
