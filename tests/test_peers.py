"""Two processes that watch each other, without a run: how each ends where the other one does."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.test_main import environment
from u2s_jax import peers
from u2s_jax.errors import INTERRUPTED, UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATIENCE = 4.0
PROGRAM = f"""
import os, pathlib, sys, time
from u2s_jax import interruption, peers
from u2s_jax.errors import UserError, one_line
peers.LEAST, peers.EVERY = {PATIENCE}, 0.5
try:
  with peers.joined(True, pathlib.Path(sys.argv[1]), {PATIENCE}):
    print("joined", flush=True)
    exec(sys.argv[2])
except UserError as error:
  interruption.leave(str(error), 1)
except interruption.Interrupted:
  interruption.leave("interrupted", 75)
"""
WAITS = "time.sleep(60)"


@pytest.fixture
def pair(tmp_path, free_port):
  """Starts two processes that do what they are told once they have joined; returns them."""
  processes = []

  def start(*what, count=2):
    address = f"127.0.0.1:{free_port()}"
    for i, does in enumerate(what):
      process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), does],
        cwd=ROOT,
        env=environment(
          JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES=str(count), JAX_PROCESS_ID=str(i)
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      processes.append(process)
    return processes

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def ends(process):
  """Status and line of a process, which has to end by itself."""
  _, error = process.communicate(timeout=45)
  return process.returncode, error


@pytest.mark.parametrize("index", [0, 1])
def test_an_error_of_one_ends_the_other_with_its_name(pair, index):
  does = [WAITS, WAITS]
  does[index] = "time.sleep(1); raise UserError('no such field')"
  processes = pair(*does)
  assert ends(processes[index]) == (1, "no such field\n")
  other = ends(processes[1 - index])
  assert other == (1, f"process {index} of 2 failed, see its last line\n")


def test_one_that_is_interrupted_alone_ends_the_other_after_a_while(pair):
  processes = pair(WAITS, "time.sleep(1); raise interruption.Interrupted")
  assert ends(processes[1]) == (INTERRUPTED, "interrupted\n")
  status, line = ends(processes[0])
  assert status == INTERRUPTED
  assert line.startswith("process 1 of 2 was interrupted (more than 4 s): ended; start all ")


def test_one_that_stands_still_or_is_killed_ends_the_other(pair):
  processes = pair(WAITS, WAITS)
  for process in processes:
    assert process.stdout.readline() == "joined\n"
  time.sleep(2)
  processes[1].send_signal(signal.SIGSTOP)
  status, line = ends(processes[0])
  assert status == INTERRUPTED
  assert line.startswith("process 1 of 2 gave no sign of life (more than 4 s): ended; start all ")
  processes[1].send_signal(signal.SIGCONT)  # and finds process 0 gone
  status, line = ends(processes[1])
  assert status == INTERRUPTED and line.startswith("process 0 does not answer: ended; start all")


def test_one_that_waits_for_others_ends_where_process_0_is_gone(pair):
  processes = pair(WAITS, WAITS, count=3)  # the third never comes
  time.sleep(8)
  assert all(process.poll() is None for process in processes)
  processes[0].kill()
  status, line = ends(processes[1])
  assert status == INTERRUPTED and line.startswith("process 0 does not answer: ended; start all")


def test_an_abort_of_a_library_keeps_its_status_and_its_stack(pair, tmp_path):
  processes = pair(WAITS, "time.sleep(2); os.abort()")
  status, line = ends(processes[1])
  assert status == 128 + signal.SIGABRT and line.startswith("aborted by a library, see ")
  assert "Current thread" in (tmp_path / peers.LOG).read_text()


def test_both_come_to_an_end_and_a_single_process_needs_nobody(pair, tmp_path):
  processes = pair("pass", "time.sleep(2)")
  assert [ends(process) for process in processes] == [(0, ""), (0, "")]
  with peers.joined(False, tmp_path / "none", 40.0) as several:
    assert several is False
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("patience", [0.5, float("nan"), float("inf")])
def test_a_patience_that_cannot_be(tmp_path, patience):
  with pytest.raises(UserError, match="dead_process_seconds: .* is not at least 10"):
    with peers.joined(False, tmp_path, patience):
      pass


@pytest.mark.parametrize(
  ("devices", "installed", "expected"),
  [
    ({}, True, False),  # a machine with /dev/vfio alone
    ({"0000:00:04.0": ("0x1ae0", "0xff0000")}, True, True),  # a TPU
    ({"0000:00:04.0": ("0x1ae0", "0xff0000")}, False, False),
    ({"0000:00:05.0": ("0x1ae0", "0x120000")}, True, True),  # one that is an accelerator by class
    ({"0000:00:06.0": ("0x1ae0", "0x020000")}, True, False),  # a network card of Google's cloud
    ({"0000:00:07.0": ("0x1ae0", "0x010802")}, True, False),  # a disk there
    ({"0000:00:0b.0": ("0x8086", "0x120000")}, True, False),  # a notebook's neural unit
    ({"0000:01:00.0": ("0x10de", "0x030200"), "0000:02:00.0": ()}, True, False),
  ],
)
def test_a_tpu_is_one_on_the_bus(tmp_path, monkeypatch, devices, installed, expected):
  for name, values in devices.items():
    (tmp_path / name).mkdir()
    for file, value in zip(("vendor", "class"), values, strict=False):
      (tmp_path / name / file).write_text(f"{value}\n")
  monkeypatch.setattr(peers, "PCI", tmp_path)
  find_spec = lambda name: object() if installed and name == "libtpu" else None  # noqa: E731
  monkeypatch.setattr(peers.importlib.util, "find_spec", find_spec)
  assert peers.has_tpu() == expected
