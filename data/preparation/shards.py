"""Plan and progress of a preparation: the shards of a data set, and which of them are done.

preparation.json   settings of the preparation; other settings are refused
.lock              held by the process that prepares
.progress.jsonl    a line for each shard that is done
skipped.csv        clips that could not be read, with the reasons
states_*.npy       size and modification time of each clip's file before it was decoded; without
                   these files changes of the source are not detected
leaks.csv          RGB: validation and test clips that look like a training clip
"""

import contextlib
import csv
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data.input import store
from data.preparation import file_states
from data.preparation.file_states import State
from u2s_jax.runtime import files
from u2s_jax.runtime.errors import UserError, escape_cell
from u2s_jax.video.listing import Clip, Listing

LOCK = ".lock"
PROGRESS = ".progress.jsonl"
SKIPPED = "skipped.csv"
# Few, as a reader keeps all shards open. More for flow, which takes a hundred times as long: an
# interruption loses up to one shard.
MAX_SHARDS = {"rgb": 128, "flow": 512}
MIN_SHARD_CLIPS = 16

Key = tuple[str, int]  # split, shard


class SkippedClip(NamedTuple):
  """A clip that could not be read."""

  path: str
  reason: str  # one line
  state: State | None  # before it was read; None: retried even if the file does not change
  file: str = ""  # of which the clip may be a segment


class Shard(NamedTuple):
  """A shard that is done."""

  count: int  # of clips
  bytes: int  # of all records
  skipped: list[SkippedClip]  # planned clips that are left out
  fingerprints: list[str]  # of all planned clips, empty for those that are skipped or have none
  states: Sequence[State | None] = ()  # of all planned clips; empty: by an earlier version


def compute_digest(listing: Listing) -> str:
  """Returns a digest of classes, labels and clip ids; not of paths, so a source may be moved."""
  clips = {
    split: [(clip.id, clip.label) for clip in clips] for split, clips in listing.splits.items()
  }
  content = json.dumps([list(listing.names), clips])
  return hashlib.sha256(content.encode()).hexdigest()[:16]


def check_folder(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Raises UserError if a folder holds anything but output of these settings."""
  # Files that an interruption right at the start leaves, also one of an earlier version.
  leftovers = {LOCK, f".{store.SETTINGS}", files.temp_path(out / store.SETTINGS).name}
  if not out.exists() or not {entry.name for entry in out.iterdir()} - leftovers:
    return
  saved = _read_settings(out)
  if saved is None:
    raise UserError(f"{out}: not a prepared data set; choose an empty folder")
  for field, value in settings.items():
    if saved.get(field) != value:
      difference = f"{field} = {saved.get(field)}, not {value}"
      if field == "clips":
        difference = "other classes, labels or clips"
      raise UserError(f"{out}: was started with {difference}; choose another folder or delete it")


def _read_settings(out: pathlib.Path) -> dict[str, Any] | None:
  try:
    settings = json.loads((out / store.SETTINGS).read_text())
  except (OSError, ValueError):
    return None
  return settings if isinstance(settings, dict) else None


def match_earlier_splits(listing: Listing, out: pathlib.Path) -> Listing:
  """Returns the listing, with the splits of an earlier version if `out` was started with them."""
  saved = _read_settings(out)
  if listing.earlier is None or saved is None or saved.get("clips") == compute_digest(listing):
    return listing
  with contextlib.suppress(UserError):  # the earlier version refused this source
    earlier = listing.earlier()
    if saved.get("clips") == compute_digest(earlier):
      return dataclasses.replace(listing, splits=earlier.splits, notes=earlier.notes)
  return listing


def write_settings(out: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Writes the settings of a preparation, which `check_folder` compares."""
  with files.atomic_open(out / store.SETTINGS) as file:
    file.write(json.dumps(settings, indent=2) + "\n")


def plan_shards(listing: Listing, modality: str) -> dict[Key, Sequence[Clip]]:
  """Returns the clips of every shard, in the order of the listing."""
  shards = {}
  for split, clips in listing.splits.items():
    size = max(MIN_SHARD_CLIPS, -(-len(clips) // MAX_SHARDS[modality]))
    for shard, first in enumerate(range(0, len(clips), size)):
      shards[split, shard] = clips[first : first + size]
  return shards


def find_missing(
  out: pathlib.Path, keys: Iterable[Key], num_shards: Mapping[str, int]
) -> list[Key]:
  """Returns the shards that have no file."""
  return [key for key in keys if not store.shard_path(out, *key, num_shards[key[0]]).exists()]


class Progress:
  """The shards that are done, in memory and on disk."""

  def __init__(self, out: pathlib.Path, num_shards: Mapping[str, int]):
    self._path = out / PROGRESS
    # By split and shard; without those that hold a skipped clip to be retried.
    self.done = self._read(out, num_shards)
    # Rewrites the file: after a crash its last line may be truncated, and `add` would append to it.
    self.drop(())

  def add(self, key: Key, shard: Shard) -> None:
    """Adds a shard after its file is written."""
    self.done[key] = shard
    with open(self._path, "a") as file:
      file.write(_format_line(key, shard))

  def drop(self, keys: Iterable[Key]) -> None:
    """Removes shards, which are then written again."""
    for key in keys:
      del self.done[key]
    with files.atomic_open(self._path) as file:
      file.writelines(_format_line(key, shard) for key, shard in self.done.items())

  def states(self, plan: Mapping[Key, Sequence[Clip]]) -> list[tuple[Clip, State | None]]:
    """Returns the clips of all shards that are done with the states of their files."""
    pairs = []
    for key, shard in self.done.items():
      if shard.states:
        pairs += zip(plan[key], shard.states, strict=True)
    return pairs

  def _read(self, out: pathlib.Path, num_shards: Mapping[str, int]) -> dict[Key, Shard]:
    done = {}
    with contextlib.suppress(FileNotFoundError):
      for line in self._path.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a truncated last line
          entry = json.loads(line)
          key = tuple(entry.pop("key"))
          entry["skipped"] = [SkippedClip(*clip) for clip in entry["skipped"]]
          # Earlier versions wrote neither fingerprints nor states.
          entry.setdefault("fingerprints", [""] * (entry["count"] + len(entry["skipped"])))
          done[key] = Shard(**entry)
    for key in find_missing(out, [*done], num_shards):
      del done[key]
    return {key: shard for key, shard in done.items() if not any(map(_should_retry, shard.skipped))}


def _format_line(key: Key, shard: Shard) -> str:
  return json.dumps({"key": key, **shard._asdict()}) + "\n"


def _should_retry(clip: SkippedClip) -> bool:
  return not clip.state or file_states.read_file_state(clip.file or clip.path) != clip.state


def read_skipped_ids(listing: Listing, out: pathlib.Path) -> set[str]:
  """Returns the ids of the clips that a finished data set left out, even if its source moved."""
  skipped_paths = set()
  if (out / SKIPPED).exists():
    with open(out / SKIPPED, newline="", encoding="utf-8") as file:
      skipped_paths = {row["path"] for row in csv.DictReader(file)}
  ids = set()
  for split, clips in listing.splits.items():
    stored_paths = store.read_paths(out, split)
    for clip in clips:
      if clip.load is None and stored_paths:
        is_skipped = clip.id not in stored_paths
      else:  # not in a file of its own, or prepared by an earlier version
        is_skipped = escape_cell(clip.path) in skipped_paths
      if is_skipped:
        ids.add(clip.id)
  return ids
