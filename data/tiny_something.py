"""Tiny something: short rendered clips of action classes, stored as Something-Something V2 is.

The classes come in families whose members share every object and differ in what happens: in its
direction, its order or its outcome. `render` writes VP9 files and the label files of the real data
set, so everything after it takes the path that the real data takes.

The module imports neither tensorflow nor jax. Its workers run this very file as a script, because a
spawned `multiprocessing` worker would import the caller's main module again, with all that imports.
"""

import colorsys
import fractions
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from numbers import Real
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float, Float32, UInt8

VIDEO_FOLDER = "20bn-something-something-v2"
FRAME_RATE = 12
# Raised whenever the same seed gives other pixels: an old folder must not pass for a new one.
_VERSION = 1
_SPLITS = ("train", "validation", "test")
_SHAPES = {"circle": "ball", "box": "box", "triangle": "wedge", "ellipse": "egg"}
_HUES = {
  "red": 0.0,
  "orange": 0.08,
  "yellow": 0.15,
  "green": 0.33,
  "turquoise": 0.48,
  "blue": 0.6,
  "purple": 0.75,
  "pink": 0.88,
}
# Width over height and its share of the clips: most are 4:3, some nearly 16:9, as in the real data.
_ASPECTS = {4 / 3: 0.7, 3 / 2: 0.15, 16 / 9: 0.15}

# What a shape's geometry may be: one number, or one a frame.
_Track = Real | Float[np.ndarray, " t"]
_Colour = Float32[np.ndarray, "3"]


class _Item(NamedTuple):
  """An acting object."""

  shape: str
  a: Real  # Half its width, in frame heights.
  b: Real  # Half its height.
  colour: _Colour


