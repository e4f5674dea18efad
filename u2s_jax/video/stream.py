"""Decodes one video stream: seeks, recovers from damage, and reports gaps.

The clock of the frames is in `clock`, how they are shown in `display`.
"""

import contextlib
import heapq
import itertools
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
from av.format import Flags
from av.stream import Disposition

from u2s_jax.runtime import watchdog
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import display, images
from u2s_jax.video.clock import MAX_STEP, MAX_STEP_OF_FILES, Clock

SEEK_FROM = 10.0  # seconds; segments that start earlier are reached by decoding, later by a seek
# Seconds before a segment at which decoding starts after a seek: interlaced frames depend on their
# neighbours, so that the bits of a segment do not depend on where the file was entered.
SEEK_MARGIN = 1.0
MIN_GAP = 0.1  # seconds; smaller differences of time stamps are rounding
# After `STEADY_FROM` frames a gap is a step `STEADY_STEPS` times as long as the longest one before.
STEADY_STEPS, STEADY_FROM = 4, 25
MAX_FAILURES = 100  # consecutive attempts to continue in a damaged file
MICROSECOND = Fraction(1, av.time_base)  # FFmpeg's time base of containers


class Gap(NamedTuple):
  """A time without frames, or a moment at which the video's clock jumps."""

  start: float  # seconds since the video's first frame
  end: float  # seconds; equal to `start` if the clock jumps: no frame is missing
  reason: str  # a few words


class _CodedFrame(NamedTuple):
  """A decoded frame, or a place that cannot be decoded."""

  frame: av.VideoFrame | None  # None if it cannot be decoded
  stamp: float | None  # seconds; None if it is unknown
  damage: str = ""  # why the frame cannot be shown; empty if it can


