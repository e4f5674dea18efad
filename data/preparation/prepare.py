"""Turns videos or images into a data set that the pipeline reads.

  python -m data.prepare --dataset=videos --source=/my/videos --out=/data/mine

After an interruption the same command resumes. An unfinished data set cannot be opened.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime
import functools
import itertools
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import tqdm

from data.input import store
from data.preparation import cluster as cluster_lib
from data.preparation import (
  corrections,
  file_states,
  finalize,
  folds,
  preview,
  shard_writer,
  shards,
  suggestion,
)
from data.preparation.shard_writer import Job, OnClipDone, Plan
from data.preparation.workers import Decoded
from data.sources import frame_lists, hmdb51, something_something, tfds_images, ucf101
from u2s_jax.runtime import command_line, files, signals
from u2s_jax.runtime.errors import INTERRUPTED, UserError, check_repeated, escape, one_line_errors
from u2s_jax.video import decode, flow, folders
from u2s_jax.video.decode import BY_CLIP, Storage
from u2s_jax.video.listing import FEW_CLIPS, MODALITIES, Clip, Listing, check_trainable_classes
from u2s_jax.video.region import parse_region

VERSION = 1  # incremented when the same settings lead to other shards or other pixels
NAMES_SHOWN = 10
# The cost of at least MIN_ESTIMATED clips is estimated first, from up to SAMPLE_SIZE of them and
# for about SAMPLE_SECONDS. As clips differ, only an estimate of more than MARGIN times the free
# disk space is an error.
MIN_ESTIMATED = {"rgb": 240, "flow": 48}
SAMPLE_SIZE, SAMPLE_SECONDS, MARGIN = 24, 60.0, 2.0

# Values of --dataset -> function from the parsed arguments to the listing.
DATASETS = {
  "ssv2": lambda args: something_something.list_clips(args.source),
  "ucf101": lambda args: ucf101.list_clips(args.source, args.split),
  "hmdb51": lambda args: hmdb51.list_clips(args.source, args.split),
  "cars196": lambda args: tfds_images.list_clips(args.source, "cars196"),
  "stanford_dogs": lambda args: tfds_images.list_clips(args.source, "stanford_dogs"),
  "videos": lambda args: folders.list_videos(args.source, args.group_pattern),
  "frames": lambda args: frame_lists.list_clips(args.source, args.group_pattern),
  "images": lambda args: folders.list_images(args.source, args.group_pattern),
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
  """Decodes all clips of a listing into the folder `out`; resumes an unfinished data set there.

  Clips that cannot be read are left out and listed in `<out>/skipped.csv`. Until the data set is
  finished, each call retries those whose file has changed. The result depends neither on
  `num_workers` nor on interruptions. A resumed preparation requires the same listing, and files of
  the same size and modification time as those that were decoded.

  Args:
    listing: the clips.
    out: output directory, created if missing.
    storage: how frames are resized and encoded.
    origin: where the listing comes from, JSON-serializable; must not change between calls.
    num_workers: decoding processes, at least 1.
    max_unreadable: share of the clips, 0 to 1, that may be left out.
    cluster: address of a Dask scheduler, see `data.preparation.cluster`.
    compare_files: whether a changed source file is an error. False if `origin` determines the
      content of the files, which may then be regenerated.

  Raises:
    UserError: if a setting is not valid, `out` holds something else or was made from other files,
      or too many clips cannot be read; one line.
  """
  _check_arguments(listing, storage, num_workers, max_unreadable)
  out = pathlib.Path(out)
  settings = {
    "version": VERSION,
    "origin": dict(origin),
    **dataclasses.asdict(storage),
    "clips": shards.compute_digest(listing),
  }
  shards.check_folder(out, settings)
  plan = shards.plan_shards(listing, storage.modality)
  num_shards = collections.Counter(split for split, _ in plan)
  job = Job(out, tuple(listing.names), listing.images, storage, num_shards)
  if cluster:
    write = functools.partial(cluster_lib.write_shards, address=cluster)
  else:
    write = functools.partial(shard_writer.write_shards, num_workers=num_workers)
  if store.is_finished(out):
    if compare_files:
      advice = f", or delete {out}/states_*.npy if only the times differ"
      file_states.check_source(out, file_states.load_states(listing, out), advice)
    # Before anything is written: a complete data set may lie on a read-only disk.
    if not shards.find_missing(out, plan, num_shards):
      return store.open_dataset(out)
  out.mkdir(parents=True, exist_ok=True)
  refusal = f"{out}: another process is preparing it; wait until it has finished"
  with files.file_lock(out / shards.LOCK, refusal):
    # Again, under the lock: another process may have started or finished in the meantime.
    shards.check_folder(out, settings)
    if store.is_finished(out):
      _restore_missing_shards(listing, job, plan, write)
      return store.open_dataset(out)
    shards.write_settings(out, settings)
    _check_present(listing, max_unreadable)
    progress = shards.Progress(out, job.num_shards)
    if compare_files:
      advice = f", or delete {out} to start over"
      file_states.check_source(out, progress.states(plan), advice)
    todo = {key: clips for key, clips in plan.items() if key not in progress.done}
    if not cluster:
      estimate_cost(job, todo, num_workers)
    with _progress_bar(listing, todo) as on_clip_done:
      for key, shard in write(job, todo, on_clip_done=on_clip_done):
        progress.add(key, shard)
        signals.raise_if_requested()
    _check_unchanged(progress, plan)
    done = {key: progress.done[key] for key in plan}
    finalize.finalize_dataset(listing, out, settings, done, max_unreadable)
    (out / shards.PROGRESS).unlink()
  return store.open_dataset(out)


def _check_arguments(
  listing: Listing, storage: Storage, num_workers: int, max_unreadable: float
) -> None:
  if storage.modality == "flow":
    if listing.images:
      raise UserError("modality: images have no flow; set it to 'rgb'")
    flow.make_algorithm(storage.flow_algorithm)  # raises here instead of in every worker
  if num_workers < 1:
    raise UserError(f"workers: {num_workers} must be >= 1")
  if not 0 <= max_unreadable <= 1:
    raise UserError(f"max_unreadable: {max_unreadable} must be in [0, 1]")


def _check_unchanged(progress: shards.Progress, plan: Plan) -> None:
  """Raises UserError if files changed after they were decoded, as when still being copied.

  Drops their shards, which the next call decodes again.
  """
  states = [(clip, state) for clip, state in progress.states(plan) if clip.load is None]
  changed = file_states.find_changed(states)
  if not changed:
    return
  ids = {clip.id for clip, _ in changed}
  progress.drop([key for key, clips in plan.items() if any(clip.id in ids for clip in clips)])
  clip, difference = changed[0]
  raise UserError(
    f"{clip.path}: the file changed during the preparation ({difference}), {len(changed)} files"
    " in all; rerun the same command when they are complete to decode them again"
  )


def estimate_cost(job: Job, todo: Plan, num_workers: int) -> None:
  """Decodes a sample of the clips and prints the disk space and time that all of them need.

  Does nothing for fewer than `MIN_ESTIMATED` clips.

  Raises:
    UserError: if the disk is too small by far.
  """
  clips = list(itertools.chain.from_iterable(todo.values()))
  if len(clips) < MIN_ESTIMATED[job.storage.modality]:
    return
  groups = list(shard_writer.group_clips(job, clips))
  sample = groups[len(groups) // (2 * SAMPLE_SIZE) :: max(1, len(groups) // SAMPLE_SIZE)]
  sample = sample[:SAMPLE_SIZE]
  random.Random(0).shuffle(sample)  # the part decoded within the time limit covers all classes
  timings, sizes, skipped, start, startup = {}, [], [], time.monotonic(), None
  with contextlib.closing(shard_writer.decode_clips(job, sample, num_workers, timings)) as answers:
    for clip, (answer, _) in zip(itertools.chain.from_iterable(sample), answers, strict=False):
      if startup is None:  # seconds until the processes were ready
        fastest = min((clock for clock, _ in timings.values()), default=0.0)
        startup = time.monotonic() - start - fastest
      if isinstance(answer, Decoded):
        sizes.append(sum(map(len, answer.frames)))
      else:
        skipped.append(f"{clip.path}: {answer.reason}")
      signals.raise_if_requested()
      if time.monotonic() - start > SAMPLE_SECONDS:
        break
  if not sizes:
    message = f"none of the first {len(skipped)} sampled clips can be read: {skipped[0]}"
    print(escape(f"note: {message}"), flush=True)
    return
  num_timed = sum(len(sample[number]) for number in timings)
  seconds = startup + len(clips) * _seconds_per_clip(timings.values(), num_timed, num_workers)
  needed, free = len(clips) * sum(sizes) / len(sizes), shutil.disk_usage(job.out).free
  message = f"{len(clips)} clips need about {format_bytes(needed)}"
  message += f" (estimated from {len(sizes)} of them)"
  if needed > MARGIN * free:
    raise UserError(
      f"{job.out}: {message}, but only {format_bytes(free)} are free; free disk space"
    )
  if needed > free:
    message += ", which may not fit"
  duration = datetime.timedelta(seconds=round(seconds))
  message += f"; {format_bytes(free)} are free; {duration} (h:mm:ss) with {num_workers} processes"
  if job.storage.flow_algorithm == "tvl1":
    message += "; --flow_algorithm=dis is far faster, TV-L1 is the paper's"
  print(f"note: {message}", flush=True)


def format_bytes(count: int | float) -> str:
  """Returns a number of bytes in MB or, from a thousand on, in GB."""
  megabytes = count / 1e6
  return f"{megabytes / 1e3:.1f} GB" if megabytes >= 1000 else f"{megabytes:.1f} MB"


def _seconds_per_clip(
  timings: Collection[tuple[float, float]], num_clips: int, num_workers: int
) -> float:
  """Returns the seconds between two clips when all processes are busy.

  `timings` are the wall-clock and CPU seconds of requests with `num_clips` clips in all.
  """
  # From the time spent inside the processes: the time between two answers means nothing when they
  # arrive all at once or wait for a long one. Wall-clock time is the bound when processes wait for
  # a disk, CPU time when there are more processes than cores.
  clock, cpu = (sum(seconds) / num_clips for seconds in zip(*timings, strict=True))
  return max(clock / num_workers, cpu / min(num_workers, os.cpu_count()))


def _restore_missing_shards(
  listing: Listing,
  job: Job,
  plan: Plan,
  write: Callable[..., Iterator[tuple[shards.Key, shards.Shard]]],
) -> None:
  """Writes the missing shards of a finished data set again.

  Raises:
    UserError: if a restored shard would hold other clips than the original.
  """
  todo = {key: plan[key] for key in shards.find_missing(job.out, plan, job.num_shards)}
  if not todo:
    return
  skipped_ids = shards.read_skipped_ids(listing, job.out)
  with (
    _progress_bar(listing, todo) as on_clip_done,
    tempfile.TemporaryDirectory(dir=job.out, prefix=".again-") as folder,
  ):
    temp_job = dataclasses.replace(job, out=pathlib.Path(folder))
    for key, shard in write(temp_job, todo, on_clip_done=on_clip_done):
      path = store.shard_path(job.out, *key, job.num_shards[key[0]])
      skipped_paths = {clip.path for clip in shard.skipped}
      for clip in todo[key]:
        is_skipped = clip.path in skipped_paths
        if is_skipped != (clip.id in skipped_ids):
          change = "cannot be read, but could" if is_skipped else "can be read, but could not"
          raise UserError(
            f"{path}: {clip.path} {change} when the data set was prepared; restore the file, or"
            " prepare the data set in another folder"
          )
      os.replace(temp_job.out / path.name, path)
      files.sync(job.out)


@contextlib.contextmanager
def _progress_bar(listing: Listing, todo: Plan) -> Iterator[OnClipDone]:
  """Shows a progress bar; yields the callback that advances it."""
  total = sum(map(len, listing.splits.values()))
  bar = tqdm.tqdm(
    total=total,
    initial=total - sum(map(len, todo.values())),
    unit="image" if listing.images else "clip",
    mininterval=0.5 if sys.stderr.isatty() else 30,  # in a log every update is a line
    dynamic_ncols=True,
  )

  def on_clip_done(clip: Clip, reason: str | None) -> None:
    bar.update()
    if reason is not None:
      bar.write(escape(f"skipped {clip.path}: {reason}"), file=sys.stderr)
    # Here, because a shard of flow takes hours.
    signals.raise_if_requested()

  with bar:
    yield on_clip_done


def _check_present(listing: Listing, max_unreadable: float) -> None:
  """Raises UserError if too many files are missing: early, as decoding may take days."""
  clips = [clip for split in listing.splits.values() for clip in split if clip.load is None]
  # One directory listing per folder: 220,000 single lookups take minutes on network file systems.
  present = collections.defaultdict(set)
  for folder in {os.path.dirname(clip.file) for clip in clips}:
    with contextlib.suppress(OSError):
      present[folder] = set(os.listdir(folder or "."))
  missing = [
    clip for clip in clips if os.path.basename(clip.file) not in present[os.path.dirname(clip.file)]
  ]
  total = sum(map(len, listing.splits.values()))
  if len(missing) > max_unreadable * total:
    share = finalize.format_percent(len(missing) / total)
    raise UserError(
      f"{missing[0].path}: missing, as {len(missing)} of {total} clips are ({share};"
      f" --max_unreadable is {finalize.format_percent(max_unreadable)}); add the files"
    )


def report(dataset: store.PreparedDataset, listing: Listing) -> str:
  """Returns a summary of a prepared data set, with differences from the official counts."""
  names = dataset.class_names
  unit = "images" if listing.images else "clips"
  more = ", ..." if len(names) > NAMES_SHOWN else ""
  lines = [
    f"{dataset.folder}: {len(names)} classes",
    *_report_splits(dataset, listing, unit),
    *_report_problems(dataset, unit),
    *_report_rare_classes(listing, names, unit),
    f"  classes: {', '.join(names[:NAMES_SHOWN])}{more}",
  ]
  return "\n".join(lines)


def _report_splits(dataset: store.PreparedDataset, listing: Listing, unit: str) -> Iterator[str]:
  for split, info in dataset.info.splits.items():
    line = f"  {split}: {info.num_examples} {unit}, {format_bytes(info.num_bytes)}"
    if official := listing.official.get(split):
      listed, difference = len(listing.splits[split]), "complete"
      if info.num_examples != official:
        difference = (
          f"a difference of {info.num_examples - official:+d} ({listed - official:+d} in the lists,"
          f" {listed - info.num_examples} skipped)"
        )
      line += f"; officially {official}: {difference}"
    yield line
  for split in listing.official.keys() - dataset.info.splits.keys():
    yield f"  {split}: missing; officially {listing.official[split]}"


def _report_problems(dataset: store.PreparedDataset, unit: str) -> Iterator[str]:
  """Yields a line each on skipped clips, copies and clips that were not compared."""
  metadata, leaks_path = dataset.info.metadata, dataset.folder / finalize.LEAKS
  if skipped := metadata["skipped"]:
    yield f"  skipped: {skipped}, see {dataset.folder / shards.SKIPPED}"
  if leaks := metadata.get("leaks", 0):
    yield (
      f"  {leaks} {unit} look like a training one (copies or the same scene), so the accuracy may"
      f" be too high; see {leaks_path}"
    )
  if share := metadata.get("share_alike"):
    yield (
      f"  {finalize.format_percent(share)} of the training {unit} look like one of another class,"
      f" as with a fixed camera; copies cannot be detected, so {leaks_path} lists none"
    )
  if not_compared := metadata.get("not_compared", 0):
    yield f"  {not_compared} {unit} are too plain to be compared with others"


def _report_rare_classes(listing: Listing, names: Sequence[str], unit: str) -> Iterator[str]:
  counts = collections.Counter(clip.label for clip in listing.splits.get("train", ()))
  rare = [f"{name} ({counts[i]})" for i, name in enumerate(names) if counts[i] < FEW_CLIPS]
  if rare and counts:
    more = f" and {len(rare) - NAMES_SHOWN} more" if len(rare) > NAMES_SHOWN else ""
    yield (
      f"  fewer than {FEW_CLIPS} training {unit}: {', '.join(rare[:NAMES_SHOWN])}"
      f"{more}; data.balance draws rare classes more often"
    )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Parses the command line."""
  parser = command_line.Parser("python -m data.prepare", description=__doc__.split("\n")[0])
  add = parser.add_argument
  add("--dataset", required=True, choices=DATASETS)
  add("--source", required=True, help="the data set's folder, or a CSV file")
  add("--out", required=True, help="folder for the prepared data set")
  add("--split", type=int, default=1, help="official split of ucf101 and hmdb51 (default: 1)")
  add(
    "--group_pattern",
    default="",
    help="for folders of videos or images: regular expression; clips whose paths match it with the"
    " same text, for example one person's, are kept in one split",
  )
  add("--modality", choices=MODALITIES, default="rgb")
  add("--flow_algorithm", choices=flow.ALGORITHMS, default="tvl1", help="'dis' is far faster")
  add("--short_edge", type=int, default=240, help="pixels of the stored frames (default: 240)")
  add(
    "--jpeg_quality", type=int, default=decode.JPEG_QUALITY, help="1 to 100 (default: %(default)s)"
  )
  add(
    "--crop",
    help="X,Y,W,H: the region of every frame to keep, in pixels of the frame as displayed, or in"
    " shares of it if all are at most 1",
  )
  add(
    "--fold",
    help="K/N: holds out the K-th of N parts of the training clips for validation, to find wrong"
    " labels among them (docs/videos.md)",
  )
  add("--corrections", help="CSV file of corrected labels, from the page of --mode=report")
  add("--preview", help=".jpg file: only draws frames of some clips as the network will see them")
  add("--workers", type=int, default=os.cpu_count(), help="processes that decode (default: cores)")
  add("--cluster", help="address of a Dask scheduler whose workers decode (docs/scaling.md)")
  add(
    "--max_unreadable",
    type=float,
    default=0.01,
    help="share of clips that may be unreadable; skipped.csv lists them (default: 0.01)",
  )
  return parser.parse_args(argv)


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command; user errors, SIGTERM and Ctrl-C are reported in one line."""
  args = parse(argv)
  check_repeated(sys.argv if argv is None else ["", *argv])
  try:
    with signals.signal_handlers():
      _prepare_listing(args)
  except signals.Interrupted as interrupted:
    print(f"{interrupted}; rerun the same command to resume {args.out}", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _prepare_listing(args: argparse.Namespace) -> None:
  """Lists the clips, prepares them and prints a report."""
  out = files.parse_data_dir(args.out, "--out")
  args.source = files.parse_local_path(args.source)
  if args.dataset in ("videos", "images", "frames"):  # the others name their folders
    _check_outside_source(args.source, out)
  listing = DATASETS[args.dataset](args)
  check_trainable_classes(listing, str(args.source))
  listing = shards.match_earlier_splits(listing, out)
  origin = {"dataset": args.dataset}
  if args.corrections:
    path = files.parse_local_path(args.corrections)
    listing, origin["corrections"] = corrections.apply_corrections(listing, path)
  if args.fold:
    listing = folds.hold_out_fold(listing, args.fold, str(args.source))
    origin["fold"] = args.fold
  for note in listing.notes:
    print(escape(f"note: {note}"), flush=True)
  signals.raise_if_requested()
  if args.dataset in ("ucf101", "hmdb51"):
    origin["split"] = args.split
  algorithm = args.flow_algorithm if args.modality == "flow" else None
  crop = choose_crop(listing, args.crop)
  storage = Storage(args.modality, args.short_edge, args.jpeg_quality, algorithm, crop)
  if args.preview:
    preview.write_preview(args.preview, listing, storage, args.workers)
    print(escape(f"written: {args.preview}; without --preview the same command prepares the data"))
    return
  dataset = prepare(
    listing,
    out,
    storage,
    origin=origin,
    num_workers=args.workers,
    max_unreadable=args.max_unreadable,
    cluster=args.cluster,
  )
  print(escape(report(dataset, listing)))
  if lines := suggestion.suggest_commands(dataset):
    print(escape("\n".join(["next, for example:", *lines])))


def choose_crop(listing: Listing, crop: str | None) -> str | None:
  """Returns the field `crop` of `Storage`.

  Args:
    crop: the value of --crop.

  Raises:
    UserError: if it is not a region, or the listing has regions of its own.
  """
  regions = {clip.region for clips in listing.splits.values() for clip in clips}
  if regions != {None}:
    if crop:
      raise UserError("--crop: the clips have regions of their own; leave it out")
    return str(*regions) if len(regions) == 1 else BY_CLIP
  if crop is None:
    return None
  try:
    return str(parse_region(crop))
  except UserError as error:
    raise UserError(f"--crop: {error}") from error


def _check_outside_source(source: pathlib.Path, out: pathlib.Path) -> None:
  """Raises UserError if `out` lies in `source`, where the next listing would find it."""
  if (out / store.SETTINGS).exists():  # started by a version that allowed it
    return
  parents = pathlib.Path(os.path.realpath(out)).parents
  if pathlib.Path(os.path.realpath(source)) in parents:
    raise UserError(f"--out {out}: lies in --source {source}; choose a folder outside of it")
