"""Paths, atomic and durable writes, and locks, for local disks and buckets.

Paths on a disk are `pathlib.Path`. Paths in a bucket are `epath.Path`, with the same methods.
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
from typing import IO, TYPE_CHECKING, TypeAlias

from etils import epath

from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.periodic import run_periodically

if TYPE_CHECKING:
  Path: TypeAlias = pathlib.Path  # epath has no types
else:
  Path = pathlib.Path | epath.Path
BUCKET = "gs://"
HUB = "hf://"


def parse_local_path(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns the absolute local path for a path given by the user, with `~` expanded.

  Libraries disagree on such paths: some expand `~`, others create a directory of that name; some
  keep relative paths when the working directory changes. They all get this path.

  Raises:
    UserError: if the path is empty or not UTF-8, or `~user` has no home directory.
  """
  text = os.fsdecode(path)
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise UserError(f"{ascii(text)}: the name is not UTF-8; rename it") from error
  if not text or "\0" in text:
    raise UserError(f"{text!r}: not a valid path; name a file or directory")
  try:
    return pathlib.Path(text).expanduser().absolute()
  except RuntimeError as error:
    raise UserError(f"{text}: unknown home directory; write the full path") from error


def parse_path(path: str | os.PathLike[str]) -> Path:
  """Returns the path for a local path or `gs://` address given by the user.

  Raises:
    UserError: as `parse_local_path`; or if the address is not `gs://`, the bucket does not exist,
      or `gcsfs` is not installed.
  """
  text = os.fsdecode(path)  # also accepts `epath.Path`, whose text is the address
  if "://" not in text:
    return parse_local_path(text)
  if not text.startswith(BUCKET):
    raise UserError(
      f"{text}: checkpoints are atomic only on disks and in {BUCKET}; choose one of these"
    )
  if importlib.util.find_spec("gcsfs") is None:
    raise UserError(f"{text}: requires the package `gcsfs`; install it")
  import fsspec

  # A cached listing would miss files that TensorStore and other hosts write.
  fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
  # Errors are raised and reported; gcsfs would log them as well.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  path = epath.Path(text)
  bucket = text.removeprefix(BUCKET).partition("/")[0]
  if not (bucket and epath.Path(BUCKET + bucket).exists()):
    raise UserError(f"{text}: no such bucket, or no permission to read it")
  return path


def resolve_weights(text: str) -> Path:
  """Returns the path of pretrained weights named by `init_from`.

  Args:
    text: as for `parse_path`, or `hf://<owner>/<repository>[@<revision>]/<file>`, which is
      downloaded from a Hugging Face hub into its cache.

  Raises:
    UserError: as `parse_path`; or if the download fails or `huggingface_hub` is not installed.
  """
  if not text.startswith(HUB):
    return parse_path(text)
  if importlib.util.find_spec("huggingface_hub") is None:
    raise UserError(f"{text}: requires the package `huggingface_hub`; install it")
  import huggingface_hub

  owner, _, rest = text.removeprefix(HUB).partition("/")
  repository, _, file = rest.partition("/")
  repository, _, revision = repository.partition("@")
  if not (owner and repository and file):
    raise UserError(f"{text}: must be {HUB}<owner>/<repository>/<file>")
  try:
    local = huggingface_hub.hf_hub_download(
      f"{owner}/{repository}", file, revision=revision or None
    )
  except Exception as error:  # the hub's own errors, and those of its HTTP library
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    raise UserError(f"{text}: download failed ({reason})") from error
  return pathlib.Path(local)


def parse_data_dir(text: str, field: str) -> pathlib.Path:
  """Returns the path of a data set, which must be on a disk.

  Raises:
    UserError: as `parse_local_path`; or if the path is an address; names the field or flag.
  """
  if "://" in text:
    raise UserError(
      f"{field} {text}: a data set must be on a local disk, see docs/scaling.md; copy it there"
    )
  return parse_local_path(text)


def is_in_bucket(path: Path) -> bool:
  """Returns whether a path is in a bucket, which has no directories, locks or renames."""
  return not isinstance(path, pathlib.Path)


