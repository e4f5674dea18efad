"""A pool of worker processes, for decoding and for rendering.

A process runs `python -m data.preparation.workers <module>:<function> <JSON>`: it calls the
function with the fields of the JSON object, and calls the returned function with every request. It
is a program of its own instead of a `multiprocessing` worker: a spawned worker imports the parent's
main module, and with it TensorFlow and JAX, and a worker that is killed may hang the pool. Here a
killed worker closes its pipe.

Messages in both directions are JSON and bytes, never pickles: a decoder reads files from anybody,
and if one takes it over, what it sends is not executed.
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

from u2s_jax.runtime import watchdog

AHEAD = 4  # pending requests per worker; bounds the memory if the consumer is slower
MAX_HEADER_BYTES, MAX_CONTENT_BYTES = 2**26, 2**31  # of a message
MAX_MEMORY = 4 * 2**30  # bytes of a process
MAX_CPU = 60.0  # seconds of CPU without progress
STALLED = "no frame within"  # prefix of the reason if there is no progress
CONTENT = "bytes"  # header key whose value is the length of bytes that follow the header


class Decoded(NamedTuple):
  """The JPEG frames of a clip and, for RGB, its fingerprint (see `fingerprints`)."""

  frames: list[bytes]
  fingerprint: str = ""


class Skipped(NamedTuple):
  """Why a request has no result, and whether a retry may succeed."""

  reason: str
  retry: bool = False


def process_requests(
  function: str,
  fields: Mapping[str, Any],
  requests: Iterable[Callable[[], Any]],
  num_workers: int,
  timings: dict[int, tuple[float, float]] | None = None,
) -> Iterator[Any]:
  """Processes requests and yields the answers in order, a few ahead of the consumer.

  Args:
    function: '<module>:<function>', see the module's docstring.
    fields: its keyword arguments, JSON-serializable.
    requests: each is called in a thread and returns JSON types and bytes to send to a process, or a
      `Skipped`, which then is the answer.
    num_workers: processes, at least 1.
    timings: if given, receives wall-clock and CPU seconds of each answered request, by the
      request's number from 0.

  Yields:
    `Decoded`, `Skipped`, a list of them, or JSON types; `Skipped` if the process died twice during
    the request.
  """
  workers = [_Worker(function, fields) for _ in range(num_workers)]
  idle = queue.SimpleQueue()
  for worker in workers:
    idle.put(worker)

  def process(number: int, request: Callable[[], Any]) -> Any:
    worker = idle.get()  # never blocks: there are as many threads as workers
    try:
      content = request()
      if isinstance(content, Skipped):
        return content
      result, seconds = worker.ask(content)
      if timings is not None:
        timings[number] = seconds
      return result
    finally:
      idle.put(worker)

  threads = concurrent.futures.ThreadPoolExecutor(num_workers)
  pending = collections.deque()
  try:
    for number, request in enumerate(requests):
      pending.append(threads.submit(process, number, request))
      if len(pending) > AHEAD * num_workers:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    # Order matters: cancel what has not started, kill the processes so that threads blocked on
    # their pipes return, then join the threads.
    threads.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
      worker.kill()
    threads.shutdown()
    for worker in workers:
      worker.close()


class _Worker:
  """A process that is started when first needed, and again after it died."""

  def __init__(self, function: str, fields: Mapping[str, Any]):
    self._arguments = [function, json.dumps(fields)]
    self._process = None
    self._killed = False

  def ask(self, request: Any) -> tuple[Any, tuple[float, float]]:
    """Returns the answer to a request with its wall-clock and CPU seconds."""
    for _ in range(2):  # once may be the fault of someone else, as of the kernel short of memory
      if self._process is None:
        self._process = self._start()
      try:
        send(self._process.stdin, request)
        result, seconds = receive(self._process.stdout)
        return result, tuple(seconds)
      except (OSError, EOFError, ValueError, TypeError, LookupError):
        self._process.kill()
        status = self._process.wait()
        self.close()
      if self._killed:
        break
    reason = f"its process died twice, with status {status} (a crash, or out of memory)"
    return Skipped(reason, retry=True), (0.0, 0.0)

  def kill(self) -> None:
    """Kills the process; `ask` no longer starts a new one."""
    self._killed = True
    if (process := self._process) is not None:  # another thread may set it to None
      process.kill()

  def close(self) -> None:
    """Waits for the process and closes its pipes."""
    if self._process is not None:
      self._process.wait()
      self._process.stdout.close()
      with contextlib.suppress(OSError):  # closing flushes, and nobody reads any more
        self._process.stdin.close()
      self._process = None

  def _start(self) -> subprocess.Popen:
    root = str(pathlib.Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # One thread each, as there is a process for every core.
    single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
      self._command(),
      env=os.environ | single | {"PYTHONPATH": path},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      start_new_session=True,  # Ctrl-C reaches the parent only, which kills its workers
    )

  def _command(self) -> list[str]:
    # `-P`: a file in the current folder must not shadow a library.
    return [sys.executable, "-P", "-m", "data.preparation.workers", *self._arguments]


def send(pipe: io.BufferedIOBase, message: Any) -> None:
  """Writes a message: the length of a JSON header, the header, and the bytes it refers to.

  A message consists of bytes, `Decoded`, `Skipped` and JSON types except objects; tuples arrive as
  lists.
  """
  contents = []

  def encode(value):
    if isinstance(value, bytes):
      contents.append(value)
      return {CONTENT: len(value)}
    if isinstance(value, (Decoded, Skipped)):
      return {type(value).__name__: [encode(item) for item in value]}
    return [encode(item) for item in value] if isinstance(value, (list, tuple)) else value

  header = json.dumps(encode(message)).encode()
  pipe.write(struct.pack("<Q", len(header)) + header)
  pipe.writelines(contents)
  pipe.flush()


def receive(pipe: io.BufferedIOBase) -> Any:
  """Reads a message of `send`.

  Raises:
    EOFError: if the pipe ends.
    ValueError: if it is not such a message.
  """
  (length,) = struct.unpack("<Q", _read_exactly(pipe, 8, MAX_HEADER_BYTES))

  def decode(value):
    if isinstance(value, dict):
      ((kind, content),) = value.items()
      if kind != CONTENT:
        return {"Decoded": Decoded, "Skipped": Skipped}[kind](*map(decode, content))
      return _read_exactly(pipe, int(content), MAX_CONTENT_BYTES)
    return [decode(item) for item in value] if isinstance(value, list) else value

  return decode(json.loads(_read_exactly(pipe, length, MAX_HEADER_BYTES)))


def _read_exactly(pipe: io.BufferedIOBase, count: int, limit: int) -> bytes:
  # Before anything is allocated: the count comes from an untrusted process.
  if not 0 <= count <= limit:
    raise ValueError(f"message of {count} bytes")
  content = pipe.read(count)
  if len(content) < count:
    raise EOFError
  return content


def serve(function: str, fields: Mapping[str, Any]) -> None:
  """Answers the requests on stdin until it is closed, then exits; the main of a worker process."""
  # Answers go to a copy of stdout; whatever libraries print to stdout goes to stderr.
  answers = os.fdopen(os.dup(1), "wb")
  os.dup2(2, 1)
  requests = queue.SimpleQueue()

  def listen():
    # In a thread, so that the process also exits in the middle of a clip if its parent dies.
    with contextlib.suppress(EOFError):
      while True:
        requests.put(receive(sys.stdin.buffer))
    os._exit(0)

  def watch():
    # In a thread, as a decoder that stalls in C code cannot be interrupted. It ends the process,
    # and the parent starts a new one for the next request.
    while True:
      time.sleep(MAX_CPU / 60)
      if watchdog.stalled_seconds() > MAX_CPU:
        reason = f"{STALLED} {MAX_CPU:g} seconds of computing"
        send(answers, [Skipped(reason), [MAX_CPU, MAX_CPU]])
        os._exit(0)

  with contextlib.suppress(ValueError, OSError):  # systems without this limit
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY, MAX_MEMORY))
  for target in (listen, watch):
    threading.Thread(target=target, daemon=True).start()
  module, _, name = function.partition(":")
  process = getattr(importlib.import_module(module), name)(**fields)
  while True:
    request = requests.get()
    start = time.monotonic(), time.process_time()
    watchdog.start()
    result = process(request)
    watchdog.stop()
    seconds = [time.monotonic() - start[0], time.process_time() - start[1]]
    try:
      send(answers, [result, seconds])
    except BrokenPipeError:  # the parent died
      os._exit(1)
    # Memory that a large request left fragmented may be missing for the next: start afresh.
    if _peak_memory() > MAX_MEMORY / 2:
      os._exit(0)


def _peak_memory() -> int:
  """Returns the peak memory of this process in bytes."""
  try:
    # On Linux `ru_maxrss` includes the peak of the process that started this one.
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])
  except (OSError, TypeError):
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes


if __name__ == "__main__":
  # Imported by name: the classes of `__main__` would differ from those that other modules import.
  importlib.import_module("data.preparation.workers").serve(sys.argv[1], json.loads(sys.argv[2]))