class StreamDecoder:
  """Decodes the video stream of a container that a player would choose.

  Args:
    container: open, at its beginning.
    is_live: whether it is a camera.

  Raises:
    UserError: if there is no video stream, no decoder for it, or it has too many pixels.
  """

  def __init__(self, container: av.container.InputContainer, is_live: bool):
    self.is_live: bool = is_live
    self._container = container
    self._count = 0  # frames that were decoded
    self._stream = stream = _choose_stream(container)
    if stream.codec_context is None:
      raise UserError("FFmpeg has no decoder for its codec")
    images.check_pixels(stream.codec_context.width, stream.codec_context.height)
    # Later frames may have another size.
    stream.codec_context.options = {"max_pixels": str(images.MAX_PIXELS)}
    stream.codec_context.thread_count = 1  # There is a process for every core already.
    container_format, flags = container.format.name, Flags(container.format.flags)
    self._may_jump = is_live or container_format == "flv" or Flags.ts_discont in flags
    self._max_step = MAX_STEP if self._may_jump else MAX_STEP_OF_FILES
    self._has_presentation_times = container_format != "avi"
    # None: the time stamp of the first frame.
    self._start = None if is_live else to_seconds(stream.start_time, stream.time_base)
    self._clock = Clock(self._start, self._max_step)
    self._time_base = stream.time_base
    self._frame_seconds = float(1 / stream.guessed_rate) if stream.guessed_rate else 0.0
    self._other_streams_end = -math.inf  # latest end of the packets of other streams, seconds

  @property
  def pixel_aspect(self) -> Fraction | None:
    """Width of a pixel over its height, from the container, or else from the codec."""
    return self._stream.sample_aspect_ratio or self._stream.codec_context.sample_aspect_ratio

  def read(
    self, first: float, strict: bool
  ) -> Iterator[tuple[av.VideoFrame | None, tuple[float, float, display.Orientation] | Gap]]:
    """Yields frames, each with its start, end and orientation; or None with a gap.

    Frames before `first` come too, as neighbours of others, see `reader.decode_frames`.
    """
    clock, damaged = self._clock, []  # `damaged`: seconds and reason of each damaged place
    last_start = last_end = max(first, 0.0)  # of the last frame that was yielded
    longest_step = 0.0  # from the start of a frame to the next, so far
    for frame, stamp, damage in self._decode_from(first, strict):
      if self.is_live and not self._count and (damage or stamp is None):
        continue  # A camera's stream starts between two key frames.
      if frame is None:
        damaged.append((clock.convert(stamp), damage))
        continue
      self._count += 1
      watchdog.report_progress()
      duration = to_seconds(frame.duration, self._time_base) or self._frame_seconds
      seconds, jump = clock.place(stamp, duration)
      orientation = display.get_orientation(frame)
      if seconds < first:  # after a seek, where damage is normal: references are missing
        if not damage:
          yield frame, (seconds, clock.end, orientation)
        continue
      if damage and strict:
        raise UserError(f"frame {self._count - 1} is corrupt")
      if damage:
        damaged.append((seconds, damage))
        continue
      missing, step = seconds - last_end, seconds - last_start
      is_steady = self._count > STEADY_FROM and step > STEADY_STEPS * longest_step
      min_gap = duration / 2 if damaged else MIN_GAP if is_steady else math.inf
      if not strict and missing > min_gap:
        yield None, Gap(last_end, seconds, damaged[0][1] if damaged else "no frames")
      # Frames come in presentation order, so some from before the damage are decoded after it: what
      # is later than this frame still lies ahead.
      damaged = [place for place in damaged if place[0] > seconds]
      if jump and not strict:
        direction = "back" if jump < 0 else "ahead"
        yield None, Gap(seconds, seconds, f"the clock jumps {direction} by {abs(jump):.1f} s")
      longest_step, last_start, last_end = max(longest_step, step), seconds, clock.end
      yield frame, (seconds, last_end, orientation)
    if damaged:
      declared = self._compare_durations()[0] or 0.0
      end = max(clock.end, damaged[-1][0] + self._frame_seconds, declared)
      # A damaged time stamp may say any time.
      yield None, Gap(last_end, min(end, clock.end + MAX_STEP_OF_FILES), damaged[0][1])

  def check_end(self) -> None:
    """Checks a video that was read to its end: FFmpeg reads half a file without an error.

    Raises:
      UserError: if there were no frames, or they ended long before the declared duration.
    """
    if not self._count:
      raise UserError("contains no frames")
    declared, ended, is_own = self._compare_durations()
    # Declared durations are inexact, those of few frames most of all.
    min_share = 0.85 if is_own and self._count >= 8 else 0.5
    if declared and (self._count > 1 or declared > 1) and -math.inf < ended < min_share * declared:
      raise UserError(
        f"ends after {ended:.1f} of {declared:.1f} seconds; the file may be incomplete"
      )

  def _compare_durations(self) -> tuple[float | None, float, bool]:
    """Returns the declared duration, the decoded one, and whether they are the stream's own.

    A stream without a declared duration has the container's, which is that of its longest stream,
    maybe the sound. Then the decoded one is that of all streams together.
    """
    stream, container, latest = self._stream, self._container, self._clock.latest
    if self.is_live:
      return None, latest, False
    total = to_seconds(container.duration, MICROSECOND)
    if stream.duration:
      return to_seconds(stream.duration, stream.time_base), latest - (self._start or 0.0), True
    if tagged := _read_duration_tag(stream):  # may be a copy from the stream before it was cut
      return min(tagged, total or tagged), latest, True
    if len(container.streams) == 1:
      return total, latest - (self._start or 0.0), True
    start = to_seconds(container.start_time, MICROSECOND) or 0.0
    return total, max(latest, self._other_streams_end) - start, False

  def _decode_from(self, first: float, strict: bool) -> Iterator[_CodedFrame]:
    """Decodes from a key frame before a time; from the beginning if the seek fails."""
    if self._start is None or first <= SEEK_FROM:
      return self._decode(strict)
    # After a jump of the clock a time stamp does not say which time it is, so no seek finds it.
    if not (self._may_jump and self._jumps_before(first)):
      frames = self._decode(strict)
      with contextlib.suppress(av.error.FFmpegError):
        target = self._start + first - SEEK_MARGIN
        self._container.seek(int(target / self._stream.time_base), stream=self._stream)
        entry = next(frames, None)
        if entry and entry.stamp is not None and entry.stamp - self._start <= first:
          return itertools.chain([entry], frames)
    self._container.seek(0, stream=self._stream)
    return self._decode(strict)

  def _jumps_before(self, first: float) -> bool:
    clock = Clock(self._start, self._max_step)
    with contextlib.suppress(av.error.FFmpegError):
      for packet in self._container.demux(self._stream):
        stamp = to_seconds(packet.dts, packet.time_base)
        if clock.read(stamp):
          return True
        if clock.convert(stamp) > first:
          break
    return False

  def _decode(self, strict: bool) -> Iterator[_CodedFrame]:
    self._clock.seek()
    numbers = None if self._has_presentation_times else _FrameNumbers(self._stream)
    stamp = None  # of the last packet
    for packet in self._read_packets(strict):
      if isinstance(packet, av.error.FFmpegError):
        yield _CodedFrame(None, stamp, f"cannot be decoded ({packet.strerror})")
        continue
      if numbers:
        numbers.push(packet)
      pts, dts = packet.pts, packet.dts
      self._clock.read(to_seconds(pts if dts is None else dts, self._time_base))
      stamp = to_seconds(dts if pts is None or numbers else pts, self._time_base)
      try:
        frames = packet.decode()
      except av.error.EOFError:
        return
      except av.error.FFmpegError as error:
        if strict or isinstance(error, MemoryError):
          raise
        yield _CodedFrame(None, stamp, f"cannot be decoded ({error.strerror})")
        continue
      for frame in frames:
        time = to_seconds(numbers.pop() if numbers else frame.pts, self._time_base)
        yield _CodedFrame(frame, time, "damaged" if frame.is_corrupt else "")

  def _read_packets(self, strict: bool) -> Iterator[av.Packet | av.error.FFmpegError]:
    """Yields the stream's packets; if not `strict`, also errors after which reading continues."""
    failures = 0
    # Other streams are read only to see where they end, see `_compare_durations`.
    streams = [self._stream] if self._stream.duration else list(self._container.streams)
    while True:
      try:
        for packet in self._container.demux(streams):
          failures = 0
          if packet.stream_index == self._stream.index:
            yield packet
          elif packet.pts is not None:
            end = to_seconds(packet.pts + (packet.duration or 0), packet.time_base)
            self._other_streams_end = max(self._other_streams_end, end)
        return
      except av.error.InvalidDataError as error:
        failures += 1
        if strict or failures > MAX_FAILURES:
          raise
        yield error