def make_dir(path: Path) -> None:
  """Creates a directory and its parents if they do not exist; does nothing in a bucket."""
  if not is_in_bucket(path):
    path.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[pathlib.Path]:
  """Yields a local path to a file or directory, downloading it first if it is in a bucket."""
  if not is_in_bucket(path):
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
def output_dir(path: Path) -> Iterator[pathlib.Path]:
  """Yields a local directory whose files are moved to `path` when the block exits without an error.

  On a disk all files appear at once or not at all, however the process ends; other files in `path`
  stay. A bucket has no renames: the file that was written last is deleted first and uploaded last,
  so a reader who requires that file never sees a mix of two versions.
  """
  if is_in_bucket(path):
    with tempfile.TemporaryDirectory() as name:
      yield pathlib.Path(name)
      _upload(pathlib.Path(name), path)
    return
  path = path.resolve()  # replace the target of a symbolic link, not the link
  make_dir(path.parent)
  temp, previous = temp_path(path), path.with_name(f".{path.name}.before")
  # An earlier process may have been killed between the two renames below, or after them.
  _merge_previous(previous, path)
  shutil.rmtree(temp, ignore_errors=True)
  temp.mkdir()
  try:
    yield temp
    for file in temp.rglob("*"):
      sync(file)
  except BaseException:
    shutil.rmtree(temp, ignore_errors=True)
    raise
  # A directory cannot be renamed over one that is not empty, so the old one is moved away first.
  if path.exists():
    path.rename(previous)
  temp.rename(path)
  sync(path.parent)
  _merge_previous(previous, path)


def _merge_previous(previous: pathlib.Path, path: pathlib.Path) -> None:
  """Moves files that `path` lacks from its previous version, then deletes that version."""
  if not previous.exists():
    return
  if not path.exists():
    previous.rename(path)
    return
  for file in previous.rglob("*"):
    target = path / file.relative_to(previous)
    if not file.is_dir() and not target.exists():
      make_dir(target.parent)
      file.rename(target)
  shutil.rmtree(previous)


def _upload(folder: pathlib.Path, path: Path) -> None:
  """Uploads the files of a directory in the order in which they were written."""
  files = [file for file in folder.rglob("*") if file.is_file()]
  files.sort(key=lambda file: (file.stat().st_mtime_ns, file))
  for file in files[-1:]:
    (path / file.relative_to(folder)).unlink(missing_ok=True)
  for file in files:
    _copy(file, path / file.relative_to(folder))


@contextlib.contextmanager
def synced_dir(path: Path, every: float) -> Iterator[pathlib.Path]:
  """Yields a local directory whose files are copied to a bucket periodically, for files that grow.

  Copies them every so many seconds, and when the block exits. A `path` on a disk is yielded itself.
  """
  if not is_in_bucket(path):
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
      with run_periodically(copy_changed, every):
        yield folder
    except BaseException:
      with contextlib.suppress(Exception):  # must not hide the error of the block
        copy_changed()
      raise
    copy_changed()


def _copy(source: Path, target: Path) -> None:
  """Copies a file to or from a bucket, where writes are atomic."""
  target.write_bytes(source.read_bytes())


def temp_path(path: pathlib.Path) -> pathlib.Path:
  """Returns the path that a file or directory is written to before it is renamed to `path`."""
  return path.with_name(f".{path.name}.partial")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[pathlib.Path]:
  """Yields a temporary path that is renamed to `path` when the block exits without an error.

  Raises:
    OSError: if the file cannot be written, for example on a full disk; with `path` as file name.
  """
  if is_in_bucket(path):
    with tempfile.TemporaryDirectory() as folder:
      yield (local := pathlib.Path(folder, path.name))
      _copy(local, path)
    return
  temp = temp_path(path)
  try:
    yield temp
    # Without this a power failure could leave the new name with no content.
    sync(temp)
    os.replace(temp, path)
    sync(path.parent)
  except BaseException as error:
    with contextlib.suppress(OSError):
      temp.unlink(missing_ok=True)  # frees the space on a full disk
    # The system's error for a failed write names no file. Errors about other files stay unchanged.
    is_write_error = isinstance(error, OSError) and error.filename in (None, str(temp))
    if not is_write_error or error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def atomic_open(path: Path, mode: str = "w") -> Iterator[IO]:
  """Opens a file for an atomic write: it appears complete when the block exits, or not at all.

  Creates missing directories. The mode is 'w', for UTF-8 text, or 'wb'. Raises as `atomic_path`.
  """
  make_dir(path.parent)
  options = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
  with atomic_path(path) as temp, open(temp, mode, **options) as file:
    yield file


def sync(path: pathlib.Path) -> None:
  """Flushes a file, or the entries of a directory, to the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


@contextlib.contextmanager
def file_lock(path: pathlib.Path, refusal: str) -> Iterator[None]:
  """Holds an exclusive lock; the system releases it when the process ends, for whatever reason.

  The lock file is created and stays; on a shared disk it locks out other hosts too. Does nothing on
  file systems that do not support locks.

  Raises:
    UserError: with the message `refusal`, if another process holds the lock.
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
