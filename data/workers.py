"""The one pool of processes, for decoding and for rendering.

A process runs `python -m data.workers <module>:<function> <JSON>`: it calls the function with the
JSON's fields, and what that returns with every request. Programs of their own rather than
`multiprocessing`: spawned workers import the parent's main module once more, and with it TensorFlow
and JAX; and a worker that is killed shows as a closed pipe, not as a hang.
"""

import collections
import concurrent.futures
import contextlib
import importlib
import json
import os
import pathlib
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

AHEAD = 4  # requests a worker may be ahead of the reader: bounds the memory where that is slower


class Decoded(NamedTuple):
  """A clip's JPEG frames."""

  frames: list[bytes]


class Skipped(NamedTuple):
  """Why a request has no result, and whether another attempt may have one."""

  reason: str
  retry: bool = False


def run(
  function: str,
  fields: Mapping[str, Any],
  requests: Iterable[Callable[[], Any]],
  num_workers: int,
) -> Iterator[Any]:
  """Answers requests in order, a few ahead of the reader.

  Args:
    function: '<module>:<function>', see above.
    fields: its arguments, in JSON's types.
    requests: each is called in a thread, and what it returns, to be pickled, is sent to a process;
      a `Skipped` is the answer itself.
    num_workers: processes, at least 1.

  Yields:
    The answers; a `Skipped` where a process ended twice over a request.
  """
  workers = [_Worker(function, fields) for _ in range(num_workers)]
  idle = queue.SimpleQueue()
  for worker in workers:
    idle.put(worker)

  def answer(request: Callable[[], Any]) -> Any:
    worker = idle.get()  # Never waits: there are as many threads as workers.
    try:
      content = request()
      return content if isinstance(content, Skipped) else worker.ask(content)
    finally:
      idle.put(worker)

  threads = concurrent.futures.ThreadPoolExecutor(num_workers)
  pending = collections.deque()
  try:
    for request in requests:
      pending.append(threads.submit(answer, request))
      if len(pending) > AHEAD * num_workers:
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
  """A process; started when first needed, and again where a request killed it."""

  def __init__(self, function: str, fields: Mapping[str, Any]):
    self._arguments = [function, json.dumps(fields)]
    self._process = None
    self._killed = False

  def ask(self, request: Any) -> Any:
    """Returns the answer to a request."""
    for _ in range(2):  # A process that somebody else killed says nothing of the request.
      if self._process is None:
        self._process = self._start()
      try:
        pickle.dump(request, self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)
      except (OSError, EOFError, pickle.UnpicklingError):
        self._process.kill()
        status = self._process.wait()
        self.close()
      if self._killed:
        break
    reason = f"its process ended twice, with status {status} (a crash, or out of memory)"
    return Skipped(reason, retry=True)

  def kill(self) -> None:
    """Ends the process, whatever it is doing; nothing is answered any more."""
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
    root = str(pathlib.Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # One thread each: there is a process for every core already.
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
      # `-P`: the current folder, where a neighbour could hide a library, is not on the path.
      [sys.executable, "-P", "-m", "data.workers", *self._arguments],
      env=os.environ | single | {"PYTHONPATH": path},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      start_new_session=True,  # Ctrl-C reaches the parent alone, which ends them in order.
    )


def serve(function: str, fields: Mapping[str, Any]) -> None:
  """Answers pickled requests from stdin on stdout, until stdin ends.

  Args:
    function: see `run`.
    fields: see `run`.
  """
  module, _, name = function.partition(":")
  answer = getattr(importlib.import_module(module), name)(**fields)
  while True:
    try:
      request = pickle.load(sys.stdin.buffer)
    except EOFError:
      return
    result = answer(request)
    try:
      pickle.dump(result, sys.stdout.buffer)
      sys.stdout.buffer.flush()
    except BrokenPipeError:  # Who asked is gone.
      os._exit(1)  # Not `return`: Python would try to flush once more.


if __name__ == "__main__":
  # By its name: as `__main__` its records would be other types than the parent's.
  importlib.import_module("data.workers").serve(sys.argv[1], json.loads(sys.argv[2]))
