"""A lease on a run's folder in a bucket, which knows no locks.

The newest of the objects `<workdir>/.lease/<number>` says who trains there. One is created only if
it is absent, so of two that want it one gets it; its holder changes it every `EVERY` seconds, and
one that does not change for `EXPIRES` seconds is nobody's any more.
"""

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator

import fsspec
from etils import epath

from u2s_jax.console import log
from u2s_jax.errors import UserError, bucket_error
from u2s_jax.repeating import repeated

EVERY = 10.0  # seconds between signs of life
EXPIRES = 60.0  # seconds without one
RELEASED = "released"


@contextlib.contextmanager
def held(folder: epath.Path, refusal: str, lost: Callable[[str], None]) -> Iterator[None]:
  """Holds the lease within the block.

  Args:
    folder: of the objects.
    refusal: the error's line where somebody else holds it.
    lost: called, in another thread, with a line where somebody else took it: this process gave no
      sign for too long, as the bucket was out of its reach or it stood still.

  Raises:
    UserError: somebody else holds it.
  """
  lease = _Lease(folder)
  lease.take(refusal)

  def keep() -> None:
    if lease.newest() == lease.number:
      lease.sign()
    else:
      lost(f"{folder}: another run took the lease, as this one gave no sign; it ends here")

  try:
    with repeated(keep, EVERY):
      yield
  finally:
    try:
      lease.release()
    except Exception as error:
      if bucket_error(error) is None:
        raise
      log(f"{folder}: not given back, it expires in {EXPIRES:g} s")  # why the block ended stays


class _Lease:
  """One try to hold the lease of a folder.

  Args:
    folder: of the objects.
  """

  def __init__(self, folder: epath.Path):
    self._folder = folder
    self._holder = f"{socket.gethostname()} {uuid.uuid4().hex}"
    self._store, _ = fsspec.core.url_to_fs(str(folder))
    self._signs = 0
    self.number = 0

  def newest(self) -> int:
    """Returns the newest object's number, 0 where there is none."""
    numbers = [int(path.name) for path in self._folder.iterdir()] if self._folder.exists() else []
    return max(numbers, default=0)

  def take(self, refusal: str) -> None:
    """Gets the lease, or raises UserError; waits for one that may be nobody's to expire."""
    while not self.number:
      newest = self.newest()
      if newest and not self._is_free(newest):
        raise UserError(refusal)
      with contextlib.suppress(FileExistsError):  # somebody else was faster
        self._store.pipe_file(self._path(newest + 1), self._content(), mode="create")
      if self._read(newest + 1)["holder"] == self._holder:  # also where only the answer got lost
        self.number = newest + 1
    for old in range(1, self.number):
      self._object(old).unlink(missing_ok=True)

  def sign(self) -> None:
    """Gives a sign of life."""
    self._signs += 1
    self._store.pipe_file(self._path(self.number), self._content())

  def release(self) -> None:
    """Gives the lease back."""
    self._signs = RELEASED
    self._store.pipe_file(self._path(self.number), self._content())

  def _is_free(self, number: int) -> bool:
    """Tells whether a lease was given back, or stays without a sign of life."""
    try:
      first, end = self._read(number), time.monotonic() + EXPIRES
      if first["sign"] != RELEASED:
        log(f"{self._folder}: held by {first['holder'].split()[0]}; looking for {EXPIRES:g} s")
      seen = first
      while seen == first and seen["sign"] != RELEASED and time.monotonic() < end:
        time.sleep(EVERY / 4)
        seen = self._read(number)
    except FileNotFoundError:  # deleted by one that was faster
      return False
    return seen == first or seen["sign"] == RELEASED

  def _content(self) -> bytes:
    return json.dumps({"holder": self._holder, "sign": self._signs}).encode()

  def _read(self, number: int) -> dict[str, str | int]:
    return json.loads(self._object(number).read_text())

  def _object(self, number: int) -> epath.Path:
    return self._folder / f"{number:08d}"

  def _path(self, number: int) -> str:
    return str(self._object(number))
