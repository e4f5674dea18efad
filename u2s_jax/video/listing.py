"""A data set before anything is decoded: its classes, and the clips of each split.

Every source of clips is a function that returns a `Listing`; `data.prepare` turns a listing into a
prepared data set.
"""

import collections
import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from u2s_jax.runtime.errors import UserError
from u2s_jax.video.region import Region

SPLITS = ("train", "validation", "test")
MODALITIES = ("rgb", "flow")
FEW_CLIPS = 20  # reports name classes with fewer training clips
MAX_ID_BYTES = 256  # scores are gathered from all hosts with ids of this size


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video, a segment of a video, or an image."""

  id: str  # unique in its data set, the same for RGB and flow, and on every machine
  label: int  # index of its class, -1 if it is unknown
  file: str  # its path; if the clip is not a file of its own, a description of where it is
  load: Callable[[], bytes] | None = None  # reads a clip that is not a file of its own
  # Start and end of a segment, seconds since the video's first frame; None: the whole video.
  span: tuple[float, float] | None = None
  region: Region | None = None  # None: as for all clips of the data set
  group: str = ""  # is in one split only; empty: the clip's file

  @property
  def path(self) -> str:
    """The file, segment and region, as printed in messages and lists."""
    return self.file + part_suffix(self.span, self.region)


@dataclasses.dataclass(frozen=True)
class Entry:
  """A clip as a folder or CSV file lists it, before classes have indices; see `Clip`."""

  where: str  # where it is listed, for messages: a folder, or a file and line
  id: str
  file: str
  name: str  # of its class; empty if it is unknown
  split: str | None  # one of `SPLITS`; None if the source assigns no splits
  span: tuple[float, float] | None = None
  region: Region | None = None
  group: str = ""  # is in one split only; empty: the clip is a group of its own


@dataclasses.dataclass(frozen=True)
class Listing:
  """The classes and clips of a data set.

  The splits are of `SPLITS`: `train`, `validation` and maybe `test`, or `test` alone. If the data
  set is published with a train and a test list only, `validation` is the test list.
  """

  names: Sequence[str]  # of the classes, in the order of the labels
  splits: Mapping[str, Sequence[Clip]]
  images: bool = False  # whether the clips are images instead of videos
  official: Mapping[str, int] = dataclasses.field(default_factory=dict)  # published sizes of splits
  notes: Sequence[str] = ()  # on how the listing was made, for the user, one line each
  # If the source has no splits: the one of `notes` on how the validation clips were chosen.
  validation_note: str = ""
  # Returns the same clips in the splits that an earlier version of this program chose.
  earlier: Callable[[], "Listing"] | None = None


def part_suffix(span: tuple[float, float] | None, region: Region | None = None) -> str:
  """Returns the suffix of a path that names a segment and a region.

  It is `#<start>-<end>`, in seconds, then `@<x>,<y>,<width>,<height>`; each only if it is not None.
  """
  suffix = f"@{region}" if region else ""
  if span is None:
    return suffix
  return "#" + "-".join(f"{time:.3f}".rstrip("0").rstrip(".") for time in span) + suffix


def parse_span(clip_id: str) -> tuple[float, float] | None:
  """Returns the segment that an id or path names, see `part_suffix`; None for a whole file."""
  match = re.search(r"#(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)(@[^/]*)?$", clip_id)
  return (float(match[1]), float(match[2])) if match else None


def check_names(names: Iterable[str], source: str) -> None:
  """Raises UserError if two class names differ only in case or Unicode normalization."""
  seen = {}
  for name in sorted(names):
    other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
    if other != name:
      normalized = {unicodedata.normalize("NFC", text) for text in (name, other)}
      difference = "how accents are encoded" if len(normalized) == 1 else "case"
      raise UserError(
        f"{source}: the classes {other!r} and {name!r} ({ascii(other)} and {ascii(name)}) differ"
        f" only in {difference}; rename one of them"
      )


def check_listing(listing: Listing, source: str) -> None:
  """Checks what every listing must fulfil; messages name the file or folder `source`.

  Raises:
    UserError: if a split is missing or empty, class names are invalid or look the same, a class has
      no training clip, an id occurs twice or is too long, or a file is in two splits.
  """
  _check_class_names(listing, source)
  is_test_only = [*listing.splits] == ["test"]
  for split in ("test",) if is_test_only else ("train", "validation"):
    if not listing.splits.get(split):
      raise UserError(f"{source}: no clips in the split {split!r}; add some")
  _check_clips(listing, source)
  _check_files(listing, source)
  if is_test_only:
    return
  untrained = set(range(len(listing.names))) - {clip.label for clip in listing.splits["train"]}
  if untrained:
    raise UserError(
      f"{source}: the class {listing.names[min(untrained)]!r} has no training clip; add some, or"
      " remove the class"
    )


def check_trainable_classes(listing: Listing, source: str) -> None:
  """Raises UserError if there are no classes, or only one to train on."""
  if not listing.names:
    raise UserError(f"{source}: no clip has a class; label the clips")
  if len(listing.names) == 1 and "train" in listing.splits:
    raise UserError(
      f"{source}: only one class, {listing.names[0]!r}, but training requires at least two; if this"
      " is the folder of a class, choose the folder above it"
    )


def _check_class_names(listing: Listing, source: str) -> None:
  if len(set(listing.names)) < len(listing.names):
    name = collections.Counter(listing.names).most_common(1)[0][0]
    raise UserError(f"{source}: the class {name!r} occurs twice; rename one of the two")
  for name in listing.names:  # TFDS stores one name a line, and strips the lines.
    if not name or name != name.strip() or len(name.splitlines()) != 1:
      raise UserError(
        f"{source}: the class name {name!r} is empty, or has leading or trailing spaces or a line"
        " break; rename the class"
      )
  check_names(listing.names, source)


def _check_clips(listing: Listing, source: str) -> None:
  seen = {}
  for split, clips in listing.splits.items():
    for clip in clips:
      if clip.id in seen:
        raise UserError(
          f"{source}: the id {clip.id} occurs twice, in {seen[clip.id]} and in {split}; remove one"
          " of the two"
        )
      if len(clip.id.encode()) > MAX_ID_BYTES:
        raise UserError(
          f"{source}: the id {clip.id} is longer than {MAX_ID_BYTES} bytes; shorten the path"
        )
      if "\n" in clip.path:
        raise UserError(f"{source}: the path {clip.path!r} has a line break; rename the file")
      seen[clip.id] = split
      if not -1 <= clip.label < len(listing.names) or (clip.label < 0 and split != "test"):
        raise UserError(f"{source}: {clip.path} in {split} has no class; label it or remove it")


def _check_files(listing: Listing, source: str) -> None:
  """Raises UserError if a file is in two splits, maybe under two spellings or by a link."""
  folders, seen = {}, {}
  clips = [(split, clip) for split, clips in listing.splits.items() for clip in clips]
  # Whole videos come first: segments are compared with these only, and among each other by group.
  for split, clip in sorted(clips, key=lambda item: item[1].span is not None):
    if clip.load is not None:
      continue
    folder, name = os.path.split(clip.file)
    if folder not in folders:
      folders[folder] = os.path.realpath(folder), _list_links(folder)
    real_folder, links = folders[folder]
    path = os.path.realpath(clip.file) if name in links else os.path.join(real_folder, name)
    other_split, other_file = seen.get(path, (split, clip.file))
    if clip.span is None:
      seen.setdefault(path, (split, clip.file))
    if other_split == split:
      continue
    if other_file == clip.file:
      raise UserError(
        f"{source}: {clip.file} is in {other_split} and in {split}; keep it in one of them"
      )
    raise UserError(
      f"{source}: {clip.file} in {split} and {other_file} in {other_split} are the same file; keep"
      " it in one split"
    )


def _list_links(folder: str) -> set[str]:
  """Returns the names of a folder's links: one scan, because `realpath` of every file is slow."""
  try:
    with os.scandir(folder or ".") as entries:
      return {entry.name for entry in entries if entry.is_symlink()}
  except OSError:
    return set()  # the error is reported when the file is read
