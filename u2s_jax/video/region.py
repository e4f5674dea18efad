"""The region of a frame that is cut out before it is resized."""

import math
from typing import NamedTuple

from u2s_jax.runtime.errors import UserError

FIELDS = ("x", "y", "width", "height")
OUTSIDE = "the region "  # begins the message about a region that does not fit a frame


class Region(NamedTuple):
  """A rectangle of a frame as it is displayed: upright, with square pixels.

  Pixels; or shares of the frame's width and height if all four are at most 1.
  """

  x: float  # of the left edge
  y: float  # of the top edge
  width: float
  height: float

  def __str__(self) -> str:
    return ",".join(f"{value:.10g}" for value in self)

  def to_box(self, width: int, height: int) -> tuple[int, int, int, int]:
    """Returns the left, top, right and bottom edge in pixels of a frame of that size.

    Raises:
      UserError: if the region is not inside the frame, or smaller than a pixel.
    """
    scales = (width, height) if max(self) <= 1 else (1, 1)
    left, right = (round(value * scales[0]) for value in (self.x, self.x + self.width))
    top, bottom = (round(value * scales[1]) for value in (self.y, self.y + self.height))
    if left == right or top == bottom:
      raise UserError(f"{OUTSIDE}{self} has no pixels in the frame of {width} x {height} pixels")
    if right > width or bottom > height:
      raise UserError(f"{OUTSIDE}{self} exceeds the frame of {width} x {height} pixels")
    return left, top, right, bottom


def parse_region(text: str) -> Region:
  """Parses `x,y,width,height`.

  Raises:
    UserError: if it is not a region; the message does not name where it is from.
  """
  try:
    region = Region(*map(float, text.split(",")))
  except (TypeError, ValueError) as error:
    raise UserError(f"{text!r} is not a region; write x,y,width,height") from error
  if not all(map(math.isfinite, region)) or min(region) < 0 or not region.width * region.height:
    raise UserError(f"{text!r} is not a region; x and y must be >= 0, width and height > 0")
  return region
