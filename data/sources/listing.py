"""What a data set consists of, before anything is decoded: classes, and the clips of each split.

Every source beside this file is a function from a folder to a `Listing`; `data.prepare` turns a
listing into a prepared data set.
"""

import collections
import dataclasses
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from u2s_jax.errors import UserError

SPLITS = ("train", "validation", "test")
MAX_ID_BYTES = 256  # scores are gathered from all hosts with ids of this size


@dataclasses.dataclass(frozen=True)
class Clip:
  """A video, a part of one, or an image.

  Attributes:
    id: unique in its data set, the same for RGB and flow, and for every machine.
    label: index of its class, -1 where it is not known.
    file: its path; where it is in no file of its own, words that say where it is.
    load: returns the file's content where it is in no file of its own.
    span: start and end of a part, seconds since the video's first frame; None for the whole.
  """

  id: str
  label: int
  file: str
  load: Callable[[], bytes] | None = None
  span: tuple[float, float] | None = None

  @property
  def path(self) -> str:
    """Returns what it is called in lines and lists: its file, and which part of that."""
    return self.file + suffix(self.span)


@dataclasses.dataclass(frozen=True)
class Listing:
  """A data set.

  Attributes:
    names: class names in the order of the labels.
    splits: clips by split, of `SPLITS`; `train` and `validation` always, or `test` alone. Where the
      data set's owner has a train and a test list only, `validation` is the test list.
    images: whether the clips are images instead of videos.
    official: number of clips that the data set's owner states, by split; empty where nobody does.
    notes: what the user should know of how the listing came about, one line each.
    earlier: returns the same clips in the splits that an earlier version chose; None where it would
      have chosen none.
  """

  names: Sequence[str]
  splits: Mapping[str, Sequence[Clip]]
  images: bool = False
  official: Mapping[str, int] = dataclasses.field(default_factory=dict)
  notes: Sequence[str] = ()
  earlier: Callable[[], "Listing"] | None = None


def suffix(span: tuple[float, float] | None) -> str:
  """Returns what stands behind a file's path for a part of it: `#<start>-<end>`, in seconds."""
  if span is None:
    return ""
  return "#" + "-".join(f"{time:.3f}".rstrip("0").rstrip(".") for time in span)


def check_names(names: Iterable[str], source: str) -> None:
  """Checks that no two classes differ only in what nobody sees: case, or how accents are coded.

  Args:
    names: of the classes.
    source: the file or folder to name in errors.

  Raises:
    UserError: two do; one line, which names both.
  """
  seen = {}
  for name in sorted(names):
    other = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
    if other != name:
      forms = {unicodedata.normalize("NFC", text) for text in (name, other)}
      what = "how accents are coded" if len(forms) == 1 else "case"
      raise UserError(
        f"{source}: the classes {other!r} and {name!r} ({ascii(other)} and {ascii(name)}) differ"
        f" only in {what}: give them one name, or two that differ"
      )


def check(listing: Listing, source: str) -> None:
  """Checks what every listing has to hold.

  Args:
    listing: from any source.
    source: the file or folder to name in errors.

  Raises:
    UserError: a split is missing or empty, two classes differ only in case, a class has no training
      clip, an id occurs twice or is too long, a file is in two splits; one line.
  """
  if len(set(listing.names)) < len(listing.names):
    name = collections.Counter(listing.names).most_common(1)[0][0]
    raise UserError(f"{source}: the class {name!r} is there twice: rename one of them")
  for name in listing.names:  # TFDS stores them a line each, and strips the lines.
    if not name or name != name.strip() or len(name.splitlines()) != 1:
      raise UserError(
        f"{source}: the class name {name!r} is empty, has spaces around it or a line break: rename"
        " it"
      )
  check_names(listing.names, source)
  test_only = [*listing.splits] == ["test"]
  for split in ("test",) if test_only else ("train", "validation"):
    if not listing.splits.get(split):
      raise UserError(f"{source}: there are no clips for the split {split!r}")
  seen = {}
  for split, clips in listing.splits.items():
    for clip in clips:
      if clip.id in seen:
        raise UserError(
          f"{source}: the id {clip.id} occurs twice, in {seen[clip.id]} and in {split}: "
          "take one of them out"
        )
      if len(clip.id.encode()) > MAX_ID_BYTES:
        raise UserError(f"{source}: the id {clip.id} is longer than {MAX_ID_BYTES} bytes")
      if "\n" in clip.path:
        raise UserError(f"{source}: the path {clip.path!r} has a line break: rename it")
      seen[clip.id] = split
      if not -1 <= clip.label < len(listing.names) or (clip.label < 0 and split != "test"):
        raise UserError(f"{source}: {clip.path} in {split} has no class")
  _check_files(listing, source)
  if test_only:
    return
  unseen = set(range(len(listing.names))) - {clip.label for clip in listing.splits["train"]}
  if unseen:
    raise UserError(
      f"{source}: no training clip is of the class {listing.names[min(unseen)]!r}: add clips of "
      "it, or take the class out"
    )


def check_classes(listing: Listing, source: str) -> None:
  """Raises UserError for training clips of one class: a network would learn to say one word."""
  if not listing.names:
    raise UserError(f"{source}: no clip has a class")
  if len(listing.names) == 1 and "train" in listing.splits:
    raise UserError(
      f"{source}: there is one class only, {listing.names[0]!r}, and a network tells two or more"
      " apart: is this the folder above the classes, or the one of a class?"
    )


def _check_files(listing: Listing, source: str) -> None:
  """Raises UserError where a file is in two splits, maybe under two spellings or by a link."""
  folders, seen = {}, {}
  clips = [(split, clip) for split, clips in listing.splits.items() for clip in clips]
  # Parts of a video are compared with whole ones alone: among them their groups decide.
  for split, clip in sorted(clips, key=lambda item: item[1].span is not None):
    if clip.load is not None:
      continue
    folder, name = os.path.split(clip.file)
    if folder not in folders:
      folders[folder] = os.path.realpath(folder), _links(folder)
    real, links = folders[folder]
    path = os.path.realpath(clip.file) if name in links else os.path.join(real, name)
    other_split, other = seen.get(path, (split, clip.file))
    if clip.span is None:
      seen.setdefault(path, (split, clip.file))
    if other_split != split:
      same = "it" if other == clip.file else other
      raise UserError(
        f"{source}: {clip.file} is in {split}, and {same} in {other_split}, one file: a network"
        " would be tested on what it learned"
      )


def _links(folder: str) -> set[str]:
  """Returns the names of a folder's links; one look at a folder, as there are many files."""
  try:
    with os.scandir(folder or ".") as entries:
      return {entry.name for entry in entries if entry.is_symlink()}
  except OSError:
    return set()  # said where the file is read
