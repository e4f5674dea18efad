"""Turns a file, or the JPEG frames of a prepared clip, into the views of a test, in NumPy.

Imports no TensorFlow. Evaluations call `views_of_frames` inside tf.data, predictions call it
directly, so both score the same bits.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from data import clips, decode, footage, sampling
from data.clips import ClipSpec
from data.decode import Storage
from data.footage import Gap
from data.sources import folders


def decode_jpegs(jpegs: Sequence[bytes], channels: int) -> UInt8[np.ndarray, "t h w {channels}"]:
  """Decodes JPEG files of one size.

  The bits are those of TensorFlow's decoder with `dct_method='INTEGER_ACCURATE'`.

  Args:
    jpegs: at least one file.
    channels: 3, or 1 for grey.

  Raises:
    ValueError: a file does not decode.
  """
  color = cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE
  frames = []
  for jpeg in jpegs:
    # Frames were stored upright: what EXIF says of them no longer holds.
    frame = cv2.imdecode(np.frombuffer(jpeg, np.uint8), color | cv2.IMREAD_IGNORE_ORIENTATION)
    if frame is None:
      raise ValueError(f"frame {len(frames)}: does not decode as JPEG")
    frames.append(frame)
  video = np.stack(frames)
  return video.reshape(*video.shape[:3], channels)


def resize(
  video: UInt8[np.ndarray, "t h w c"], height: int, width: int
) -> UInt8[np.ndarray, "t {height} {width} c"]:
  """Resizes a clip: bilinear, averaging over the pixels that fall together.

  This is Pillow's filter, as in `images.jpeg_of`. It computes with integers, so that its bits do
  not depend on the machine; they differ from `tf.image.resize(antialias=True)` by 1 at most.

  Args:
    video: frames; c is 1 or 3.
    height: pixels.
    width: pixels.
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
  """Resizes a clip so that its shorter edge has `short_edge` pixels and the aspect is kept."""
  scale = short_edge / min(video.shape[1:3])
  height, width = (max(short_edge, round(scale * edge)) for edge in video.shape[1:3])
  return resize(video, height, width)


def stack_flow(
  components: UInt8[np.ndarray, "f h w 1"], pairs: Int[np.ndarray, "t p"]
) -> UInt8[np.ndarray, "t h w c"]:
  """Stacks the components of optical flow.

  Args:
    components: x and y of the first pair of frames, of the second, and so on.
    pairs: the pairs that each stack is made of.

  Returns:
    Channels x and y of a stack's first pair, of its second, and so on; c is 2 p.
  """
  files = np.stack([2 * pairs, 2 * pairs + 1], axis=-1).reshape(len(pairs), -1)
  return np.ascontiguousarray(np.moveaxis(components[files, ..., 0], 1, -1))


def views_of_frames(
  frames: Sequence[bytes], clip: ClipSpec, stored: int, views: str
) -> UInt8[np.ndarray, "v num_frames crop_size crop_size c"]:
  """Makes the views of a clip from its stored frames.

  Args:
    frames: all JPEG files of the stored clip; of flow two for each pair of frames.
    clip: what the clip has to be; its frames are from the middle of their segments.
    stored: short edge of the frames, pixels.
    views: one of `views.VIEWS`. Mirrored views are left out: the device makes them of these.
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
  path: str, clip: ClipSpec, storage: Storage, views: str
) -> UInt8[np.ndarray, "v num_frames crop_size crop_size c"]:
  """Reads the views of a video or image file: the very pixels as after `data.prepare`.

  Args:
    path: of the file.
    clip: what the clip has to be.
    storage: of the data set that the network was trained on.
    views: see `views_of_frames`.

  Raises:
    UserError: the file does not decode; one line, the reason alone.
    OSError: it cannot be read.
  """
  is_image = folders.is_image(path) and not clip.is_flow
  frames = decode.frames_of(path, storage, is_image=is_image)
  return views_of_frames(frames, clip, storage.short_edge, views)


class Window(NamedTuple):
  """A part of a video, as the networks take it.

  Attributes:
    start: seconds since the video's first frame.
    end: seconds; at the video's end, or before a gap, its last frame's.
    views: (v, t, h, w, c) uint8, see `views_of_frames`.
  """

  start: float
  end: float
  views: UInt8[np.ndarray, "v num_frames crop_size crop_size c"]


def read_windows(
  path: str, clip: ClipSpec, storage: Storage, views: str, *, length: float, stride: float
) -> Iterator[Window | Gap]:
  """Reads windows of a video, one after the other, in one pass: its length does not matter.

  A window is, pixel for pixel, what `read_views` reads of a file that is cut there without loss;
  except at the ends of an interlaced one, whose frames have other neighbours there.

  Args:
    path: of the file, or a camera's address, see `footage.live`.
    clip: what a window has to be.
    storage: of the data set that the network was trained on.
    views: see `views_of_frames`.
    length: of a window, seconds > 0.
    stride: between the starts of two windows, seconds > 0.

  Yields:
    The windows; the last ones have at least half their length. A shorter video is one window.
    Between them gaps, which no window spans, as if a video ended there and another one began; and
    jumps of the clock.

  Raises:
    UserError: the file does not decode; windows in front of that are yielded before.
    OSError: it cannot be read.
  """
  spans = ((k * stride, k * stride + length) for k in itertools.count())
  for part in decode.parts(footage.live(path) or path, storage, spans):
    if part.reason:
      yield Gap(part.start, part.end, part.reason)
    elif part.frames and (part.start == 0 or part.end - part.start >= length / 2):
      views_of_part = views_of_frames(part.frames, clip, storage.short_edge, views)
      yield Window(part.start, part.end, views_of_part)
