"""Tests two processes without a run: both stop together, and one ends if the other is dead."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from tests.test_main import environment
from u2s_jax.runtime import distributed
from u2s_jax.runtime.errors import INTERRUPTED, UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 10.0
PROGRAM = f"""
import sys, time
from u2s_jax.runtime import distributed, signals
from u2s_jax.runtime.errors import UserError
try:
  with signals.signal_handlers():
    distributed.join_processes(True, {TIMEOUT})
    print("joined", flush=True)
    exec(sys.argv[1])
except UserError as error:
  distributed.exit_process(str(error), 1)
except signals.Interrupted as interrupted:
  distributed.exit_process(str(interrupted))
"""
WAITS = "time.sleep(60)"
STEPS = """
for step in range(10_000):
  time.sleep(0.01)
  if distributed.should_stop():
    raise signals.Interrupted(f"saved at step {step}")
"""


@pytest.fixture
def pair(free_port):
  """Returns a function that starts two joined processes, each with its own code."""
  processes = []

  def start(*programs):
    address = f"127.0.0.1:{free_port()}"
    for i, program in enumerate(programs):
      process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, program],
        cwd=ROOT,
        env=environment(
          JAX_COORDINATOR_ADDRESS=address, JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      processes.append(process)
    for process in processes:
      assert process.stdout.readline() == "joined\n"
    return processes

  yield start
  for process in processes:
    process.kill()
    process.communicate()


def wait(process):
  """Returns status and error output of a process, which must end by itself."""
  _, error = process.communicate(timeout=60)
  return process.returncode, error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_stop_at_the_same_step(pair, number):
  processes = pair(STEPS, STEPS)
  time.sleep(1)
  processes[1].send_signal(number)
  (status, line), other = map(wait, processes)
  assert (status, other[0]) == (INTERRUPTED, INTERRUPTED)
  assert line.splitlines()[-1].startswith("interrupted (by another process), saved at step ")
  assert line.splitlines()[-1] == other[1].splitlines()[-1]


@pytest.mark.parametrize("index", [0, 1])
def test_error_of_one_process_ends_the_other(pair, index):
  programs = [WAITS, WAITS]
  programs[index] = "time.sleep(1); raise UserError('no such field')"
  processes = pair(*programs)
  assert wait(processes[index]) == (1, "no such field\n")
  begin = time.monotonic()
  status, _ = wait(processes[1 - index])
  assert status != 0 and time.monotonic() - begin < 3 * TIMEOUT


@pytest.mark.parametrize("index", [0, 1])
def test_killing_one_process_ends_the_other(pair, index):
  processes = pair(WAITS, WAITS)
  processes[index].kill()
  begin = time.monotonic()
  status, _ = wait(processes[1 - index])
  assert status != 0 and time.monotonic() - begin < 3 * TIMEOUT


def test_both_processes_exit_normally(pair):
  processes = pair("pass", "time.sleep(2)")
  assert [wait(process) for process in processes] == [(0, ""), (0, "")]
  distributed.join_processes(False, 40.0)
  assert not distributed.should_stop()


@pytest.mark.parametrize("timeout", [0.5, float("nan"), float("inf")])
def test_invalid_timeout(timeout):
  with pytest.raises(UserError, match="dead_process_seconds: .* must be >= 10"):
    distributed.join_processes(False, timeout)


@pytest.mark.parametrize(
  ("devices", "installed", "expected"),
  [
    ({}, True, False),  # a machine with only /dev/vfio
    ({"0000:00:04.0": ("0x1ae0", "0xff0000")}, True, True),  # a TPU
    ({"0000:00:04.0": ("0x1ae0", "0xff0000")}, False, False),
    ({"0000:00:05.0": ("0x1ae0", "0x120000")}, True, True),  # a TPU with the class of accelerators
    (
      {"0000:00:06.0": ("0x1ae0", "0x020000")},
      True,
      False,
    ),  # a virtual network card
    ({"0000:00:07.0": ("0x1ae0", "0x010802")}, True, False),  # a virtual disk
    ({"0000:00:0b.0": ("0x8086", "0x120000")}, True, False),  # a laptop's NPU
    ({"0000:01:00.0": ("0x10de", "0x030200"), "0000:02:00.0": ()}, True, False),
  ],
)
def test_has_tpu_reads_the_pci_bus(tmp_path, monkeypatch, devices, installed, expected):
  for name, values in devices.items():
    (tmp_path / name).mkdir()
    for file, value in zip(("vendor", "class"), values, strict=False):
      (tmp_path / name / file).write_text(f"{value}\n")
  monkeypatch.setattr(distributed, "PCI", tmp_path)
  find_spec = lambda name: object() if installed and name == "libtpu" else None  # noqa: E731
  monkeypatch.setattr(distributed.importlib.util, "find_spec", find_spec)
  assert distributed.has_tpu() == expected