class _FrameNumbers:
  """Numbers the frames of an AVI file, which has no time stamps, only an index of packets.

  The packets are numbered in decoding order, and frames come in presentation order: so the next
  frame has the smallest number of the packets that are in the decoder.
  """

  def __init__(self, stream: av.VideoStream):
    self._stream, self._index, self._place = stream, stream.index_entries, 0
    self._lost = 0  # packets that are hidden by damage: FFmpeg numbers only those that it finds
    self._pending = []  # heap of the numbers in the decoder

  def push(self, packet: av.Packet) -> None:
    """Takes a packet before it is decoded, and sets its `dts` to its number in the index."""
    if packet.dts is None:
      return
    while self._place < len(self._index) and self._index[self._place].pos + 8 < packet.pos:
      self._place += 1  # The index points to a chunk, whose header has 8 bytes.
    if self._place < len(self._index) and self._index[self._place].pos + 8 == packet.pos:
      self._lost = self._index[self._place].timestamp - packet.dts
    packet.dts += self._lost
    heapq.heappush(self._pending, packet.dts)

  def pop(self) -> int | None:
    """Returns the number of the next frame."""
    # More numbers than the decoder holds back are of packets that gave no frame.
    while len(self._pending) > self._stream.codec_context.reorder_depth + 1:
      heapq.heappop(self._pending)
    return heapq.heappop(self._pending) if self._pending else None


def _choose_stream(container: av.container.InputContainer) -> av.VideoStream:
  # The cover picture of a sound file is a video stream too.
  covers = Disposition.attached_pic | Disposition.timed_thumbnails
  streams = [stream for stream in container.streams.video if not stream.disposition & covers]
  if not streams:
    raise UserError("contains no video stream")
  secondary = Disposition.dependent | Disposition.still_image | Disposition.visual_impaired

  def rank(stream: av.VideoStream) -> tuple[bool, bool, bool, int]:
    context = stream.codec_context
    return (
      context is not None,
      not stream.disposition & secondary,
      bool(stream.disposition & Disposition.default),
      context.width * context.height if context else 0,
    )

  return max(streams, key=rank)  # the first of equal ones


def _read_duration_tag(stream: av.VideoStream) -> float | None:
  """Returns the seconds of the tag DURATION, which Matroska has instead of a stream's duration."""
  for name, text in stream.metadata.items():
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", text)
    if match and name.upper().startswith("DURATION"):
      hours, minutes, seconds = map(float, match.groups())
      return 3600 * hours + 60 * minutes + seconds
  return None


def to_seconds(time: int | None, time_base: Fraction) -> float | None:
  # The same as float(time * time_base), but ten times as fast without the fraction between.
  return None if time is None else time * time_base.numerator / time_base.denominator