class _Scene:
  """One clip while it is painted.

  Lengths are in frame heights; the origin is near the frame's centre, x to the right and y down. A
  positive angle turns clockwise on the screen. Whatever is painted later lies in front.
  """

  def __init__(self, rng: np.random.Generator, height: int, difficulty: Real):
    self.rng = rng
    self.difficulty = difficulty
    self.mirrored = bool(rng.random() < 0.5)
    self.ground = rng.uniform(0.24, 0.32)
    self.names = []
    aspect = rng.choice(list(_ASPECTS), p=list(_ASPECTS.values()))
    self._height, self._width = height, 2 * round(height * aspect / 2)
    self._length = int(rng.integers(20, 37))
    # Both ends idle by the same law: a clip played backwards is as likely as the clip.
    idle = rng.uniform(0.03, 0.16, size=2)
    clock = np.linspace(0, 1, self._length, dtype=np.float32)
    self._progress = (clock - np.float32(idle[0])) / np.float32(1 - idle.sum())
    self._skin = self._skin_tone()
    self._camera = self._camera_path()
    self._frames = self._background()
    self.paint("box", 0, self.ground + 0.5, 2.0, 0.5, 0, self._ground_colour())
    self._distract()

  # Time, chance and difficulty.

  def reverse(self) -> None:
    """Lets everything that follows happen backwards."""
    self._progress = 1 - self._progress

  def ramp(self, start: Real, stop: Real) -> Float32[np.ndarray, " t"]:
    """0 before `start`, 1 after `stop`, smooth between; times are fractions of the action."""
    part = np.clip((self._progress - start) / (stop - start), 0, 1)
    return part * part * (3 - 2 * part)

  def steady(self, start: Real, stop: Real) -> Float32[np.ndarray, " t"]:
    """As `ramp`, at constant speed."""
    return np.clip((self._progress - start) / (stop - start), 0, 1)

  def by(self, easy: Real, hard: Real) -> Real:
    """The value between `easy` and `hard` for this clip's difficulty."""
    return easy + (hard - easy) * self.difficulty

  def about(self, value: Real, spread: Real = 0.12) -> Real:
    """A random value near `value`; `spread` is relative."""
    return value * self.rng.uniform(1 - spread, 1 + spread)

  # Objects.

  def item(
    self, *, scale: float = 1.0, shapes: Sequence[str] = tuple(_SHAPES), tall: float = 1.0
  ) -> _Item:
    """Draws a random object and notes its name for the label."""
    shape = str(self.rng.choice(shapes))
    size = self.rng.uniform(0.12, 0.155) * self.by(1, 0.82) * scale
    a, b = {"circle": (1, 1), "box": (0.92, 0.85), "triangle": (1.05, 0.95)}.get(shape, (1.15, 0.8))
    colour = self._named(_SHAPES[shape])
    return _Item(shape, size * a, size * b * tall, colour)

  def vessel(self, name: str) -> _Colour:
    """Notes a named container and gives its colour, paler than that of an item."""
    return self._named(name, saturation=0.45, value=0.75)

  def _named(self, name: str, **colour: Real) -> _Colour:
    hue = str(self.rng.choice(list(_HUES)))
    self.names.append(f"{'an' if hue[0] in 'aeiou' else 'a'} {hue} {name}")
    return self.colour(_HUES[hue], **colour)

  def colour(self, hue: Real, saturation: Real = 0.85, value: Real = 0.92) -> _Colour:
    hue = (hue + self.rng.uniform(-0.02, 0.02)) % 1
    value *= self.rng.uniform(0.85, 1)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value), np.float32) * 255

  def put(
    self,
    item: _Item,
    x: _Track,
    y: _Track,
    angle: _Track = 0,
    opacity: _Track = 1,
    tone: _Colour | None = None,
  ) -> None:
    """Paints an item with its centre at (x, y); `tone` colours its upper half."""
    self.paint(item.shape, x, y, item.a, item.b, angle, item.colour, opacity, tone)

  def hand(self, x: _Track, y: _Track, angle: _Track = 0, away: _Track = 0) -> None:
    """Paints a hand whose finger tips are at (x, y).

    Args:
      x: Where the tips are.
      y: Where the tips are.
      angle: Where the arm comes from: 0 from above, a quarter turn from the right.
      away: How far it has been drawn back along its arm; 1 is out of the frame.
    """
    far_x, far_y = np.sin(angle), -np.cos(angle)
    x, y = x + far_x * away, y + far_y * away
    self.paint("box", x + far_x * 0.55, y + far_y * 0.55, 0.05, 0.45, angle, self._skin * 0.9)
    self.paint("ellipse", x + far_x * 0.085, y + far_y * 0.085, 0.07, 0.1, angle, self._skin)

  # Painting.

  def paint(
    self,
    shape: str,
    x: _Track,
    y: _Track,
    a: _Track,
    b: _Track,
    angle: _Track,
    colour: _Colour,
    opacity: _Track = 1,
    tone: _Colour | None = None,
  ) -> None:
    """Paints one anti-aliased shape into every frame.

    Args:
      shape: 'circle', 'ellipse', 'box' or 'triangle' (pointing up).
      x: The centre.
      y: The centre.
      a: Half its width before it is turned.
      b: Half its height before it is turned.
      angle: How far it is turned.
      colour: Its colour.
      opacity: 0 leaves it out.
      tone: The colour of the half that is above before it is turned.
    """
    flip = -1 if self.mirrored else 1
    height, width = self._height, self._width
    x = (flip * self._track(x) + self._camera[0]) * height + width / 2
    y = (self._track(y) + self._camera[1]) * height + height / 2
    a, b = np.maximum(self._track(a) * height, 0), np.maximum(self._track(b) * height, 0)
    angle, opacity = flip * self._track(angle), self._track(opacity)
    cos, sin = np.cos(angle), np.sin(angle)
    # A shape thinner than a pixel fades out instead of keeping half of one.
    opacity = opacity * np.clip(2 * np.minimum(a, b), 0, 1)

    # Only a window that holds the shape is computed; it follows the shape and stays in the frame.
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
    if tone is not None:
      share = cover * np.clip(0.5 - v, 0, 1)
      layer += share[:, None] * (tone - colour)[:, None, None]
    for frame, above, below, i, j in zip(self._frames, layer, keep, top, left, strict=True):
      window = frame[:, i : i + box_h, j : j + box_w]
      window *= below
      window += above

  def finish(self) -> UInt8[np.ndarray, "t h w 3"]:
    """Adds the sensor's noise and gives the clip."""
    height, width = self._height, self._width
    # One plate of noise read at another place in every frame: drawing each pixel anew would take
    # longer than painting the clip.
    amplitude = np.float32(self.by(1.0, 8.0))
    plate = self.rng.standard_normal((height + 32, width + 32), dtype=np.float32) * amplitude
    for frame, (i, j) in zip(
      self._frames, self.rng.integers(0, 32, (self._length, 2)), strict=True
    ):
      frame += plate[i : i + height, j : j + width]
    np.clip(self._frames, 0, 255, out=self._frames)
    return np.ascontiguousarray(self._frames.astype(np.uint8).transpose(0, 2, 3, 1))

  # What stands around the action.

  def _track(self, value: _Track) -> Float32[np.ndarray, " t"]:
    return np.broadcast_to(np.asarray(value, np.float32), (self._length,))

  def _skin_tone(self) -> _Colour:
    light, dark = np.array([242, 204, 176], np.float32), np.array([140, 92, 66], np.float32)
    return light + (dark - light) * np.float32(self.rng.random())

  def _camera_path(self) -> Float32[np.ndarray, "2 t"]:
    shake = self.rng.standard_normal((2, self._length + 4))
    shake = sum(shake[:, k : k + self._length] for k in range(5)) / 5
    place = self.rng.uniform(-0.05, 0.05, (2, 1)) * [[1], [0.6]]
    return (place + shake * self.by(0.003, 0.025)).astype(np.float32)

  def _ground_colour(self) -> _Colour:
    return self._backdrop * np.float32(self.rng.uniform(0.55, 0.75)) + 8

  def _background(self) -> Float32[np.ndarray, "t 3 h w"]:
    """A plain colour with a sum of slow waves on it, which drifts."""
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

  def _distract(self) -> None:
    rng = self.rng
    for _ in range(int(rng.integers(0, 1 + round(3 * self.difficulty)))):
      side, drift = rng.uniform([-0.6, -0.45], [0.6, 0.45]), rng.normal(0, 0.1, 2)
      if rng.random() < 0.5:
        drift[:] = 0
      x, y = (side[k] + drift[k] * np.linspace(0, 1, self._length) for k in (0, 1))
      size = rng.uniform(0.04, 0.09)
      colour = self.colour(rng.random(), rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8))
      shape = str(rng.choice(list(_SHAPES)))
      self.paint(shape, x, y, size, size, rng.uniform(0, 6), colour)


