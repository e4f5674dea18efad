"""The shards of a data set that is being prepared: the plan, what is done, and the end.

preparation.json   what the folder was begun with; another preparation is refused
.lock              held by the process that prepares
.progress.jsonl    a line for each shard that is done
skipped.csv        clips that could not be read, with the reasons
leaks.csv          of RGB: clips of validation and test that look like a training clip
"""

import collections
import contextlib
import csv
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data import fingerprints, store
from data.sources.listing import Clip, Listing
from u2s_jax import files
from u2s_jax.errors import UserError, spreadsheet_cell

SETTINGS = "preparation.json"
LOCK = ".lock"
PROGRESS = ".progress.jsonl"
SKIPPED = "skipped.csv"
LEAKS = "leaks.csv"
# A reader keeps every shard open, so there are few; an interruption loses one of them at most, and
# flow takes a hundred times as long.
MAX_SHARDS = {"rgb": 128, "flow": 512}
MIN_SHARD_CLIPS = 16

Key = tuple[str, int]  # split, shard


class SkippedClip(NamedTuple):
  """A clip that could not be read.

  Attributes:
    path: of the clip.
    reason: one line.
    state: of the file then, see `file_state`; None: to be tried again whatever its state.
    file: its path, where the clip is a part of it.
  """

  path: str
  reason: str
  state: list[int] | None
  file: str = ""


class Shard(NamedTuple):
  """A shard that is done.

  Attributes:
    count: clips.
    bytes: of its records.
    skipped: clips that it should hold and does not.
    fingerprints: of all its clips, empty for those that are skipped or have none.
  """

  count: int
  bytes: int
  skipped: list[SkippedClip]
  fingerprints: list[str]


def digest(listing: Listing) -> str:
  """Returns what tells listings apart; not by paths, so that a source may be moved."""
  clips = {
    split: [(clip.id, clip.label) for clip in clips] for split, clips in listing.splits.items()
  }
  content = json.dumps([list(listing.names), clips])
  return hashlib.sha256(content.encode()).hexdigest()[:16]


