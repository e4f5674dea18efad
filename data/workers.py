"""The one pool of processes, for decoding and for rendering.

A process runs `python -m data.workers <module>:<function> <JSON>`: it calls the function with the
JSON's fields, and what that returns with every request. Programs of their own rather than
`multiprocessing`: spawned workers import the parent's main module once more, and with it TensorFlow
and JAX; and a worker that is killed shows as a closed pipe, not as a hang.

Both ways go messages of JSON and bytes: a decoder reads files that anybody may have made, and what
it sends is never executed.
"""

import collections
import concurrent.futures
import contextlib
import importlib
import io
import json
import os
import pathlib
import queue
import re
import resource
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

AHEAD = 4  # requests a worker may be ahead of the reader: bounds the memory where that is slower
MAX_HEADER_BYTES, MAX_CONTENT_BYTES = 2**26, 2**31  # of a message
MAX_MEMORY = 4 * 2**30  # bytes that a process may take
MAX_CPU = 60.0  # seconds of CPU without progress
STALLED = "no frame within"  # begins the reason of what made none
CONTENT = "bytes"  # key of what stands in the header for bytes behind it


class Decoded(NamedTuple):
  """A clip's JPEG frames, and of RGB its fingerprint, see `fingerprints`."""

  frames: list[bytes]
  fingerprint: str = ""


class Skipped(NamedTuple):
  """Why a request has no result, and whether another attempt may have one."""

  reason: str
  retry: bool = False


def run(
  function: str,
  fields: Mapping[str, Any],
  requests: Iterable[Callable[[], Any]],
  num_workers: int,
  spent: dict[int, tuple[float, float]] | None = None,
) -> Iterator[Any]:
  """Answers requests in order, a few ahead of the reader.

  Args:
    function: '<module>:<function>', see above.
    fields: its arguments, in JSON's types.
    requests: each is called in a thread, and what it returns, JSON's types and bytes, is sent to a
      process; a `Skipped` is the answer itself.
    num_workers: processes, at least 1.
    spent: gets the seconds that each request took its process, by the clock and of its CPU, under
      the request's number from 0, as soon as it is answered.

  Yields:
    The answers: `Decoded`, `Skipped`, a list of them, or JSON's types; a `Skipped` where a process
    ended twice over a request.
  """
  workers = [_Worker(function, fields) for _ in range(num_workers)]
  idle = queue.SimpleQueue()
  for worker in workers:
    idle.put(worker)

  def answer(number: int, request: Callable[[], Any]) -> Any:
    worker = idle.get()  # Never waits: there are as many threads as workers.
    try:
      content = request()
      if isinstance(content, Skipped):
        return content
      result, seconds = worker.ask(content)
      if spent is not None:
        spent[number] = seconds
      return result
    finally:
      idle.put(worker)

  threads = concurrent.futures.ThreadPoolExecutor(num_workers)
  pending = collections.deque()
  try:
    for number, request in enumerate(requests):
      pending.append(threads.submit(answer, number, request))
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

  def ask(self, request: Any) -> tuple[Any, tuple[float, float]]:
    """Returns the answer to a request, and the seconds that it took, see `run`."""
    for _ in range(2):  # A process that somebody else killed says nothing of the request.
      if self._process is None:
        self._process = self._start()
      try:
        send(self._process.stdin, request)
        kind, fields, seconds = receive(self._process.stdout)
        return KINDS[kind](*fields), tuple(seconds)
      except (OSError, EOFError, ValueError, TypeError, LookupError):
        self._process.kill()
        status = self._process.wait()
        self.close()
      if self._killed:
        break
    reason = f"its process ended twice, with status {status} (a crash, or out of memory)"
    return Skipped(reason, retry=True), (0.0, 0.0)

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
      self._command(),
      env=os.environ | single | {"PYTHONPATH": path},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      start_new_session=True,  # Ctrl-C reaches the parent alone, which ends them in order.
    )

  def _command(self) -> list[str]:
    # `-P`: the current folder, where a neighbour could hide a library, is not on the path.
    return [sys.executable, "-P", "-m", "data.workers", *self._arguments]