def _signed_distance(
  shape: str,
  u: Float32[np.ndarray, " t #h #w"],
  v: Float32[np.ndarray, " t #h #w"],
  a: Float32[np.ndarray, "t 1 1"],
  b: Float32[np.ndarray, "t 1 1"],
) -> Float32[np.ndarray, "t h w"]:
  """Pixels from a shape's outline, negative inside; near enough for anti-aliasing."""
  if shape in ("circle", "ellipse"):
    a, b = np.maximum(a, 0.5), np.maximum(b, 0.5)
    return (np.sqrt(np.square(u / a) + np.square(v / b)) - 1) * np.minimum(a, b)
  if shape == "box":
    return np.maximum(np.abs(u) - a, np.abs(v) - b)
  if shape == "triangle":
    a, b = np.maximum(a, 0.5), np.maximum(b, 0.5)
    slant = (np.abs(u) - (v + b) * (a / (2 * b))) * (2 * b / np.hypot(2 * b, a))
    return np.maximum(slant, v - b)
  raise ValueError(f"unknown shape: {shape!r}")


# The families. Members of one run the same code, so they cannot differ in anything but the outcome.


def _push(scene: _Scene, leftwards: bool) -> None:
  # The hand rests on top: at a side it would give the direction away in every frame.
  scene.mirrored = leftwards
  item = scene.item()
  travel = scene.about(scene.by(0.5, 0.05))
  x = scene.rng.uniform(-0.12, 0.12) + travel * (scene.ramp(0.15, 0.9) - 0.5)
  scene.put(item, x, scene.ground - item.b)
  lean = scene.rng.uniform(-0.35, 0.35)
  scene.hand(x, scene.ground - 2 * item.b + 0.05, lean, away=0.8 * (1 - scene.ramp(-0.1, 0.15)))


def _put_into(scene: _Scene, outcome: str) -> None:
  # Taking out is putting in played backwards; pretending brings the thing back.
  if outcome == "out":
    scene.reverse()
  item = scene.item(scale=0.75)
  colour = scene.vessel("pot")
  wide, deep = scene.about(0.17, 0.08), scene.about(0.15, 0.1)
  x_pot, floor = 0.2, scene.ground
  high, dip = floor - 2 * deep - item.b - 0.08, floor - item.b - 0.02
  if outcome == "pretend":
    # At worst the thing sinks in as deep as one that stays there.
    dip = floor - 2 * deep + item.b * scene.by(-0.3, 0.6)
  # The hand's own way is the same backwards: only what it holds tells the members apart.
  over, down = scene.ramp(0.02, 0.27), scene.ramp(0.27, 0.47)
  up, back = scene.ramp(0.53, 0.73), scene.ramp(0.73, 0.98)
  x_hand = -0.24 + (x_pot + 0.24) * (over - back)
  y_hand = high + (dip - high) * (down - up)
  if outcome == "pretend":
    x, y = x_hand, y_hand
  else:
    held = scene.steady(0, 1) < 0.5
    x, y = np.where(held, x_hand, x_pot), np.where(held, y_hand, dip)
  scene.paint("box", x_pot, floor - deep, wide, deep, 0, colour * 0.45)
  scene.put(item, x, y)
  scene.hand(x_hand, y_hand - item.b + 0.05, scene.rng.uniform(-0.3, 0.3))
  scene.paint("box", x_pot, floor - deep * 0.85, wide, deep * 0.85, 0, colour)


