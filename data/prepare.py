"""Turns videos or images into a data set that the pipeline reads.

  python -m data.prepare --dataset=videos --source=/my/videos --out=/data/mine

Interrupted, the same command goes on where it stopped; until the end nothing opens as a data set.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import functools
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import tqdm

from data import cluster as cluster_lib
from data import decode, flow, making, shards, store
from data.decode import Storage
from data.making import Job, Plan, Told
from data.sources import folders, frame_lists, hmdb51, something_something, tfds_images, ucf101
from data.sources import listing as listing_lib
from data.sources.listing import Clip, Listing
from data.workers import Decoded
from u2s_jax import files
from u2s_jax.errors import INTERRUPTED, SAME_SIGNAL, UserError, check_repeated, one_line, printable

VERSION = 1  # goes up when the same settings come to mean other shards or other pixels
NAMES_SHOWN = 10
# Before many clips a few are decoded, for about so many seconds, to say what all of them take. More
# than so many times the room ends it: clips differ.
MANY, SAMPLE, SAMPLE_SECONDS, MARGIN = {"rgb": 240, "flow": 48}, 24, 60.0, 2.0
FEW = 20  # training clips of a class, below which it is named
Written = Callable[..., Iterator[tuple[shards.Key, shards.Shard]]]
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# By --dataset: from the parsed arguments to the listing.
DATASETS = {
  "ssv2": lambda args: something_something.listing(args.source),
  "ucf101": lambda args: ucf101.listing(args.source, args.split),
  "hmdb51": lambda args: hmdb51.listing(args.source, args.split),
  "cars196": lambda args: tfds_images.listing(args.source, "cars196"),
  "stanford_dogs": lambda args: tfds_images.listing(args.source, "stanford_dogs"),
  "videos": lambda args: folders.videos(args.source, args.group_pattern),
  "frames": lambda args: frame_lists.listing(args.source, args.group_pattern),
  "images": lambda args: folders.images(args.source, args.group_pattern),
}


def prepare(
  listing: Listing,
  out: str | os.PathLike[str],
  storage: Storage,
  *,
  origin: Mapping[str, Any],
  num_workers: int,
  max_unreadable: float = 0.01,
  cluster: str | None = None,
  compare_files: bool = True,
) -> store.PreparedDataset:
  """Decodes all clips of a listing into `out`, or goes on with that, or finds it done.

  A clip that cannot be read is left out and stands in `<out>/skipped.csv`; until the data set is
  finished, each call tries it again where its file has changed. The result depends on neither
  `num_workers` nor interruptions. The listing is compared with the one that `out` was begun with,
  and size and time of every file with those that it had before it was decoded.

  Args:
    listing: what to decode.
    out: folder of the data set, made if missing.
    storage: what becomes of the frames.
    origin: where the listing came from, in JSON's types; a folder begun with another one is
      refused.
    num_workers: processes that decode, at least 1.
    max_unreadable: share of the clips, 0 to 1, that may be left out.
    cluster: address of a Dask scheduler, whose workers then make the shards; see `data.cluster`.
    compare_files: whether files that differ from those that were decoded are an error; not where
      `origin` says all of their content, and they may be made anew.

  Returns:
    The data set as `store.open_dataset` opens it.

  Raises:
    UserError: a setting is not valid, `out` is something else or was made of other files, or too
      many clips cannot be read; one line.
  """
  if storage.modality == "flow":
    if listing.images:
      raise UserError("modality: images have no flow; it must be 'rgb'")
    flow.make(storage.flow_algorithm)  # raises here, not in every worker
  if num_workers < 1:
    raise UserError(f"workers: {num_workers} is not at least 1")
  if not 0 <= max_unreadable <= 1:
    raise UserError(f"max_unreadable: {max_unreadable} is not between 0 and 1")
  out = pathlib.Path(out)
  settings = {
    "version": VERSION,
    "origin": dict(origin),
    **dataclasses.asdict(storage),
    "clips": shards.digest(listing),
  }
  settings = json.loads(json.dumps(settings))
  shards.check_folder(out, settings)
  plan = shards.plan(listing, storage.modality)
  job = Job(out, tuple(listing.names), listing.images, storage, shards.counts(plan))
  if cluster:
    written = functools.partial(cluster_lib.written, address=cluster)
  else:
    written = functools.partial(making.written, num_workers=num_workers)
  if compare_files and store.is_finished(out):
    kept = shards.kept_states(listing, out)
    shards.check_source(out, kept, f", or delete {out}/states_*.npy where only the times differ")
  # A complete one may lie where nobody can write.
  if not store.is_finished(out) or shards.missing(out, plan):
    out.mkdir(parents=True, exist_ok=True)
    taken = f"{out} is being prepared by another process: wait for it"
    with files.locked(out / shards.LOCK, taken):
      shards.check_folder(out, settings)  # Another process may just have begun it, or ended.
      if not store.is_finished(out):
        shards.begin(out, settings)
        _check_present(listing, max_unreadable)
        progress = shards.Progress(out, job.num_shards)
        if compare_files:
          shards.check_source(out, progress.states(plan), f", or delete {out} to begin anew")
        todo = {key: clips for key, clips in plan.items() if key not in progress.done}
        if not cluster:
          foresee(job, todo, num_workers)
        with _bar(listing, todo) as told:
          for key, shard in written(job, todo, told=told):
            progress.add(key, shard)
        _check_unchanged(progress, plan)
        done = {key: progress.done[key] for key in plan}
        shards.finish(listing, out, settings, done, max_unreadable)
        progress.end()
      elif missing := shards.missing(out, plan):
        _make_missing(listing, job, {key: plan[key] for key in missing}, written)
  return store.open_dataset(out)


def _check_unchanged(progress: shards.Progress, plan: Plan) -> None:
  """Raises UserError where files changed since they were decoded: they were being copied, say."""
  own = [(clip, state) for clip, state in progress.states(plan) if clip.load is None]
  if late := shards.changed(own):
    ids = {clip.id for clip, _ in late}
    progress.drop([key for key, clips in plan.items() if any(clip.id in ids for clip in clips)])
    clip, what = late[0]
    raise UserError(
      f"{clip.path}: the file changed while the data set was prepared ({what}), and so did"
      f" {len(late)} in all: start again when they are complete, and they are decoded anew"
    )


def foresee(job: Job, todo: Plan, num_workers: int) -> None:
  """Decodes a few clips, and says what disk and time all of them will take; few are not worth it.

  Args:
    job: what they are decoded for.
    todo: the clips.
    num_workers: processes that decode.

  Raises:
    UserError: the disk has no room for them.
  """
  clips = [clip for of_shard in todo.values() for clip in of_shard]
  if len(clips) < MANY[job.storage.modality]:
    return
  runs = list(making.runs(job, clips))
  sample = runs[len(runs) // (2 * SAMPLE) :: max(1, len(runs) // SAMPLE)][:SAMPLE]
  random.Random(0).shuffle(sample)  # so that those within the time are of all kinds
  spent, sizes, skipped, begin, ready = {}, [], [], time.monotonic(), None
  with contextlib.closing(making.decoded(job, sample, num_workers, spent)) as answers:
    for clip, (answer, _) in zip(itertools.chain.from_iterable(sample), answers, strict=False):
      if ready is None:  # how long the processes took to begin
        ready = time.monotonic() - begin - min((clock for clock, _ in spent.values()), default=0.0)
      if isinstance(answer, Decoded):
        sizes.append(sum(map(len, answer.frames)))
      else:
        skipped.append(f"{clip.path}: {answer.reason}")
      if time.monotonic() - begin > SAMPLE_SECONDS:
        break
  if not sizes:
    first = f"none of {len(skipped)} clips that were tried first can be read: {skipped[0]}"
    print(printable(f"note: {first}"), flush=True)
    return
  # Of each process's own time: that between two answers says nothing where they come all at once,
  # or wait for a long one. Processes that share a core take longer by the clock, and those that
  # wait for a disk need no CPU.
  counted = sum(len(sample[number]) for number in spent)
  clock, cpu = (sum(seconds) / counted for seconds in zip(*spent.values(), strict=True))
  each = max(clock / num_workers, cpu / min(num_workers, os.cpu_count()))
  needed, free = len(clips) * sum(sizes) / len(sizes), shutil.disk_usage(job.out).free
  took = datetime.timedelta(seconds=round(ready + each * len(clips)))
  said = f"about {needed / 1e9:.1f} GB for {len(clips)} clips, by {len(sizes)} of them"
  if needed > MARGIN * free:
    raise UserError(f"{job.out}: {said}, but only {free / 1e9:.1f} GB are free: make room")
  if needed > free:
    said += ", which may not fit"
  line = f"{said}; {free / 1e9:.1f} GB are free; {took} (h:mm:ss) with {num_workers} processes"
  if job.storage.flow_algorithm == "tvl1":
    line += "; --flow_algorithm=dis is far faster, TV-L1 is the paper's"
  print(f"note: {line}", flush=True)


def _make_missing(listing: Listing, job: Job, todo: Plan, written: Written) -> None:
  """Writes shards of a finished data set anew, whose files are gone.

  Raises:
    UserError: a shard would hold other clips.
  """
  with (
    _bar(listing, todo) as told,
    tempfile.TemporaryDirectory(dir=job.out, prefix=".again-") as folder,
  ):
    aside = dataclasses.replace(job, out=pathlib.Path(folder))
    left_out = shards.left_out(listing, job.out)
    for key, made in written(aside, todo, told=told):
      path, there = (store.shard_path(of.out, *key, of.num_shards[key[0]]) for of in (job, aside))
      now = {clip.path for clip in made.skipped}
      other = [clip for clip in todo[key] if (clip.path in now) != (clip.id in left_out)]
      if other:
        clip = other[0].path
        raise UserError(
          f"{path}: {clip} {'cannot' if clip in now else 'can'} be read now, other than when the"
          " data set was prepared: restore it, or prepare anew in another folder"
        )
      os.replace(there, path)
      files.sync(job.out)


@contextlib.contextmanager
def _bar(listing: Listing, todo: Plan) -> Iterator[Told]:
  """Shows how far it is; yields what is told of every clip."""
  total = sum(map(len, listing.splits.values()))
  bar = tqdm.tqdm(
    total=total,
    initial=total - sum(map(len, todo.values())),
    unit="image" if listing.images else "clip",
    mininterval=0.5 if sys.stderr.isatty() else 30,  # A line each in a log.
    dynamic_ncols=True,
  )

  def told(clip: Clip, reason: str | None) -> None:
    bar.update()
    if reason is not None:
      bar.write(printable(f"skipped {clip.path}: {reason}"), file=sys.stderr)

  with bar:
    yield told


def _check_present(listing: Listing, max_unreadable: float) -> None:
  """Raises UserError where too many files are missing: known at once; decoding can take days."""
  clips = [clip for split in listing.splits.values() for clip in split if clip.load is None]
  # One listing a folder: 220,000 single look-ups take minutes on a network's file system.
  present = {}
  for folder in {os.path.dirname(clip.file) for clip in clips}:
    try:
      present[folder] = set(os.listdir(folder or "."))
    except OSError:
      present[folder] = set()
  missing = [
    clip for clip in clips if os.path.basename(clip.file) not in present[os.path.dirname(clip.file)]
  ]
  total = sum(map(len, listing.splits.values()))
  if len(missing) > max_unreadable * total:
    raise UserError(
      f"{missing[0].path} is missing, and so are {len(missing)} of {total} clips in all"
      f" ({shards.percent(len(missing) / total)}; --max_unreadable is"
      f" {shards.percent(max_unreadable)}): add the files"
    )


def report(dataset: store.PreparedDataset, listing: Listing) -> str:
  """Returns lines on what was prepared, and where it differs from the official counts.

  Args:
    dataset: that was prepared.
    listing: that it was prepared from.
  """
  names = dataset.class_names
  unit = "images" if listing.images else "clips"
  lines = [f"{dataset.folder}: {len(names)} classes"]
  for split, info in dataset.info.splits.items():
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
  for split in listing.official.keys() - dataset.info.splits.keys():
    lines.append(f"  {split}: not there; officially {listing.official[split]}")
  skipped = dataset.info.metadata["skipped"]
  if skipped:
    lines.append(f"  skipped: {skipped}, see {dataset.folder / shards.SKIPPED}")
  leaks = dataset.info.metadata.get("leaks", 0)
  if leaks:
    lines.append(
      f"  {leaks} {unit} look like a training one (copies, or one scene), so the accuracy may"
      f" promise too much: see {dataset.folder / shards.LEAKS}"
    )
  if share := dataset.info.metadata.get("share_alike"):
    lines.append(
      f"  {shards.percent(share)} of the training {unit} look like one of another class, as on a"
      " fixed camera: copies cannot be told by their looks, so"
      f" {dataset.folder / shards.LEAKS} names none"
    )
  not_compared = dataset.info.metadata.get("not_compared", 0)
  if not_compared:
    lines.append(f"  {not_compared} {unit} were too plain to be compared with others")
  of_class = collections.Counter(clip.label for clip in listing.splits.get("train", ()))
  rare = [f"{name} ({of_class[i]})" for i, name in enumerate(names) if of_class[i] < FEW]
  if rare and of_class:
    more = f" and {len(rare) - NAMES_SHOWN} more" if len(rare) > NAMES_SHOWN else ""
    lines.append(
      f"  fewer than {FEW} training {unit}: {', '.join(rare[:NAMES_SHOWN])}{more};"
      " data.balance draws rare classes more often"
    )
  shown = ", ".join(names[:NAMES_SHOWN])
  lines.append(f"  classes: {shown}{', ...' if len(names) > NAMES_SHOWN else ''}")
  return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m data.prepare", description=__doc__.split("\n")[0]
  )
  add = parser.add_argument
  add("--dataset", required=True, choices=DATASETS)
  add("--source", required=True, help="the data set's folder, or a CSV file")
  add("--out", required=True, help="folder for the prepared data set")
  add("--split", type=int, default=1, help="official split of ucf101 and hmdb51 (default: 1)")
  add(
    "--group_pattern",
    default="",
    help="of folders of videos or images: regular expression; clips in whose paths it finds the"
    " same belong together, as those of a person, and are on one side of a split",
  )
  add("--modality", choices=decode.MODALITIES, default="rgb")
  add("--flow_algorithm", choices=flow.ALGORITHMS, default="tvl1", help="'dis' is far faster")
  add("--short_edge", type=int, default=240, help="pixels of the stored frames (default: 240)")
  add(
    "--jpeg_quality", type=int, default=decode.JPEG_QUALITY, help="1 to 100 (default: %(default)s)"
  )
  add("--workers", type=int, default=os.cpu_count(), help="processes that decode (default: cores)")
  add("--cluster", help="a Dask scheduler's address: its workers decode (docs/scaling.md)")
  add(
    "--max_unreadable",
    type=float,
    default=0.01,
    help="share of clips that may be unreadable; they are listed in skipped.csv (default: 0.01)",
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  """Prepares what the command line asks for; errors, SIGTERM and Ctrl-C are one line."""
  args, given = parse(argv), sys.argv if argv is None else ["", *argv]
  handlers = {number: signal.signal(number, _interrupt) for number in SIGNALS}
  try:
    check_repeated(given)
    out = files.data_folder(args.out, "--out")
    args.source = files.local_path(args.source)
    if args.dataset in ("videos", "images", "frames"):  # others know the folders that are theirs
      _check_apart(args.source, out)
    listing = DATASETS[args.dataset](args)
    listing_lib.check(listing, str(args.source))
    listing_lib.check_classes(listing, str(args.source))
    listing = shards.as_begun(listing, out)
    for note in listing.notes:
      print(printable(f"note: {note}"), flush=True)
    origin = {"dataset": args.dataset}
    if args.dataset in ("ucf101", "hmdb51"):
      origin["split"] = args.split
    algorithm = args.flow_algorithm if args.modality == "flow" else None
    storage = Storage(args.modality, args.short_edge, args.jpeg_quality, algorithm)
    dataset = prepare(
      listing,
      out,
      storage,
      origin=origin,
      num_workers=args.workers,
      max_unreadable=args.max_unreadable,
      cluster=args.cluster,
    )
    print(printable(report(dataset, listing)))
  except KeyboardInterrupt:
    print(f"interrupted: the same command goes on with {args.out}", file=sys.stderr)
    sys.exit(INTERRUPTED)
  except Exception as error:
    line = one_line(error)
    if line is None:
      raise
    sys.exit(f"error: {line}")
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


def _check_apart(source: pathlib.Path, out: pathlib.Path) -> None:
  """Raises UserError where the data set would lie in its source, which then has one folder more."""
  if (out / shards.SETTINGS).exists():  # begun by a version that allowed it
    return
  parents = pathlib.Path(os.path.realpath(out)).parents
  if pathlib.Path(os.path.realpath(source)) in parents:
    raise UserError(f"--out {out}: lies in --source {source}; choose a folder outside of it")


def _interrupt(number: int, frame: Any) -> NoReturn:
  """Ends the command in order; a second signal, more than a second later, ends it at once."""
  first = time.monotonic()

  def again(number: int, frame: Any) -> None:
    if time.monotonic() > first + SAME_SIGNAL:
      signal.signal(number, signal.SIG_DFL)
      signal.raise_signal(number)

  for other in SIGNALS:
    signal.signal(other, again)
  raise KeyboardInterrupt


if __name__ == "__main__":
  main()
