"""The end of a preparation: too many skipped clips are an error, else the metadata is written."""

import collections
import csv
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from data.input import store
from data.preparation import fingerprints, shards
from data.preparation.shards import Key, Shard
from u2s_jax.runtime import files
from u2s_jax.runtime.errors import UserError, escape_cell
from u2s_jax.video.listing import Listing

LEAKS = "leaks.csv"


def finalize_dataset(
  listing: Listing,
  out: pathlib.Path,
  settings: Mapping[str, Any],
  done: Mapping[Key, Shard],
  max_unreadable: float,
) -> None:
  """Writes skipped.csv and, if enough clips are readable, leaks.csv and the metadata.

  `done` holds all shards, in the order of `shards.plan_shards`.

  Raises:
    UserError: if too many clips, or all of a class or of a split, cannot be read.
  """
  skipped = [clip for shard in done.values() for clip in shard.skipped]
  with open(out / shards.SKIPPED, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["path", "reason"])
    writer.writerows(map(escape_cell, (clip.path, clip.reason)) for clip in skipped)
  skipped_paths = {clip.path for clip in skipped}
  by_split = {split: [] for split, clips in listing.splits.items() if clips}
  for (split, _), shard in done.items():
    by_split[split].append(shard)
  _check_readable(listing, out, by_split, skipped_paths, len(skipped), max_unreadable)
  sizes = {}
  for split, split_shards in by_split.items():
    _write_split_files(listing, out, split, split_shards, skipped_paths)
    sizes[split] = [(shard.count, shard.bytes) for shard in split_shards]
  metadata = {key: value for key, value in settings.items() if key != "clips"}
  metadata |= {"skipped": len(skipped)} | _write_leaks(listing, out, by_split)
  description = f"{settings['modality']} frames of short edge {settings['short_edge']}"
  store.write_metadata(out, listing.names, sizes, metadata, description)


def _check_readable(
  listing: Listing,
  out: pathlib.Path,
  by_split: Mapping[str, Collection[Shard]],
  skipped_paths: Collection[str],
  num_skipped: int,
  max_unreadable: float,
) -> None:
  total = sum(map(len, listing.splits.values()))
  advice = (
    f"see {out / shards.SKIPPED}; repair or delete the files, then rerun the same command, or"
    " correct the list of clips and choose another folder"
  )
  if num_skipped > max_unreadable * total:
    raise UserError(
      f"{num_skipped} of {total} clips cannot be read ({format_percent(num_skipped / total)};"
      f" --max_unreadable is {format_percent(max_unreadable)}); {advice}"
    )
  counts = collections.Counter(
    clip.label for clip in listing.splits.get("train", ()) if clip.path not in skipped_paths
  )
  for label, name in enumerate(listing.names if "train" in listing.splits else ()):
    if not counts[label]:
      raise UserError(f"class {name!r}: no training clip can be read; {advice}")
  for split, split_shards in by_split.items():
    if not sum(shard.count for shard in split_shards):
      raise UserError(f"split {split!r}: no clip can be read; {advice}")


def _write_split_files(
  listing: Listing,
  out: pathlib.Path,
  split: str,
  split_shards: Collection[Shard],
  skipped_paths: Collection[str],
) -> None:
  """Writes the labels and paths of a split's readable clips, and the states of all files."""
  clips = listing.splits[split]
  readable = [clip for clip in clips if clip.path not in skipped_paths]
  store.write_labels(out, split, [clip.label for clip in readable])
  paths = {clip.id: os.path.abspath(clip.file) for clip in readable if clip.load is None}
  store.write_paths(out, split, paths)
  states = [state for shard in split_shards for state in shard.states]
  if len(states) != len(clips):  # an earlier version wrote some shards, without states
    return
  # The status change time is left out: a copied source has another one.
  known = [
    state[:2] if state and clip.path not in skipped_paths else None
    for clip, state in zip(clips, states, strict=True)
  ]
  store.write_states(out, split, known)


def _write_leaks(
  listing: Listing, out: pathlib.Path, by_split: Mapping[str, Collection[Shard]]
) -> dict[str, int | float]:
  """Writes the clips that look like a training clip, the most similar first; none if most do.

  Returns:
    Entries of the metadata: `leaks`, the number of these clips; `not_compared`, the number of clips
    without a fingerprint; and `share_alike` if similarity is no sign of a copy, see `fingerprints`.
    Empty for flow.
  """
  prints, num_plain = {}, 0
  for split, split_shards in by_split.items():
    prints[split] = [text for shard in split_shards for text in shard.fingerprints]
    num_plain += prints[split].count("") - sum(len(shard.skipped) for shard in split_shards)
  if not any(map(any, prints.values())):
    return {}
  metadata, rows = {"not_compared": num_plain}, []
  train, train_prints = listing.splits.get("train", ()), prints.pop("train", [])
  share = fingerprints.compute_share_alike(train_prints, [clip.label for clip in train])
  if share >= fingerprints.MAX_SHARE_ALIKE:
    metadata["share_alike"] = share
    prints = {}
  for split, split_prints in prints.items():
    for i, j, distance in fingerprints.find_copies(split_prints, train_prints):
      clip, other = listing.splits[split][i], train[j]
      names = (listing.names[c.label] if c.label >= 0 else "" for c in (clip, other))
      rows.append((distance, split, clip.path, other.path, *names))
  with files.atomic_open(out / LEAKS) as file:
    writer = csv.writer(file)
    writer.writerow(["bits", "split", "path", "training_path", "label", "training_label"])
    writer.writerows(map(escape_cell, row) for row in sorted(rows))
  return {"leaks": len(rows), **metadata}


def format_percent(share: float) -> str:
  """Returns a share in percent, three significant digits."""
  return f"{100 * share:.3g} %"