def _bend(scene: _Scene, breaks: bool) -> None:
  item = scene.item(shapes=["box"])
  half, thick = scene.about(0.16, 0.1), scene.about(0.055, 0.15)
  bend = scene.about(scene.by(0.95, 0.6)) * scene.ramp(0.05, 0.5)
  gap = 0.0
  if breaks:
    gap = scene.about(scene.by(0.16, 0.02)) * scene.ramp(0.4, 0.6)
  y = scene.rng.uniform(-0.15, -0.02)
  for side in (-1, 1):
    # Each half hangs from the joint in the middle, then from its own side of the gap.
    x_mid = side * (gap + half * np.cos(bend))
    y_mid = y + half * np.sin(bend)
    scene.paint("box", x_mid, y_mid, half + thick * 0.5, thick, side * bend, item.colour)
    x_end, y_end = side * (gap + 1.7 * half * np.cos(bend)), y + 1.7 * half * np.sin(bend)
    scene.hand(x_end, y_end, np.float32(side * 2.2), away=0.6 * (1 - scene.ramp(-0.1, 0.1)))


def _throw(scene: _Scene, released: bool) -> None:
  item = scene.item(scale=0.8)
  wind, swing = scene.ramp(0, 0.25), scene.ramp(0.25, 0.5)
  x_hand = -0.15 - 0.12 * wind + 0.27 * swing
  y_hand = 0.02 + 0.05 * wind - 0.2 * swing
  x, y = x_hand, y_hand
  if released:
    # A slow flight: its evidence has to outlast the sampling of eight frames.
    flight = scene.steady(0.42, 1.0)
    far = scene.about(scene.by(0.6, 0.06))
    x, y = x_hand + far * flight, y_hand - far * 1.2 * flight * (0.75 - flight)
  scene.hand(x_hand, y_hand + 0.03, np.pi + scene.rng.uniform(0.2, 0.7))
  scene.put(item, x, y - item.b * 0.6)


def _slope(scene: _Scene, outcome: str) -> None:
  item = scene.item(scale=0.85, shapes=["circle", "ellipse", "box"])
  tilt = scene.rng.uniform(0.35, 0.55)
  cos, sin = np.cos(tilt), np.sin(tilt)
  y_mid = scene.ground - 0.13
  scene.paint("box", -0.5 * sin, y_mid + 0.5 * cos, 1.2, 0.5, tilt, scene.colour(0.09, 0.3, 0.45))
  far = scene.about(scene.by(0.55, 0.09)) * scene.steady(0.25, 0.95) ** 1.3
  if outcome == "stay":
    far = far * scene.by(0, 0.2)
  turn = tilt + scene.rng.uniform(-0.15, 0.15)
  if outcome == "roll":
    turn = turn + far / item.b * scene.by(1, 0.35)
  along, above = far - 0.3, item.b
  x, y = along * cos + above * sin, y_mid + along * sin - above * cos
  scene.put(item, x, y, turn, tone=item.colour * 0.25)
  x_hold, y_hold = -0.3 * cos + above * sin, y_mid - 0.3 * sin - above * cos
  scene.hand(x_hold, y_hold - item.b + 0.05, 0.1, away=0.7 * scene.ramp(0.1, 0.35))


def _poke(scene: _Scene, moves: bool) -> None:
  item = scene.item()
  reach = scene.ramp(0, 0.3) - scene.ramp(0.55, 0.85)
  far = scene.about(scene.by(0.34, 0.04) if moves else scene.by(0, 0.015))
  # Centred on its way, so that where it stands says little.
  x_start = scene.rng.uniform(-0.12, 0.12) - far / 2
  x = x_start + far * scene.ramp(0.25, 0.6)
  y = scene.ground - item.b
  scene.put(item, x, y)
  touch = np.where(scene.ramp(0.25, 0.6) > 0, x - item.a * 0.9, x_start - item.a * 0.9)
  scene.hand(touch, y, -np.pi / 2 + scene.rng.uniform(-0.2, 0.5), away=0.45 * (1 - reach))


