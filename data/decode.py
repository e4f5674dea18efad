"""Decodes one video, image or folder of frames into JPEG frames, as they are stored.

Processes of `workers` run it, so it imports no TensorFlow, and OpenCV only where flow is asked for.
"""

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data import fingerprints, images, workers
from data.footage import MIN_GAP, Footage, Gap, TimedFrame, video_frames
from data.workers import Decoded, Skipped
from u2s_jax.errors import UserError

# A record must stay below 2 GB, and several of them are in memory at a time.
MAX_CLIP_BYTES = 256 * 2**20
MAX_FRAMES = 100_000  # of a clip
MAX_SHOWN = 10.0  # seconds that a frame is taken to be shown; a camera that fails freezes its last
JPEG_QUALITY = 95  # of frames, unless asked for another
MODALITIES = ("rgb", "flow")


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


def moments(
  file: Footage, storage: Storage, start: float = -math.inf, *, strict: bool = True
) -> Iterator[Stored | Gap]:
  """Decodes a video as it is stored.

  Flow is of each pair of frames, and grey: a colour JPEG would halve the resolution of what it
  takes for chroma.

  Args:
    file: see `video_frames`; or a folder of frames, see `images.folder_frames`.
    storage: what becomes of the frames.
    start: see `video_frames`.
    strict: see `video_frames`.

  Raises:
    UserError: as `video_frames`, or of flow the video has one frame only.
  """
  with _in_a_line():
    yield from (_frames if storage.modality == "rgb" else _flow)(file, storage, start, strict)


def _frames(file: Footage, storage: Storage, start: float, strict: bool) -> Iterator[Stored | Gap]:
  """Decodes the frames of a video, see `moments`."""
  if _is_folder(file):
    for jpeg in images.folder_frames(file, storage.short_edge, storage.jpeg_quality):
      yield Stored(math.nan, math.nan, math.nan, (jpeg,))
    return
  for frame in video_frames(file, storage.short_edge, "rgb24", start, strict=strict):
    if isinstance(frame, Gap):
      yield frame
      continue
    jpeg = images.jpeg(Image.fromarray(frame.image), storage.jpeg_quality)
    yield Stored(frame.seconds, frame.seconds, frame.end, (jpeg,))


def _flow(file: Footage, storage: Storage, start: float, strict: bool) -> Iterator[Stored | Gap]:
  """Computes the optical flow of a video, see `moments`."""
  import cv2

  from data import flow

  cv2.setNumThreads(1)  # There is a process for every core already.
  maker, before, pairs = flow.make(storage.flow_algorithm), None, 0
  for frame in _grey_frames(file, storage.short_edge, start, strict):
    if isinstance(frame, Gap):
      if frame.end > frame.start:
        before = None
      yield frame
      continue
    if before is not None:
      codes = flow.quantize(flow.compute(maker, before.image, frame.image))
      planes = (np.ascontiguousarray(codes[..., k]) for k in (0, 1))
      jpegs = tuple(images.jpeg(Image.fromarray(plane), storage.jpeg_quality) for plane in planes)
      yield Stored(before.seconds, frame.seconds, frame.end, jpegs)
      pairs += 1
    before = frame
  if not pairs and start <= 0:
    raise UserError("it has one frame only, so no flow")


def _grey_frames(
  file: Footage, short_edge: int, start: float, strict: bool
) -> Iterator[TimedFrame | Gap]:
  """Yields what `video_frames` does, of a folder of frames too, which have no times."""
  if not _is_folder(file):
    yield from video_frames(file, short_edge, "gray", start, strict=strict)
    return
  for jpeg in images.folder_frames(file, short_edge, jpeg_quality=100):
    with Image.open(io.BytesIO(jpeg)) as picture:
      yield TimedFrame(math.nan, math.nan, np.asarray(picture.convert("L")))


def _is_folder(file: Footage) -> bool:
  return isinstance(file, str) and os.path.isdir(file)


@dataclasses.dataclass
class Part:
  """A part of a video, as it is stored; or one that has no frames, or a jump of the clock.

  Attributes:
    start: seconds since the video's first frame; frames from there on belong to it.
    end: seconds; frames in front of it belong to it. In front of a gap that of the last frame, and
      so at the video's end.
    reason: see `footage.Gap`; empty for a part with frames.
    frames: JPEG files, of flow two for each pair.
    size: bytes of the frames.
    planned: the end that was asked for.
  """

  start: float
  end: float
  reason: str = ""
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


def parts(
  file: Footage, storage: Storage, spans: Iterable[tuple[float, float]], *, strict: bool = False
) -> Iterator[Part]:
  """Decodes a video once, for parts of it that may overlap.

  Args:
    file: see `video_frames`.
    storage: what becomes of the frames.
    spans: start and end of every part, seconds, sorted by the start; may be endless.
    strict: whether damage is an error, see `video_frames`.

  Yields:
    The parts, each as soon as it is complete; at the video's end those that have begun, whose end
    is that of the last frame. None of a span behind the video's end. If not `strict`, gaps and
    jumps of the clock too, as parts with a reason: no other part spans a gap. Those that have begun
    end in front of it, and the rest of the last of them, behind the gap, is a part of its own.

  Raises:
    UserError: as `moments`, a part is too long, or the video has no time stamps; if not `strict`,
      after the parts in front of that.
  """
  spans = iter(spans)
  following, begun, shown, last, error = next(spans, None), [], 0.0, 0.0, None
  try:
    for moment in moments(file, storage, following[0] if following else 0.0, strict=strict):
      gap = moment if isinstance(moment, Gap) else None
      if gap and gap.start == gap.end:
        yield Part(*gap)
        continue
      if gap is None and math.isnan(moment.seconds):
        raise UserError("it has no time stamps, so no parts: make an .mp4 file of it, say")
      if gap is None and not strict and moment.seconds - shown > MIN_GAP:
        passed = [part for part in begun if part.end <= moment.seconds]
        if not all(part.frames for part in passed) or following and following[1] <= moment.seconds:
          gap = Gap(shown, moment.seconds, "no frames")
      if gap:
        for part in begun:
          part.end = min(part.end, gap.start)
          yield part
        rest = max((part.planned for part in begun), default=gap.end)
        while following and following[0] < gap.end:
          rest, following = max(rest, following[1]), next(spans, None)
        begun = [Part(gap.end, rest)] if rest > gap.end else []
        yield Part(*gap)
      if moment is gap:
        continue
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
      last, shown = moment.end, min(moment.end, moment.seconds + MAX_SHOWN)
  except UserError as broken:
    if strict:
      raise
    error = broken
  for part in begun:
    part.end = min(part.end, last)
    yield part
  if error:
    raise error


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
    for part in parts(file, storage, spans, strict=True):
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
