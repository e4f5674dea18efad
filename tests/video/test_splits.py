"""The choice of validation clips: shares, groups, and what a new clip changes."""

import collections
import random

import pytest

from u2s_jax.video import splits


def _held_out_shares(names, groups):
  """Returns the share of each class that is held out; every class keeps training clips."""
  chosen = splits.choose_validation(names, groups)
  total, held = collections.Counter(names), collections.Counter()
  for name, group in zip(names, groups, strict=True):
    held[name] += group in chosen
  assert all(held[name] < total[name] for name in total)
  return {name: held[name] / total[name] for name in total}


@pytest.mark.parametrize(
  ("count", "held"),
  [(1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (8, 2), (12, 2), (13, 3), (100, 20)],
)
def test_holds_out_single_clips(count, held):
  share = _held_out_shares(["x"] * count + ["y"] * 10, [str(k) for k in range(count + 10)])
  assert share == {"x": held / count, "y": 0.2}


def _layouts():
  """Yields grouped data that folds of equal size cannot split, and some that they can."""
  persons = [(label, f"p{k}") for k in range(10) for label in "abcdef" for _ in range(3)]
  yield "persons", persons, 0.2, 0.2
  # A class of one group, among classes that everybody does; the group holds others too.
  yield "rare", [*persons, *[("rare", "p3")] * 4], 0.2, 0.2
  yield "alone", [*persons, *[("rare", "q")] * 4], 0.2, 0.2
  # Each class is one person's, but for a few clips of another one.
  yield (
    "owners",
    [(c, c) for c in "abcde" for _ in range(6)] + [(c, "z") for c in "abcd"],
    0.14,
    0.15,
  )
  yield "two", [(c, g) for c in "ab" for g in "pq" for _ in range(5)], 0.5, 0.5
  sizes = (90, 5, 5)
  yield (
    "uneven",
    [(c, f"{c}{k}") for c in "ab" for k, n in enumerate(sizes) for _ in range(n)],
    0.1,
    0.1,
  )
  # Videos whose segments are of two classes each.
  pairs = [(c, f"v{k}") for k in range(30) for c in (k % 6, (k + 1) % 6) for _ in range(4)]
  yield "parts", [(str(c), g) for c, g in pairs], 0.1, 0.4


@pytest.mark.parametrize("layout", [*_layouts()], ids=lambda layout: layout[0])
def test_holds_out_groups(layout):
  _, rows, least, most = layout
  names, groups = zip(*rows, strict=True)
  groups_of = collections.defaultdict(set)
  for name, group in rows:
    groups_of[name].add(group)
  for name, share in _held_out_shares(names, groups).items():
    if len(groups_of[name]) == 1:
      assert share == 0
    else:
      assert least <= share <= most, name


def test_every_class_keeps_training_clips_of_random_groups():
  for seed in range(50):
    draw = random.Random(seed)
    rows = [(draw.choice("abcde"), f"g{draw.randrange(12)}") for _ in range(draw.randrange(5, 80))]
    _held_out_shares(*zip(*rows, strict=True))


def test_scales_to_a_hundred_thousand_clips():
  names = [f"c{k % 50}" for k in range(100_000)]
  share = _held_out_shares(names, [f"p{k // 5}" for k in range(100_000)])
  assert all(0.19 < held < 0.21 for held in share.values())


def _choose(rows):
  names, groups = zip(*rows, strict=True)
  return splits.choose_validation(names, groups)


@pytest.mark.parametrize("size", [1, 4])
def test_a_new_clip_moves_few_others(size):
  rows = [(f"c{k % 4}", f"{k // size}") for k in range(size * 400)]
  before, moved = _choose(rows), []
  for new in range(100):  # each alone is a new file, of a new group
    after = _choose([*rows, (f"c{new % 4}", f"new {new}")])
    moved.append(len((before ^ after) - {f"new {new}"}))
  assert len(before) == 80 and max(moved) <= 2 and sum(moved) / 100 < 0.5
  # Twice as many, in any order: validation clips stay, and few training clips join them.
  draw = random.Random(0)
  more = [*rows, *((f"c{k % 4}", f"more {k}") for k in range(size * 400))]
  draw.shuffle(more)
  after = _choose(more)
  assert len(before - after) <= 12 and len((after - before) & {group for _, group in rows}) <= 12
  for deleted in range(0, 400, 40):
    left = [row for row in rows if row[1] != str(deleted)]
    assert len((before ^ _choose(left)) - {str(deleted)}) <= 2


def test_parses_split_names():
  known = {"Train": "train", "TRAINING": "train", " val ": "validation", "dev": "validation"}
  known |= {"valid": "validation", "testing": "test", "eval": "test", "test-set": "test"}
  known |= {"train_256": "train", "val256": "validation", "validation frames": "validation"}
  for name, split in known.items():
    assert splits.parse_split(name) == split
  for name in ("", "set", "256", "trains", "test tube", "run", "vale", "retrain"):
    assert splits.parse_split(name) is None
