"""Decodes one video, image or folder of frames into JPEG frames, as they are stored.

Processes of `workers` run it, so it imports no TensorFlow, and OpenCV only where flow is asked for.
"""

import contextlib
import dataclasses
import io
import math
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import UInt8
from PIL import Image

from data import fingerprints, images, workers
from data.workers import Decoded, Skipped
from u2s_jax.errors import UserError

# A record must stay below 2 GB, and several of them are in memory at a time.
MAX_CLIP_BYTES = 256 * 2**20
MAX_FRAMES = 100_000  # of a clip
SEEK_FROM = 10.0  # seconds in front of a part that are decoded rather than skipped
JPEG_QUALITY = 95  # of frames, unless asked for another
# Containers of videos, pictures and sound. Others, playlists above all, would open further files,
# whatever a file is called; so may no container (the protocols).
SAFE = {
  "protocol_whitelist": "",
  "format_whitelist": (
    "apng,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,"
    "nut,obu,ogg,rm,webm,yuv4mpegpipe,bmp_pipe,jpeg_pipe,png_pipe,tiff_pipe,webp_pipe,aac,flac,mp3,wav"
  ),
}
MODALITIES = ("rgb", "flow")
# How a camera's address is opened: it may open what it streams by, and nothing else.
LIVE = {"rtsp_transport": "tcp", "protocol_whitelist": "rtsp,rtp,udp,tcp,tls"}
LIVE_TIMEOUT = 30.0  # seconds without an answer


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


@dataclasses.dataclass(frozen=True)
class Storage:
  """What becomes of frames when a data set is prepared.

  Attributes:
    modality: 'rgb' or 'flow'.
    short_edge: pixels of the stored frames; the long edge keeps the aspect.
    jpeg_quality: 1 to 100.
    flow_algorithm: one of `flow.ALGORITHMS`; None for 'rgb'.

  Raises:
    UserError: a value outside these.
  """

  modality: str = "rgb"
  short_edge: int = 240
  jpeg_quality: int = JPEG_QUALITY
  flow_algorithm: str | None = None

  def __post_init__(self):
    if self.modality not in MODALITIES:
      raise UserError(f"modality: {self.modality!r} is not one of {', '.join(MODALITIES)}")
    if self.short_edge < 1:
      raise UserError(f"short_edge: {self.short_edge} is not at least 1 pixel")
    if not 1 <= self.jpeg_quality <= 100:
      raise UserError(f"jpeg_quality: {self.jpeg_quality} is not between 1 and 100")
    if (self.modality == "flow") != (self.flow_algorithm is not None):
      raise UserError(f"flow_algorithm: {self.flow_algorithm!r} does not go with {self.modality!r}")


