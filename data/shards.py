"""The shards of a data set that is being prepared: the plan, what is done, and the end.

preparation.json   what the folder was begun with; another preparation is refused
.lock              held by the process that prepares
.progress.jsonl    a line for each shard that is done
skipped.csv        clips that could not be read, with the reasons
states_*.npy       size and time of each clip's file before it was decoded; without these files the
                   source is not compared with what is in the data set
leaks.csv          of RGB: clips of validation and test that look like a training clip
"""

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import stat
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data import fingerprints, store
from data.images import FRAME_EXTENSIONS
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

LOOKERS = 32  # threads that look at files: on a network's file system each look takes a while

Key = tuple[str, int]  # split, shard
# Of a file: its size, when its content was changed, and when anything of it was. A copy that keeps
# times has the first two.
State = list[int]


class SkippedClip(NamedTuple):
  """A clip that could not be read.

  Attributes:
    path: of the clip.
    reason: one line.
    state: of the file before it was read; None: to be tried again whatever its state.
    file: its path, where the clip is a part of it.
  """

  path: str
  reason: str
  state: State | None
  file: str = ""


class Shard(NamedTuple):
  """A shard that is done.

  Attributes:
    count: clips.
    bytes: of its records.
    skipped: clips that it should hold and does not.
    fingerprints: of all its clips, empty for those that are skipped or have none.
    states: of the files of all its clips before they were read; empty where an earlier version made
      the shard.
  """

  count: int
  bytes: int
  skipped: list[SkippedClip]
  fingerprints: list[str]
  states: Sequence[State | None] = ()


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
  known = _begun_with(out)
  if known is None:
    raise UserError(f"{out} holds something else: choose an empty folder for the data set")
  for field, value in settings.items():
    if known.get(field) != value:
      difference = f"{field} = {known.get(field)}, not {value}"
      if field == "clips":
        difference = "other classes, labels or clips"
      raise UserError(f"{out} was begun with {difference}: choose another folder or delete it")


def _begun_with(out: pathlib.Path) -> dict[str, Any] | None:
  """Returns the settings that a folder was begun with, None where it was not."""
  try:
    known = json.loads((out / SETTINGS).read_text())
  except (OSError, ValueError):
    return None
  return known if isinstance(known, dict) else None


def as_begun(listing: Listing, out: pathlib.Path) -> Listing:
  """Returns a listing in the splits of an earlier version where that began the folder with them."""
  known = _begun_with(out)
  if listing.earlier is None or known is None or known.get("clips") == digest(listing):
    return listing
  with contextlib.suppress(UserError):  # then it began nothing
    earlier = listing.earlier()
    if known.get("clips") == digest(earlier):
      return dataclasses.replace(listing, splits=earlier.splits, notes=earlier.notes)
  return listing


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
    self.drop(())  # a last line that is cut off would spoil the next one

  def add(self, key: Key, shard: Shard) -> None:
    """Adds a shard that is written."""
    self.done[key] = shard
    with open(self._path, "a") as file:
      file.write(self._line(key, shard))

  def drop(self, keys: Iterable[Key]) -> None:
    """Forgets shards, which are to be made again."""
    for key in keys:
      del self.done[key]
    with files.whole_file(self._path) as file:
      file.write("".join(self._line(key, shard) for key, shard in self.done.items()))

  def states(self, plan: Mapping[Key, Sequence[Clip]]) -> list[tuple[Clip, Sequence[int] | None]]:
    """Returns the clips of the shards that are done with the states of their files."""
    pairs = []
    for key, shard in self.done.items():
      if shard.states:
        pairs += zip(plan[key], shard.states, strict=True)
    return pairs

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
          done[tuple(entry["key"])] = Shard(
            entry["count"], entry["bytes"], skipped, prints, entry.get("states", ())
          )
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


def file_state(path: str) -> State | None:
  """Returns numbers that change when a file does, or a frame in a folder; None: there is none."""
  try:
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
      return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    frames = sorted(
      (entry.name, entry.stat())
      for entry in os.scandir(path)
      if entry.name.lower().endswith(FRAME_EXTENSIONS)
    )
  except OSError:
    return None
  size = sum(status.st_size for _, status in frames)
  # In seconds, which tar keeps too.
  each = repr([(name, status.st_size, int(status.st_mtime)) for name, status in frames])
  changed = max((status.st_ctime_ns for _, status in frames), default=0)
  return [size, int.from_bytes(hashlib.sha256(each.encode()).digest()[:6]), changed]


def content_state(content: bytes) -> State:
  """Returns the same of a file's content, where it is in no file of its own."""
  return [len(content), zlib.crc32(content), 0]


def _clip_state(clip: Clip) -> State | None:
  try:
    return content_state(clip.load()) if clip.load else file_state(clip.file)
  except OSError:
    return None


def changed(pairs: Iterable[tuple[Clip, Sequence[int] | None]]) -> list[tuple[Clip, str]]:
  """Finds clips whose files are others than those that were decoded.

  Args:
    pairs: clips, each with the state of its file before it was decoded; None where nobody kept it.

  Returns:
    These clips, and what is different; not those whose file is missing now.
  """
  known = [(clip, state) for clip, state in pairs if state]
  single = {clip.file: clip for clip, _ in known}  # a video may have many parts
  with concurrent.futures.ThreadPoolExecutor(LOOKERS) as threads:
    states = dict(zip(single, threads.map(_clip_state, single.values()), strict=True))
  found = []
  for clip, before in known:
    now = states[clip.file]
    if now and not _is_same(now, before):
      sizes = f"{before[0]} bytes then, {now[0]} now"
      what = sizes if before[0] != now[0] else "as many bytes, changed at another time"
      found.append((clip, what))
  return found


