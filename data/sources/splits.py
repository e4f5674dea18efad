"""The names of splits, and which clips validate where a source says nothing of splits."""

import collections
import hashlib
import re
import warnings
from collections.abc import Sequence

SHARE = 1 / 5  # of a class's clips
NAMES = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "dev": "validation",
  "test": "test",
  "testing": "test",
  "eval": "test",
  "evaluation": "test",
}
# What stands after the name: `train_256`, `test-set`, `val videos`.
_AFTER = re.compile(r"[ _-]*(\d+|set|split|data|videos?|frames|images)$")


def split_of(name: str) -> str | None:
  """Returns the split that a name stands for, in any case; None where it is no split's."""
  name = name.strip().lower()
  return NAMES.get(name) or NAMES.get(_AFTER.sub("", name))


def choose_validation(names: Sequence[str], groups: Sequence[str]) -> set[str]:
  """Chooses groups of clips for validation, about a fifth of the clips of each class.

  Groups are taken in the order of their names' hashes while that brings the classes nearer to a
  fifth. So a clip that is added or removed leaves almost all others on their side: a network that
  was trained before is not tested on what it learned. A class of which no group is small enough
  gets the smallest one that can be spared; every class keeps a training clip.

  Args:
    names: class of each clip.
    groups: group of each clip, of one clip or more.

  Returns:
    The groups; none where no class has clips of two groups.
  """
  members = collections.defaultdict(collections.Counter)
  for name, group in zip(names, groups, strict=True):
    members[group][name] += 1
  order = sorted(members, key=lambda group: hashlib.sha256(group.encode()).digest())
  groups_of = collections.defaultdict(list)
  for group in order:
    for name in members[group]:
      groups_of[name].append(group)
  total = collections.Counter(names)
  held = collections.Counter()
  chosen = set()

  def can_be_spared(group: str) -> bool:
    return all(held[name] + count < total[name] for name, count in members[group].items())

  def improvement(group: str) -> float:
    return sum(
      abs(held[name] - SHARE * total[name]) - abs(held[name] + count - SHARE * total[name])
      for name, count in members[group].items()
    )

  def choose(group: str) -> None:
    chosen.add(group)
    held.update(members[group])

  for group in order:
    if improvement(group) > 0 and can_be_spared(group):
      choose(group)
  for name in sorted(total, key=lambda name: (len(groups_of[name]), name)):
    spare = [group for group in groups_of[name] if can_be_spared(group)]
    if not held[name] and spare:
      choose(min(spare, key=lambda group: members[group].total()))
  return chosen


def choose_as_before(
  names: Sequence[str], ids: Sequence[str], groups: Sequence[str] | None
) -> set[str]:
  """Chooses as versions did that took every fifth clip, so that what they began goes on.

  Args:
    names: class of each clip.
    ids: of the clips.
    groups: group of each clip; None where there are none.

  Returns:
    The ids of the clips for validation.
  """
  if groups is None:
    by_class = collections.defaultdict(list)
    for name, clip_id in sorted(zip(names, ids, strict=True)):
      by_class[name].append(clip_id)
    return {clip_id for of in by_class.values() for clip_id in of[4::5] or of[1:][-1:]}
  from sklearn.model_selection import StratifiedGroupKFold

  most = max(collections.Counter(names).values())
  folds = StratifiedGroupKFold(max(2, min(5, len(set(groups)), most)), shuffle=True, random_state=0)
  with warnings.catch_warnings(action="ignore", category=UserWarning):  # of small classes
    rows = max(
      folds.split(names, names, groups), key=lambda fold: len({names[row] for row in fold[0]})
    )[1]
  return {ids[row] for row in rows}
