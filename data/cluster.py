"""Shards made on a Dask cluster: `data.prepare --cluster=ADDRESS`.

A task makes a shard; where its worker dies, the scheduler has another one make it. The folder of
the data set and the videos have to be where all workers see them, under the same paths.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence

from data import making, shards, store
from data.making import Job, Plan, Told
from data.sources.listing import Clip
from u2s_jax import files
from u2s_jax.errors import UserError

CONNECT = 30  # seconds
PARTIAL = ".shard-"  # begins the folder that a shard is made in; no two tasks share one


def written(
  job: Job, todo: Plan, address: str, told: Told
) -> Iterator[tuple[shards.Key, shards.Shard]]:
  """Makes shards on a cluster, and yields each when it is written, in any order.

  Args:
    job: what they are made with.
    todo: their clips, all in files of their own.
    address: of the scheduler, as `tcp://host:8786`.
    told: of the clips, when their shard is written.

  Raises:
    UserError: there is no such cluster, or the shards cannot be made there.
  """
  try:
    import distributed
  except ImportError as error:
    raise UserError("--cluster needs the package `distributed`: install it") from error
  for key, clips in todo.items():
    if clips[0].load is not None:
      raise UserError(f"--cluster: split {key[0]!r} is in no files of its own; leave --cluster out")
  try:
    client = distributed.Client(address, timeout=CONNECT)
  except (OSError, ValueError) as error:
    raise UserError(f"--cluster {address}: {' '.join(str(error).split())[:200]}") from error
  for left in job.out.glob(f"{PARTIAL}*"):  # of a command that was killed
    shutil.rmtree(left, ignore_errors=True)
  # The folder goes after the client: until then tasks may begin.
  scratch = tempfile.TemporaryDirectory(
    dir=job.out.absolute(), prefix=PARTIAL, ignore_cleanup_errors=True
  )
  gone = distributed.comm.CommClosedError, distributed.KilledWorker, ImportError
  with scratch as folder, client:
    tasks = {}
    for key, clips in todo.items():
      absolute = [dataclasses.replace(clip, file=os.path.abspath(clip.file)) for clip in clips]
      tasks[client.submit(make, job, folder, key, absolute, pure=False)] = key
    try:
      for task, made in distributed.as_completed(tasks, with_results=True):
        if task.status != "finished":
          raise UserError(f"--cluster {address}: the scheduler is gone; the same command goes on")
        path, shard = made
        # Here: of two workers that made it, where the scheduler took one for dead, one is counted.
        os.replace(path, job.out / pathlib.Path(path).name)
        files.sync(job.out)
        yield tasks[task], _told(todo[tasks[task]], shard, told)
    except gone as error:
      raise UserError(f"--cluster {address}: {' '.join(str(error).split())[:300]}") from error


def make(
  job: Job, scratch: str, key: shards.Key, clips: Sequence[Clip]
) -> tuple[str, shards.Shard]:
  """Makes one shard: a worker's task.

  Args:
    job: what it is made with.
    scratch: folder in that of the data set, where shards are made.
    key: of the shard.
    clips: its, with absolute paths.

  Returns:
    Its file, to be moved to the data set, and the shard.

  Raises:
    UserError: this worker does not see the folder.
  """
  if not os.path.isdir(scratch):
    raise UserError(
      f"{scratch} is not there on {socket.gethostname()}: --out has to be where all workers see it"
    )
  folder = pathlib.Path(tempfile.mkdtemp(dir=scratch))
  answers = making.decoded(job, making.runs(job, clips), num_workers=1)
  with contextlib.closing(answers):
    shard = making.write(job, folder, key, clips, answers, told=lambda clip, reason: None)
  return str(store.shard_path(folder, *key, job.num_shards[key[0]])), shard


def _told(clips: Sequence[Clip], shard: shards.Shard, told: Told) -> shards.Shard:
  """Tells of the clips of a shard; returns it with their paths as the user named them."""
  skipped = {clip.path: clip for clip in shard.skipped}
  named = []
  for clip in clips:
    left_out = skipped.get(os.path.abspath(clip.path))
    told(clip, left_out.reason if left_out else None)
    if left_out:
      named.append(left_out._replace(path=clip.path))
  return shard._replace(skipped=named)