def _pour(scene: _Scene, overflows: bool) -> None:
  hue = str(scene.rng.choice(list(_HUES)))
  scene.names.append(f"{hue} water")
  liquid = scene.colour(_HUES[hue])
  glass = scene.vessel("glass")
  wide, deep = scene.about(0.13, 0.1), scene.about(0.14, 0.1)
  x_glass, floor = 0.08, scene.ground
  fill = scene.by(0.6, 0.93)
  if overflows:
    fill = 1.0
  level = scene.steady(0.15, 0.6) * fill
  tilted = scene.ramp(0, 0.15) - scene.ramp(0.85, 1.0)
  flows = scene.ramp(0.1, 0.16) - scene.ramp(0.84, 0.9)
  x_lip, y_lip = x_glass - 0.01, floor - 2 * deep - 0.17
  scene.paint("box", x_glass, floor - deep, wide + 0.025, deep, 0, glass * 0.4)
  scene.paint("box", x_glass, floor - deep * level, wide, deep * level, 0, liquid)
  fall = (floor - 0.02 - y_lip) / 2
  scene.paint("box", x_lip, y_lip + fall, 0.028, fall, 0, liquid, opacity=flows)
  if overflows:
    spill = scene.ramp(0.5, 0.7)
    thick = scene.about(scene.by(0.045, 0.014))
    for side in (-1, 1):
      run = spill * deep
      x_run = x_glass + side * (wide + 0.025 + thick * 0.5)
      scene.paint("box", x_run, floor - 2 * deep + run, thick, run, 0, liquid)
    pool = scene.ramp(0.55, 0.9)
    a, b = (wide + scene.by(0.22, 0.05)) * pool, scene.by(0.07, 0.025) * pool
    scene.paint("ellipse", x_glass, floor + 0.02, a, b, 0, liquid)
  # The jug turns about its lip.
  angle = 0.5 + 1.1 * tilted
  x_jug = x_lip - 0.17 * np.cos(angle - 0.9)
  y_jug = y_lip - 0.17 * np.sin(angle - 0.9) - 0.02
  scene.paint("box", x_jug, y_jug, 0.085, 0.13, angle, glass)
  scene.hand(x_jug + 0.02, y_jug, -1.2)


def _cover(scene: _Scene, uncovers: bool) -> None:
  if uncovers:
    scene.reverse()
  item = scene.item(scale=0.85)
  colour = scene.vessel("cloth")
  x = scene.rng.uniform(-0.05, 0.1)
  a, b = item.a + 0.05, item.b + 0.02
  # A hard cover hides less of the thing.
  b = b * scene.by(1, 0.5)
  rest = scene.ground - 2 * item.b - 0.02 + b
  come, leave = scene.ramp(0, 0.55), scene.ramp(0.6, 0.95)
  x_cloth = x - scene.about(scene.by(0.36, 0.1)) * (1 - come)
  y_cloth = rest - 0.3 * (1 - scene.ramp(0.3, 0.55))
  scene.put(item, x, scene.ground - item.b)
  scene.paint("box", x_cloth, y_cloth, a, b, 0, colour)
  scene.paint("box", x_cloth, y_cloth - b, a * 0.9, 0.025, 0, colour * 0.7)
  scene.hand(x_cloth, y_cloth - b + 0.03, -0.3, away=0.6 * leave)


def _lift(scene: _Scene, drops: bool) -> None:
  item = scene.item(scale=0.9)
  x = scene.rng.uniform(-0.12, 0.12)
  high = scene.about(scene.by(0.4, 0.05))
  y_hand = scene.ground - item.b - high * scene.ramp(0.1, 0.42)
  y = y_hand
  if drops:
    y = y_hand + high * scene.ramp(0.5, 0.62)
  scene.put(item, x, y)
  lean = scene.rng.uniform(-0.35, 0.35)
  scene.hand(x, y_hand - item.b + 0.05, lean, away=0.6 * (1 - scene.ramp(-0.1, 0.1)))


def _two(scene: _Scene, apart: bool) -> None:
  if apart:
    scene.reverse()
  items = [scene.item(scale=0.75), scene.item(scale=0.75)]
  x_mid = scene.rng.uniform(-0.06, 0.06)
  travel = scene.about(scene.by(0.2, 0.02))
  for side, item in zip((-1, 1), items, strict=True):
    near = item.a + scene.rng.uniform(0.0, 0.06)
    x = x_mid + side * (near + travel * (1 - scene.ramp(0.1, 0.9)))
    scene.put(item, x, scene.ground - item.b)
    scene.hand(x, scene.ground - 2 * item.b + 0.05, np.float32(side * 0.4))


def _open(scene: _Scene, closes: bool) -> None:
  if closes:
    scene.reverse()
  colour = scene.vessel("chest")
  wide, deep = scene.about(0.2, 0.1), scene.about(0.11, 0.1)
  top = scene.ground - 2 * deep
  swing = scene.about(scene.by(1.7, 0.18)) * scene.ramp(0.1, 0.9)
  # The lid turns about its left end and always stands a little open, so that no frame is a limit.
  swing = -(swing + scene.rng.uniform(0, 0.15))
  x_hinge, reach = -wide, 2 * wide
  x_lid, y_lid = x_hinge + wide * np.cos(swing), top - 0.02 + wide * np.sin(swing)
  scene.paint("box", 0, scene.ground - deep, wide, deep, 0, colour)
  scene.paint("box", 0, top + 0.03, wide * 0.85, 0.03, 0, colour * 0.3)
  scene.paint("box", x_lid, y_lid, wide, 0.035, swing, colour * 0.75)
  x_end, y_end = x_hinge + reach * np.cos(swing), top - 0.02 + reach * np.sin(swing)
  scene.hand(x_end - 0.02, y_end, 0.9)


