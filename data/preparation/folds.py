"""Holds out a part of the training clips, to score every one by a network that did not see it."""

import dataclasses
import re

import numpy as np

from u2s_jax.runtime.errors import UserError
from u2s_jax.video.listing import Listing, check_listing


def hold_out_fold(listing: Listing, fold: str, source: str) -> Listing:
  """Returns a listing whose validation split is a part of the training split.

  The parts have about equally many clips of each class; clips of a group or file stay together.
  A validation split of the source is left out. If the source has no splits, all its clips are
  training clips.

  Args:
    fold: `k/n`: the k-th of n parts, 1 <= k <= n.
    source: name of the source, for messages.

  Raises:
    UserError: if `fold` is not valid, or a class has too few training clips or groups.
  """
  match = re.fullmatch(r"(\d+)/(\d+)", fold)
  k, n = map(int, match.groups()) if match else (0, 0)
  if not 1 <= k <= n or n < 2:
    raise UserError(f"--fold {fold}: must be K/N, such as 1/5, with 1 <= K <= N and N >= 2")
  clips, left_out = listing.splits.get("train", ()), listing.splits.get("validation", ())
  if listing.validation_note:
    clips, left_out = [*clips, *left_out], ()
  labels = np.array([clip.label for clip in clips])
  by_file = {clip.file: clip.group for clip in clips if clip.group}
  groups = np.array([clip.group or by_file.get(clip.file, clip.file) for clip in clips])
  for label, name in enumerate(listing.names):
    count, num_groups = (labels == label).sum(), len(set(groups[labels == label]))
    if count < n or num_groups < 2:
      raise UserError(
        f"--fold {fold}: {source}: the class {name!r} has {count} training clips in {num_groups}"
        f" groups; {n} parts require {n} clips of each class, in two groups or more"
      )
  from sklearn.model_selection import StratifiedGroupKFold  # which other preparations do not need

  parts = StratifiedGroupKFold(n, shuffle=True, random_state=0).split(labels, labels, groups)
  _, held_out = [*parts][k - 1]
  is_held_out = np.isin(np.arange(len(clips)), held_out)
  splits = dict(listing.splits)
  splits["train"] = [clip for clip, held in zip(clips, is_held_out, strict=True) if not held]
  splits["validation"] = [clip for clip, held in zip(clips, is_held_out, strict=True) if held]
  note = f"fold {fold}: {len(held_out)} of {len(clips)} training clips are held out"
  if left_out:
    note += f"; the {len(left_out)} validation clips of the source are left out"
  notes = [*(other for other in listing.notes if other != listing.validation_note), note]
  # Official sizes and the splits of earlier versions do not apply to a fold.
  result = dataclasses.replace(
    listing, splits=splits, notes=notes, validation_note="", official={}, earlier=None
  )
  check_listing(result, source)
  return result
