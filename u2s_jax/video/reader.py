"""Opens videos and cameras, and decodes them into frames as a player shows them, with their times.

The files may come from strangers: none can make FFmpeg open another one.
"""

import contextlib
import dataclasses
import errno
import io
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import UInt8

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import display, images
from u2s_jax.video.region import Region
from u2s_jax.video.stream import MICROSECOND, Gap, StreamDecoder, to_seconds

# Containers of video, images and sound. Others, such as playlists, would open further files,
# whatever a file is called; and no container may open anything (no protocols).
SAFE_OPTIONS = {
  "protocol_whitelist": "",
  "format_whitelist": (
    "apng,asf,avi,dv,flv,gif,h264,hevc,ivf,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,mpegvideo,mxf,"
    "nut,obu,ogg,rm,webm,yuv4mpegpipe,bmp_pipe,jpeg_pipe,png_pipe,tiff_pipe,webp_pipe,aac,flac,mp3,wav"
  ),
}
# A camera may use the protocols that it streams by, and no others.
CAMERA_OPTIONS = {"rtsp_transport": "tcp", "protocol_whitelist": "rtsp,rtp,udp,tcp,tls"}
CAMERA_TIMEOUT = 30.0  # seconds without a response


@dataclasses.dataclass(frozen=True)
class Camera:
  """A camera. Only the user can name one: a path in a list of files never becomes a `Camera`."""

  address: str  # `rtsp://...`, or `/dev/video<number>` on Linux


VideoInput = str | io.BytesIO | Camera


def parse_camera(name: str) -> Camera | None:
  """Returns the camera that a name stands for, None if it is a file's."""
  return Camera(name) if name.startswith(("rtsp://", "rtsps://", "/dev/video")) else None


class TimedFrame(NamedTuple):
  """A frame as a player shows it."""

  seconds: float  # since the video's first frame; NaN if the file has no time stamps
  end: float  # seconds until which it is shown
  image: UInt8[np.ndarray, "h w *c"]


def decode_frames(
  file: VideoInput,
  short_edge: int,
  pixel_format: str,
  first: float = -math.inf,
  *,
  strict: bool = True,
  region: Region | None = None,
) -> Iterator[TimedFrame | Gap]:
  """Decodes every coded frame of a video once: no frame is repeated or dropped to fit a rate.

  Args:
    file: path or open file, in any format that FFmpeg reads, whatever its extension; or a camera.
    short_edge: pixels of the resized short edge; the long edge keeps the aspect and is even.
    pixel_format: 'rgb24' or 'gray'.
    first: seconds; frames before it are left out, and skipped by a seek if possible.
    strict: whether damage is an error and jumps of the clock are ignored. If False, frames that
      cannot be decoded are replaced by a `Gap`, as for all cameras.
    region: cut out before the resize; None: the whole frame.

  Yields:
    The frames in order, all of one size: deinterlaced if they are marked as interlaced, with square
    pixels, turned and mirrored by the display matrix. If not `strict`, gaps too.

  Raises:
    UserError: if the file cannot be decoded, is incomplete, or has no frame, or the region is not
      inside the frame; one line, without the file's name.
  """
  resize = None
  try:
    with _open(file) as container:
      decoder = StreamDecoder(container, is_live=isinstance(file, Camera))
      for frame, info in display.deinterlace(decoder.read(first, strict and not decoder.is_live)):
        if frame is None:
          yield info
          continue
        seconds, end, orientation = info
        if seconds < first:
          continue
        if resize is None:
          resize = _make_resize(
            frame, orientation, decoder.pixel_aspect, short_edge, pixel_format, region
          )
        yield TimedFrame(seconds, end, resize(frame, orientation))
      decoder.check_end()
  except av.error.EOFError as error:  # a file that ends before its first frame
    raise UserError("contains no frames") from error
  except av.error.FFmpegError as error:
    what = "the camera does not respond" if isinstance(file, Camera) else "cannot be decoded"
    raise UserError(f"{what} ({error.strerror})") from error
  except OSError as error:  # a damaged file can make FFmpeg seek to before its beginning
    if error.errno != errno.EINVAL:
      raise
    raise UserError(f"cannot be decoded ({error.strerror})") from error


# (frame, its orientation) -> pixels. The size of the pixels is that of the video's first frame.
Resize = Callable[[av.VideoFrame, display.Orientation], UInt8[np.ndarray, "h w *c"]]


def _make_resize(
  frame: av.VideoFrame,
  orientation: display.Orientation,
  pixel_aspect: Fraction | None,
  short_edge: int,
  pixel_format: str,
  region: Region | None,
) -> Resize:
  order = -1 if orientation.transposed else 1
  if region is None:
    size = display.compute_size(frame.width, frame.height, pixel_aspect, short_edge)
    return _make_scaler(size[::order], pixel_format)
  size = display.compute_display_size(frame.width, frame.height, pixel_aspect)[::order]
  left, top, right, bottom = region.to_box(*size)
  cropped_size = display.compute_size(right - left, bottom - top, None, short_edge)
  show, scale = _make_scaler(size, pixel_format), _make_scaler(cropped_size, pixel_format)
  upright = display.Orientation(False, False, False)

  def crop(frame: av.VideoFrame, orientation: display.Orientation):
    # At full resolution: to resize first would blur a small region, or enlarge the whole frame.
    pixels = np.ascontiguousarray(show(frame, orientation)[top:bottom, left:right])
    return scale(av.VideoFrame.from_ndarray(pixels, pixel_format), upright)

  return crop


def _make_scaler(size: tuple[int, int], pixel_format: str) -> Resize:
  # One for the whole video: PyAV's own makes a scaler for every frame, which is 0.21 of the 0.36 ms
  # that a frame of 64 pixels takes.
  reformatter = av.video.reformatter.VideoReformatter()

  def scale(frame: av.VideoFrame, orientation: display.Orientation):
    order = -1 if orientation.transposed else 1
    # 'AREA' averages over pixels; bicubic would alias when shrinking.
    frame = reformatter.reformat(frame, *size[::order], pixel_format, interpolation="AREA")
    return orientation.apply(frame.to_ndarray())

  return scale


def read_duration(file: str) -> float | None:
  """Returns the declared duration of a video in seconds; None if it has none or is not a video."""
  with contextlib.suppress(UserError, OSError, av.error.FFmpegError), _open(file) as video:
    return to_seconds(video.duration, MICROSECOND)
  return None


@contextlib.contextmanager
def _open(file: VideoInput) -> Iterator[av.container.InputContainer]:
  if isinstance(file, Camera):
    protocol, options = ("rtsp", CAMERA_OPTIONS) if "://" in file.address else ("v4l2", {})
    timeouts = (CAMERA_TIMEOUT, CAMERA_TIMEOUT)  # to open, and to read
    with av.open(file.address, format=protocol, options=options, timeout=timeouts) as container:
      yield container
    return
  # FFmpeg gets an open file, not its path, of which it would take 'http:/...' or 'concat:...' for a
  # protocol. Tags that are not UTF-8 must not prevent the video from being read.
  with (
    images.open_regular_file(file) as content,
    av.open(
      content, options=SAFE_OPTIONS, metadata_errors="replace", buffer_size=2**18
    ) as container,
  ):
    yield container