def _turn(scene: _Scene, turned: bool) -> None:
  item = scene.item(tall=1.15)
  way = scene.ramp(0.1, 0.6)
  if turned:
    angle = np.pi * way
  else:
    # It starts as if it went over, and comes back.
    most = scene.by(1.3, 2.6)
    angle = most * (scene.ramp(0.1, 0.42) - scene.ramp(0.42, 0.74))
  # Which end is light at the start is chance, or the last frame would tell the class.
  tone = scene.by(0.12, 0.6) * item.colour
  if scene.rng.random() < 0.5:
    item, tone = item._replace(colour=tone), item.colour
  if item.shape == "triangle":
    # A wedge shows by its outline which end is up.
    angle = angle + np.pi * (scene.rng.random() < 0.5)
  x, y = scene.rng.uniform(-0.1, 0.1), -0.02
  scene.put(item, x, y, angle, tone=tone)
  # The hand holds the side about which the thing turns.
  scene.hand(x + item.a * 0.8, y, np.pi / 2 + 0.3 * np.sin(angle))


def _spin(scene: _Scene, stops: bool) -> None:
  item = scene.item(scale=1.1, shapes=["box", "ellipse", "triangle"], tall=0.8)
  total = scene.about(scene.by(7.0, 4.5))
  turn = scene.steady(0.12, 1.3)
  if stops:
    # The same speed at first, then friction, then rest.
    end = scene.by(0.3, 0.75)
    turn = np.minimum(turn, end + 0.08 * (1 - np.exp(-np.maximum(turn - end, 0) / 0.08)))
  angle = scene.rng.uniform(0, 6.28) + total * turn
  x, y = scene.rng.uniform(-0.1, 0.1), 0.05
  scene.put(item, x, y, angle, tone=item.colour * 0.25)
  flick = scene.ramp(-0.1, 0.1)
  scene.hand(x + 0.16 - 0.12 * flick, y - item.a * 0.7, 0.3, away=0.7 * scene.ramp(0.15, 0.4))


_ACTIONS: dict[str, Callable[[_Scene], None]] = {
  "Bending [something] so that it deforms": functools.partial(_bend, breaks=False),
  "Bending [something] until it breaks": functools.partial(_bend, breaks=True),
  "Closing [something]": functools.partial(_open, closes=True),
  "Covering [something] with [something]": functools.partial(_cover, uncovers=False),
  "Letting [something] roll down a slanted surface": functools.partial(_slope, outcome="roll"),
  "Lifting [something] up completely without letting it drop down": functools.partial(
    _lift, drops=False
  ),
  "Lifting [something] up completely, then letting it drop down": functools.partial(
    _lift, drops=True
  ),
  "Moving [something] and [something] away from each other": functools.partial(_two, apart=True),
  "Moving [something] and [something] closer to each other": functools.partial(_two, apart=False),
  "Opening [something]": functools.partial(_open, closes=False),
  "Poking [something] so lightly that it doesn't or almost doesn't move": functools.partial(
    _poke, moves=False
  ),
  "Poking [something] so it slightly moves": functools.partial(_poke, moves=True),
  "Pouring [something] into [something]": functools.partial(_pour, overflows=False),
  "Pouring [something] into [something] until it overflows": functools.partial(
    _pour, overflows=True
  ),
  "Pretending to put [something] into [something]": functools.partial(_put_into, outcome="pretend"),
  "Pretending to throw [something]": functools.partial(_throw, released=False),
  "Pretending to turn [something] upside down": functools.partial(_turn, turned=False),
  "Pushing [something] from left to right": functools.partial(_push, leftwards=False),
  "Pushing [something] from right to left": functools.partial(_push, leftwards=True),
  "Putting [something] into [something]": functools.partial(_put_into, outcome="in"),
  "Putting [something] that can't roll onto a slanted surface, so it slides down": (
    functools.partial(_slope, outcome="slide")
  ),
  "Putting [something] that can't roll onto a slanted surface, so it stays where it is": (
    functools.partial(_slope, outcome="stay")
  ),
  "Spinning [something] so it continues spinning": functools.partial(_spin, stops=False),
  "Spinning [something] that quickly stops spinning": functools.partial(_spin, stops=True),
  "Taking [something] out of [something]": functools.partial(_put_into, outcome="out"),
  "Throwing [something]": functools.partial(_throw, released=True),
  "Turning [something] upside down": functools.partial(_turn, turned=True),
  "Uncovering [something]": functools.partial(_cover, uncovers=True),
}
CLASSES: tuple[str, ...] = tuple(sorted(_ACTIONS))


