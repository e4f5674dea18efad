"""Shows coded frames as a player does: deinterlaced, with square pixels, turned and mirrored."""

import collections
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.filter import Graph
from jaxtyping import UInt8

from u2s_jax.video import images

# Width of a pixel over its height; anamorphic video has 1/2 to 3. Larger values are errors.
MAX_PIXEL_ASPECT = 8

T = TypeVar("T")


class Orientation(NamedTuple):
  """One of the eight ways to turn a picture upright: first transposed, then mirrored, flipped."""

  transposed: bool
  mirrored: bool  # left to right
  flipped: bool  # top to bottom

  def apply(self, image: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h2 w2 *c"]:
    if self.transposed:
      image = image.swapaxes(0, 1)
    image = image[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]
    return np.ascontiguousarray(image)


def get_orientation(frame: av.VideoFrame) -> Orientation:
  """Returns the orientation that a frame's display matrix asks for, to the nearest right angle."""
  data = frame.side_data.get("DISPLAYMATRIX")
  # (x, y) is shown at (a x + c y, b x + d y). The unit, 1 / 2**16, does not matter.
  a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20]) if data else (1, 0, 0, 0, 1)
  if abs(a) + abs(d) >= abs(b) + abs(c):
    return Orientation(False, a < 0, d < 0)
  return Orientation(True, c < 0, b < 0)


def compute_display_size(width: int, height: int, pixel_aspect: Fraction | None) -> tuple[int, int]:
  """Returns width and height of a coded frame with square pixels, before it is turned.

  Args:
    pixel_aspect: see `compute_size`.
  """
  return max(1, round(width * _limit_aspect(pixel_aspect))), height


def compute_size(
  width: int, height: int, pixel_aspect: Fraction | None, short_edge: int
) -> tuple[int, int]:
  """Computes width and height of a resized coded frame with square pixels, before it is turned.

  Args:
    pixel_aspect: width of a pixel over its height; taken as 1 if None or outside 1/8 to 8.
    short_edge: pixels of the resized short edge; the long edge keeps the aspect and is even.

  Raises:
    UserError: if the long edge exceeds JPEG's limit.
  """
  width = width * _limit_aspect(pixel_aspect)
  long_edge = float(max(width, height) * short_edge / min(width, height))
  long_edge = max(2 * round(long_edge / 2), short_edge)
  images.check_edge(long_edge)
  return (short_edge, long_edge) if width < height else (long_edge, short_edge)


def _limit_aspect(pixel_aspect: Fraction | None) -> Fraction | int:
  is_plausible = pixel_aspect and 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT
  return pixel_aspect if is_plausible else 1


def deinterlace(
  items: Iterable[tuple[av.VideoFrame | None, T]],
) -> Iterator[tuple[av.VideoFrame | None, T]]:
  """Deinterlaces the frames that are marked as interlaced; the number of frames stays the same.

  Frames before the first one with the mark are yielded at once. From there on each frame is yielded
  after the next one was read, because FFmpeg's `bwdif` filter uses both neighbours.

  Args:
    items: frames in order, each with information that is yielded with it. None instead of a frame
      is a break: the frames before and after it are not neighbours.
  """
  graph, graph_format, pending = None, None, collections.deque()
  for frame, info in items:
    frame_format = frame and (frame.width, frame.height, frame.format.name)
    if graph and frame_format != graph_format:
      yield from _drain(graph, None, pending)
      graph = None
    if frame is None or not (graph or frame.interlaced_frame):
      yield frame, info
      continue
    graph, graph_format = graph or _make_graph(frame), frame_format
    pending.append(info)
    yield from _drain(graph, frame, pending)
  if graph:
    yield from _drain(graph, None, pending)


def _make_graph(frame: av.VideoFrame) -> Graph:
  graph = Graph()
  graph.threads = 1  # There is a process for every core already.
  source = graph.add_buffer(
    width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
  )
  # 'send_field' would make two frames of each one.
  bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
  graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
  return graph


def _drain(
  graph: Graph, frame: av.VideoFrame | None, pending: collections.deque[T]
) -> Iterator[tuple[av.VideoFrame, T]]:
  """Filters a frame, and yields the frames that are ready; None flushes the filter."""
  graph.vpush(frame)
  while True:
    try:
      ready = graph.vpull()
    except (av.error.BlockingIOError, av.error.EOFError):
      return
    yield ready, pending.popleft()
