"""A lease on the workdir of a run in a bucket, where files cannot be locked.

The newest of the objects `<workdir>/.lease/<number>` names the holder. An object is created only if
it does not exist, so one of several contenders gets the lease. The holder rewrites its object every
`HEARTBEAT` seconds; a lease without a heartbeat for `TIMEOUT` seconds is free.
"""

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator

import fsspec
from etils import epath

from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError, describe_bucket_error
from u2s_jax.runtime.periodic import run_periodically

HEARTBEAT = 10.0  # seconds between heartbeats
TIMEOUT = 60.0  # seconds without a heartbeat after which a lease expires
RELEASED = "released"


@contextlib.contextmanager
def hold_lease(folder: epath.Path, refusal: str, on_lost: Callable[[str], None]) -> Iterator[None]:
  """Holds the lease until the block exits.

  Args:
    on_lost: called from another thread with a message if another process took the lease, because
      this one was suspended or could not reach the bucket and its heartbeats timed out.

  Raises:
    UserError: with the message `refusal`, if another process holds the lease.
  """
  lease = _Lease(folder)
  lease.acquire(refusal)

  def renew() -> None:
    if lease.find_newest() == lease.number:
      lease.renew()
    else:
      on_lost(f"{folder}: lease lost to another run, since heartbeats timed out; stopping")

  try:
    with run_periodically(renew, HEARTBEAT):
      yield
  finally:
    try:
      lease.release()
    except Exception as error:
      if describe_bucket_error(error) is None:
        raise
      # Raising would hide the error of the block.
      log(f"{folder}: lease not released; it expires in {TIMEOUT:g} s")


class _Lease:
  """One attempt to hold the lease of a directory.

  Attributes:
    number: number of this process's object; 0 while it does not hold the lease.
  """

  def __init__(self, folder: epath.Path):
    self._folder = folder
    self._holder = f"{socket.gethostname()} {uuid.uuid4().hex}"
    self._store, _ = fsspec.core.url_to_fs(str(folder))
    self._heartbeat = 0
    self.number = 0

  def find_newest(self) -> int:
    """Returns the number of the newest object, 0 if there is none."""
    numbers = [int(path.name) for path in self._folder.iterdir()] if self._folder.exists() else []
    return max(numbers, default=0)

  def acquire(self, refusal: str) -> None:
    """Acquires the lease, or raises UserError; first waits to see whether an old lease expires."""
    while not self.number:
      newest = self.find_newest()
      if newest and not self._is_free(newest):
        raise UserError(refusal)
      with contextlib.suppress(FileExistsError):  # another process was faster
        self._write(newest + 1, mode="create")
      # Read it back: if only the reply was lost, a retry fails although the object is ours.
      if self._read(newest + 1)["holder"] == self._holder:
        self.number = newest + 1
    for old in range(1, self.number):
      self._object(old).unlink(missing_ok=True)

  def renew(self) -> None:
    """Sends a heartbeat."""
    self._heartbeat += 1
    self._write(self.number)

  def release(self) -> None:
    """Marks the lease as free."""
    self._heartbeat = RELEASED
    self._write(self.number)

  def _is_free(self, number: int) -> bool:
    """Returns whether a lease was released or sends no heartbeat until the timeout."""
    try:
      first, end = self._read(number), time.monotonic() + TIMEOUT
      if first["sign"] != RELEASED:
        log(
          f"{self._folder}: held by {first['holder'].split()[0]}; waiting {TIMEOUT:g} s for a"
          " heartbeat"
        )
      current = first
      # Clocks of hosts differ, so the age of the object says nothing: watch whether it changes.
      while current == first and current["sign"] != RELEASED and time.monotonic() < end:
        time.sleep(HEARTBEAT / 4)
        current = self._read(number)
    except FileNotFoundError:  # deleted by a process that was faster
      return False
    return current == first or current["sign"] == RELEASED

  def _write(self, number: int, **options: str) -> None:
    content = json.dumps({"holder": self._holder, "sign": self._heartbeat}).encode()
    self._store.pipe_file(str(self._object(number)), content, **options)

  def _read(self, number: int) -> dict[str, str | int]:
    return json.loads(self._object(number).read_text())

  def _object(self, number: int) -> epath.Path:
    return self._folder / f"{number:08d}"
