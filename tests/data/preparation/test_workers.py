"""Worker processes: the messages in their pipes, their limits and their end."""

import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from data.preparation import workers
from data.preparation.workers import Decoded, Skipped

ROOT = pathlib.Path(workers.__file__).parents[2]


def worker(folder):
  """Returns the function of a worker process, which does what the request says."""

  def process(request):
    word, content = request
    if word == "decode":
      print("a library's banner")
      return Decoded([content, b"", content[::-1]])
    if word == "skip":
      return Skipped(content.decode(), retry=True)
    if word == "spoil":
      os.write(4, b"x" * 100)  # the pipe of the answers
      os._exit(0)
    if word == "grow":
      return [len(bytearray(int(content)))]
    if word == "hang":
      pathlib.Path(folder, str(os.getpid())).touch()
      while True:
        pass
    return [word, 1]

  return process


def run(folder, *requests):
  calls = [lambda request=request: request for request in requests]
  return list(workers.process_requests(f"{__name__}:worker", {"folder": str(folder)}, calls, 1))


@pytest.mark.parametrize(
  "message",
  [None, 3, "a\udcff\n", [b"", b"\0\n" * 9, ["x", [b"12"]]], [[["deep"]], True, 1.5, []]],
)
def test_messages_round_trip(message):
  pipe = io.BytesIO()
  workers.send(pipe, message)
  end = pipe.tell()
  workers.send(pipe, "next")
  pipe.seek(0)
  assert workers.receive(pipe) == message and workers.receive(pipe) == "next"
  for length in (0, 7, 8, 9):  # bytes of the second message, which is truncated
    cut = io.BytesIO(pipe.getvalue()[: end + length])
    assert workers.receive(cut) == message
    with pytest.raises(EOFError):
      workers.receive(cut)


@pytest.mark.parametrize("sent", [b"\xff" * 64, b"\3\0\0\0\0\0\0\0{]}", b"\x80\4\x95" + b"x" * 64])
def test_rejects_other_bytes_before_allocating_memory(sent):
  with pytest.raises(ValueError):
    workers.receive(io.BytesIO(sent))


def test_answers_are_separate_from_printed_output(tmp_path):
  answers = run(tmp_path, ("decode", b"abc"), ("skip", b"a reason"), ("other", b""))
  assert answers == [
    Decoded([b"abc", b"", b"cba"]),
    Skipped("a reason", retry=True),
    ["other", 1],
  ]


def test_skips_request_after_two_invalid_answers(tmp_path):
  spoilt, decoded = run(tmp_path, ("spoil", b""), ("decode", b"a"))
  assert isinstance(spoilt, Skipped) and spoilt.retry and decoded == Decoded([b"a", b"", b"a"])


def test_limits_cpu_time_and_memory(tmp_path, monkeypatch):
  program = (
    "import json, sys; from data.preparation import workers;"
    "workers.MAX_CPU, workers.MAX_MEMORY = 1.0, 2**30;"
    "workers.serve(sys.argv[1], json.loads(sys.argv[2]))"
  )
  monkeypatch.setattr(
    workers._Worker,
    "_command",
    lambda self: [sys.executable, "-c", program, *self._arguments],
  )
  hung, grown, decoded = run(tmp_path, ("hang", b""), ("grow", b"2000000000"), ("decode", b"a"))
  assert hung == Skipped("no frame within 1 seconds of computing")
  assert isinstance(grown, Skipped)  # a MemoryError in this worker; `decode` catches it
  assert decoded == Decoded([b"a", b"", b"a"])


def test_worker_exits_with_its_parent_during_a_request(tmp_path):
  program = (
    "from data.preparation import workers;"
    f"list(workers.process_requests('{__name__}:worker', {{'folder': {str(tmp_path)!r}}},"
    " [lambda: ('hang', b'')], 1))"
  )
  parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
  until = time.monotonic() + 60
  while not (names := [path.name for path in tmp_path.iterdir()]):
    assert parent.poll() is None and time.monotonic() < until
    time.sleep(0.05)
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  while os.path.exists(f"/proc/{names[0]}") and "Z" not in _state(names[0]):
    assert time.monotonic() < until
    time.sleep(0.05)


def _state(pid):
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
  except OSError:
    return "Z"
