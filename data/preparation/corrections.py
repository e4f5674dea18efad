"""Applies the corrections of labels that a user made in the page of a report.

The CSV file has the columns `id,action,label`. The action is `relabel`, with the label; `drop`,
which leaves out the clip; or `keep`.
"""

import csv
import dataclasses
import pathlib

from u2s_jax.runtime.errors import UserError, escape_line
from u2s_jax.video.listing import Listing, check_listing

COLUMNS = ["id", "action", "label"]
ACTIONS = ("relabel", "drop", "keep")
Corrections = list[dict[str, str]]


def apply_corrections(listing: Listing, path: pathlib.Path) -> tuple[Listing, Corrections]:
  """Returns the corrected listing, and the corrections with the earlier label of each clip.

  Clips stay in their splits.

  Raises:
    UserError: if the file is not valid, names a clip or class that the listing lacks, or leaves a
      class or split without clips.
    OSError: if it cannot be read.
  """
  corrections = {}
  labels = {clip.id: clip.label for clips in listing.splits.values() for clip in clips}
  # The page shows names on one line.
  index = {escape_line(name): k for k, name in enumerate(listing.names)}
  with open(path, encoding="utf-8-sig", newline="") as file:
    reader = csv.DictReader(file)
    if [*(reader.fieldnames or ())] != COLUMNS:
      raise UserError(f"{path}: the first line must be {','.join(COLUMNS)}")
    for row in reader:
      where, clip_id = f"{path}, line {reader.line_num}", row["id"]
      if clip_id not in labels:
        raise UserError(f"{where}: no clip {clip_id!r} in the source; use the source of the run")
      if clip_id in corrections:
        raise UserError(f"{where}: {clip_id!r} occurs twice; delete one of the two lines")
      if row["action"] not in ACTIONS:
        raise UserError(f"{where}: unknown action {row['action']!r}; use {', '.join(ACTIONS)}")
      if row["action"] == "relabel" and row["label"] not in index:
        raise UserError(f"{where}: unknown class {row['label']!r}; use one of the source's classes")
      before = listing.names[labels[clip_id]] if labels[clip_id] >= 0 else ""
      corrections[clip_id] = {name: row[name] or "" for name in COLUMNS} | {"before": before}
  splits = {}
  for split, clips in listing.splits.items():
    splits[split] = []
    for clip in clips:
      correction = corrections.get(clip.id, {"action": "keep"})
      if correction["action"] == "relabel":
        clip = dataclasses.replace(clip, label=index[correction["label"]])
      if correction["action"] != "drop":
        splits[split].append(clip)
  counts = [f"{sum(c['action'] == a for c in corrections.values())} {a}" for a in ACTIONS]
  note = f"{path}: {len(corrections)} corrections: {', '.join(counts)}"
  # Without `earlier`, the splits of earlier versions, which would not be corrected.
  corrected = dataclasses.replace(
    listing, splits=splits, notes=[*listing.notes, note], earlier=None
  )
  check_listing(corrected, str(path))
  return corrected, [*corrections.values()]
