"""Opens a video or a camera and decodes it into frames as a player shows them, with their times.

Reads of files that anybody may have made: no file can open another one.
"""

import contextlib
import dataclasses
import errno
import heapq
import io
import itertools
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from jaxtyping import UInt8

from data import display, images, workers
from data.clock import MAX_STEP, MAX_STEP_OF_FILES, Clock
from u2s_jax.errors import UserError

SEEK_FROM = 10.0  # seconds in front of a part that are decoded rather than skipped
SEEK_MARGIN = 1.0  # seconds: frames in front of a part that its own depend on, see `_enter`
MIN_GAP = 0.1  # seconds; less than that is a matter of rounding
# Frames are missing where one comes that much later than any of at least so many did before.
STEADY_STEPS, STEADY_FROM = 4, 25
MAX_FAILURES = 100  # attempts to read on in a damaged file
# Containers of videos, pictures and sound. Others, playlists above all, would open further files,
# whatever a file is called; so may no container (the protocols).
SAFE = {
  "protocol_whitelist": "",
  "format_whitelist": (
    "apng,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,"
    "nut,obu,ogg,rm,webm,yuv4mpegpipe,bmp_pipe,jpeg_pipe,png_pipe,tiff_pipe,webp_pipe,aac,flac,mp3,wav"
  ),
}
# How a camera's address is opened: it may open what it streams by, and nothing else.
LIVE = {"rtsp_transport": "tcp", "protocol_whitelist": "rtsp,rtp,udp,tcp,tls"}
LIVE_TIMEOUT = 30.0  # seconds without an answer
MICROSECOND = Fraction(1, av.time_base)  # FFmpeg's unit of a container's times


@dataclasses.dataclass(frozen=True)
class Live:
  """A camera that a user named; no list of files can name one.

  Attributes:
    address: `rtsp://...`, or `/dev/video<number>` on Linux.
  """

  address: str


Footage = str | io.BytesIO | Live


def live(name: str) -> Live | None:
  """Returns the camera that a name stands for, None where it stands for a file."""
  return Live(name) if name.startswith(("rtsp://", "rtsps://", "/dev/video")) else None


class Gap(NamedTuple):
  """A part of a video without frames, or a moment at which its clock jumps.

  Attributes:
    start: seconds since the video's first frame.
    end: seconds; equal to the start where the clock jumps: no frame is missing there.
    reason: why, in a few words.
  """

  start: float
  end: float
  reason: str


class TimedFrame(NamedTuple):
  """A frame as a player shows it.

  Attributes:
    seconds: since the video's first frame; NaN where the file has no time stamps.
    end: seconds until which it is shown.
    image: its pixels.
  """

  seconds: float
  end: float
  image: UInt8[np.ndarray, "h w *c"]


def video_frames(
  file: Footage,
  short_edge: int,
  pixel_format: str,
  first: float = -math.inf,
  *,
  strict: bool = True,
) -> Iterator[TimedFrame | Gap]:
  """Decodes every coded frame of a video once: none is doubled or dropped to even out its rate.

  Args:
    file: path or open file, of any format that FFmpeg reads, whatever its extension; or a camera.
    short_edge: pixels; every frame is resized to it, the long edge keeps the aspect and is even.
    pixel_format: 'rgb24' or 'gray'.
    first: seconds; frames in front of it are left out, and not decoded where the file can be
      entered there.
    strict: whether damage is an error, and jumps of the clock pass without a word. If not, frames
      that do not decode are left out, and a `Gap` stands for them; a camera is never strict.

  Yields:
    The frames in order, all of one size: deinterlaced where they are marked as interlaced, their
    pixels made square, turned and mirrored as the display matrix asks for. If not `strict`, gaps.

  Raises:
    UserError: the file does not decode, is cut short, or has no frame; one line, the reason alone.
  """
  # One for the whole video: PyAV's own sets up a scaler for every frame, and that took 0.21 of
  # 0.36 ms a frame at 64 pixels.
  reformatter, size = av.video.reformatter.VideoReformatter(), None
  try:
    with _opened(file) as container:
      video = _Video(container, is_live=isinstance(file, Live))
      for frame, info in display.deinterlace(video.read(first, strict and not video.is_live)):
        if frame is None:
          yield info
          continue
        seconds, end, upright = info
        if seconds < first:
          continue
        turned = -1 if upright.transposed else 1
        if size is None:
          coded = frame.width, frame.height
          size = display.stored_size(*coded, video.pixel_aspect, short_edge)[::turned]
        # 'AREA' averages the pixels that fall together; bicubic would alias when shrinking.
        frame = reformatter.reformat(frame, *size[::turned], pixel_format, interpolation="AREA")
        yield TimedFrame(seconds, end, upright.apply(frame.to_ndarray()))
      video.check_end()
  except av.error.EOFError as error:  # FFmpeg's word for a file that ends before its first frame
    raise UserError("it has no frames") from error
  except av.error.FFmpegError as error:
    what = "the camera does not answer" if isinstance(file, Live) else "it does not decode"
    raise UserError(f"{what} ({error.strerror})") from error
  except OSError as error:  # a damaged file may send FFmpeg to a place in front of its beginning
    if error.errno != errno.EINVAL:
      raise
    raise UserError(f"it does not decode ({error.strerror})") from error


