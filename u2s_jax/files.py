"""Files on a disk or in a bucket: whole or not at all, there after a loss of power; locks.

A disk's paths are `pathlib.Path`, those in a bucket `epath.Path`, which reads and writes alike.
"""

import contextlib
import errno
import fcntl
import importlib.util
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO

from etils import epath

from u2s_jax.errors import UserError
from u2s_jax.repeating import repeated

Path = pathlib.Path | epath.Path
BUCKET = "gs://"
HUB = "hf://"


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a user's path on a disk, absolute and with `~` expanded.

  Libraries treat such paths differently: some expand `~`, others create a directory of that name;
  some remember a relative path beyond a change of the working directory. All of them get this one.

  Raises:
    UserError: an empty name, one that is not UTF-8, or an unknown user's home directory.
  """
  text = os.fsdecode(path)
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(f"{ascii(text)}: the name is not UTF-8; rename it") from error
  if not text or "\0" in text:
    raise UserError(f"{text!r}: not a path; name a file or directory")
  try:
    return pathlib.Path(text).expanduser().absolute()
  except RuntimeError as error:
    raise UserError(f"{text}: no home directory for this user; write the path in full") from error


def named(path: str | os.PathLike[str]) -> Path:
  """Returns the path that a user named: on a disk, or in a bucket of Google Cloud Storage.

  Raises:
    UserError: as `local_path`; another kind of address, a bucket that is not there, or no package
      to reach it.
  """
  text = os.fsdecode(path)  # of epath's paths too, which are addresses
  if "://" not in text:
    return local_path(text)
  if not text.startswith(BUCKET):
    raise UserError(
      f"{text}: checkpoints are whole on disks and in {BUCKET} alone; name one of these"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{text}: needs the package `gcsfs`: install it")
  import fsspec

  # TensorStore and other hosts write to the bucket too.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # errors are told where they are met
  path = epath.Path(text)
  bucket = text.removeprefix(BUCKET).partition("/")[0]
  if not (bucket and epath.Path(BUCKET + bucket).exists()):
    raise UserError(f"{text}: no such bucket, or it may not be read")
  return path


def weights(text: str) -> Path:
  """Returns the path of weights to start from, as `init_from` names them.

  Args:
    text: what `named` takes, or `hf://<owner>/<repository>[@<revision>]/<file>`, which is fetched
      from a Hugging Face hub and kept in its cache.

  Raises:
    UserError: as `named`; no such file there, or no package to reach it.
  """
  if not text.startswith(HUB):
    return named(text)
  if importlib.util.find_spec("huggingface_hub") is None:
    raise UserError(f"{text}: needs the package `huggingface_hub`: install it")
  import huggingface_hub

  owner, _, rest = text.removeprefix(HUB).partition("/")
  repository, _, file = rest.partition("/")
  repository, _, revision = repository.partition("@")
  if not (owner and repository and file):
    raise UserError(f"{text}: it has to be {HUB}<owner>/<repository>/<file>")
  try:
    found = huggingface_hub.hf_hub_download(
      f"{owner}/{repository}", file, revision=revision or None
    )
  except Exception as error:  # of its own, and of the library that it speaks HTTP with
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise UserError(f"{text}: cannot be fetched ({reason})") from error
  return pathlib.Path(found)


def data_folder(text: str, said: str) -> pathlib.Path:
  """Returns a data set's folder, which has to be on a disk.

  Args:
    text: its path, as the user named it.
    said: what named it, for the error.

  Raises:
    UserError: it is an address, or as `local_path`.
  """
  if "://" in text:
    raise UserError(f"{said} {text}: a data set is read on a disk, see docs/scaling.md; copy it")
  return local_path(text)


def in_bucket(path: Path) -> bool:
  """Tells whether a path of `named` lies in a bucket, which has no folders, locks or renames."""
  return not isinstance(path, pathlib.Path)


def absolute(path: Path) -> Path:
  """Returns a path that no change of the current folder changes; an address is one."""
  return path if in_bucket(path) else path.absolute()


def make_folder(path: Path) -> None:
  """Makes a folder and those above it; in a bucket there is nothing to make."""
  if not in_bucket(path):
    path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def on_disk(path: Path) -> Iterator[pathlib.Path]:
  """Yields a file, or a folder with its files, on a disk; what is in a bucket is fetched."""
  if not in_bucket(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    local = pathlib.Path(folder, path.name)
    if path.is_dir():
      local.mkdir()
      for file in path.iterdir():
        if not file.is_dir():
          _copy(file, local / file.name)
    else:
      _copy(path, local)
    yield local


@contextlib.contextmanager
def filled(path: Path) -> Iterator[pathlib.Path]:
  """Yields an empty local directory whose files are moved to `path` when the block ends.

  On a disk all of them appear at once or none do, however the process ends; other files that are
  at `path` stay. A bucket has no renames: there the file that was written last is removed first and
  uploaded last, so that a reader who needs it never sees two versions mixed.

  Args:
    path: of a directory, made where missing.

  Raises:
    OSError: a file cannot be written.
  """
  if in_bucket(path):
    with tempfile.TemporaryDirectory() as name:
      yield pathlib.Path(name)
      _upload(pathlib.Path(name), path)
    return
  path = path.resolve()  # a link stays one
  make_folder(path.parent)
  partial, before = partial_of(path), path.with_name(f".{path.name}.before")
  _keep_others(before, path)  # a process was killed between the two renames, or after them
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir()
  try:
    yield partial
    for file in partial.rglob("*"):
      sync(file)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  if path.exists():
    path.rename(before)
  partial.rename(path)
  sync(path.parent)
  _keep_others(before, path)


def _keep_others(before: pathlib.Path, path: pathlib.Path) -> None:
  """Moves what `path` does not have from the directory before it, and removes that one."""
  if not before.exists():
    return
  if not path.exists():
    before.rename(path)
    return
  for file in before.rglob("*"):
    target = path / file.relative_to(before)
    if not file.is_dir() and not target.exists():
      make_folder(target.parent)
      file.rename(target)
  shutil.rmtree(before)


def _upload(folder: pathlib.Path, path: Path) -> None:
  """Copies a directory's files to a bucket, in the order in which they were written."""
  files = [file for file in folder.rglob("*") if file.is_file()]
  files.sort(key=lambda file: (file.stat().st_mtime_ns, file))
  for file in files[-1:]:
    (path / file.relative_to(folder)).unlink(missing_ok=True)
  for file in files:
    _copy(file, path / file.relative_to(folder))