def render_clip(
  class_index: int, rng: np.random.Generator, *, height: int, difficulty: float
) -> UInt8[np.ndarray, "t h w 3"]:
  """Renders one clip.

  Args:
    class_index: Index into `CLASSES`.
    rng: All chance in the clip comes from it.
    height: Pixels; even. The width varies from clip to clip.
    difficulty: 0: dark and plain with big differences inside a family. 1: busy, the members of a
      family nearly alike.

  Returns:
    20 to 36 RGB frames.
  """
  return _render_named(class_index, rng, height, difficulty)[0]


def render(
  root: os.PathLike | str,
  *,
  num_train: int,
  num_validation: int,
  num_test: int,
  height: int = 64,
  difficulty: Real = 0.5,
  seed: int = 0,
  num_workers: int = 2,
) -> None:
  """Writes a data set in Something-Something V2's layout, or returns at once where it stands.

  Everything is made in a folder beside `root` that takes its name at the end: an interrupted run
  leaves no half-made data set.

  Args:
    root: The data set's folder.
    num_train: Clips in the training split; classes take turns, so they differ by one at most.
    num_validation: Clips in the validation split.
    num_test: Clips in the test split.
    height: Pixels of every clip.
    difficulty: From 0 to 1, see `render_clip`.
    seed: Of the whole data set.
    num_workers: Processes; the pixels do not depend on it.

  Raises:
    ValueError: An argument is out of range, or `root` holds something else.
  """
  counts = (num_train, num_validation, num_test)
  if min(counts) < 0:
    raise ValueError(f"clip counts must not be negative: {counts}")
  if num_workers < 1:
    raise ValueError(f"num_workers must be at least 1: {num_workers}")
  _check(height, difficulty)
  settings = {
    "version": _VERSION,
    "num_train": int(num_train),
    "num_validation": int(num_validation),
    "num_test": int(num_test),
    "height": int(height),
    "difficulty": float(difficulty),
    "seed": int(seed),
  }
  root = pathlib.Path(os.path.abspath(root))
  if _already_made(root, settings):
    return
  root.parent.mkdir(parents=True, exist_ok=True)
  partial = root.parent / f".{root.name}.partial-{uuid.uuid4().hex[:8]}"
  try:
    (partial / VIDEO_FOLDER).mkdir(parents=True)
    names = _run_workers(partial, settings, num_workers)
    _write_labels(partial, settings, names)
    (partial / "settings.json").write_text(json.dumps(settings, indent=2) + "\n")
    try:
      os.rename(partial, root)
    except OSError:
      # Another process may have finished the same data set meanwhile; anything else is an error.
      if not _already_made(root, settings):
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _check(height: int, difficulty: Real) -> None:
  if height < 16 or height % 2:
    raise ValueError(f"height must be even and at least 16: {height}")
  if not 0 <= difficulty <= 1:
    raise ValueError(f"difficulty must lie between 0 and 1: {difficulty}")


def _already_made(root: pathlib.Path, settings: dict[str, int | float]) -> bool:
  """Whether `root` is this very data set; an error where it is anything else but empty."""
  if not root.exists():
    return False
  if not root.is_dir():
    raise ValueError(f"{root} is not a folder")
  if not any(root.iterdir()):
    return False
  try:
    found = json.loads((root / "settings.json").read_text())
  except (OSError, ValueError):
    found = None
  if not isinstance(found, dict):
    raise ValueError(f"{root} was not made by this renderer: it has no readable settings.json")
  for field, value in settings.items():
    if found.get(field) != value:
      raise ValueError(
        f"{root} was rendered with {field}={found.get(field)!r}, not {value!r}: "
        "remove it or choose another folder"
      )
  return True


def _render_named(
  class_index: int, rng: np.random.Generator, height: int, difficulty: float
) -> tuple[UInt8[np.ndarray, "t h w 3"], list[str]]:
  """A clip, and the names of its objects in the order of the template's brackets."""
  _check(height, difficulty)
  template = CLASSES[class_index]
  scene = _Scene(rng, height, difficulty)
  _ACTIONS[template](scene)
  return scene.finish(), scene.names[: template.count("[")]


