"""States of source files: tell whether a file is still the one that was decoded."""

import concurrent.futures
import hashlib
import os
import pathlib
import stat
import zlib
from collections.abc import Iterable, Sequence

from data.input import store
from u2s_jax.runtime.errors import UserError
from u2s_jax.video.images import FRAME_EXTENSIONS
from u2s_jax.video.listing import Clip, Listing

STAT_THREADS = 32  # on a network file system each `stat` waits for the server

# Size, modification time and status change time in ns; a copy that keeps times has the first two.
State = Sequence[int]


def read_file_state(path: str) -> list[int] | None:
  """Returns numbers that change with a file or a frame in a folder; None if the path is missing."""
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
  # In whole seconds, which tar keeps as well.
  content = repr([(name, status.st_size, int(status.st_mtime)) for name, status in frames])
  digest = int.from_bytes(hashlib.sha256(content.encode()).digest()[:6])
  return [size, digest, max((status.st_ctime_ns for _, status in frames), default=0)]


def compute_content_state(content: bytes) -> list[int]:
  """Returns the state of content that is not in a file of its own."""
  return [len(content), zlib.crc32(content), 0]


def _read_clip_state(clip: Clip) -> list[int] | None:
  try:
    return compute_content_state(clip.load()) if clip.load else read_file_state(clip.file)
  except OSError:
    return None


def find_changed(pairs: Iterable[tuple[Clip, State | None]]) -> list[tuple[Clip, str]]:
  """Returns the clips whose file is not the one that was decoded, with a description each.

  `pairs` are clips, each with the state of its file before it was decoded, None if unknown. Clips
  whose file is missing now do not count as changed.
  """
  known = [(clip, state) for clip, state in pairs if state]
  by_file = {clip.file: clip for clip, _ in known}  # one `stat` for all segments of a video
  with concurrent.futures.ThreadPoolExecutor(STAT_THREADS) as threads:
    states = dict(zip(by_file, threads.map(_read_clip_state, by_file.values()), strict=True))
  changed = []
  for clip, before in known:
    now = states[clip.file]
    if now and not _is_same(now, before):
      difference = "same size, but another modification time"
      if before[0] != now[0]:
        difference = f"{before[0]} bytes then, {now[0]} now"
      changed.append((clip, difference))
  return changed


def _is_same(now: State, before: State) -> bool:
  """Returns whether two states are of one file, or of a copy that rounded the file's time."""
  if now[0] != before[0] or now[1] == before[1]:
    return now[0] == before[0]
  # Checksums are below 2**48, times in ns above. tar keeps whole seconds, FAT every other second.
  is_time = min(now[1], before[1]) >= 2**48
  is_rounded = 0 in (now[1] % 10**9, before[1] % 10**9)
  return is_time and is_rounded and abs(now[1] - before[1]) < 2 * 10**9


def check_source(
  out: pathlib.Path, pairs: Sequence[tuple[Clip, State | None]], advice: str
) -> None:
  """Raises UserError if a source holds other files, under the same names, than were decoded.

  `advice` says what else a user may do; it is appended to the message.
  """
  if changed := find_changed(pairs):
    clip, difference = changed[0]
    raise UserError(
      f"{clip.path}: not the file that was decoded into {out} ({difference}),"
      f" {len(changed)} of {len(pairs)} clips differ; restore the source or choose another folder"
      f"{advice}"
    )


def load_states(listing: Listing, out: pathlib.Path) -> list[tuple[Clip, State | None]]:
  """Returns the clips of a prepared data set and the saved states of their files."""
  pairs = []
  for split, clips in listing.splits.items():
    if states := store.read_states(out, split):
      pairs += zip(clips, states, strict=True)
  return pairs