def duration(file: str) -> float | None:
  """Returns the seconds that a video says it lasts; None where it says nothing or is none."""
  with contextlib.suppress(UserError, OSError, av.error.FFmpegError):
    with (
      images.opened(file) as content,
      av.open(content, options=SAFE, metadata_errors="replace") as video,
    ):
      return _seconds(video.duration, MICROSECOND)
  return None


@contextlib.contextmanager
def _opened(file: Footage) -> Iterator[av.container.InputContainer]:
  """Opens a video or a camera."""
  if isinstance(file, Live):
    kind = "rtsp" if "://" in file.address else "v4l2"
    options = LIVE if kind == "rtsp" else {}
    times = (LIVE_TIMEOUT, LIVE_TIMEOUT)
    with av.open(file.address, format=kind, options=options, timeout=times) as container:
      yield container
    return
  # Opened here: FFmpeg would take 'http:/...' or 'concat:...' for more than a name of a file.
  # Tags in another coding than UTF-8 are no reason to refuse the video.
  with (
    images.opened(file) as content,
    av.open(content, options=SAFE, metadata_errors="replace", buffer_size=2**18) as container,
  ):
    yield container


class _Coded(NamedTuple):
  """A decoded frame, or a place that does not decode.

  Attributes:
    frame: as it was coded; None: there is none.
    stamp: its time stamp, seconds; None: unknown.
    damage: why it cannot be shown; empty: it can.
  """

  frame: av.VideoFrame | None
  stamp: float | None
  damage: str = ""


