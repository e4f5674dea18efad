"""Shards made of clips: every frame decoded, and written."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from data import decode, footage, shards, store, workers
from data.decode import Storage
from data.sources.listing import Clip
from data.workers import Decoded, Skipped

# Parts of a video that a process keeps before it answers.
MAX_PARTS, MAX_SECONDS = 64, 300.0
Plan = Mapping[shards.Key, Sequence[Clip]]
# Called with every clip that is done, and why it is left out, None where it is not.
Told = Callable[[Clip, str | None], None]


@dataclasses.dataclass(frozen=True)
class Job:
  """What all shards of a data set are made with.

  Attributes:
    out: folder of the data set.
    names: class names in the order of the labels.
    images: whether the clips are images.
    storage: what becomes of the frames.
    num_shards: by split.
  """

  out: pathlib.Path
  names: tuple[str, ...]
  images: bool
  storage: Storage
  num_shards: Mapping[str, int]


def written(
  job: Job, todo: Plan, num_workers: int, told: Told
) -> Iterator[tuple[shards.Key, shards.Shard]]:
  """Makes shards on this machine, and yields each when it is written.

  Args:
    job: what they are made with.
    todo: their clips.
    num_workers: processes that decode, at least 1.
    told: of the clips.
  """
  clips = itertools.chain.from_iterable(todo.values())
  with contextlib.closing(decoded(job, clips, num_workers)) as answers:
    for key, clips in todo.items():
      yield key, write(job, job.out, key, clips, answers, told)


def decoded(job: Job, clips: Iterable[Clip], num_workers: int) -> Iterator[Decoded | Skipped]:
  """Decodes clips, in their order, a few ahead of the reader.

  Args:
    job: what they are decoded for.
    clips: of any number of shards.
    num_workers: processes that decode.
  """

  def request(run: Sequence[Clip]) -> Sequence[Any] | Skipped:
    spans = [clip.span for clip in run] if run[0].span else None
    try:
      return os.path.abspath(run[0].file), run[0].load() if run[0].load else None, spans
    except OSError as error:
      return decode.unreadable(error)

  fields = {"storage": dataclasses.asdict(job.storage), "is_image": job.images}
  counts = collections.deque()

  def requests() -> Iterator[Callable[[], Any]]:
    for run in _runs(clips):
      counts.append(len(run))
      yield functools.partial(request, run)

  with contextlib.closing(
    workers.run("data.decode:worker", fields, requests(), num_workers)
  ) as answers:
    for answer in answers:
      count = counts.popleft()
      yield from answer if isinstance(answer, list) else itertools.repeat(answer, count)


def _runs(clips: Iterable[Clip]) -> Iterator[list[Clip]]:
  """Yields clips that one process decodes in one go: neighbouring parts of a video, or one clip.

  What lies between two parts would be decoded too: where it is long the next run jumps over it.
  """
  run: list[Clip] = []
  for clip in clips:
    joins = (
      run
      and clip.span
      and run[-1].span
      and clip.file == run[-1].file
      and clip.span[0] >= run[-1].span[0]
      and clip.span[0] <= max(end for _, end in (c.span for c in run)) + footage.SEEK_FROM
      and len(run) < MAX_PARTS
      and sum(end - start for start, end in (c.span for c in [*run, clip])) <= MAX_SECONDS
    )
    if run and not joins:
      yield run
      run = []
    run.append(clip)
  if run:
    yield run


def write(
  job: Job,
  folder: pathlib.Path,
  key: shards.Key,
  clips: Sequence[Clip],
  answers: Iterator[Decoded | Skipped],
  told: Told,
) -> shards.Shard:
  """Writes one shard.

  Args:
    job: what it is made with.
    folder: to write to.
    key: of the shard.
    clips: its.
    answers: of `decoded`, whose next are those of these clips.
    told: of the clips.
  """
  split, shard = key
  skipped: list[shards.SkippedClip] = []
  prints: list[str] = []

  def examples() -> Iterator[dict[str, Any]]:
    for clip, answer in zip(clips, itertools.islice(answers, len(clips)), strict=True):
      prints.append("" if isinstance(answer, Skipped) else answer.fingerprint)
      if isinstance(answer, Skipped):
        state = None if answer.retry else shards.file_state(clip.file)
        skipped.append(shards.SkippedClip(clip.path, answer.reason, state, clip.file))
        told(clip, answer.reason)
        continue
      told(clip, None)
      frames = answer.frames
      count = len(frames) // 2 if job.storage.modality == "flow" else len(frames)
      yield {"id": clip.id, "label": clip.label, "num_frames": count, "frames": frames}

  count, size = store.write_shard(
    folder, split, shard, job.num_shards[split], examples(), job.names
  )
  return shards.Shard(count, size, skipped, prints)
