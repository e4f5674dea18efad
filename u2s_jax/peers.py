"""The other processes of a run: joined; and where one of them is dead, this one ends, in one line.

Each process gives a sign of life every few seconds, through JAX's coordination service, which lives
in process 0. Without that, JAX aborts the others with a C++ stack: a trap turns this into a line as
well, and what C++ says goes to a file.
"""

import contextlib
import ctypes
import faulthandler
import importlib.util
import itertools
import math
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
from jax._src import distributed  # its client has no public name; Orbax takes it there too

from u2s_jax.errors import INTERRUPTED, UserError, one_line
from u2s_jax.repeating import repeated

EVERY = 2.0  # seconds between signs of life
LEAST = 10.0  # seconds of patience: a process may be busy with something else
ENDED, FAILED, LEFT = "ended", "failed", "interrupted"  # the last sign
LOG = "processes.log"
PCI = pathlib.Path("/sys/bus/pci/devices")
GOOGLE, OTHER_CLASSES = "0x1ae0", ("0x01", "0x02", "0x03")  # classes: storage, network, display
NO_ANSWER = "process 0 does not answer"


@contextlib.contextmanager
def joined(asked: bool, folder: pathlib.Path, patience: float) -> Iterator[bool]:
  """Joins the other processes of the run, where there are any; yields whether there are.

  Within the block this process ends where another one dies, with status `INTERRUPTED`, or fails,
  with 1. What C++ libraries print goes to `<folder>/processes.log`.

  Args:
    asked: whether the command line says that there are; Slurm steps of several tasks and TPU hosts
      are found out by themselves. Where JAX does not find out who is who, the variables
      `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say it.
    folder: of the run, made where missing.
    patience: seconds, at least `LEAST`, without a sign of life after which a process counts as
      dead.

  Raises:
    UserError: a patience or a variable that cannot be.
  """
  if not LEAST <= patience < math.inf:
    raise UserError(f"dead_process_seconds: {patience:g} is not at least {LEAST:g}")
  slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
  # JAX finds out by itself whether a TPU is one host's or a pod's.
  if not (asked or slurm or has_tpu()):
    yield False
    return
  count, index = (_number_from(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
  folder.mkdir(parents=True, exist_ok=True)
  with contextlib.closing(_Trap(folder / LOG)) as trap:
    try:
      with _joining(trap, patience):
        jax.distributed.initialize(
          num_processes=count,
          process_id=index,
          heartbeat_timeout_seconds=max(100, round(2 * patience)),  # later than ours; 100: default
        )
    except ValueError as error:
      raise UserError(f"the other processes cannot be joined: {error}") from error
    if jax.process_count() == 1:
      trap.close()
      yield False
      return
    watch, sign = _Watch(trap, patience), LEFT
    try:
      yield True
      sign = ENDED
    except Exception as error:
      sign = FAILED
      # Where another one is dead, what fails here is a collective: that says nothing to a user.
      if one_line(error) is None:
        time.sleep(patience + 3 * EVERY)  # the watch ends the process where another one is dead
      raise
    finally:
      watch.close(sign)


def has_tpu() -> bool:
  """Whether a TPU is attached and the package that drives it is installed.

  Device files do not tell: virtual machines have /dev/vfio, notebooks' neural units /dev/accel.
  """
  return importlib.util.find_spec("libtpu") is not None and any(
    _is_tpu(device) for device in PCI.glob("*")
  )


def _is_tpu(device: pathlib.Path) -> bool:
  """Whether a PCI device is Google's, and none of its virtual network cards or disks."""
  try:
    vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
  except OSError:
    return False
  return vendor == GOOGLE and not kind.startswith(OTHER_CLASSES)


@contextlib.contextmanager
def _joining(trap: "_Trap", patience: float) -> Iterator[None]:
  """Ends the process within the block where process 0 was there and is gone: JAX waits on."""
  answered = None  # when it last did; None: it was not there yet

  def look() -> None:
    nonlocal answered
    if _process_0_answers():
      answered = time.monotonic()
    elif answered is not None and time.monotonic() - answered > patience:
      trap.end(NO_ANSWER)

  with repeated(look, EVERY):
    yield


def _process_0_answers() -> bool:
  """Tells whether there is somebody at the address where all processes meet."""
  try:
    host, port = distributed.global_state.coordinator_address.rsplit(":", 1)
    socket.create_connection((host, int(port)), timeout=EVERY).close()
  except (OSError, AttributeError, ValueError):  # nobody, or JAX has no address yet
    return False
  return True


def _number_from(variable: str) -> int | None:
  """Returns the number in an environment variable, None where it is not set."""
  text = os.environ.get(variable)
  if not text:
    return None
  if not text.isdecimal():
    raise UserError(f"{variable}: {text!r} is no number")
  return int(text)


class _Trap:
  """Keeps what C++ prints in a file, and makes a line of an abort.

  Args:
    log: the file, of all processes.
  """

  def __init__(self, log: pathlib.Path):
    self._log, self._closed = open(log, "ab"), False
    sys.stderr.flush()
    self._terminal = os.dup(2)  # stays the place of Python's own lines
    self._stderr, sys.stderr = (
      sys.stderr,
      open(self._terminal, "w", 1, sys.stderr.encoding, "backslashreplace", closefd=False),
    )
    os.dup2(self._log.fileno(), 2)
    self._libc = ctypes.CDLL(None)
    self._libc.signal.restype = ctypes.c_void_p
    self._libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    # C, for Python's own handlers run later, and abort() does not wait; kept, or it is freed.
    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
    self._before = self._libc.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

  def close(self) -> None:
    """Gives everything back."""
    if self._closed:
      return
    self._closed = True
    self._libc.signal(signal.SIGABRT, self._before)
    sys.stderr.flush()
    sys.stderr = self._stderr
    os.dup2(self._terminal, 2)
    os.close(self._terminal)
    self._log.close()

  def end(self, line: str, status: int = INTERRUPTED) -> NoReturn:
    """Prints a line and ends the process, from whichever thread."""
    if status == INTERRUPTED:
      line += ": ended; start all processes again to go on"
    try:
      os.write(self._terminal, f"{line}\n".encode())
    finally:
      os._exit(status)

  def _aborted(self, number: int) -> None:
    """Ends the process where a library called abort(): mostly JAX, as process 0 is gone."""
    with contextlib.suppress(OSError):
      faulthandler.dump_traceback(self._log)
    if not _process_0_answers():
      self.end(NO_ANSWER)
    self.end(f"aborted by a library, see {self._log.name}", 128 + signal.SIGABRT)


class _Watch:
  """Gives signs of life, and looks for those of the others, in a thread.

  Args:
    trap: ends the process.
    patience: as `joined`.
  """

  def __init__(self, trap: _Trap, patience: float):
    self._trap, self._patience = trap, patience
    self._client = distributed.global_state.client
    self._index, self._count = jax.process_index(), jax.process_count()
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def close(self, sign: str) -> None:
    """Stops, with a last sign."""
    self._stop.set()
    self._thread.join()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._give(sign)
    if self._index == 0 and sign == FAILED:
      time.sleep(2 * EVERY)  # the sign is gone with this process: the others have to see it

  def _give(self, sign: str) -> None:
    self._client.key_value_set(_key(self._index), sign, allow_overwrite=True)

  def _run(self) -> None:
    seen, last = {}, time.monotonic()  # by process: its last sign, and when that was new
    for beat in itertools.count():
      try:
        self._give(str(beat))
        signs = dict(self._client.key_value_dir_get(_key("")))
      except jax.errors.JaxRuntimeError:
        self._trap.end(NO_ANSWER)
      now = time.monotonic()
      if now - last > self._patience / 2:  # this process stood still: it knows nothing of others
        seen.clear()
      last = now
      for process in range(self._count):
        sign, who = signs.get(_key(process)), f"process {process} of {self._count}"
        if sign == FAILED:
          self._trap.end(f"{who} failed, see its last line", status=1)
        if process not in seen or seen[process][0] != sign:
          seen[process] = sign, now
        elif sign != ENDED and now - seen[process][1] > self._patience:
          what = "was interrupted" if sign == LEFT else "gave no sign of life"
          self._trap.end(f"{who} {what} (more than {self._patience:g} s)")
      if self._stop.wait(EVERY):
        return


def _key(process: int | str) -> str:
  """Returns the name of a process's sign, of '' that of all."""
  return f"u2s_jax/signs/{process}"
