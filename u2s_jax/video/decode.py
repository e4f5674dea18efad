"""Decodes a video, an image or a folder of frames into JPEG frames, as prepared data store them.

Imports OpenCV only for flow, so that worker processes start faster without it.
"""

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import images
from u2s_jax.video.listing import MODALITIES
from u2s_jax.video.reader import TimedFrame, VideoInput, decode_frames
from u2s_jax.video.region import Region, parse_region
from u2s_jax.video.stream import MIN_GAP, Gap

# A record must be smaller than 2 GB, and several are in memory at a time.
MAX_CLIP_BYTES = 256 * 2**20
MAX_FRAMES = 100_000  # of a clip
MAX_SHOWN = 10.0  # seconds; a frame that is shown for longer is a frozen camera's last one
JPEG_QUALITY = 95  # default quality of stored frames
BY_CLIP = "by clip"  # value of `Storage.crop` if clips have different regions


@dataclasses.dataclass(frozen=True)
class Storage:
  """How frames are stored in a prepared data set; raises UserError for an invalid value."""

  modality: str = "rgb"  # or 'flow'
  short_edge: int = 240  # pixels; the long edge keeps the aspect
  jpeg_quality: int = JPEG_QUALITY  # 1 to 100
  flow_algorithm: str | None = None  # one of `flow.ALGORITHMS`; None for 'rgb'
  # What is cut out of a frame before it is resized: `x,y,width,height`, see `Region`; or `BY_CLIP`;
  # None: the whole frame is stored.
  crop: str | None = None

  def __post_init__(self) -> None:
    if self.modality not in MODALITIES:
      raise UserError(f"modality: {self.modality!r} is not one of {', '.join(MODALITIES)}")
    if self.short_edge < 1:
      raise UserError(f"short_edge: must be >= 1 pixel, got {self.short_edge}")
    if not 1 <= self.jpeg_quality <= 100:
      raise UserError(f"jpeg_quality: must be between 1 and 100, got {self.jpeg_quality}")
    if (self.modality == "flow") != (self.flow_algorithm is not None):
      raise UserError(
        f"flow_algorithm: {self.flow_algorithm!r} is not valid for the modality {self.modality!r}"
      )

  @property
  def region(self) -> Region | None:
    """The region that is cut out of every frame; None: the whole frame.

    Raises UserError if it differs from clip to clip.
    """
    if self.crop == BY_CLIP:
      raise UserError("the training clips have different regions; name one with --crop")
    return self.crop and parse_region(self.crop)


class EncodedFrame(NamedTuple):
  """A stored frame of a video, or the stored flow of a pair of frames."""

  start: float  # seconds of the frame; of the first one for flow
  seconds: float  # of the frame; of the second one for flow
  end: float  # seconds until which that frame is shown
  jpegs: tuple[bytes, ...]  # the frame, or the components x and y of the flow


def encode_frames(
  file: VideoInput, storage: Storage, start: float = -math.inf, *, strict: bool = True
) -> Iterator[EncodedFrame | Gap]:
  """Decodes a video, and encodes its frames or its flow as they are stored.

  The components of flow are grey JPEGs: a colour one would store two of three channels, the chroma,
  at half the resolution.

  Args:
    file: see `decode_frames`; or a folder of frames, see `images.encode_frame_folder`.
    start: as `first` of `decode_frames`.
    strict: see `decode_frames`.

  Raises:
    UserError: as `decode_frames`, or if the video has only one frame and the modality is flow.
  """
  encode = _encode_rgb if storage.modality == "rgb" else _encode_flow
  with _as_user_error():
    yield from encode(file, storage, start, strict)


def _encode_rgb(
  file: VideoInput, storage: Storage, start: float, strict: bool
) -> Iterator[EncodedFrame | Gap]:
  if _is_folder(file):  # whose frames have no times
    for jpeg in images.encode_frame_folder(
      file, storage.short_edge, storage.jpeg_quality, storage.region
    ):
      yield EncodedFrame(math.nan, math.nan, math.nan, (jpeg,))
    return
  for frame in decode_frames(
    file, storage.short_edge, "rgb24", start, strict=strict, region=storage.region
  ):
    if isinstance(frame, Gap):
      yield frame
      continue
    jpeg = images.encode_jpeg(Image.fromarray(frame.image), storage.jpeg_quality)
    yield EncodedFrame(frame.seconds, frame.seconds, frame.end, (jpeg,))