def video_frames(
  file: Footage, short_edge: int, pixel_format: str, first: float = -math.inf
) -> Iterator[tuple[float, float, UInt8[np.ndarray, "h w *c"]]]:
  """Decodes every coded frame of a video once: none is doubled or dropped to even out its rate.

  Args:
    file: path or open file, of any format that FFmpeg reads, whatever its extension; or a camera,
      whose damaged frames, and those without a time, are left out.
    short_edge: pixels; every frame is resized to it, the long edge keeps the aspect and is even.
    pixel_format: 'rgb24' or 'gray'.
    first: seconds; frames in front of it are left out, and not decoded where the file can be
      entered there.

  Yields:
    The frames in order, each behind its start and its end in seconds since the first (NaN where
    the file has no time stamps): all of one size, turned as the file's display matrix asks for.

  Raises:
    UserError: the file does not decode, is cut short, or has no frame; one line, the reason alone.
  """
  end, count, size = 0.0, 0, None
  # One for the whole video: PyAV's own sets up a scaler for every frame, and that took 0.21 of
  # 0.36 ms a frame at 64 pixels.
  reformatter = av.video.reformatter.VideoReformatter()
  try:
    with _opened(file) as container:
      # A cover picture in a sound file is a video stream too.
      streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic
      ]
      if not streams:
        raise UserError("it has no video stream")
      stream = streams[0]
      if stream.codec_context is None:
        raise UserError("FFmpeg has no decoder for its codec")
      images.check_pixels(stream.codec_context.width, stream.codec_context.height)
      # The size may change on the way.
      stream.codec_context.options = {"max_pixels": str(images.MAX_PIXELS)}
      stream.codec_context.thread_count = 1  # There is a process for every core already.
      declared = _seconds(stream.duration, stream.time_base) or _seconds(
        container.duration, 1 / av.time_base
      )
      # Without one of its own, a stream's duration is that of the longest, maybe the sound.
      is_own = stream.duration is not None or len(container.streams) == 1
      start = _seconds(stream.start_time, stream.time_base) or 0.0
      is_live = isinstance(file, Live)
      for frame in _entered(container, stream, start, first):
        if is_live and (frame.time is None or frame.is_corrupt):
          continue
        if is_live and not count:  # what came before was not seen
          start = frame.time
        seconds = (math.nan if frame.time is None else frame.time) - start
        end = seconds + (_seconds(frame.duration, frame.time_base) or 0.0)
        count += 1
        workers.progress()
        if seconds < first:  # as after a jump, where it may be damaged
          continue
        if frame.is_corrupt:
          raise UserError(f"frame {count - 1} is corrupt")
        size = size or _even_size(frame.width, frame.height, short_edge)
        turns = round(frame.rotation / 90)
        # 'AREA' averages the pixels that fall together; bicubic would alias when shrinking.
        frame = reformatter.reformat(frame, *size, pixel_format, interpolation="AREA")
        yield seconds, end, np.ascontiguousarray(np.rot90(frame.to_ndarray(), turns))
  except av.error.EOFError:
    pass  # FFmpeg's word for a file that ends before its first frame.
  except av.error.FFmpegError as error:
    what = "the camera does not answer" if isinstance(file, Live) else "it does not decode"
    raise UserError(f"{what} ({error.strerror})") from error
  if not count:
    raise UserError("it has no frames")
  # FFmpeg takes the end of a half-downloaded file for the end of the video. Declared durations are
  # not exact, those of few frames least of all, so only a large difference counts.
  least = 0.85 if is_own and count >= 8 else 0.5
  if declared and (count > 1 or declared > 1) and end < least * declared:
    raise UserError(f"it ends after {end:.1f} of {declared:.1f} seconds")


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


def duration(file: str) -> float | None:
  """Returns the seconds that a video says it lasts; None where it says nothing or is none."""
  with contextlib.suppress(UserError, OSError, av.error.FFmpegError):
    with (
      images.opened(file) as content,
      av.open(content, options=SAFE, metadata_errors="replace") as video,
    ):
      return _seconds(video.duration, 1 / av.time_base)
  return None


def _entered(
  container: av.container.InputContainer, stream: av.VideoStream, start: float, first: float
) -> Iterator[av.VideoFrame]:
  """Decodes from the last key frame in front of a time; from the beginning where that fails."""
  if first > SEEK_FROM:
    frames, entered = container.decode(stream), None
    with contextlib.suppress(av.error.FFmpegError):
      container.seek(int((start + first) / stream.time_base), stream=stream)
      entered = next(frames, None)
    if entered is not None and entered.time is not None and entered.time - start <= first:
      yield entered
      yield from frames
      return
    container.seek(0, stream=stream)
  yield from container.decode(stream)


def _seconds(duration: int | None, unit: numbers.Real) -> float | None:
  return None if duration is None else float(duration * unit)


def _even_size(width: int, height: int, short_edge: int) -> tuple[int, int]:
  """Width and height after resizing."""
  long_edge = max(width, height) * short_edge / min(width, height)
  long_edge = max(2 * round(long_edge / 2), short_edge)
  images.check_edge(long_edge)
  return (short_edge, long_edge) if width < height else (long_edge, short_edge)


class Stored(NamedTuple):
  """What is stored of a moment of a video: of RGB one frame, of optical flow a pair.

  Attributes:
    start: seconds of the frame, of flow those of the first one.
    seconds: of the frame, of flow those of the second one.
    end: seconds until which that one is shown.
    jpegs: the frame, or the components x and y of the flow.
  """

  start: float
  seconds: float
  end: float
  jpegs: tuple[bytes, ...]