def check_folder(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Checks that a folder is missing, empty, or was begun with the same settings.

  Args:
    out: the folder.
    settings: in JSON's types.

  Raises:
    UserError: it is not.
  """
  # Left where the very beginning was interrupted, by earlier versions too.
  begun = {LOCK, f".{SETTINGS}", files.partial_of(out / SETTINGS).name}
  if not out.exists() or not {entry.name for entry in out.iterdir()} - begun:
    return
  try:
    known = json.loads((out / SETTINGS).read_text())
  except (OSError, ValueError):
    known = None
  if not isinstance(known, dict):
    raise UserError(f"{out} holds something else: choose an empty folder for the data set")
  for field, value in settings.items():
    if known.get(field) != value:
      difference = f"{field} = {known.get(field)}, not {value}"
      if field == "clips":
        difference = "other classes, labels or clips"
      raise UserError(f"{out} was begun with {difference}: choose another folder or delete it")


def begin(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Writes what a folder is begun with."""
  with files.whole_file(out / SETTINGS) as file:
    file.write(json.dumps(settings, indent=2) + "\n")


def plan(listing: Listing, modality: str) -> dict[Key, Sequence[Clip]]:
  """Returns the clips of every shard, in the order of the listing.

  Args:
    listing: of the data set.
    modality: 'rgb' or 'flow'.
  """
  shards = {}
  for split, clips in listing.splits.items():
    size = max(MIN_SHARD_CLIPS, -(-len(clips) // MAX_SHARDS[modality]))
    for shard, first in enumerate(range(0, len(clips), size)):
      shards[split, shard] = clips[first : first + size]
  return shards


def counts(plan: Mapping[Key, Sequence[Clip]]) -> Mapping[str, int]:
  """Returns how many shards each split of a plan has."""
  return collections.Counter(split for split, _ in plan)


def missing(out: pathlib.Path, plan: Mapping[Key, Sequence[Clip]]) -> list[Key]:
  """Returns those of a plan's shards that have no file.

  Args:
    out: folder of the data set.
    plan: as `plan` returns it.
  """
  of_split = counts(plan)
  return [
    key for key in plan if not store.shard_path(out, *key, num_shards=of_split[key[0]]).exists()
  ]


class Progress:
  """The shards that are done, on disk and in memory.

  Args:
    out: folder of the data set.
    num_shards: by split.

  Attributes:
    done: by split and shard; not those with a skipped file that has to be tried again.
  """

  def __init__(self, out: pathlib.Path, num_shards: Mapping[str, int]):
    self._path = out / PROGRESS
    self.done = self._read(out, num_shards)
    # Written anew: a last line that is cut off would spoil the next one.
    with files.whole_file(self._path) as file:
      file.write("".join(self._line(key, shard) for key, shard in self.done.items()))

  def add(self, key: Key, shard: Shard) -> None:
    """Adds a shard that is written."""
    self.done[key] = shard
    with open(self._path, "a") as file:
      file.write(self._line(key, shard))

  def end(self) -> None:
    """Forgets all: the data set is finished."""
    self._path.unlink()

  def _read(self, out: pathlib.Path, num_shards: Mapping[str, int]) -> dict[Key, Shard]:
    done = {}
    with contextlib.suppress(FileNotFoundError):
      for line in self._path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # The last line may be cut off.
          entry = json.loads(line)
          skipped = [SkippedClip(*clip) for clip in entry["skipped"]]
          none = [""] * (entry["count"] + len(skipped))  # begun before there were any
          prints = entry.get("fingerprints", none)
          done[tuple(entry["key"])] = Shard(entry["count"], entry["bytes"], skipped, prints)
    return {
      key: shard
      for key, shard in done.items()
      if all(
        clip.state and file_state(clip.file or clip.path) == clip.state for clip in shard.skipped
      )
      and store.shard_path(out, *key, num_shards[key[0]]).exists()
    }

  def _line(self, key: Key, shard: Shard) -> str:
    return json.dumps({"key": key, **shard._asdict()}) + "\n"


def file_state(path: str) -> list[int] | None:
  """Returns numbers that change when a file does; None where there is none, or it is a folder."""
  try:
    status = os.stat(path)
  except OSError:
    return None
  if stat.S_ISDIR(status.st_mode):  # of frames: it stays the same when one of them changes
    return None
  return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def skipped_of(out: pathlib.Path, clips: Sequence[Clip]) -> set[str]:
  """Returns the paths of those of the clips that a finished data set left out."""
  if not (out / SKIPPED).exists():
    return set()
  with open(out / SKIPPED, newline="", encoding="utf-8") as file:
    cells = {row["path"] for row in csv.DictReader(file)}
  return {clip.path for clip in clips if spreadsheet_cell(clip.path) in cells}


def _write_leaks(listing: Listing, out: pathlib.Path, done: Mapping[Key, Shard]) -> dict[str, int]:
  """Writes the clips that look like a training clip, the most alike first.

  Returns:
    How many there are, `leaks`, and how many clips could not be compared; of flow nothing.
  """
  prints = collections.defaultdict(list)
  for (split, _), shard in done.items():
    prints[split] += shard.fingerprints
  every = [text for of_split in prints.values() for text in of_split]
  if not any(every):
    return {}
  rows = []
  for split in sorted(listing.splits.keys() - {"train"}):
    for i, j, distance in fingerprints.copies(prints[split], prints["train"]):
      clip, other = listing.splits[split][i], listing.splits["train"][j]
      names = (listing.names[c.label] if c.label >= 0 else "" for c in (clip, other))
      rows.append((distance, split, clip.path, other.path, *names))
  with files.whole_file(out / LEAKS) as file:
    writer = csv.writer(file)
    writer.writerow(["bits", "split", "path", "training_path", "label", "training_label"])
    writer.writerows(map(spreadsheet_cell, row) for row in sorted(rows))
  skipped = sum(len(shard.skipped) for shard in done.values())
  return {"leaks": len(rows), "not_compared": every.count("") - skipped}


def percent(share: float) -> str:
  """Returns a share as text."""
  return f"{100 * share:.3g} %"


def finish(
  listing: Listing,
  out: pathlib.Path,
  settings: Mapping[str, Any],
  done: Mapping[Key, Shard],
  max_unreadable: float,
) -> None:
  """Writes skipped.csv, and unless too much is skipped leaks.csv and the metadata.

  Args:
    listing: of the data set.
    out: its folder.
    settings: in JSON's types.
    done: all shards, in the order of `plan`.
    max_unreadable: share of the clips, 0 to 1, that may be left out.

  Raises:
    UserError: too many clips, or all of a class or of a split, cannot be read.
  """
  skipped = [clip for shard in done.values() for clip in shard.skipped]
  with open(out / SKIPPED, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["path", "reason"])
    writer.writerows(map(spreadsheet_cell, (clip.path, clip.reason)) for clip in skipped)
  total = sum(len(clips) for clips in listing.splits.values())
  advice = f"see {out / SKIPPED}, mend or delete the files, and start again"
  if len(skipped) > max_unreadable * total:
    raise UserError(
      f"{len(skipped)} of {total} clips cannot be read ({percent(len(skipped) / total)};"
      f" --max_unreadable is {percent(max_unreadable)}): {advice}"
    )
  without = {clip.path for clip in skipped}
  left = collections.Counter(
    clip.label for clip in listing.splits["train"] if clip.path not in without
  )
  for label, name in enumerate(listing.names):
    if not left[label]:
      raise UserError(f"no training clip of the class {name!r} can be read: {advice}")
  shards = {split: [] for split, clips in listing.splits.items() if clips}
  for (split, _), shard in done.items():
    shards[split].append((shard.count, shard.bytes))
  for split, written in shards.items():
    if not sum(count for count, _ in written):
      raise UserError(f"no clip of the split {split!r} can be read: {advice}")
  for split, clips in listing.splits.items():
    if clips:
      whole = [clip for clip in clips if clip.path not in without]
      store.write_labels(out, split, [clip.label for clip in whole])
      paths = {clip.id: os.path.abspath(clip.file) for clip in whole if clip.load is None}
      store.write_paths(out, split, paths)
  metadata = {key: value for key, value in settings.items() if key != "clips"}
  store.finish(
    out,
    listing.names,
    shards,
    metadata | {"skipped": len(skipped)} | _write_leaks(listing, out, done),
    f"{settings['modality']} frames of short edge {settings['short_edge']}",
  )