def _encode_flow(
  file: VideoInput, storage: Storage, start: float, strict: bool
) -> Iterator[EncodedFrame | Gap]:
  import cv2

  from u2s_jax.video import flow

  cv2.setNumThreads(1)  # There is a process for every core already.
  algorithm, previous, pairs = flow.make_algorithm(storage.flow_algorithm), None, 0
  for frame in _decode_grey(file, storage, start, strict):
    if isinstance(frame, Gap):
      if frame.end > frame.start:
        previous = None  # no pair spans a gap
      yield frame
      continue
    if previous is not None:
      codes = flow.quantize(algorithm.calc(previous.image, frame.image, None))
      planes = (np.ascontiguousarray(codes[..., k]) for k in (0, 1))
      jpegs = tuple(
        images.encode_jpeg(Image.fromarray(plane), storage.jpeg_quality) for plane in planes
      )
      yield EncodedFrame(previous.seconds, frame.seconds, frame.end, jpegs)
      pairs += 1
    previous = frame
  if not pairs and start <= 0:
    raise UserError("has only one frame; optical flow requires two")


def _decode_grey(
  file: VideoInput, storage: Storage, start: float, strict: bool
) -> Iterator[TimedFrame | Gap]:
  short_edge, region = storage.short_edge, storage.region
  if not _is_folder(file):
    yield from decode_frames(file, short_edge, "gray", start, strict=strict, region=region)
    return
  for jpeg in images.encode_frame_folder(file, short_edge, jpeg_quality=100, region=region):
    with Image.open(io.BytesIO(jpeg)) as picture:
      yield TimedFrame(math.nan, math.nan, np.asarray(picture.convert("L")))


def _is_folder(file: VideoInput) -> bool:
  return isinstance(file, str) and os.path.isdir(file)


@dataclasses.dataclass
class Segment:
  """A segment of a video with its stored frames; or a gap, or a jump of the clock.

  At the video's end, and before a gap, `end` is the end of the last frame.
  """

  start: float  # seconds since the video's first frame; the segment's frames are from there on
  end: float  # seconds; the segment's frames are before it
  reason: str = ""  # see `stream.Gap`; empty for a segment with frames
  frames: list[bytes] = dataclasses.field(default_factory=list)  # JPEG, of flow two for each pair

  def __post_init__(self) -> None:
    self.planned: float = self.end  # as requested
    self._size = 0  # bytes of the frames

  def add(self, frame: EncodedFrame) -> None:
    """Adds a frame; raises UserError if the segment becomes too large for a record."""
    self.frames += frame.jpegs
    self._size += sum(map(len, frame.jpegs))
    if self._size > MAX_CLIP_BYTES:
      raise UserError(
        f"its first {len(self.frames)} JPEG frames exceed {MAX_CLIP_BYTES >> 20} MiB; cut it into"
        " clips"
      )
    if len(self.frames) > MAX_FRAMES:
      raise UserError(f"has more than {MAX_FRAMES} frames; cut it into clips")

  def check_complete(self) -> None:
    """Raises UserError if there are no frames, or the video ends before 85 % of the segment."""
    if not self.frames:
      raise UserError("the video has no frames there")
    # 0.1 s of tolerance, as the last frame's duration is often unknown.
    seconds = self.end - self.start
    if seconds < 0.85 * (self.planned - self.start) - 0.1:
      raise UserError(f"the video ends there after {seconds:.1f} seconds")