def _is_same(now: Sequence[int], before: Sequence[int]) -> bool:
  """Tells whether two states are of one file, also where a copy keeps its time in seconds alone."""
  if now[0] != before[0] or now[1] == before[1]:
    return now[0] == before[0]
  # Checksums are below 2**48, times in nanoseconds above. tar keeps whole seconds, FAT every other.
  is_time, is_cut = min(now[1], before[1]) >= 2**48, 0 in (now[1] % 10**9, before[1] % 10**9)
  return is_time and is_cut and abs(now[1] - before[1]) < 2 * 10**9


def check_source(
  out: pathlib.Path, pairs: Iterable[tuple[Clip, Sequence[int] | None]], advice: str = ""
) -> None:
  """Checks that a source has the files that were decoded, wherever it lies now.

  Args:
    out: folder of the data set.
    pairs: see `changed`.
    advice: what else a user may do.

  Raises:
    UserError: it has others under the same names.
  """
  pairs = list(pairs)
  if found := changed(pairs):
    clip, what = found[0]
    raise UserError(
      f"{clip.path}: the file is not the one that was decoded into {out} ({what}), and"
      f" {len(found)} of {len(pairs)} clips differ so: restore the source or choose another folder"
      f"{advice}"
    )


def kept_states(listing: Listing, out: pathlib.Path) -> list[tuple[Clip, Sequence[int] | None]]:
  """Returns the clips of a finished data set with the states of their files, see `changed`."""
  pairs = []
  for split, clips in listing.splits.items():
    if states := store.read_states(out, split):
      pairs += zip(clips, states, strict=True)
  return pairs


def left_out(listing: Listing, out: pathlib.Path) -> set[str]:
  """Returns the ids of the clips that a finished data set left out, wherever its source lies."""
  cells = set()
  if (out / SKIPPED).exists():
    with open(out / SKIPPED, newline="", encoding="utf-8") as file:
      cells = {row["path"] for row in csv.DictReader(file)}
  ids = set()
  for split, clips in listing.splits.items():
    there = store.read_paths(out, split)
    for clip in clips:
      if clip.load is None and there:
        missing = clip.id not in there
      else:  # in no file of its own, or of an earlier version
        missing = spreadsheet_cell(clip.path) in cells
      if missing:
        ids.add(clip.id)
  return ids


def _write_leaks(
  listing: Listing, out: pathlib.Path, done: Mapping[Key, Shard]
) -> dict[str, int | float]:
  """Writes the clips that look like a training clip, the most alike first; none where most do.

  Returns:
    How many there are, `leaks`, and how many clips could not be compared; where looks tell nothing,
    `share_alike`, see `fingerprints`. Of flow nothing.
  """
  prints = collections.defaultdict(list)
  for (split, _), shard in done.items():
    prints[split] += shard.fingerprints
  every = [text for of_split in prints.values() for text in of_split]
  if not any(every):
    return {}
  skipped = sum(len(shard.skipped) for shard in done.values())
  found = {"not_compared": every.count("") - skipped}
  train = listing.splits.get("train", ())
  share = fingerprints.share_alike(prints["train"], [clip.label for clip in train])
  rows, is_blind = [], share >= fingerprints.BLIND
  if is_blind:
    found["share_alike"] = share
  for split in sorted(listing.splits.keys() - {"train"}) if not is_blind else ():
    for i, j, distance in fingerprints.copies(prints[split], prints["train"]):
      clip, other = listing.splits[split][i], train[j]
      names = (listing.names[c.label] if c.label >= 0 else "" for c in (clip, other))
      rows.append((distance, split, clip.path, other.path, *names))
  with files.whole_file(out / LEAKS) as file:
    writer = csv.writer(file)
    writer.writerow(["bits", "split", "path", "training_path", "label", "training_label"])
    writer.writerows(map(spreadsheet_cell, row) for row in sorted(rows))
  return {"leaks": len(rows), **found}


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
    clip.label for clip in listing.splits.get("train", ()) if clip.path not in without
  )
  for label, name in enumerate(listing.names if "train" in listing.splits else ()):
    if not left[label]:
      raise UserError(f"no training clip of the class {name!r} can be read: {advice}")
  shards = {split: [] for split, clips in listing.splits.items() if clips}
  for (split, _), shard in done.items():
    shards[split].append((shard.count, shard.bytes))
  for split, written in shards.items():
    if not sum(count for count, _ in written):
      raise UserError(f"no clip of the split {split!r} can be read: {advice}")
  states = {split: [] for split in shards}
  for (split, _), shard in done.items():
    states[split] += shard.states
  for split, clips in listing.splits.items():
    if clips:
      whole = [clip for clip in clips if clip.path not in without]
      store.write_labels(out, split, [clip.label for clip in whole])
      paths = {clip.id: os.path.abspath(clip.file) for clip in whole if clip.load is None}
      store.write_paths(out, split, paths)
      if len(states[split]) == len(clips):  # not all where an earlier version began
        known = [
          state[:2] if state and clip.path not in without else None
          for clip, state in zip(clips, states[split], strict=True)
        ]
        store.write_states(out, split, known)
  metadata = {key: value for key, value in settings.items() if key != "clips"}
  store.finish(
    out,
    listing.names,
    shards,
    metadata | {"skipped": len(skipped)} | _write_leaks(listing, out, done),
    f"{settings['modality']} frames of short edge {settings['short_edge']}",
  )
