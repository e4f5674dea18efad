"""How a player shows a coded frame: deinterlaced, with square pixels, turned and mirrored."""

import collections
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple, TypeVar

import av
import numpy as np
from av.filter import Graph
from jaxtyping import UInt8

from data import images

# Width of a pixel over its height; anamorphic video has 1/2 to 3. What is outside is a fault.
MAX_PIXEL_ASPECT = 8

T = TypeVar("T")


class Orientation(NamedTuple):
  """One of the eight ways to put a picture upright: transposed first, then mirrored and flipped.

  Attributes:
    transposed: whether rows become columns.
    mirrored: whether left and right change places.
    flipped: whether top and bottom change places.
  """

  transposed: bool
  mirrored: bool
  flipped: bool

  def apply(self, image: UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h2 w2 *c"]:
    """Returns the upright picture."""
    if self.transposed:
      image = image.swapaxes(0, 1)
    image = image[:: -1 if self.flipped else 1, :: -1 if self.mirrored else 1]
    return np.ascontiguousarray(image)


def get_orientation(frame: av.VideoFrame) -> Orientation:
  """Returns how a frame's display matrix turns and mirrors it, to the nearest right angle."""
  data = frame.side_data.get("DISPLAYMATRIX")
  # (x, y) is shown at (a x + c y, b x + d y). In 16.16, but only sizes and signs count here.
  a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20]) if data else (1, 0, 0, 0, 1)
  if abs(a) + abs(d) >= abs(b) + abs(c):
    return Orientation(False, a < 0, d < 0)
  return Orientation(True, c < 0, b < 0)


def stored_size(
  width: int, height: int, pixel_aspect: Fraction | None, short_edge: int
) -> tuple[int, int]:
  """Returns width and height with square pixels, of a frame that is not yet turned.

  Args:
    width: of the coded frame.
    height: of the coded frame.
    pixel_aspect: width of a pixel over its height; None, or not between 1/8 and 8: square.
    short_edge: pixels of the result; the long edge keeps the aspect and is even.

  Raises:
    UserError: the long edge exceeds JPEG's limit.
  """
  if pixel_aspect and 1 / MAX_PIXEL_ASPECT <= pixel_aspect <= MAX_PIXEL_ASPECT:
    width = width * pixel_aspect
  long_edge = float(max(width, height) * short_edge / min(width, height))
  long_edge = max(2 * round(long_edge / 2), short_edge)
  images.check_edge(long_edge)
  return (short_edge, long_edge) if width < height else (long_edge, short_edge)


def deinterlace(
  items: Iterable[tuple[av.VideoFrame | None, T]],
) -> Iterator[tuple[av.VideoFrame | None, T]]:
  """Deinterlaces the frames that are marked as interlaced, one frame for each.

  Nothing happens, and no frame waits, before the first frame with the mark. From there on a frame
  comes after the next one was taken: FFmpeg's `bwdif` looks at both neighbours.

  Args:
    items: frames in order, each with what comes out with it; None in place of a frame is a break,
      over which no frames are neighbours.
  """
  graph, kind, waiting = None, None, collections.deque()
  for frame, info in items:
    this_kind = frame and (frame.width, frame.height, frame.format.name)
    if graph and this_kind != kind:
      yield from _drain(graph, None, waiting)
      graph = None
    if frame is None or not (graph or frame.interlaced_frame):
      yield frame, info
      continue
    graph, kind = graph or _make_graph(frame), this_kind
    waiting.append(info)
    yield from _drain(graph, frame, waiting)
  if graph:
    yield from _drain(graph, None, waiting)


def _make_graph(frame: av.VideoFrame) -> Graph:
  """Returns a deinterlacer for frames like this one."""
  graph = Graph()
  graph.threads = 1  # There is a process for every core already.
  source = graph.add_buffer(
    width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
  )
  # 'send_field' would make two frames of each.
  bwdif = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
  graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
  return graph


def _drain(
  graph: Graph, frame: av.VideoFrame | None, waiting: collections.deque[T]
) -> Iterator[tuple[av.VideoFrame, T]]:
  """Yields what a deinterlacer has ready after a frame, or after the last one (None)."""
  graph.vpush(frame)
  while True:
    try:
      ready = graph.vpull()
    except (av.error.BlockingIOError, av.error.EOFError):
      return
    yield ready, waiting.popleft()
