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

# Parts of a video that a process keeps before it answers: its JPEG frames are in memory, there and
# on their way. By the bytes that frames of a short edge take at quality 95 (half a byte a pixel, 30
# frames of 16:9 a second), which is no more than a guess: what does not fit is tried part by part.
MAX_PARTS, MAX_SECONDS, MAX_RUN_BYTES = 64, 300.0, 2**29
Plan = Mapping[shards.Key, Sequence[Clip]]
# A clip's frames, or why there are none, and what its file was like before it was read.
Answer = tuple[Decoded | Skipped, shards.State | None]
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
  with contextlib.closing(decoded(job, runs(job, clips), num_workers)) as answers:
    for key, clips in todo.items():
      yield key, write(job, job.out, key, clips, answers, told)


def decoded(
  job: Job,
  todo: Iterable[Sequence[Clip]],
  num_workers: int,
  spent: dict[int, tuple[float, float]] | None = None,
) -> Iterator[Answer]:
  """Decodes clips, in their order, a few ahead of the reader.

  Args:
    job: what they are decoded for.
    todo: the clips, of any number of shards, as `runs` puts them together.
    num_workers: processes that decode.
    spent: gets the seconds that each run took, see `workers.run`.
  """

  def request(run: Sequence[Clip], states: list[shards.State | None]) -> Sequence[Any] | Skipped:
    clip, content = run[0], None
    try:
      if clip.load is None:
        # Before it is read: a file that is still being copied is another one afterwards.
        states.append(shards.file_state(clip.file))
      else:
        content = clip.load()
        states.append(shards.content_state(content))
    except OSError as error:
      states.append(None)
      return decode.unreadable(error)
    spans = [clip.span for clip in run] if clip.span else None
    return os.path.abspath(clip.file), content, spans

  fields = {"storage": dataclasses.asdict(job.storage), "is_image": job.images}
  asked = collections.deque()

  def requests() -> Iterator[Callable[[], Any]]:
    for run in todo:
      asked.append((run, []))
      yield functools.partial(request, *asked[-1])

  with contextlib.closing(
    workers.run("data.decode:worker", fields, requests(), num_workers, spent)
  ) as answers:
    for answer in answers:
      run, states = asked.popleft()
      parts = answer if isinstance(answer, list) else [answer] * len(run)
      failed = [clip for clip, part in zip(run, parts, strict=True) if isinstance(part, Skipped)]
      # What hangs the decoder would do so a minute for each part.
      stalled = any(isinstance(p, Skipped) and p.reason.startswith(workers.STALLED) for p in parts)
      if len(run) == 1 or not failed or stalled:
        yield from ((part, states[0]) for part in parts)
        continue
      # Together they may be too large, or one of them ends the process, or all that come after it.
      with contextlib.closing(decoded(job, ([clip] for clip in failed), num_workers=1)) as again:
        for part in parts:
          yield next(again) if isinstance(part, Skipped) else (part, states[0])


def runs(job: Job, clips: Iterable[Clip]) -> Iterator[list[Clip]]:
  """Yields clips that one process decodes in one go: neighbouring parts of a video, or one clip.

  What lies between two parts would be decoded too: where it is long the next run jumps over it.

  Args:
    job: what they are decoded for.
    clips: in the order in which they are wanted.
  """
  bytes_per_second = 0.5 * 30 * 16 / 9 * job.storage.short_edge**2
  longest = min(MAX_SECONDS, MAX_RUN_BYTES / bytes_per_second)
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
      and sum(end - start for start, end in (c.span for c in [*run, clip])) <= longest
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
  answers: Iterator[Answer],
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
  states: list[shards.State | None] = []

  def examples() -> Iterator[dict[str, Any]]:
    pairs = zip(clips, itertools.islice(answers, len(clips)), strict=True)
    for clip, (answer, state) in pairs:
      states.append(state)
      prints.append("" if isinstance(answer, Skipped) else answer.fingerprint)
      if isinstance(answer, Skipped):
        known = None if answer.retry else state
        skipped.append(shards.SkippedClip(clip.path, answer.reason, known, clip.file))
        told(clip, answer.reason)
        continue
      told(clip, None)
      frames = answer.frames
      count = len(frames) // 2 if job.storage.modality == "flow" else len(frames)
      yield {"id": clip.id, "label": clip.label, "num_frames": count, "frames": frames}

  count, size = store.write_shard(
    folder, split, shard, job.num_shards[split], examples(), job.names
  )
  return shards.Shard(count, size, skipped, prints, states)