class _Video:
  """The stream of pictures that a player would choose, decoded.

  Args:
    container: open; read from its beginning.
    is_live: whether it is a camera.

  Attributes:
    is_live: whether it is a camera.
    count: frames that were decoded.

  Raises:
    UserError: there is no such stream, it has no decoder, or too many pixels.
  """

  def __init__(self, container: av.container.InputContainer, is_live: bool):
    self.is_live, self.count = is_live, 0
    self._container = container
    self._stream = stream = _choose_stream(container)
    if stream.codec_context is None:
      raise UserError("FFmpeg has no decoder for its codec")
    images.check_pixels(stream.codec_context.width, stream.codec_context.height)
    # The size may change on the way.
    stream.codec_context.options = {"max_pixels": str(images.MAX_PIXELS)}
    stream.codec_context.thread_count = 1  # There is a process for every core already.
    form, flags = container.format.name, Flags(container.format.flags)
    self._may_jump = is_live or form == "flv" or Flags.ts_discont in flags
    self._max_step = MAX_STEP if self._may_jump else MAX_STEP_OF_FILES
    self._has_presentation_times = form != "avi"
    # None: that of the first frame.
    self._start = None if is_live else _seconds(stream.start_time, stream.time_base)
    self._clock = Clock(self._start, self._max_step)
    self._unit = stream.time_base
    self._frame_seconds = float(1 / stream.guessed_rate) if stream.guessed_rate else 0.0
    self._reached = -math.inf  # time stamp at which the packets of other streams end, seconds

  @property
  def pixel_aspect(self) -> Fraction | None:
    """Width of a pixel over its height, as the container has it, or else the codec."""
    return self._stream.sample_aspect_ratio or self._stream.codec_context.sample_aspect_ratio

  def read(
    self, first: float, strict: bool
  ) -> Iterator[tuple[av.VideoFrame | None, tuple[float, float, display.Orientation] | Gap]]:
    """Yields frames, each with its seconds, its end and its orientation, or None with a gap.

    Args:
      first: see `video_frames`; frames in front of it come too, as neighbours of others.
      strict: see `video_frames`.
    """
    clock, bad = self._clock, []  # `bad`: seconds of each place that is damaged, and how
    last = until = max(first, 0.0)  # where the last frame that was yielded begins, and ends
    longest = 0.0  # time from a frame to the next one so far
    for frame, stamp, damage in self._enter(first, strict):
      if self.is_live and not self.count and (damage or stamp is None):
        continue  # A camera is entered between two key frames.
      if frame is None:
        bad.append((clock.convert(stamp), damage))
        continue
      self.count += 1
      workers.progress()
      shown = _seconds(frame.duration, self._unit) or self._frame_seconds
      seconds, jump = clock.place(stamp, shown)
      upright = display.get_orientation(frame)
      if seconds < first:  # as after a seek, where it may be damaged
        if not damage:
          yield frame, (seconds, clock.end, upright)
        continue
      if damage and strict:
        raise UserError(f"frame {self.count - 1} is corrupt")
      if damage:
        bad.append((seconds, damage))
        continue
      missing, step = seconds - until, seconds - last
      is_steady = self.count > STEADY_FROM and step > STEADY_STEPS * longest
      if not strict and missing > (shown / 2 if bad else MIN_GAP if is_steady else math.inf):
        yield None, Gap(until, seconds, bad[0][1] if bad else "no frames")
      # The decoder puts frames in order: some of those in front of the damage come after it.
      bad = [place for place in bad if place[0] > seconds]
      if jump and not strict:
        direction = "back" if jump < 0 else "ahead"
        yield None, Gap(seconds, seconds, f"its clock jumps {abs(jump):.1f} s {direction}")
      longest, last, until = max(longest, step), seconds, clock.end
      yield frame, (seconds, until, upright)
    if bad:
      end = max(clock.end, bad[-1][0] + self._frame_seconds, self._declared()[0] or 0.0)
      yield None, Gap(until, end, bad[0][1])

  def check_end(self) -> None:
    """Raises UserError for a video without frames, or that ended long before the declared time.

    FFmpeg takes the end of a half-downloaded file for the end of the video.
    """
    if not self.count:
      raise UserError("it has no frames")
    declared, ended, is_own = self._declared()
    # Declared durations are not exact, those of few frames least of all, so only a large difference
    # counts.
    least = 0.85 if is_own and self.count >= 8 else 0.5
    if declared and (self.count > 1 or declared > 1) and -math.inf < ended < least * declared:
      raise UserError(f"it ends after {ended:.1f} of {declared:.1f} seconds")

  def _declared(self) -> tuple[float | None, float, bool]:
    """Returns the seconds that the file declares, how many there were, and whether of the stream.

    Without a duration of its own a stream's is that of the longest, maybe the sound: then all
    streams together have to reach it.
    """
    stream, container, latest = self._stream, self._container, self._clock.latest
    if self.is_live:
      return None, latest, False
    total = _seconds(container.duration, MICROSECOND)
    if stream.duration:
      return _seconds(stream.duration, stream.time_base), latest - (self._start or 0.0), True
    if tagged := _tagged_duration(stream):  # may have outlived the stream that it was written for
      return min(tagged, total or tagged), latest, True
    if len(container.streams) == 1:
      return total, latest - (self._start or 0.0), True
    ended = max(latest, self._reached) - (_seconds(container.start_time, MICROSECOND) or 0.0)
    return total, ended, False

  def _enter(self, first: float, strict: bool) -> Iterator[_Coded]:
    """Decodes from a key frame in front of a time; from the beginning where that fails."""
    if self._start is None or first <= SEEK_FROM:
      return self._decode(strict)
    # Behind a jump of the clock a time stamp does not tell where a time is.
    if not (self._may_jump and self._jumps_before(first)):
      frames = self._decode(strict)
      with contextlib.suppress(av.error.FFmpegError):
        # A little earlier, so that what a frame takes from its neighbours does not depend on where
        # the file was entered.
        place = self._start + first - SEEK_MARGIN
        self._container.seek(int(place / self._stream.time_base), stream=self._stream)
        entered = next(frames, None)
        if entered and entered.stamp is not None and entered.stamp - self._start <= first:
          return itertools.chain([entered], frames)
    self._container.seek(0, stream=self._stream)
    return self._decode(strict)

  def _jumps_before(self, first: float) -> bool:
    """Returns whether the clock jumps before a time, without decoding."""
    clock = Clock(self._start, self._max_step)
    with contextlib.suppress(av.error.FFmpegError):
      for packet in self._container.demux(self._stream):
        stamp = _seconds(packet.dts, packet.time_base)
        if clock.read(stamp):
          return True
        if clock.convert(stamp) > first:
          break
    return False

  def _decode(self, strict: bool) -> Iterator[_Coded]:
    """Decodes from where the container is."""
    self._clock.seek()
    numbers = None if self._has_presentation_times else _Numbers(self._stream)
    stamp = None  # of the last packet
    for packet in self._packets(strict):
      if isinstance(packet, av.error.FFmpegError):
        yield _Coded(None, stamp, f"it does not decode ({packet.strerror})")
        continue
      if numbers:
        numbers.read(packet)
      pts, dts = packet.pts, packet.dts
      self._clock.read(_seconds(pts if dts is None else dts, self._unit))
      stamp = _seconds(dts if pts is None or numbers else pts, self._unit)
      try:
        frames = packet.decode()
      except av.error.EOFError:
        return
      except av.error.FFmpegError as error:
        if strict or isinstance(error, MemoryError):
          raise
        yield _Coded(None, stamp, f"it does not decode ({error.strerror})")
        continue
      for frame in frames:
        time = _seconds(numbers.take() if numbers else frame.pts, self._unit)
        yield _Coded(frame, time, "damaged" if frame.is_corrupt else "")

  def _packets(self, strict: bool) -> Iterator[av.Packet | av.error.FFmpegError]:
    """Yields the stream's packets, and errors between them if reading goes on after them."""
    failures = 0
    # Those of other streams count where the stream has no duration of its own, see `_declared`.
    streams = [self._stream] if self._stream.duration else list(self._container.streams)
    while True:
      try:
        for packet in self._container.demux(streams):
          failures = 0
          if packet.stream_index == self._stream.index:
            yield packet
          elif packet.pts is not None:
            end = _seconds(packet.pts + (packet.duration or 0), packet.time_base)
            self._reached = max(self._reached, end)
        return
      except av.error.InvalidDataError as error:
        failures += 1
        if strict or failures > MAX_FAILURES:
          raise
        yield error


