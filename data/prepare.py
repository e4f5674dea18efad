"""Turns videos or images into a data set that the pipeline reads.

  python -m data.prepare --dataset=videos --source=/my/videos --out=/data/mine

Interrupted, the same command goes on where it stopped; until the end nothing opens as a data set.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import pickle
import queue
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
import tqdm

from data import decode, flow, folders, hmdb51, something_something, store, tfds_images, ucf101
from data import listing as listing_lib
from data.listing import Clip, Listing

VERSION = 1  # goes up when the same settings come to mean other shards or other pixels
SETTINGS = "preparation.json"  # what a folder was begun with
LOCK = ".lock"
PROGRESS = ".progress.jsonl"  # a line for each shard that is done
SKIPPED = "skipped.csv"
# A reader keeps every shard open, so there are few; an interruption loses one of them at most, and
# flow takes a hundred times as long.
MAX_SHARDS = {"rgb": 128, "flow": 512}
MIN_SHARD_CLIPS = 16
NAMES_SHOWN = 10
DIED = "the process that decodes it ended twice,"  # begins the reason of such a clip

# By --dataset: from the parsed arguments to the listing.
DATASETS = {
  "ssv2": lambda args: something_something.listing(args.source),
  "ucf101": lambda args: ucf101.listing(args.source, args.split),
  "hmdb51": lambda args: hmdb51.listing(args.source, args.split),
  "cars196": lambda args: tfds_images.listing(args.source, "cars196"),
  "stanford_dogs": lambda args: tfds_images.listing(args.source, "stanford_dogs"),
  "videos": lambda args: folders.videos(args.source),
  "images": lambda args: folders.images(args.source),
}


def prepare(
  listing: Listing,
  out: str | os.PathLike[str],
  *,
  origin: Mapping[str, Any],
  modality: str = "rgb",
  flow_algorithm: str = "tvl1",
  short_edge: int = 240,
  jpeg_quality: int = decode.JPEG_QUALITY,
  workers: int,
  max_unreadable: float = 0.01,
) -> tfds.core.DatasetBuilder:
  """Decodes all clips of a listing into `out`, or goes on with that, or finds it done.

  A clip that cannot be read is left out and stands in `<out>/skipped.csv`; until the data set is
  finished, each call tries it again where its file has changed. The result depends on neither
  `workers` nor interruptions. The listing is compared with the one that `out` was begun with, the
  content of the files is not.

  Args:
    listing: what to decode.
    out: folder of the data set, made if missing.
    origin: where the listing came from, in JSON's types; a folder begun with another one is
      refused.
    modality: 'rgb' or 'flow'.
    flow_algorithm: one of `flow.ALGORITHMS`; of no meaning for 'rgb'.
    short_edge: pixels of the stored frames; the long edge keeps the aspect.
    jpeg_quality: 1 to 100.
    workers: processes that decode, at least 1.
    max_unreadable: share of the clips, 0 to 1, that may be left out.

  Returns:
    The data set as `store.open_dataset` opens it.

  Raises:
    ValueError: a setting is not valid, `out` is something else, or too many clips cannot be read;
      one line.
  """
  _check_settings(listing, modality, flow_algorithm, short_edge, jpeg_quality, workers)
  if not 0 <= max_unreadable <= 1:
    raise ValueError(f"max_unreadable: {max_unreadable} is not between 0 and 1")
  out = pathlib.Path(out)
  settings = {
    "version": VERSION,
    "origin": dict(origin),
    "modality": modality,
    "flow_algorithm": flow_algorithm if modality == "flow" else None,
    "short_edge": short_edge,
    "jpeg_quality": jpeg_quality,
    "clips": _digest(listing),
  }
  settings = json.loads(json.dumps(settings))
  _check_ours(out, settings)
  if not store.is_finished(out):  # A finished one may lie where nobody can write.
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
      _check_ours(out, settings)  # Another process may just have begun it, or ended.
      if not store.is_finished(out):
        _write(out / SETTINGS, json.dumps(settings, indent=2) + "\n")
        _decode_all(listing, out, settings, workers, max_unreadable)
  return store.open_dataset(out)


def _check_settings(
  listing: Listing,
  modality: str,
  flow_algorithm: str,
  short_edge: int,
  jpeg_quality: int,
  workers: int,
) -> None:
  if modality not in ("rgb", "flow"):
    raise ValueError(f"modality: {modality!r} is not 'rgb' or 'flow'")
  if modality == "flow" and listing.images:
    raise ValueError("modality: images have no flow; it must be 'rgb'")
  if modality == "flow":
    flow.make(flow_algorithm)  # raises here, not in every worker
  if short_edge < 1:
    raise ValueError(f"short_edge: {short_edge} is not at least 1 pixel")
  if not 1 <= jpeg_quality <= 100:
    raise ValueError(f"jpeg_quality: {jpeg_quality} is not between 1 and 100")
  if workers < 1:
    raise ValueError(f"workers: {workers} is not at least 1")


def _digest(listing: Listing) -> str:
  """Tells listings apart; not by paths, so that a source may be moved."""
  clips = {
    split: [(clip.id, clip.label) for clip in clips] for split, clips in listing.splits.items()
  }
  content = json.dumps([list(listing.names), clips])
  return hashlib.sha256(content.encode()).hexdigest()[:16]


def _check_ours(out: pathlib.Path, settings: dict[str, Any]) -> None:
  """Checks that the folder is missing, empty, or was begun with the same settings."""
  path = out / SETTINGS
  # The two names are left where the very beginning was interrupted.
  if not out.exists() or not {entry.name for entry in out.iterdir()} - {LOCK, f".{SETTINGS}"}:
    return
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    found = None
  if not isinstance(found, dict):
    raise ValueError(f"{out} holds something else: choose an empty folder for the data set")
  for field, value in settings.items():
    if found.get(field) != value:
      difference = f"{field} = {found.get(field)}, not {value}"
      if field == "clips":
        difference = "other classes, labels or clips"
      raise ValueError(f"{out} was begun with {difference}: choose another folder or delete it")


def _write(path: pathlib.Path, text: str) -> None:
  """Writes a file that appears complete or not at all."""
  partial = path.with_name(f".{path.name}")
  partial.write_text(text)
  os.replace(partial, path)


@contextlib.contextmanager
def _locked(out: pathlib.Path) -> Iterator[None]:
  """Keeps a second process from writing the same data set at the same time."""
  with open(out / LOCK, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(f"{out} is being prepared by another process: wait for it") from error
    yield


def _decode_all(
  listing: Listing,
  out: pathlib.Path,
  settings: dict[str, Any],
  workers: int,
  max_unreadable: float,
) -> None:
  """Writes the shards that are not there yet, then what makes them a data set."""
  total = sum(len(clips) for clips in listing.splits.values())
  missing = _missing(listing)
  if len(missing) > max_unreadable * total:  # Known at once; decoding can take days.
    raise ValueError(
      f"{missing[0].path} is missing, and so are {len(missing)} of {total} clips in all"
      f" ({_percent(len(missing) / total)}; --max_unreadable is {_percent(max_unreadable)}):"
      " add the files"
    )
  plan = _shards(listing, settings["modality"])
  num_shards = collections.Counter(split for split, _ in plan)
  done = _read_progress(out, num_shards)
  # Written anew: a last line that is cut off would spoil the next one.
  _write(out / PROGRESS, "".join(json.dumps(entry) + "\n" for entry in done.values()))
  todo = {key: clips for key, clips in plan.items() if key not in done}
  decoded = _decode_in_order(
    itertools.chain.from_iterable(todo.values()),
    {
      "short_edge": settings["short_edge"],
      "jpeg_quality": settings["jpeg_quality"],
      "flow": settings["flow_algorithm"],
      "images": listing.images,
    },
    workers,
  )
  bar = tqdm.tqdm(
    total=total,
    initial=total - sum(map(len, todo.values())),
    unit="image" if listing.images else "clip",
    mininterval=0.5 if sys.stderr.isatty() else 30,  # A line each in a log.
    dynamic_ncols=True,
  )
  with bar, contextlib.closing(decoded), open(out / PROGRESS, "a") as progress:
    for key, clips in todo.items():
      split, shard = key
      skipped = []
      examples = _examples(clips, decoded, settings["modality"], skipped, bar)
      count, size = store.write_shard(out, split, shard, num_shards[split], examples, listing.names)
      done[key] = {"key": key, "count": count, "bytes": size, "skipped": skipped}
      progress.write(json.dumps(done[key]) + "\n")
      progress.flush()
  _conclude(listing, out, settings, {key: done[key] for key in plan}, max_unreadable)


def _missing(listing: Listing) -> list[Clip]:
  """Clips whose file is not there."""
  clips = [clip for split in listing.splits.values() for clip in split if clip.load is None]
  # One listing a folder: 220,000 single look-ups take minutes on a network's file system.
  present = {}
  for folder in {os.path.dirname(clip.path) for clip in clips}:
    try:
      present[folder] = set(os.listdir(folder or "."))
    except OSError:
      present[folder] = set()
  return [
    clip for clip in clips if os.path.basename(clip.path) not in present[os.path.dirname(clip.path)]
  ]


def _shards(listing: Listing, modality: str) -> dict[tuple[str, int], Sequence[Clip]]:
  """Clips of every (split, shard), in the order of the listing."""
  plan = {}
  for split, clips in listing.splits.items():
    size = max(MIN_SHARD_CLIPS, -(-len(clips) // MAX_SHARDS[modality]))
    for shard, first in enumerate(range(0, len(clips), size)):
      plan[split, shard] = clips[first : first + size]
  return plan


def _read_progress(
  out: pathlib.Path, num_shards: Mapping[str, int]
) -> dict[tuple[str, int], dict[str, Any]]:
  """What is known of finished shards; not of those with a skipped file to be tried again."""
  done = {}
  with contextlib.suppress(FileNotFoundError):
    for line in (out / PROGRESS).read_text().splitlines():
      with contextlib.suppress(ValueError):  # The last line may be cut off.
        entry = json.loads(line)
        done[tuple(entry["key"])] = entry
  return {
    key: entry
    for key, entry in done.items()
    if all(state and _state(path) == state for path, _, state in entry["skipped"])
    and pathlib.Path(store.shard_path(out, *key, num_shards[key[0]])).exists()
  }


def _state(path: str) -> list[int] | None:
  """Changes when a file does."""
  try:
    found = os.stat(path)
  except OSError:
    return None
  return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _examples(
  clips: Sequence[Clip],
  decoded: Iterator[list[bytes] | str],
  modality: str,
  skipped: list[list],
  bar: tqdm.tqdm,
) -> Iterator[dict[str, Any]]:
  """Records of the clips that can be read; appends path, reason and state of the others."""
  for clip, frames in zip(clips, itertools.islice(decoded, len(clips)), strict=True):
    bar.update()
    if isinstance(frames, str):
      # None: whatever it was, it may have passed by the next time.
      passing = frames.startswith((DIED, decode.UNREADABLE))
      skipped.append([clip.path, frames, None if passing else _state(clip.path)])
      bar.write(f"skipped {clip.path}: {frames}", file=sys.stderr)
      continue
    count = len(frames) // 2 if modality == "flow" else len(frames)
    yield {"id": clip.id, "label": clip.label, "num_frames": count, "frames": frames}


def _conclude(
  listing: Listing,
  out: pathlib.Path,
  settings: dict[str, Any],
  done: dict[tuple[str, int], dict[str, Any]],
  max_unreadable: float,
) -> None:
  """Writes skipped.csv, and the metadata unless too much is skipped."""
  skipped = [entry for shard in done.values() for entry in shard["skipped"]]
  with open(out / SKIPPED, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["path", "reason"])
    writer.writerows(entry[:2] for entry in skipped)
  total = sum(len(clips) for clips in listing.splits.values())
  advice = f"see {out / SKIPPED}, mend or delete the files, and start again"
  if len(skipped) > max_unreadable * total:
    raise ValueError(
      f"{len(skipped)} of {total} clips cannot be read ({_percent(len(skipped) / total)};"
      f" --max_unreadable is {_percent(max_unreadable)}): {advice}"
    )
  without = {path for path, *_ in skipped}
  left = collections.Counter(
    clip.label for clip in listing.splits["train"] if clip.path not in without
  )
  for label, name in enumerate(listing.names):
    if not left[label]:
      raise ValueError(f"no training clip of the class {name!r} can be read: {advice}")
  shards = {split: [] for split, clips in listing.splits.items() if clips}
  for (split, _), entry in done.items():
    shards[split].append((entry["count"], entry["bytes"]))
  for split, written in shards.items():
    if not sum(count for count, _ in written):
      raise ValueError(f"no clip of the split {split!r} can be read: {advice}")
  metadata = {key: value for key, value in settings.items() if key != "clips"}
  store.finish(
    out,
    listing.names,
    shards,
    metadata | {"skipped": len(skipped)},
    f"{settings['modality']} frames of short edge {settings['short_edge']}",
  )
  (out / PROGRESS).unlink()


def _decode_in_order(
  clips: Iterable[Clip], settings: dict[str, Any], num_workers: int
) -> Iterator[list[bytes] | str]:
  """Yields the JPEG frames of each clip, or why there are none, a few ahead of the reader."""
  workers = [_Worker(settings) for _ in range(num_workers)]
  idle = queue.SimpleQueue()
  for worker in workers:
    idle.put(worker)

  def decode_one(clip: Clip) -> list[bytes] | str:
    worker = idle.get()  # Never waits: there are as many threads as workers.
    try:
      return worker.decode(clip)
    finally:
      idle.put(worker)

  threads = concurrent.futures.ThreadPoolExecutor(num_workers)
  pending = collections.deque()
  try:
    for clip in clips:
      pending.append(threads.submit(decode_one, clip))
      if len(pending) > 4 * num_workers:  # Bounds the memory when the writer is the slower one.
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    # Nobody wants what has been begun, or was to be begun.
    threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
      worker.kill()
    threads.shutdown()
    for worker in workers:
      worker.close()


class _Worker:
  """A process that decodes; started when first needed, and again where a file killed it."""

  def __init__(self, settings: dict[str, Any]):
    self._settings = settings
    self._process = None
    self._killed = False

  def decode(self, clip: Clip) -> list[bytes] | str:
    """The clip's JPEG frames, or why there are none."""
    try:
      content = None if clip.load is None else clip.load()
    except OSError as error:
      return f"{decode.UNREADABLE} ({error.strerror or error})"
    for _ in range(2):  # A process that somebody else killed says nothing of the clip.
      if self._process is None:
        self._process = self._start()
      try:
        pickle.dump((os.path.abspath(clip.path), content), self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)
      except (OSError, EOFError, pickle.UnpicklingError):
        self._process.kill()
        status = self._process.wait()
        self.close()
      if self._killed:
        break
    return f"{DIED} with status {status} (a crash, or out of memory)"

  def kill(self) -> None:
    """Ends the process, whatever it is doing; nothing is decoded any more."""
    self._killed = True
    process = self._process
    if process is not None:
      process.kill()

  def close(self) -> None:
    """Closes the pipes of a process that ends or has ended."""
    if self._process is not None:
      self._process.wait()
      self._process.stdout.close()
      with contextlib.suppress(OSError):  # It tries to write what the process has not read.
        self._process.stdin.close()
      self._process = None

  def _start(self) -> subprocess.Popen:
    root = str(pathlib.Path(decode.__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
      # `-P`: the current folder, where a neighbour could hide a library, is not on the path.
      [sys.executable, "-P", "-m", "data.decode", json.dumps(self._settings)],
      env=os.environ | {"PYTHONPATH": path},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      start_new_session=True,  # Ctrl-C reaches the parent alone, which ends them in order.
    )


def _percent(share: float) -> str:
  return f"{100 * share:.3g} %"


def report(builder: tfds.core.DatasetBuilder, listing: Listing) -> str:
  """What was prepared, and where it differs from the official counts; lines for a terminal."""
  names = builder.info.features["label"].names
  unit = "images" if listing.images else "clips"
  lines = [f"{builder.data_dir}: {len(names)} classes"]
  for split, info in builder.info.splits.items():
    line = f"  {split}: {info.num_examples} {unit}, {info.num_bytes / 1e9:.2f} GB"
    official = listing.official.get(split)
    if official is not None:
      listed = len(listing.splits[split])
      difference = info.num_examples - official
      line += f"; officially {official}: " + (
        "all there"
        if not difference
        else f"a difference of {difference:+d} ({listed - official:+d} in the lists,"
        f" {listed - info.num_examples} skipped)"
      )
    lines.append(line)
  for split in listing.official.keys() - builder.info.splits.keys():
    lines.append(f"  {split}: not there; officially {listing.official[split]}")
  skipped = builder.info.metadata["skipped"]
  if skipped:
    lines.append(f"  skipped: {skipped}, see {pathlib.Path(builder.data_dir) / SKIPPED}")
  shown = ", ".join(names[:NAMES_SHOWN])
  lines.append(f"  classes: {shown}{', ...' if len(names) > NAMES_SHOWN else ''}")
  return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m data.prepare", description=__doc__.split("\n")[0]
  )
  add = parser.add_argument
  add("--dataset", required=True, choices=DATASETS)
  add("--source", required=True, type=pathlib.Path, help="the data set's folder, or a CSV file")
  add("--out", required=True, type=pathlib.Path, help="folder for the prepared data set")
  add("--split", type=int, default=1, help="official split of ucf101 and hmdb51 (default: 1)")
  add("--modality", choices=("rgb", "flow"), default="rgb")
  add("--flow_algorithm", choices=flow.ALGORITHMS, default="tvl1", help="'dis' is far faster")
  add("--short_edge", type=int, default=240, help="pixels of the stored frames (default: 240)")
  add(
    "--jpeg_quality", type=int, default=decode.JPEG_QUALITY, help="1 to 100 (default: %(default)s)"
  )
  add("--workers", type=int, default=os.cpu_count(), help="processes that decode (default: cores)")
  add(
    "--max_unreadable",
    type=float,
    default=0.01,
    help="share of clips that may be unreadable; they are listed in skipped.csv (default: 0.01)",
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  """Prepares what the command line asks for; errors and Ctrl-C are one line."""
  args = parse(argv)
  try:
    listing = DATASETS[args.dataset](args)
    listing_lib.check(listing, str(args.source))
    for note in listing.notes:
      print(f"note: {note}", flush=True)
    origin = {"dataset": args.dataset}
    if args.dataset in ("ucf101", "hmdb51"):
      origin["split"] = args.split
    builder = prepare(
      listing,
      args.out,
      origin=origin,
      modality=args.modality,
      flow_algorithm=args.flow_algorithm,
      short_edge=args.short_edge,
      jpeg_quality=args.jpeg_quality,
      workers=args.workers,
      max_unreadable=args.max_unreadable,
    )
    print(report(builder, listing))
  except KeyboardInterrupt:
    sys.exit(f"interrupted: the same command goes on with {args.out}")
  except (OSError, ValueError, ImportError) as error:
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  main()
