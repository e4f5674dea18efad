"""Families of actions.

Classes of a family share their objects and their code, so they differ only in what happens: its
direction, its order or its outcome.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from data.tiny_something.scene import HUES, Scene


def _push(scene: Scene, verb: str, direction: str) -> None:
  scene.mirrored = direction == "left"
  item = scene.item()
  travel = scene.about(scene.by(0.5, 0.13))
  x = scene.rng.uniform(-0.12, 0.12) + travel * (scene.ramp(0.15, 0.9) - 0.5)
  scene.put(item, x, scene.ground - item.b)
  side = 1 if verb == "pull" else -1  # of the object, relative to the direction it moves in
  lean = scene.rng.uniform(-0.15, 0.5)
  away = 0.7 * (1 - scene.ramp(-0.1, 0.15))
  scene.hand(x + side * item.a * 0.9, scene.ground - item.b, side * (np.pi / 2 - lean), away)


def _put(scene: Scene, outcome: str) -> None:
  # Taking out is putting in played backwards; pretending brings the object back.
  if outcome == "out":
    scene.reverse()
  item = scene.item(scale=0.75)
  colour = scene.vessel("pot")
  wide, deep = scene.about(0.14, 0.08), scene.about(0.13, 0.1)
  x_pot, floor = 0.12, scene.ground
  high, inside = floor - 2 * deep - item.b - 0.12, floor - item.b - 0.02
  x_end, y_end = x_pot, inside
  if outcome == "onto":
    y_end = floor - 2 * deep - item.b * scene.by(1, 0.5)
  if outcome == "beside":
    x_end, y_end = x_pot + wide + item.a + scene.by(0.06, -0.03), floor - item.b
  if outcome == "pretend":
    # At difficulty 1 the object sinks in nearly as deep as one that stays.
    y_end = floor - 2 * deep + item.b * scene.by(-0.8, 0.5)
  # The hand's path is symmetric in time: only what it holds reveals the class.
  over, down = scene.ramp(0.02, 0.27), scene.ramp(0.27, 0.47)
  up, back = scene.ramp(0.53, 0.73), scene.ramp(0.73, 0.98)
  x_hand = -0.28 + (x_end + 0.28) * (over - back)
  y_hand = high + (y_end - high) * (down - up)
  held = (scene.steady(0, 1) < 0.5) | (outcome == "pretend")
  x, y = np.where(held, x_hand, x_end), np.where(held, y_hand, y_end)
  scene.paint("box", x_pot, floor - deep, wide, deep, 0, colour * 0.45)
  scene.put(item, x, y)
  scene.hand(x_hand, y_hand - item.b + 0.05, scene.rng.uniform(-0.3, 0.3))
  scene.paint("box", x_pot, floor - deep * 0.85, wide, deep * 0.85, 0, colour)


def _bend(scene: Scene, outcome: str) -> None:
  item = scene.item(shapes=["box"])
  half, thick = scene.about(0.16, 0.1), scene.about(0.055, 0.15)
  angle, gap = scene.about(scene.by(0.95, 0.7)) * scene.ramp(0.05, 0.5), 0.0
  if outcome == "breaks":
    gap = scene.about(scene.by(0.16, 0.055)) * scene.ramp(0.4, 0.6)
  if outcome == "tears":  # as far apart, but straight
    angle = scene.by(0.12, 0.2) * angle
    gap = scene.about(scene.by(0.16, 0.055)) * scene.ramp(0.3, 0.6)
  if outcome == "resists":
    angle = angle * scene.by(0, 0.2)
  y = scene.rng.uniform(-0.15, -0.02)
  for side in (-1, 1):
    # Each half hangs from the joint in the middle, then from its own side of the gap.
    x_mid = side * (gap + half * np.cos(angle))
    y_mid = y + half * np.sin(angle)
    scene.paint("box", x_mid, y_mid, half + thick * 0.5, thick, side * angle, item.colour)
    x_end, y_end = side * (gap + 1.7 * half * np.cos(angle)), y + 1.7 * half * np.sin(angle)
    scene.hand(x_end, y_end, np.float32(side * 2.2), away=0.6 * (1 - scene.ramp(-0.1, 0.1)))


def _poke(scene: Scene, outcome: str) -> None:
  item = scene.item(shapes=["box", "ellipse", "triangle"], tall=1.4)
  item = item._replace(a=item.a * 0.75)
  touched = scene.ramp(0.25, 0.6)
  far = scene.about(0.02 if outcome == "stays" else scene.by(0.3, 0.08))
  # Its path is centred, so that a single position reveals little.
  x_start = scene.rng.uniform(-0.12, 0.12) - far / 2
  x, y, a, angle = x_start, scene.ground - item.b, item.a, 0
  if outcome == "falls":  # about its lower edge on the far side
    angle = np.pi / 2 * scene.ramp(0.28, 0.62)
    cos, sin = np.cos(angle), np.sin(angle)
    x = x_start + item.a * (1 - cos) + item.b * sin
    y = scene.ground - item.b * cos - item.a * sin
  elif outcome == "spins":  # about its own height
    turn = scene.about(scene.by(12, 8)) * scene.steady(0.28, 1.2)
    a = item.a * (0.2 + 0.8 * np.abs(np.cos(turn)))
  else:
    x = x_start + far * touched
  scene.paint(item.shape, x, y, a, item.b, angle, item.colour)
  reach = scene.ramp(0, 0.3) - scene.ramp(0.55, 0.85)
  follow = far * touched if outcome == "moves" else 0
  touch = x_start - item.a * 0.9 + follow
  lean = scene.rng.uniform(-0.2, 0.5)
  scene.hand(touch, scene.ground - item.b * 1.3, -np.pi / 2 + lean, away=0.45 * (1 - reach))


def _pour(scene: Scene, outcome: str) -> None:
  hue = str(scene.rng.choice(list(HUES)))
  scene.names.append(f"{hue} water")
  liquid = scene.colour(HUES[hue])
  glass = scene.vessel("glass")
  wide, deep = scene.about(0.13, 0.1), scene.about(0.14, 0.1)
  x_glass, floor = 0.08, scene.ground
  spills = outcome in ("overflows", "misses")
  fill = {"fills": scene.by(0.6, 0.93), "overflows": 1.0}.get(outcome, 0.0)
  level = scene.steady(0.15, 0.6) * fill
  tilted = scene.ramp(0, 0.15) - scene.ramp(0.85, 1.0)
  flows = (scene.ramp(0.1, 0.16) - scene.ramp(0.84, 0.9)) * (outcome != "pretend")
  aside = wide + scene.by(0.14, 0.06) if outcome == "misses" else 0.01
  x_lip, y_lip = x_glass - aside, floor - 2 * deep - 0.17
  scene.paint("box", x_glass, floor - deep, wide + 0.025, deep, 0, glass * 0.4)
  scene.paint("box", x_glass, floor - deep * level, wide, deep * level, 0, liquid)
  fall = (floor - 0.02 - y_lip) / 2
  scene.paint("box", x_lip, y_lip + fall, 0.028, fall, 0, liquid, opacity=flows)
  if outcome == "overflows":
    spill = scene.ramp(0.45, 0.65)
    thick = scene.about(scene.by(0.045, 0.022))
    for side in (-1, 1):
      run = spill * deep
      x_run = x_glass + side * (wide + 0.025 + thick * 0.5)
      scene.paint("box", x_run, floor - 2 * deep + run, thick, run, 0, liquid)
  if spills:
    begin = 0.5 if outcome == "overflows" else 0.2
    pool = scene.ramp(begin, 0.85)
    a, b = (wide + scene.by(0.22, 0.06)) * pool, scene.by(0.07, 0.028) * pool
    scene.paint("ellipse", x_glass - (outcome == "misses") * aside, floor + 0.02, a, b, 0, liquid)
  # The jug turns about its lip.
  angle = 0.5 + 1.1 * tilted
  x_jug = x_lip - 0.17 * np.cos(angle - 0.9)
  y_jug = y_lip - 0.17 * np.sin(angle - 0.9) - 0.02
  scene.paint("box", x_jug, y_jug, 0.085, 0.13, angle, glass)
  scene.hand(x_jug + 0.02, y_jug, -1.2)


def _lift(scene: Scene, part: str, outcome: str) -> None:
  item = scene.item(scale=0.9, shapes=["box", "ellipse", "triangle"])
  item = item._replace(a=item.a * 1.3, b=item.b * 0.8)
  x = scene.rng.uniform(-0.12, 0.12)
  high = scene.about(scene.by(0.4, 0.12))
  up = scene.ramp(0.1, 0.42)
  held = up - scene.ramp(0.5, 0.62) if outcome == "drops" else up
  lean = scene.rng.uniform(-0.35, 0.35)
  away = 0.6 * (1 - scene.ramp(-0.1, 0.1))
  if part == "one end":
    # As high as if the whole object were lifted, turning about the end that stays.
    most = np.arcsin(min(high / (2 * item.a), 0.95))
    angle = -most * held
    x_item = x - item.a + item.a * np.cos(angle)
    y = scene.ground - item.b - item.a * np.sin(-angle)
    x_hand = x - item.a + 1.9 * item.a * np.cos(most * up)
    y_hand = scene.ground - item.b - 1.9 * item.a * np.sin(most * up)
  else:
    x_item, angle, x_hand = x, 0, x
    y = scene.ground - item.b - high * held
    y_hand = scene.ground - item.b - high * up
  scene.put(item, x_item, y, angle)
  scene.hand(x_hand, y_hand - item.b + 0.05, lean, away)


def _two(scene: Scene, how: str) -> None:
  if how in ("apart", "one apart"):
    scene.reverse()
  items = [scene.item(scale=0.75), scene.item(scale=0.75)]
  x_mid = scene.rng.uniform(-0.06, 0.06)
  travel = scene.about(scene.by(0.2, 0.11))
  # Remaining fraction of each object's path.
  left = np.stack([1 - scene.ramp(0.1, 0.9)] * 2)
  if how in ("one apart", "one closer"):
    left[1] = 0.5
    left[0] = left[0] * 1.5 - 0.25
  if how == "collide":  # twice as fast, and back
    left[:] = 1 - scene.ramp(0.1, 0.5) + scene.by(0.8, 0.6) * scene.ramp(0.5, 0.75)
  gap = items[0].a + items[1].a + scene.rng.uniform(0.0, 0.06) * (how != "collide")
  for k, (side, item) in enumerate(zip((-1, 1), items, strict=True)):
    x, y = x_mid + side * (gap / 2 + travel * left[k]), scene.ground - item.b
    if how == "pass":  # the second one in front
      x, y = x_mid + side * (gap / 2 + travel) * (2 * left[k] - 1), y + 0.06 * k
    scene.put(item, x, y)
    scene.hand(x, y - item.b + 0.05, np.float32(side * 0.4))


def _open(scene: Scene, outcome: str) -> None:
  closes = outcome in ("closes", "pretends to close")
  pretends = outcome.startswith("pretends")
  if closes:
    scene.reverse()
  colour = scene.vessel("chest")
  wide, deep = scene.about(0.2, 0.1), scene.about(0.11, 0.1)
  top = scene.ground - 2 * deep
  way = scene.ramp(0.1, 0.9)
  if pretends:
    # The hand sets out alone and comes back, from where the lid was when it began.
    way = 0.6 * (scene.ramp(0.1, 0.5) - scene.ramp(0.5, 0.9))
    way = 1 - way if closes else way
  most = scene.about(scene.by(1.7, 0.7))
  # The lid turns about its left end and always stands a little open, so that no frame is a limit.
  ajar = scene.rng.uniform(0, 0.15)
  hand = -(most * way + ajar)
  swing = hand
  if pretends:
    swing = -(most * (closes + scene.by(0, 0.5) * (way - closes)) + ajar)
  x_hinge, reach = -wide, 2 * wide
  x_lid, y_lid = x_hinge + wide * np.cos(swing), top - 0.02 + wide * np.sin(swing)
  scene.paint("box", 0, scene.ground - deep, wide, deep, 0, colour)
  scene.paint("box", 0, top + 0.03, wide * 0.85, 0.03, 0, colour * 0.3)
  scene.paint("box", x_lid, y_lid, wide, 0.035, swing, colour * 0.75)
  scene.hand(x_hinge + reach * np.cos(hand) - 0.02, top - 0.02 + reach * np.sin(hand), 0.9)


# Template -> function that paints the action, and its arguments.
ACTIONS: dict[str, tuple[Callable[..., None] | str, ...]] = {
  "Bending [something] so that it deforms": (_bend, "deforms"),
  "Bending [something] until it breaks": (_bend, "breaks"),
  "Closing [something]": (_open, "closes"),
  "Lifting [something] up completely without letting it drop down": (_lift, "whole", "stays"),
  "Lifting [something] up completely, then letting it drop down": (_lift, "whole", "drops"),
  "Lifting up one end of [something] without letting it drop down": (_lift, "one end", "stays"),
  "Lifting up one end of [something], then letting it drop down": (_lift, "one end", "drops"),
  "Moving [something] and [something] away from each other": (_two, "apart"),
  "Moving [something] and [something] closer to each other": (_two, "closer"),
  "Moving [something] and [something] so they collide with each other": (_two, "collide"),
  "Moving [something] and [something] so they pass each other": (_two, "pass"),
  "Moving [something] away from [something]": (_two, "one apart"),
  "Moving [something] closer to [something]": (_two, "one closer"),
  "Opening [something]": (_open, "opens"),
  "Poking [something] so lightly that it doesn't or almost doesn't move": (_poke, "stays"),
  "Poking [something] so it slightly moves": (_poke, "moves"),
  "Poking [something] so that it falls over": (_poke, "falls"),
  "Poking [something] so that it spins around": (_poke, "spins"),
  "Pouring [something] into [something]": (_pour, "fills"),
  "Pouring [something] into [something] until it overflows": (_pour, "overflows"),
  "Pretending to close [something] without actually closing it": (_open, "pretends to close"),
  "Pretending to open [something] without actually opening it": (_open, "pretends to open"),
  "Pretending to pour [something] into [something], but nothing comes out": (_pour, "pretend"),
  "Pretending to put [something] into [something]": (_put, "pretend"),
  "Pulling [something] from left to right": (_push, "pull", "right"),
  "Pulling [something] from right to left": (_push, "pull", "left"),
  "Pushing [something] from left to right": (_push, "push", "right"),
  "Pushing [something] from right to left": (_push, "push", "left"),
  "Putting [something] into [something]": (_put, "in"),
  "Putting [something] next to [something]": (_put, "beside"),
  "Putting [something] onto [something]": (_put, "onto"),
  "Taking [something] out of [something]": (_put, "out"),
  "Tearing [something] into two pieces": (_bend, "tears"),
  "Trying to bend [something] unbendable so nothing happens": (_bend, "resists"),
  "Trying to pour [something] into [something], but missing so it spills next to it": (
    _pour,
    "misses",
  ),
}
CLASSES: tuple[str, ...] = tuple(sorted(ACTIONS))


def render_clip(
  class_index: int,
  rng: np.random.Generator,
  *,
  height: int,
  difficulty: float,
  clutter: float = 0.0,
) -> tuple[UInt8[np.ndarray, "t h w 3"], list[str]]:
  """Renders one clip.

  Args:
    class_index: index into `CLASSES`.
    rng: the only source of randomness.
    height: pixels; even, at least 16. The width varies from clip to clip.
    difficulty: 0 is dark and plain with large differences between the classes of a family; 1 is
      busy with nearly equal classes.
    clutter: 0 means the action fills the frame; at 1 it takes half of the height, anywhere, among
      ten other objects at rest or in motion.

  Returns:
    20 to 36 RGB frames, and the names of the objects in the order of the template's brackets.
  """
  template = CLASSES[class_index]
  scene = Scene(rng, height, difficulty, clutter)
  paint, *arguments = ACTIONS[template]
  paint(scene, *arguments)
  return scene.finish(), scene.names[: template.count("[")]
