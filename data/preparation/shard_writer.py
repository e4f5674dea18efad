"""Writes shards: decodes every clip and stores its frames."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from data.input import store
from data.preparation import decoding, file_states, shards, workers
from data.preparation.file_states import State
from data.preparation.workers import Decoded, Skipped
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import region, stream
from u2s_jax.video.decode import Storage
from u2s_jax.video.listing import Clip

# Segments of one video that a process decodes before it answers; it holds their JPEG frames in
# memory, and so does this process. The bytes are estimated from the short edge at quality 95 (half
# a byte a pixel, 30 frames of 16:9 a second); a group that does not fit into memory after all is
# decoded segment by segment.
MAX_SEGMENTS, MAX_SECONDS, MAX_GROUP_BYTES = 64, 300.0, 2**29
Plan = Mapping[shards.Key, Sequence[Clip]]
# The frames of a clip or why there are none, and the state of its file before it was read.
Answer = tuple[Decoded | Skipped, State | None]
# Called for every clip that is done, with the reason if it is skipped.
OnClipDone = Callable[[Clip, str | None], None]


@dataclasses.dataclass(frozen=True)
class Job:
  """Settings of all shards of a data set."""

  out: pathlib.Path  # folder of the data set
  names: tuple[str, ...]  # of the classes, in the order of the labels
  images: bool  # whether the clips are images
  storage: Storage
  num_shards: Mapping[str, int]  # by split


def write_shards(
  job: Job, todo: Plan, num_workers: int, on_clip_done: OnClipDone
) -> Iterator[tuple[shards.Key, shards.Shard]]:
  """Writes shards on this machine and yields each when it is done."""
  clips = itertools.chain.from_iterable(todo.values())
  with contextlib.closing(decode_clips(job, group_clips(job, clips), num_workers)) as answers:
    for key, clips in todo.items():
      yield key, write_shard(job, job.out, key, clips, answers, on_clip_done)


def decode_clips(
  job: Job,
  groups: Iterable[Sequence[Clip]],
  num_workers: int,
  timings: dict[int, tuple[float, float]] | None = None,
) -> Iterator[Answer]:
  """Decodes groups of clips and yields the clips in order; a few are decoded ahead of the consumer.

  `timings` receives the seconds that each group took; see `workers.process_requests`.
  """
  fields = {"storage": dataclasses.asdict(job.storage), "is_image": job.images}
  # Groups whose answer is pending, each with a list that receives the state of its file.
  pending = collections.deque()

  def requests() -> Iterator[Callable[[], Any]]:
    for group in groups:
      pending.append((group, []))
      yield functools.partial(_make_request, *pending[-1])

  decoder = "data.preparation.decoding:make_decoder"
  with contextlib.closing(
    workers.process_requests(decoder, fields, requests(), num_workers, timings)
  ) as answers:
    for answer in answers:
      group, states = pending.popleft()
      results = answer if isinstance(answer, list) else [answer] * len(group)
      singly = []
      if _should_decode_singly(group, results):
        pairs = zip(group, results, strict=True)
        singly = [[clip] for clip, result in pairs if isinstance(result, Skipped)]
      with contextlib.closing(decode_clips(job, singly, num_workers=1)) as retried:
        for result in results:
          retry = singly and isinstance(result, Skipped)
          yield next(retried) if retry else (result, states[0])


def _make_request(
  group: Sequence[Clip], states: list[State | None]
) -> tuple[str, bytes | None, Sequence | None, str | None] | Skipped:
  """Returns the request for a group and appends its file's state; runs in a worker's thread."""
  clip, content = group[0], None
  try:
    if clip.load is None:
      # Before the file is read: if it is still being copied, its state is another one afterwards.
      states.append(file_states.read_file_state(clip.file))
    else:
      content = clip.load()
      states.append(file_states.compute_content_state(content))
  except OSError as error:
    states.append(None)
    return decoding.skip_unreadable(error)
  spans = [clip.span for clip in group] if clip.span else None
  return os.path.abspath(clip.file), content, spans, clip.region and str(clip.region)


def _should_decode_singly(group: Sequence[Clip], results: Sequence[Decoded | Skipped]) -> bool:
  """Returns whether the segments of a group that failed may succeed one by one.

  Together they may be too large, or one of them may end the process or hide all that follow.
  """
  reasons = [result.reason for result in results if isinstance(result, Skipped)]
  # A video that stalls the decoder would do so for `workers.MAX_CPU` seconds per segment.
  has_stalled = any(reason.startswith(workers.STALLED) for reason in reasons)
  return len(group) > 1 and bool(reasons) and not has_stalled


def group_clips(job: Job, clips: Iterable[Clip]) -> Iterator[list[Clip]]:
  """Yields groups of clips that one process decodes in one pass: adjacent segments, or one clip.

  A gap between two segments would be decoded as well, so a long gap starts a new group.
  """
  bytes_per_second = 0.5 * 30 * 16 / 9 * job.storage.short_edge**2
  max_seconds = min(MAX_SECONDS, MAX_GROUP_BYTES / bytes_per_second)
  group: list[Clip] = []
  for clip in clips:
    is_adjacent = (
      group
      and clip.span
      and group[-1].span
      and clip.file == group[-1].file
      and clip.region == group[-1].region
      and clip.span[0] >= group[-1].span[0]
      and clip.span[0] <= max(c.span[1] for c in group) + stream.SEEK_FROM
      and len(group) < MAX_SEGMENTS
      and sum(c.span[1] - c.span[0] for c in [*group, clip]) <= max_seconds
    )
    if group and not is_adjacent:
      yield group
      group = []
    group.append(clip)
  if group:
    yield group


def write_shard(
  job: Job,
  folder: pathlib.Path,
  key: shards.Key,
  clips: Sequence[Clip],
  answers: Iterator[Answer],
  on_clip_done: OnClipDone,
) -> shards.Shard:
  """Writes one shard to `folder`; the next answers of `decode_clips` are those for its clips."""
  skipped, fingerprints, states = [], [], []

  def examples() -> Iterator[dict[str, Any]]:
    pairs = zip(clips, itertools.islice(answers, len(clips)), strict=True)
    for clip, (answer, state) in pairs:
      states.append(state)
      if isinstance(answer, Skipped):
        if answer.reason.startswith(region.OUTSIDE):  # a mistake in the command or the CSV file
          raise UserError(f"{clip.path}: {answer.reason}; correct it")
        fingerprints.append("")
        saved_state = None if answer.retry else state
        skipped.append(shards.SkippedClip(clip.path, answer.reason, saved_state, clip.file))
        on_clip_done(clip, answer.reason)
        continue
      fingerprints.append(answer.fingerprint)
      on_clip_done(clip, None)
      frames = answer.frames
      count = len(frames) // 2 if job.storage.modality == "flow" else len(frames)
      yield {"id": clip.id, "label": clip.label, "num_frames": count, "frames": frames}

  path = store.shard_path(folder, *key, job.num_shards[key[0]])
  count, size = store.write_shard(path, examples(), job.names)
  return shards.Shard(count, size, skipped, fingerprints, states)