def moments(file: Footage, storage: Storage, start: float = -math.inf) -> Iterator[Stored]:
  """Decodes a video as it is stored.

  Flow is of each pair of frames, and grey: a colour JPEG would halve the resolution of what it
  takes for chroma.

  Args:
    file: see `video_frames`; or a folder of frames, see `images.folder_frames`.
    storage: what becomes of the frames.
    start: see `video_frames`.

  Raises:
    UserError: as `video_frames`, or of flow the video has one frame only.
  """
  with _in_a_line():
    yield from (_frames if storage.modality == "rgb" else _flow)(file, storage, start)


def _frames(file: Footage, storage: Storage, start: float) -> Iterator[Stored]:
  """Decodes the frames of a video, see `moments`."""
  if _is_folder(file):
    for jpeg in images.folder_frames(file, storage.short_edge, storage.jpeg_quality):
      yield Stored(math.nan, math.nan, math.nan, (jpeg,))
    return
  for seconds, end, frame in video_frames(file, storage.short_edge, "rgb24", start):
    yield Stored(
      seconds, seconds, end, (images.jpeg(Image.fromarray(frame), storage.jpeg_quality),)
    )


def _flow(file: Footage, storage: Storage, start: float) -> Iterator[Stored]:
  """Computes the optical flow of a video, see `moments`."""
  import cv2

  from data import flow

  cv2.setNumThreads(1)  # There is a process for every core already.
  maker, before, pairs = flow.make(storage.flow_algorithm), None, 0
  for seconds, end, frame in _grey_frames(file, storage.short_edge, start):
    if before is not None:
      codes = flow.quantize(flow.compute(maker, before[1], frame))
      planes = (np.ascontiguousarray(codes[..., k]) for k in (0, 1))
      jpegs = tuple(images.jpeg(Image.fromarray(plane), storage.jpeg_quality) for plane in planes)
      yield Stored(before[0], seconds, end, jpegs)
      pairs += 1
    before = seconds, frame
  if not pairs and start <= 0:
    raise UserError("it has one frame only, so no flow")


def _grey_frames(
  file: Footage, short_edge: int, start: float
) -> Iterator[tuple[float, float, UInt8[np.ndarray, "h w"]]]:
  """Yields what `video_frames` does, of a folder of frames too, which have no times."""
  if not _is_folder(file):
    yield from video_frames(file, short_edge, "gray", start)
    return
  for jpeg in images.folder_frames(file, short_edge, jpeg_quality=100):
    with Image.open(io.BytesIO(jpeg)) as picture:
      yield math.nan, math.nan, np.asarray(picture.convert("L"))


def _is_folder(file: Footage) -> bool:
  return isinstance(file, str) and os.path.isdir(file)


@dataclasses.dataclass
class Part:
  """A part of a video, as it is stored.

  Attributes:
    start: seconds since the video's first frame; frames from there on belong to it.
    end: seconds; frames in front of it belong to it. At the video's end that of its last frame.
    frames: JPEG files, of flow two for each pair.
    size: bytes of the frames.
    planned: the end that was asked for.
  """

  start: float
  end: float
  frames: list[bytes] = dataclasses.field(default_factory=list)
  size: int = 0
  planned: float = dataclasses.field(init=False)

  def __post_init__(self):
    self.planned = self.end

  def add(self, moment: Stored) -> None:
    """Adds what is stored of a moment; UserError where it is too much for one record."""
    for jpeg in moment.jpegs:
      self.frames.append(jpeg)
      self.size += len(jpeg)
    if self.size > MAX_CLIP_BYTES:
      raise UserError(
        f"its first {len(self.frames)} JPEG frames exceed {MAX_CLIP_BYTES >> 20} MiB: cut it into"
        " clips"
      )
    if len(self.frames) > MAX_FRAMES:
      raise UserError(f"it has more than {MAX_FRAMES} frames: cut it into clips")


