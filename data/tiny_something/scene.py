"""Painting of a clip: every shape is painted into all frames at once."""

import colorsys
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

SHAPES = {"circle": "ball", "box": "box", "triangle": "wedge", "ellipse": "egg"}
HUES = {
  "red": 0.0,
  "orange": 0.08,
  "yellow": 0.15,
  "green": 0.33,
  "turquoise": 0.48,
  "blue": 0.6,
  "purple": 0.75,
  "pink": 0.88,
}
# Aspect ratio -> share of the clips, as in the real data: most are 4:3, some nearly 16:9.
ASPECTS = {4 / 3: 0.7, 3 / 2: 0.15, 16 / 9: 0.15}

# A coordinate: one number, or one per frame.
Track = Real | Float[np.ndarray, " t"]
Colour = Float32[np.ndarray, "3"]


class Item(NamedTuple):
  """An object that takes part in the action."""

  shape: str
  a: Real  # half its width, in frame heights
  b: Real  # half its height
  colour: Colour


class Scene:
  """A clip that is being painted.

  Lengths are in frame heights; the origin is near the frame's centre, x points right and y down. A
  positive angle turns clockwise on the screen. Later shapes cover earlier ones.
  """

  def __init__(self, rng: np.random.Generator, height: int, difficulty: Real, clutter: Real):
    self.rng = rng
    self.difficulty = difficulty
    self._clutter = clutter
    self._zoom = 1 - 0.5 * clutter  # of all shapes, about the frame's centre
    self.mirrored = bool(rng.random() < 0.5)
    self.ground = rng.uniform(0.24, 0.32)
    self.names = []
    aspect = rng.choice(list(ASPECTS), p=list(ASPECTS.values()))
    self._height, self._width = height, 2 * round(height * aspect / 2)
    self._length = int(rng.integers(20, 37))
    # Idle times at both ends have one distribution: a reversed clip is as likely as the clip.
    idle = rng.uniform(0.03, 0.16, size=2)
    clock = np.linspace(0, 1, self._length, dtype=np.float32)
    self._progress = (clock - np.float32(idle[0])) / np.float32(1 - idle.sum())
    light, dark = np.array([242, 204, 176], np.float32), np.array([140, 92, 66], np.float32)
    self._skin = light + (dark - light) * np.float32(rng.random())
    self._camera = self._draw_camera_path()
    self._frames = self._draw_background()
    ground_colour = self._backdrop * np.float32(rng.uniform(0.55, 0.75)) + 8
    self.paint("box", 0, self.ground + 1.0, 4.0, 1.0, 0, ground_colour)
    self._paint_distractors()

  def reverse(self) -> None:
    """Reverses the time of all that is painted afterwards."""
    self._progress = 1 - self._progress

  def ramp(self, start: Real, stop: Real) -> Float32[np.ndarray, " t"]:
    """Returns 0 before `start`, 1 after `stop`, smooth in between; in fractions of the action."""
    part = self.steady(start, stop)
    return part * part * (3 - 2 * part)

  def steady(self, start: Real, stop: Real) -> Float32[np.ndarray, " t"]:
    """Returns `ramp` with constant speed."""
    return np.clip((self._progress - start) / (stop - start), 0, 1)

  def by(self, easy: Real, hard: Real) -> Real:
    """Interpolates between `easy` and `hard` by the clip's difficulty."""
    return easy + (hard - easy) * self.difficulty

  def about(self, value: Real, spread: Real = 0.12) -> Real:
    """Returns a random value near `value`; `spread` is relative."""
    return value * self.rng.uniform(1 - spread, 1 + spread)

  def item(
    self, *, scale: float = 1.0, shapes: Sequence[str] = tuple(SHAPES), tall: float = 1.0
  ) -> Item:
    """Draws a random object and adds its name to the label's names."""
    shape = str(self.rng.choice(shapes))
    size = self.rng.uniform(0.12, 0.155) * self.by(1, 0.82) * scale
    a, b = {"circle": (1, 1), "box": (0.92, 0.85), "triangle": (1.05, 0.95)}.get(shape, (1.15, 0.8))
    colour = self._draw_named_colour(SHAPES[shape])
    return Item(shape, size * a, size * b * tall, colour)

  def vessel(self, name: str) -> Colour:
    """Adds a container to the label's names and returns its colour, paler than that of an item."""
    return self._draw_named_colour(name, saturation=0.45, value=0.75)

  def _draw_named_colour(self, name: str, **colour: Real) -> Colour:
    hue = str(self.rng.choice(list(HUES)))
    self.names.append(f"{'an' if hue[0] in 'aeiou' else 'a'} {hue} {name}")
    return self.colour(HUES[hue], **colour)

  def colour(self, hue: Real, saturation: Real = 0.85, value: Real = 0.92) -> Colour:
    hue = (hue + self.rng.uniform(-0.02, 0.02)) % 1
    value *= self.rng.uniform(0.85, 1)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255

  def put(self, item: Item, x: Track, y: Track, angle: Track = 0) -> None:
    """Paints an item with its centre at (x, y)."""
    self.paint(item.shape, x, y, item.a, item.b, angle, item.colour)

  def hand(self, x: Track, y: Track, angle: Track = 0, away: Track = 0) -> None:
    """Paints a hand with its fingertips at (x, y).

    `angle` is the direction of the arm; 0 is from above, pi / 2 from the right. `away` is the
    distance that the hand is withdrawn along the arm; at 1 it is outside the frame.
    """
    far_x, far_y = np.sin(angle), -np.cos(angle)
    x, y = x + far_x * away, y + far_y * away
    self.paint("box", x + far_x * 0.55, y + far_y * 0.55, 0.05, 0.45, angle, self._skin * 0.9)
    self.paint("ellipse", x + far_x * 0.085, y + far_y * 0.085, 0.07, 0.1, angle, self._skin)

  def paint(
    self,
    shape: str,
    x: Track,
    y: Track,
    a: Track,
    b: Track,
    angle: Track,
    colour: Colour,
    opacity: Track = 1,
  ) -> None:
    """Paints one anti-aliased shape, one of `SHAPES`, into every frame.

    (x, y) is its centre; `a` and `b` are half its width and height before it is rotated by `angle`
    radians. `colour` is RGB from 0 to 255, `opacity` from 0 to 1. A triangle points up.
    """
    flip = -1 if self.mirrored else 1
    height, width = self._height, self._width
    unit = self._zoom * height
    x = flip * self._expand(x) * unit + self._camera[0] * height + width / 2
    y = self._expand(y) * unit + self._camera[1] * height + height / 2
    a, b = np.maximum(self._expand(a) * unit, 0), np.maximum(self._expand(b) * unit, 0)
    angle, opacity = flip * self._expand(angle), self._expand(opacity)
    cos, sin = np.cos(angle), np.sin(angle)
    # A shape thinner than a pixel fades out.
    opacity = opacity * np.clip(2 * np.minimum(a, b), 0, 1)

    # Only a window around the shape is computed; it follows the shape and stays in the frame.
    reach_x = float(np.max(np.abs(a * cos) + np.abs(b * sin)))
    reach_y = float(np.max(np.abs(a * sin) + np.abs(b * cos)))
    box_w, box_h = min(2 * int(reach_x + 2), width), min(2 * int(reach_y + 2), height)
    left = np.clip(np.floor(x).astype(int) + 1 - box_w // 2, 0, width - box_w)
    top = np.clip(np.floor(y).astype(int) + 1 - box_h // 2, 0, height - box_h)
    dx = (np.arange(box_w, dtype=np.float32) + 0.5 + (left - x)[:, None])[:, None, :]
    dy = (np.arange(box_h, dtype=np.float32) + 0.5 + (top - y)[:, None])[:, :, None]
    dx, dy = dx.astype(np.float32), dy.astype(np.float32)
    a, b, cos, sin = (v[:, None, None].astype(np.float32) for v in (a, b, cos, sin))
    if np.any(sin):
      u, v = dx * cos + dy * sin, dy * cos - dx * sin
    else:
      u, v = dx * cos, dy * cos
    cover = np.clip(0.5 - _signed_distance(shape, u, v, a, b), 0, 1)
    cover *= opacity[:, None, None].astype(np.float32)

    keep = 1 - cover
    layer = cover[:, None] * colour[:, None, None]
    for frame, above, below, i, j in zip(self._frames, layer, keep, top, left, strict=True):
      window = frame[:, i : i + box_h, j : j + box_w]
      window *= below
      window += above

  def finish(self) -> UInt8[np.ndarray, "t h w 3"]:
    """Adds sensor noise and returns the clip."""
    height, width = self._height, self._width
    # One noise image, shifted randomly for every frame: drawing noise for each frame would take
    # longer than painting the clip.
    amplitude = np.float32(self.by(1.0, 8.0))
    plate = self.rng.standard_normal((height + 32, width + 32), dtype=np.float32) * amplitude
    for frame, (i, j) in zip(
      self._frames, self.rng.integers(0, 32, (self._length, 2)), strict=True
    ):
      frame += plate[i : i + height, j : j + width]
    np.clip(self._frames, 0, 255, out=self._frames)
    return np.ascontiguousarray(self._frames.astype(np.uint8).transpose(0, 2, 3, 1))

  def _expand(self, value: Track) -> Float32[np.ndarray, " t"]:
    return np.broadcast_to(np.asarray(value, np.float32), (self._length,))

  def _draw_camera_path(self) -> Float32[np.ndarray, "2 t"]:
    shake = self.rng.standard_normal((2, self._length + 4))
    shake = sum(shake[:, k : k + self._length] for k in range(5)) / 5
    reach = 0.05 + 0.2 * self._clutter
    place = self.rng.uniform(-reach, reach, (2, 1)) * [[1], [0.6]]
    return (place + shake * self.by(0.003, 0.025)).astype(np.float32)

  def _draw_background(self) -> Float32[np.ndarray, "t 3 h w"]:
    """Returns a plain colour plus a drifting sum of low-frequency waves."""
    rng, waves = self.rng, 8
    shade = rng.uniform(14, self.by(30, 150))
    self._backdrop = (shade * rng.uniform(0.75, 1.25, 3)).astype(np.float32)
    drift = rng.uniform(-1, 1, 2) * self.by(0.02, 0.3)
    move = self._camera + drift[:, None] * np.linspace(0, 1, self._length)
    rows, columns = (
      np.cos(
        rng.uniform(2, 14, waves)
        * (np.arange(size)[None, :, None] / self._height - offset[:, None, None])
        + rng.uniform(0, 2 * np.pi, waves)
      )
      for size, offset in ((self._height, move[1]), (self._width, move[0]))
    )
    strength = rng.normal(0, self.by(1.5, 16), (3, 1, waves)) * 0.5
    strength = strength + rng.normal(0, self.by(1.5, 16), waves)
    rows = (rows[:, None] * strength).astype(np.float32)
    columns = np.ascontiguousarray(columns.transpose(0, 2, 1).astype(np.float32))
    flat = rows.reshape(self._length, 3 * self._height, waves) @ columns
    frames = flat.reshape(self._length, 3, self._height, self._width)
    frames += self._backdrop[:, None, None]
    return frames

  def _paint_distractors(self) -> None:
    rng = self.rng
    count = int(rng.integers(0, 1 + round(3 * self.difficulty))) + round(10 * self._clutter)
    for _ in range(count):
      side, drift = rng.uniform([-0.6, -0.45], [0.6, 0.45]) / self._zoom, rng.normal(0, 0.1, 2)
      if rng.random() < 0.5:
        drift[:] = 0
      x, y = (side[k] + drift[k] * np.linspace(0, 1, self._length) for k in (0, 1))
      size = rng.uniform(0.04, 0.09) / self._zoom
      colour = self.colour(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8))
      shape = str(rng.choice(list(SHAPES)))
      self.paint(shape, x, y, size, size, rng.uniform(0, 6), colour)


def _signed_distance(
  shape: str,
  u: Float32[np.ndarray, " t #h #w"],
  v: Float32[np.ndarray, " t #h #w"],
  a: Float32[np.ndarray, "t 1 1"],
  b: Float32[np.ndarray, "t 1 1"],
) -> Float32[np.ndarray, "t h w"]:
  """Returns the distance to a shape's outline in pixels, negative inside; approximate."""
  if shape in ("circle", "ellipse"):
    a, b = np.maximum(a, 0.5), np.maximum(b, 0.5)
    return (np.sqrt(np.square(u / a) + np.square(v / b)) - 1) * np.minimum(a, b)
  if shape == "box":
    return np.maximum(np.abs(u) - a, np.abs(v) - b)
  a, b = np.maximum(a, 0.5), np.maximum(b, 0.5)  # a triangle
  slant = (np.abs(u) - (v + b) * (a / (2 * b))) * (2 * b / np.hypot(2 * b, a))
  return np.maximum(slant, v - b)