def send(pipe: io.BufferedIOBase, message: Any) -> None:
  """Writes a message: a header of JSON with its length, and the bytes that it speaks of.

  Args:
    pipe: that `receive` reads.
    message: of bytes and JSON's types but objects; tuples arrive as lists.
  """
  contents = []

  def header(part):
    if isinstance(part, bytes):
      contents.append(part)
      return {CONTENT: len(part)}
    return [header(item) for item in part] if isinstance(part, (list, tuple)) else part

  text = json.dumps(header(message)).encode()
  pipe.write(struct.pack("<Q", len(text)) + text)
  for content in contents:
    pipe.write(content)
  pipe.flush()


def receive(pipe: io.BufferedIOBase) -> Any:
  """Reads what `send` wrote.

  Raises:
    EOFError: the pipe ends.
    ValueError: it is no such message.
  """
  (length,) = struct.unpack("<Q", _exactly(pipe, 8, MAX_HEADER_BYTES))

  def message(part):
    if isinstance(part, dict):
      return _exactly(pipe, int(part[CONTENT]), MAX_CONTENT_BYTES)
    return [message(item) for item in part] if isinstance(part, list) else part

  return message(json.loads(_exactly(pipe, length, MAX_HEADER_BYTES)))


def _exactly(pipe, count, limit):
  if not 0 <= count <= limit:
    raise ValueError(f"a message of {count} bytes")
  content = pipe.read(count)
  if len(content) < count:
    raise EOFError
  return content


# What a process answers, by the word it is sent under.
KINDS = {
  "decoded": Decoded,
  "skipped": Skipped,
  "several": lambda *answers: [KINDS[kind](*fields) for kind, fields in answers],
  "value": lambda value: value,
}


def _message(result: Any) -> list[Any]:
  """Returns an answer as it is sent: its kind and its fields."""
  if isinstance(result, (Decoded, Skipped)):
    return [type(result).__name__.lower(), list(result)]
  if isinstance(result, list) and all(isinstance(part, (Decoded, Skipped)) for part in result):
    return ["several", [_message(part) for part in result]]
  return ["value", [result]]


class _Patience:
  """Counts the CPU time since the last progress; what a process serves tells it by `progress`."""

  since: float | None = None  # seconds of CPU when it was told; None: nothing to do


def progress() -> None:
  """Tells that a request goes forward: a frame is decoded."""
  if _Patience.since is not None:
    _Patience.since = time.process_time()


def serve(function: str, fields: Mapping[str, Any]) -> None:
  """Answers requests from stdin on what was stdout, until stdin ends; then ends at once.

  Args:
    function: see `run`.
    fields: see `run`.
  """
  answers = os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)  # what libraries print is no answer
  requests = queue.SimpleQueue()

  def listen():
    # A thread, so that a process whose parent is gone ends in the midst of a clip.
    with contextlib.suppress(EOFError):
      while True:
        requests.put(receive(sys.stdin.buffer))
    os._exit(0)

  def watch():
    while True:
      time.sleep(MAX_CPU / 60)
      since = _Patience.since
      if since is not None and time.process_time() - since > MAX_CPU:
        reason = f"{STALLED} {MAX_CPU:g} seconds of computing"
        send(answers, ["skipped", list(Skipped(reason)), [MAX_CPU, MAX_CPU]])
        os._exit(0)

  with contextlib.suppress(ValueError, OSError):  # where a system has no such limit
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
  for work in (listen, watch):
    threading.Thread(target=work, daemon=True).start()
  module, _, name = function.partition(":")
  answer = getattr(importlib.import_module(module), name)(**fields)
  while True:
    request = requests.get()
    begin = time.monotonic(), time.process_time()
    _Patience.since = begin[1]
    result = answer(request)
    _Patience.since = None
    seconds = [time.monotonic() - begin[0], time.process_time() - begin[1]]
    try:
      send(answers, [*_message(result), seconds])
    except BrokenPipeError:  # who asked is gone
      os._exit(1)
    # What a large request leaves behind may be too much with the next one: a new process has that.
    if _peak_memory() > MAX_MEMORY / 2:
      os._exit(0)


def _peak_memory() -> int:
  """Returns the most bytes that this process has held in memory."""
  try:
    # Linux's `ru_maxrss` begins with the peak of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
  except (OSError, TypeError):
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


if __name__ == "__main__":
  # By its name: as `__main__` its records would be other types than the parent's.
  importlib.import_module("data.workers").serve(sys.argv[1], json.loads(sys.argv[2]))