def parts(file: Footage, storage: Storage, spans: Iterable[tuple[float, float]]) -> Iterator[Part]:
  """Decodes a video once, for parts of it that may overlap.

  Args:
    file: see `video_frames`.
    storage: what becomes of the frames.
    spans: start and end of every part, seconds, sorted by the start; may be endless.

  Yields:
    The parts, each as soon as it is complete; at the video's end those that have begun, whose end
    is that of the last frame. None of a span behind the video's end.

  Raises:
    UserError: as `moments`, a part is too long, or the video has no time stamps.
  """
  spans = iter(spans)
  following, begun, last = next(spans, None), [], 0.0
  for moment in moments(file, storage, following[0] if following else 0.0):
    if math.isnan(moment.seconds):
      raise UserError("it has no time stamps, so no parts: make an .mp4 file of it, say")
    while following and following[0] <= moment.seconds:
      begun.append(Part(*following))
      following = next(spans, None)
    for part in [part for part in begun if part.end <= moment.seconds]:
      begun.remove(part)
      yield part
    if not begun and following is None:
      return
    for part in begun:
      if part.start <= moment.start and moment.seconds < part.end:
        part.add(moment)
    last = moment.end
  for part in begun:
    part.end = min(part.end, last)
    yield part


def whole(file: str | io.BytesIO, storage: Storage) -> list[bytes]:
  """Returns all of a video as it is stored; raises as `parts`."""
  part = Part(-math.inf, math.inf)
  for moment in moments(file, storage):
    part.add(moment)
  return part.frames


def frames_of(file: str | io.BytesIO, storage: Storage, *, is_image: bool) -> list[bytes]:
  """Decodes a file as it is stored: one JPEG a frame, or two for each pair of optical flow.

  Args:
    file: path, also of a folder of frames, or open file.
    storage: what becomes of the frames.
    is_image: whether the file is an image.

  Raises:
    UserError: it does not decode; one line, the reason alone.
    OSError: it cannot be read.
  """
  if is_image:
    with _in_a_line():
      return [images.jpeg_of(file, storage.short_edge, storage.jpeg_quality)]
  return whole(file, storage)


@contextlib.contextmanager
def _in_a_line() -> Iterator[None]:
  """Makes a `UserError` of what libraries raise over content that they did not foresee."""
  try:
    yield
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f"it does not decode ({error})") from error


def parts_of(
  file: str | io.BytesIO, storage: Storage, spans: Sequence[tuple[float, float]]
) -> list[Decoded | Skipped]:
  """Decodes parts of a video, in one pass.

  Args:
    file: path or open file.
    storage: what becomes of the frames.
    spans: start and end of each, seconds, sorted by the start.

  Returns:
    Their frames, in the order of `spans`; `Skipped` for one that lies, in whole or for more than
    15 %, behind the video's end, and for all that a video which does not decode leaves open.
  """
  found, reason = {}, None
  try:
    for part in parts(file, storage, spans):
      found[part.start, part.planned] = part
  except UserError as error:
    reason = " ".join(str(error).split())
  answers = []
  for span in spans:
    part = found.get(tuple(span))
    if part is None or not part.frames:
      answers.append(Skipped(reason or "the video has no frames there"))
    elif part.end - part.start < 0.85 * (part.planned - part.start) - 0.1:
      answers.append(Skipped(f"the video ends there after {part.end - part.start:.1f} seconds"))
    else:
      answers.append(_decoded(part.frames, storage))
  return answers


def worker(
  storage: dict[str, Any], is_image: bool
) -> Callable[[tuple[str, bytes | None, Sequence | None]], Decoded | Skipped | list]:
  """Returns what a process of `workers` does with a path, its content if known, and spans if any.

  Args:
    storage: fields of `Storage`.
    is_image: whether the files are images.
  """
  stored = Storage(**storage)
  if stored.modality == "rgb":
    fingerprints.load()  # or it would count as time of the first clip

  def decode(request):
    path, content, spans = request
    file = path if content is None else io.BytesIO(content)
    try:
      if spans:
        return parts_of(file, stored, [tuple(span) for span in spans])
      return _decoded(frames_of(file, stored, is_image=is_image), stored)
    except UserError as error:
      return Skipped(" ".join(str(error).split()))
    except MemoryError:
      return Skipped(f"it takes more than {workers.MAX_MEMORY >> 30} GiB of memory")
    except OSError as error:
      return unreadable(error)

  return decode


def _decoded(frames: list[bytes], storage: Storage) -> Decoded:
  """Returns a clip with its fingerprint."""
  return Decoded(frames, fingerprints.of_frames(frames) if storage.modality == "rgb" else "")


def unreadable(error: OSError) -> Skipped:
  """Returns the answer for a file whose content is not to blame; it may be readable next time."""
  return Skipped(f"it cannot be read ({error.strerror or error})", retry=True)
