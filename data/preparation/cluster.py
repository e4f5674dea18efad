"""Writes shards on a Dask cluster: `data.prepare --cluster=ADDRESS`.

One task writes one shard. If its worker dies, the scheduler runs the task on another one. All
workers must see the folder of the data set and the videos under the same paths.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence

from data.input import store
from data.preparation import shard_writer, shards
from data.preparation.shard_writer import Job, OnClipDone, Plan
from u2s_jax.runtime import files, signals
from u2s_jax.runtime.errors import UserError
from u2s_jax.video.listing import Clip

CONNECT_TIMEOUT = 30  # seconds
POLL_SECONDS = 0.2
PARTIAL = ".shard-"  # prefix of temporary directories; every task writes to its own


def write_shards(
  job: Job, todo: Plan, address: str, on_clip_done: OnClipDone
) -> Iterator[tuple[shards.Key, shards.Shard]]:
  """Writes shards on a cluster and yields each when it is done, in any order.

  `address` is the scheduler's, as `tcp://host:8786`.

  Raises:
    UserError: if the cluster cannot be reached or cannot write the shards.
    signals.Interrupted: if the process is asked to stop.
  """
  try:
    import distributed
  except ImportError as error:
    raise UserError("--cluster: requires the package `distributed`; install it") from error
  for key, clips in todo.items():
    if clips[0].load is not None:
      raise UserError(
        f"--cluster: the clips of split {key[0]!r} are not in files of their own; leave it out"
      )
  try:
    client = distributed.Client(address, timeout=CONNECT_TIMEOUT)
  except (OSError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(f"--cluster {address}: cannot connect to the scheduler ({reason})") from error
  for leftover in job.out.glob(f"{PARTIAL}*"):  # of a command that was killed
    shutil.rmtree(leftover, ignore_errors=True)
  scratch = tempfile.TemporaryDirectory(
    dir=job.out.absolute(), prefix=PARTIAL, ignore_cleanup_errors=True
  )
  cluster_errors = distributed.comm.CommClosedError, distributed.KilledWorker, ImportError
  # In this order, so that the client is closed first: until then tasks may start and need the
  # scratch directory.
  with scratch as folder, client:
    keys = {
      client.submit(write_shard, job, folder, key, clips, os.getcwd(), pure=False): key
      for key, clips in todo.items()
    }
    results = distributed.as_completed(keys, with_results=True)
    try:
      while not results.is_empty():
        # Polled, because a blocking `next` returns only when a shard is done, after minutes.
        signals.raise_if_requested()
        if not results.has_ready():
          time.sleep(POLL_SECONDS)
          continue
        task, result = next(results)
        if task.status != "finished":
          raise UserError(
            f"--cluster {address}: the scheduler has stopped; restart it, then rerun the same"
            " command to resume"
          )
        key, (path, shard) = keys[task], result
        # Moved here and not by the workers: if the scheduler took a live worker for dead, two have
        # written the same shard, and only one result arrives.
        os.replace(path, job.out / pathlib.Path(path).name)
        files.sync(job.out)
        reasons = {clip.path: clip.reason for clip in shard.skipped}
        for clip in todo[key]:
          on_clip_done(clip, reasons.get(clip.path))
        yield key, shard
    except cluster_errors as error:
      raise UserError(f"--cluster {address}: {' '.join(str(error).split())[:300]}") from error


def write_shard(
  job: Job, scratch: str, key: shards.Key, clips: Sequence[Clip], root: str
) -> tuple[str, shards.Shard]:
  """Writes one shard, whose clips have paths relative to `root`; the task of a worker.

  Returns:
    Path of the file in `scratch`, to be moved to the data set's folder, and the shard.

  Raises:
    UserError: if this worker does not see the folder.
  """
  if not os.path.isdir(scratch):
    raise UserError(
      f"{scratch}: missing on {socket.gethostname()}; --out must be a folder that all workers see"
    )
  folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
  found = [dataclasses.replace(clip, file=os.path.join(root, clip.file)) for clip in clips]
  answers = shard_writer.decode_clips(job, shard_writer.group_clips(job, found), num_workers=1)
  with contextlib.closing(answers):
    shard = shard_writer.write_shard(
      job, folder, key, clips, answers, on_clip_done=lambda clip, reason: None
    )
  return str(store.shard_path(folder, *key, job.num_shards[key[0]])), shard