def decode_segments(
  file: VideoInput, storage: Storage, spans: Iterable[tuple[float, float]], *, strict: bool = False
) -> Iterator[Segment]:
  """Decodes a video once, for segments that may overlap.

  Args:
    file: see `decode_frames`.
    spans: start and end of every segment, seconds, sorted by the start; may be endless.
    strict: whether damage is an error, see `decode_frames`.

  Yields:
    The segments, each as soon as it is complete; at the video's end those that have started, which
    then end with the last frame. Spans after the video's end have no segment. If not `strict`, gaps
    and jumps of the clock too, as segments with a reason. No other segment spans a gap: those that
    have started end before it, and what the longest of them has after the gap is a segment of its
    own.

  Raises:
    UserError: as `encode_frames`; or if a segment is too long, or the video has no time stamps. If
      not `strict`, after the segments before that.
  """
  spans = iter(spans)
  next_span, active, error = next(spans, None), [], None
  last_end = 0.0  # of the last frame
  shown_until = 0.0  # likewise, but no longer than `MAX_SHOWN` after its start
  try:
    start = next_span[0] if next_span else 0.0
    for item in encode_frames(file, storage, start, strict=strict):
      gap = item if isinstance(item, Gap) else None
      if gap and gap.start == gap.end:
        yield Segment(*gap)
        continue
      if gap is None and math.isnan(item.seconds):
        raise UserError("has no time stamps, which segments require; convert it, to .mp4 say")
      if gap is None and not strict and item.seconds - shown_until > MIN_GAP:
        # Time without frames is a gap only if a segment would have no frames because of it.
        ending = [segment for segment in active if segment.end <= item.seconds]
        is_skipped = next_span and next_span[1] <= item.seconds
        if not all(segment.frames for segment in ending) or is_skipped:
          gap = Gap(shown_until, item.seconds, "no frames")
      if gap:
        for segment in active:
          segment.end = min(segment.end, gap.start)
          yield segment
        rest_end = max((segment.planned for segment in active), default=gap.end)
        while next_span and next_span[0] < gap.end:
          rest_end, next_span = max(rest_end, next_span[1]), next(spans, None)
        active = [Segment(gap.end, rest_end)] if rest_end > gap.end else []
        yield Segment(*gap)
      if item is gap:
        continue
      while next_span and next_span[0] <= item.seconds:
        active.append(Segment(*next_span))
        next_span = next(spans, None)
      for segment in [segment for segment in active if segment.end <= item.seconds]:
        active.remove(segment)
        yield segment
      if not active and next_span is None:
        return
      for segment in active:
        if segment.start <= item.start and item.seconds < segment.end:
          segment.add(item)
      last_end, shown_until = item.end, min(item.end, item.seconds + MAX_SHOWN)
  except UserError as decode_error:
    if strict:
      raise
    error = decode_error
  for segment in active:
    segment.end = min(segment.end, last_end)
    yield segment
  if error:
    raise error


def decode_file(file: str | io.BytesIO, storage: Storage, *, is_image: bool = False) -> list[bytes]:
  """Returns the stored frames of a file: one JPEG a frame, or two for each pair of optical flow.

  Args:
    file: path, also of a folder of frames, or open file.

  Raises:
    UserError: if the file cannot be decoded or is too large for a record; one line, without the
      file's name.
    OSError: if it cannot be read.
  """
  if is_image:
    with _as_user_error():
      fields = storage.short_edge, storage.jpeg_quality, storage.region
      return [images.encode_image(file, *fields)]
  segment = Segment(-math.inf, math.inf)
  for frame in encode_frames(file, storage):
    segment.add(frame)
  return segment.frames


def decode_span(file: str, storage: Storage, span: tuple[float, float]) -> list[bytes]:
  """Returns the stored frames of a segment of a video, as `decode_file` does.

  Args:
    span: start and end, seconds since the video's first frame.

  Raises:
    UserError: if the segment cannot be decoded, or is not complete.
  """
  segments = decode_segments(file, storage, [span], strict=True)
  segment = next(segments, Segment(*span))
  segment.check_complete()
  return segment.frames


def encode_array(frames: UInt8[np.ndarray, "t h w 3"], storage: Storage) -> list[bytes]:
  """Returns the stored frames of a clip in memory, as those of a folder of frames.

  Args:
    frames: RGB, upright, with square pixels.

  Raises:
    UserError: if the modality is flow, or the region is not inside the frames.
  """
  if storage.modality != "rgb":
    raise UserError("frames in memory have no optical flow; name a video file")
  height, width = frames.shape[1:3]
  left, top, right, bottom = (0, 0, width, height)
  if storage.region:
    left, top, right, bottom = storage.region.to_box(width, height)
  return [
    images.encode_pixels(Image.fromarray(frame), storage.short_edge, storage.jpeg_quality)
    for frame in frames[:, top:bottom, left:right]
  ]


@contextlib.contextmanager
def _as_user_error() -> Iterator[None]:
  """Raises UserError instead of the ValueErrors that libraries raise for unexpected content."""
  try:
    yield
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f"cannot be decoded ({error})") from error
