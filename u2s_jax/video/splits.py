"""Names of splits, and the choice of validation clips for a source without splits."""

import collections
import hashlib
import re
import warnings
from collections.abc import Sequence

SHARE = 1 / 5  # of a class's clips
SPLIT_NAMES = {
  **dict.fromkeys(("train", "training"), "train"),
  **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
  **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# What may follow the name: `train_256`, `test-set`, `val videos`.
_SUFFIX = re.compile(r"[ _-]*(\d+|set|split|data|videos?|frames|images)$")


def parse_split(name: str) -> str | None:
  """Returns the split that a name stands for, in any case; None if it is not a split's."""
  name = name.strip().lower()
  return SPLIT_NAMES.get(name) or SPLIT_NAMES.get(_SUFFIX.sub("", name))


def choose_validation(names: Sequence[str], groups: Sequence[str]) -> set[str]:
  """Chooses groups of clips for validation, about a fifth of the clips of each class.

  Groups are taken in the order of their names' hashes as long as that brings the classes nearer to
  a fifth. So adding or removing a clip moves almost no other one between the splits: a network that
  was trained before is not validated on its training clips. A class whose groups are all too large
  gets the smallest one that can be spared; every class keeps a training clip.

  Returns:
    The groups; empty if no class has clips of two groups.
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
  held_out = collections.Counter()
  chosen = set()

  def can_be_spared(group: str) -> bool:
    return all(held_out[name] + count < total[name] for name, count in members[group].items())

  def compute_gain(group: str) -> float:
    """Returns by how many clips the classes come nearer to a fifth."""
    return sum(
      abs(held_out[name] - SHARE * total[name]) - abs(held_out[name] + count - SHARE * total[name])
      for name, count in members[group].items()
    )

  def choose(group: str) -> None:
    chosen.add(group)
    held_out.update(members[group])

  for group in order:
    if compute_gain(group) > 0 and can_be_spared(group):
      choose(group)
  for name in sorted(total, key=lambda name: (len(groups_of[name]), name)):
    spare = [group for group in groups_of[name] if can_be_spared(group)]
    if not held_out[name] and spare:
      choose(min(spare, key=lambda group: members[group].total()))
  return chosen


def choose_as_before(
  names: Sequence[str], ids: Sequence[str], groups: Sequence[str] | None
) -> set[str]:
  """Returns the ids of every fifth clip, as earlier versions chose, to resume their preparations.

  Args:
    groups: None if there are none.
  """
  if groups is None:
    by_class = collections.defaultdict(list)
    for name, clip_id in sorted(zip(names, ids, strict=True)):
      by_class[name].append(clip_id)
    return {
      clip_id for members in by_class.values() for clip_id in members[4::5] or members[1:][-1:]
    }
  from sklearn.model_selection import StratifiedGroupKFold

  most = max(collections.Counter(names).values())
  folds = StratifiedGroupKFold(max(2, min(5, len(set(groups)), most)), shuffle=True, random_state=0)
  with warnings.catch_warnings(action="ignore", category=UserWarning):  # of small classes
    rows = max(
      folds.split(names, names, groups), key=lambda fold: len({names[row] for row in fold[0]})
    )[1]
  return {ids[row] for row in rows}
