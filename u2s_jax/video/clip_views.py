"""Makes the views of a clip, from a file or from the stored frames of a prepared clip, in NumPy.

Imports no TensorFlow. Evaluation calls `make_views` inside tf.data and prediction calls it
directly, so both score the same bits.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from u2s_jax.video import clips, decode, folders, reader, sampling
from u2s_jax.video.clips import ClipSpec
from u2s_jax.video.decode import Storage
from u2s_jax.video.stream import Gap


def decode_jpegs(jpegs: Sequence[bytes], channels: int) -> UInt8[np.ndarray, "t h w {channels}"]:
  """Decodes JPEG files of one size.

  The bits are those of TensorFlow's decoder with `dct_method='INTEGER_ACCURATE'`. Raises ValueError
  if a file cannot be decoded.

  Args:
    jpegs: at least one file.
    channels: 3, or 1 for grey.
  """
  color = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
  frames = []
  for jpeg in jpegs:
    # Frames are stored upright; an EXIF orientation is left over from the original image.
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), color | cv2.IMREAD_IGNORE_ORIENTATION)
    if frame is None:
      raise ValueError(f"frame {len(frames)}: cannot be decoded as JPEG")
    frames.append(frame)
  video = np.stack(frames)
  return video.reshape(*video.shape[:3], channels)


def resize(
  video: UInt8[np.ndarray, "t h w c"], height: int, width: int
) -> UInt8[np.ndarray, "t {height} {width} c"]:
  """Resizes a clip, bilinear with antialiasing; c is 1 or 3.

  The filter is Pillow's, as in `images.encode_image`. It computes with integers, so its bits do not
  depend on the machine; they differ from `tf.image.resize(antialias=True)` by at most 1.
  """
  if video.shape[1:3] == (height, width):
    return video
  resized = np.empty((len(video), height, width, video.shape[3]), np.uint8)
  for frame, target in zip(video, resized, strict=True):
    image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    target[:] = np.asarray(image).reshape(target.shape)
  return resized


def resize_short_edge(
  video: UInt8[np.ndarray, "t h w c"], short_edge: int
) -> UInt8[np.ndarray, "t h2 w2 c"]:
  """Resizes a clip to a short edge of `short_edge` pixels; keeps the aspect."""
  scale = short_edge / min(video.shape[1:3])
  height, width = (max(short_edge, round(scale * edge)) for edge in video.shape[1:3])
  return resize(video, height, width)


def stack_flow(
  components: UInt8[np.ndarray, "f h w 1"], pairs: Int[np.ndarray, "t p"]
) -> UInt8[np.ndarray, "t h w c"]:
  """Stacks optical flow along channels: x and y of each pair, in the order of `pairs`.

  Args:
    components: two per pair of frames: x0, y0, x1, y1, ...
    pairs: pair indices, p for each stack.
  """
  files = np.stack([2 * pairs, 2 * pairs + 1], axis=-1).reshape(len(pairs), -1)
  return np.ascontiguousarray(np.moveaxis(components[files, ..., 0], 1, -1))


def make_views(
  frames: Sequence[bytes], clip: ClipSpec, stored: int, views: str
) -> UInt8[np.ndarray, "v num_frames crop_size crop_size c"]:
  """Makes the views of a clip from its stored frames.

  Args:
    frames: all JPEG files of the stored clip; for flow two for each pair of frames.
    clip: specification of the clip; its frames are the middle ones of their segments.
    stored: short edge of the stored frames, pixels.
    views: one of `views.VIEWS`. Mirrored views are left out: the device makes them from these.
  """
  chosen, pairs = clips.choose_frames(len(frames), clip, 0.5)
  video = decode_jpegs([frames[i] for i in chosen.tolist()], channels=1 if clip.is_flow else 3)
  if clip.short_edge != stored:
    video = resize_short_edge(video, clip.short_edge)
  if clip.is_flow:
    video = stack_flow(video, pairs)
  size = clip.crop_size
  corners = sampling.crop_offsets(*video.shape[1:3], size, views)
  return np.stack(
    [video[:, y : y + size, x : x + size] for y, x, mirrored in corners if not mirrored]
  )


def read_views(
  path: str,
  clip: ClipSpec,
  storage: Storage,
  views: str,
  span: tuple[float, float] | None = None,
) -> UInt8[np.ndarray, "v num_frames crop_size crop_size c"]:
  """Reads the views of a video or image file; the pixels are those after `data.prepare`.

  Args:
    storage: how the network's training frames were stored.
    views: see `make_views`.
    span: start and end of a segment of the video, seconds; None: the whole file.

  Raises:
    UserError: if the file cannot be decoded; one line, without the file's name.
    OSError: if it cannot be read.
  """
  if span:
    frames = decode.decode_span(path, storage, span)
  else:
    is_image = folders.is_image(path) and not clip.is_flow
    frames = decode.decode_file(path, storage, is_image=is_image)
  return make_views(frames, clip, storage.short_edge, views)


class Window(NamedTuple):
  """The views of a window of a video, see `make_views`."""

  start: float  # seconds since the video's first frame
  end: float  # seconds; at the video's end, or before a gap, the end of the last frame
  views: UInt8[np.ndarray, "v num_frames crop_size crop_size c"]


def read_windows(
  path: str, clip: ClipSpec, storage: Storage, views: str, *, length: float, stride: float
) -> Iterator[Window | Gap]:
  """Reads windows of a video in order, in one pass; memory does not grow with its length.

  The pixels of a window are those that `read_views` reads from a file that was cut there without
  loss, except at the ends of a window of interlaced video, where the neighbours of frames differ.

  Args:
    path: path of the file, or a camera's address, see `reader.parse_camera`.
    storage: how the network's training frames were stored.
    views: see `make_views`.
    length: of a window, seconds > 0.
    stride: between the starts of two windows, seconds > 0.

  Yields:
    The windows; the last ones have at least half the length. A shorter video is one window. Between
    them jumps of the clock, and gaps, which no window spans: after a gap windows start as after the
    beginning of a video.

  Raises:
    UserError: if the file cannot be decoded, after the windows before that.
    OSError: if it cannot be read.
  """
  spans = ((k * stride, k * stride + length) for k in itertools.count())
  for segment in decode.decode_segments(reader.parse_camera(path) or path, storage, spans):
    start, end = segment.start, segment.end
    if segment.reason:
      yield Gap(start, end, segment.reason)
    elif segment.frames and (start == 0 or end - start >= length / 2):
      yield Window(start, end, make_views(segment.frames, clip, storage.short_edge, views))
