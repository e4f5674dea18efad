"""Files on a disk: whole or not at all, there after a loss of power, and locks on folders."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator
from typing import IO

from u2s_jax.errors import UserError


def partial_of(path: pathlib.Path) -> pathlib.Path:
  """Returns the name that a file has until it is whole."""
  return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def whole_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path to write to; at the block's end the file appears under its name, or never.

  Args:
    path: its name, in a folder that exists.

  Raises:
    OSError: the disk is full, say; it names the file, which the system does not.
  """
  partial = partial_of(path)
  try:
    yield partial
    sync(partial)  # or a loss of power may leave the name without the content
    os.replace(partial, path)
    sync(path.parent)
  except BaseException as error:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)  # a full disk needs the room
    ours = isinstance(error, OSError) and error.filename in (None, str(partial))
    if not ours or error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def whole_file(path: pathlib.Path, mode: str = "w") -> Iterator[IO]:
  """Opens a file that appears under its name whole, at the block's end, or not at all.

  Args:
    path: its name; missing folders are made.
    mode: 'w' for text in UTF-8, or 'wb'.

  Raises:
    OSError: as `whole_path`.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
  with whole_path(path) as partial, open(partial, mode, **text) as file:
    yield file


def sync(path: pathlib.Path) -> None:
  """Waits until a file, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def locked(path: pathlib.Path, refusal: str) -> Iterator[None]:
  """Holds a lock that one process at a time can have; it ends with the process, however that ends.

  A disk that knows no locks refuses nobody.

  Args:
    path: of the lock's file, which is made and stays; on a disk that hosts share, theirs too.
    refusal: the error's line where another process has it.

  Raises:
    UserError: another process has it.
    OSError: the file cannot be made.
  """
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(refusal) from error
    except OSError as error:
      if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
        raise
    yield
