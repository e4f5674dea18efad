"""The families of actions, and one clip of one of them.

Members of a family share every object and run the same code, so they cannot differ in anything but
what happens: its direction, its order or its outcome.
"""

import functools
from collections.abc import Callable
from numbers import Real

import numpy as np
from jaxtyping import UInt8

from data.tiny_something.scene import HUES, Scene
from u2s_jax.errors import UserError


def _push(scene: Scene, leftwards: bool) -> None:
  # The hand rests on top: at a side it would give the direction away in every frame.
  scene.mirrored = leftwards
  item = scene.item()
  travel = scene.about(scene.by(0.5, 0.05))
  x = scene.rng.uniform(-0.12, 0.12) + travel * (scene.ramp(0.15, 0.9) - 0.5)
  scene.put(item, x, scene.ground - item.b)
  lean = scene.rng.uniform(-0.35, 0.35)
  scene.hand(x, scene.ground - 2 * item.b + 0.05, lean, away=0.8 * (1 - scene.ramp(-0.1, 0.15)))


def _put_into(scene: Scene, outcome: str) -> None:
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


def _bend(scene: Scene, breaks: bool) -> None:
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


def _throw(scene: Scene, released: bool) -> None:
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


def _slope(scene: Scene, outcome: str) -> None:
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


def _poke(scene: Scene, moves: bool) -> None:
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


def _pour(scene: Scene, overflows: bool) -> None:
  hue = str(scene.rng.choice(list(HUES)))
  scene.names.append(f"{hue} water")
  liquid = scene.colour(HUES[hue])
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


def _cover(scene: Scene, uncovers: bool) -> None:
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


def _lift(scene: Scene, drops: bool) -> None:
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


def _two(scene: Scene, apart: bool) -> None:
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


def _open(scene: Scene, closes: bool) -> None:
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


def _turn(scene: Scene, turned: bool) -> None:
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


def _spin(scene: Scene, stops: bool) -> None:
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


ACTIONS: dict[str, Callable[[Scene], None]] = {
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
CLASSES: tuple[str, ...] = tuple(sorted(ACTIONS))


def check(height: int, difficulty: Real) -> None:
  """Checks a clip's height, even and at least 16 pixels, and difficulty, 0 to 1.

  Raises:
    UserError: a value outside these.
  """
  if height < 16 or height % 2:
    raise UserError(f"height must be even and at least 16: {height}")
  if not 0 <= difficulty <= 1:
    raise UserError(f"difficulty must lie between 0 and 1: {difficulty}")


def render_clip(
  class_index: int, rng: np.random.Generator, *, height: int, difficulty: float
) -> tuple[UInt8[np.ndarray, "t h w 3"], list[str]]:
  """Renders one clip.

  Args:
    class_index: index into `CLASSES`.
    rng: all chance in the clip comes from it.
    height: pixels; even. The width varies from clip to clip.
    difficulty: 0: dark and plain with big differences inside a family. 1: busy, the members of a
      family nearly alike.

  Returns:
    20 to 36 RGB frames, and the names of the objects in the order of the template's brackets.

  Raises:
    UserError: as `check`.
  """
  check(height, difficulty)
  template = CLASSES[class_index]
  scene = Scene(rng, height, difficulty)
  ACTIONS[template](scene)
  return scene.finish(), scene.names[: template.count("[")]