@contextlib.contextmanager
def copied(path: Path, every: float) -> Iterator[pathlib.Path]:
  """Yields a folder on a disk for files that grow; `path` has them.

  Args:
    path: a folder; in a bucket the files are copied there when they have changed.
    every: seconds between copies, besides one at the block's end.
  """
  if not in_bucket(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as name:
    folder, sizes = pathlib.Path(name), {}

    def copy_changed() -> None:
      for file in folder.iterdir():
        size = file.stat().st_size
        if sizes.get(file) != size:
          _copy(file, path / file.name)
          sizes[file] = size

    try:
      with repeated(copy_changed, every):
        yield folder
    except BaseException:
      with contextlib.suppress(Exception):  # why the block ended stays
        copy_changed()
      raise
    copy_changed()


def _copy(source: Path, target: Path) -> None:
  """Copies a file to a bucket, where it is whole or not there, or out of one."""
  target.write_bytes(source.read_bytes())


def partial_of(path: pathlib.Path) -> pathlib.Path:
  """Returns the name that a file has until it is whole."""
  return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def whole_path(path: Path) -> Iterator[pathlib.Path]:
  """Yields a path to write to; at the block's end the file appears under its name, or never.

  Args:
    path: its name, in a folder that exists.

  Raises:
    OSError: the disk is full, say; it names the file, which the system does not.
  """
  if in_bucket(path):
    with tempfile.TemporaryDirectory() as folder:
      yield (local := pathlib.Path(folder, path.name))
      _copy(local, path)
    return
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
def whole_file(path: Path, mode: str = "w") -> Iterator[IO]:
  """Opens a file that appears under its name whole, at the block's end, or not at all.

  Args:
    path: its name; missing folders are made.
    mode: 'w' for text in UTF-8, or 'wb'.

  Raises:
    OSError: as `whole_path`.
  """
  make_folder(path.parent)
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