class _Numbers:
  """Time stamps of an AVI file's frames: it has none, but the packets' numbers in decoding order.

  Frames come in presentation order, so the smallest number in the decoder is the next one's.

  Args:
    stream: of pictures.
  """

  def __init__(self, stream: av.VideoStream):
    self._stream, self._index, self._place = stream, stream.index_entries, 0
    self._lost = 0  # packets that damage hides: FFmpeg numbers those that it finds
    self._waiting = []  # heap of the numbers in the decoder

  def read(self, packet: av.Packet) -> None:
    """Takes a packet that is about to be decoded; numbers it as the file's index does."""
    if packet.dts is None:
      return
    while self._place < len(self._index) and self._index[self._place].pos + 8 < packet.pos:
      self._place += 1  # The index has the place of a chunk, whose header takes 8 bytes.
    if self._place < len(self._index) and self._index[self._place].pos + 8 == packet.pos:
      self._lost = self._index[self._place].timestamp - packet.dts
    packet.dts += self._lost
    heapq.heappush(self._waiting, packet.dts)

  def take(self) -> int | None:
    """Returns the time stamp of the next frame."""
    # What is more than the decoder holds back is of packets that gave no frame.
    while len(self._waiting) > self._stream.codec_context.reorder_depth + 1:
      heapq.heappop(self._waiting)
    return heapq.heappop(self._waiting) if self._waiting else None


def _choose_stream(container: av.container.InputContainer) -> av.VideoStream:
  """Returns the stream of pictures that FFmpeg would choose; UserError where there is none."""
  # A cover picture in a sound file is a video stream too.
  covers = Disposition.attached_pic | Disposition.timed_thumbnails
  streams = [stream for stream in container.streams.video if not stream.disposition & covers]
  if not streams:
    raise UserError("it has no video stream")
  aside = Disposition.dependent | Disposition.still_image | Disposition.visual_impaired

  def rank(stream: av.VideoStream) -> tuple[bool, bool, bool, int]:
    context = stream.codec_context
    return (
      context is not None,
      not stream.disposition & aside,
      bool(stream.disposition & Disposition.default),
      context.width * context.height if context else 0,
    )

  return max(streams, key=rank)  # the first of several


def _tagged_duration(stream: av.VideoStream) -> float | None:
  """Returns the seconds of the tag DURATION, in which Matroska has a stream's own duration."""
  for name, text in stream.metadata.items():
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)", text)
    if found and name.upper().startswith("DURATION"):
      hours, minutes, seconds = map(float, found.groups())
      return 3600 * hours + 60 * minutes + seconds
  return None


def _seconds(time: int | None, unit: Fraction) -> float | None:
  # What float(time * unit) is, without a fraction in between, which takes ten times as long.
  return None if time is None else time * unit.numerator / unit.denominator