def _clips(settings: dict[str, int | float]) -> list[tuple[str, str, int, tuple[int, int, int]]]:
  """Every clip's split, id, class and seed; a pure function of the settings."""
  counts = [settings[f"num_{split}"] for split in _SPLITS]
  # One shuffled id space over all splits, as in the real data: an id tells neither split nor class.
  order = np.random.default_rng((settings["seed"], len(_SPLITS))).permutation(sum(counts))
  ids = iter(order.tolist())
  return [
    (split, str(next(ids) + 1), number % len(CLASSES), (settings["seed"], k, number))
    for k, (split, count) in enumerate(zip(_SPLITS, counts, strict=True))
    for number in range(count)
  ]


def _write_clips(
  folder: pathlib.Path,
  settings: dict[str, int | float],
  first: int = 0,
  step: int = 1,
  parent: int | None = None,
) -> dict[str, list[str]]:
  """Writes every `step`-th clip from `first` on; gives the names of their objects by id.

  Args:
    folder: Where the data set is being made.
    settings: Those of `render`.
    first: The first clip.
    step: From one clip to the next.
    parent: The process that asked; a worker stops when it is gone.
  """
  names = {}
  for _, video_id, class_index, seed in _clips(settings)[first::step]:
    if parent is not None and os.getppid() != parent:
      # It was killed, and nobody will ever rename the folder.
      raise SystemExit("the rendering process has gone")
    rng = np.random.default_rng(seed)
    frames, names[video_id] = _render_named(
      class_index, rng, settings["height"], settings["difficulty"]
    )
    _encode(folder / VIDEO_FOLDER / f"{video_id}.webm", frames)
  return names


def _encode(path: pathlib.Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
  with av.open(str(path), "w", format="webm") as container:
    stream = container.add_stream("libvpx-vp9", rate=fractions.Fraction(FRAME_RATE))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    # With no bit rate `crf` alone sets the quality; the workers already use every core.
    stream.bit_rate = 0
    stream.codec_context.thread_count = 1
    stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "28", "lag-in-frames": "0"}
    # One converter for all frames: the stream's own is set up anew for each, which takes as long
    # as coding it.
    converter = VideoReformatter()
    for frame in frames:
      frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
      container.mux(stream.encode(converter.reformat(frame, format="yuv420p", threads=1)))
    container.mux(stream.encode())


def _run_workers(
  folder: pathlib.Path, settings: dict[str, int | float], num_workers: int
) -> dict[str, list[str]]:
  if num_workers == 1:
    return _write_clips(folder, settings)
  # By path: `python -m` would first import the package, whose other modules import tensorflow.
  # `-P` keeps this folder off the module path, where a neighbour could hide a library.
  command = [sys.executable, "-P", os.path.abspath(__file__), str(folder), json.dumps(settings)]
  # One thread each: numpy's own threads would only fight over the cores.
  environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
  workers, names = [], {}
  try:
    for first in range(num_workers):
      workers.append(
        subprocess.Popen(
          [*command, str(first), str(num_workers), str(os.getpid())],
          env=environment,
          stdin=subprocess.DEVNULL,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
        )
      )
    for worker in workers:
      output, errors = worker.communicate()
      if worker.returncode:
        lines = errors.strip().splitlines() or ["no message"]
        raise OSError(f"{folder}: a rendering worker failed ({worker.returncode}): {lines[-1]}")
      names.update(json.loads(output))
  finally:
    for worker in workers:
      if worker.poll() is None:
        worker.kill()
        worker.communicate()
  return names


def _write_labels(
  folder: pathlib.Path, settings: dict[str, int | float], names: dict[str, list[str]]
) -> None:
  """Writes the label files, each in the order of its ids."""
  (folder / "labels").mkdir()
  plain = [template.replace("[", "").replace("]", "") for template in CLASSES]
  contents = {"labels": {label: str(index) for index, label in enumerate(plain)}}
  answers = []
  contents.update({split: [] for split in _SPLITS})
  for split, video_id, class_index, _ in sorted(_clips(settings), key=lambda clip: int(clip[1])):
    if split == "test":
      contents[split].append({"id": video_id})
      answers.append(f"{video_id};{plain[class_index]}\n")
      continue
    template, things = CLASSES[class_index], names[video_id]
    rest = iter(things)
    label = re.sub(r"\[[^]]*\]", lambda _, rest=rest: next(rest), template)
    contents[split].append(
      {
        "id": video_id,
        "label": label[0].lower() + label[1:],
        "template": template,
        "placeholders": things,
      }
    )
  for name, content in contents.items():
    (folder / "labels" / f"{name}.json").write_text(json.dumps(content, indent=0) + "\n")
  (folder / "labels" / "test-answers.csv").write_text("".join(answers))


if __name__ == "__main__":
  # A worker of `_run_workers`.
  _folder, _settings, *_numbers = sys.argv[1:]
  json.dump(
    _write_clips(pathlib.Path(_folder), json.loads(_settings), *map(int, _numbers)), sys.stdout
  )
