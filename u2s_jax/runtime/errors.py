"""Errors that a user can cause, their one-line messages, and escaping of untrusted text."""

import contextlib
import errno
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from typing import Any

INTERRUPTED = 75  # exit status after SIGTERM or SIGINT: EX_TEMPFAIL of sysexits.h

# The disk is full, read-only or gone.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)
# Packages that access buckets; their exceptions have no common base class.
BUCKET_PACKAGES = (
  "gcsfs fsspec aiohttp requests google.auth google.api_core google.cloud google.resumable_media"
).split()
FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")  # spreadsheets compute such cells
# Messages of XLA, NumPy and TensorFlow about a failed allocation, and of XLA about a TPU's memory.
_NO_MEMORY = re.compile(
  r"out of memory(?! in memory space (?!hbm))|failed to allocate|\boom when"
  r"|attempting to (allocate|reserve)",
  re.I,
)
_NEEDED = re.compile(r"(?:\bused|allocat\w+|reserve|request for) ([\d.]+) ?([KMGTP]?)", re.I)
_AVAILABLE = re.compile(r"(?:\bof|there are) ([\d.]+)([KMGTP]?)(?: hbm| free)", re.I)
_TENSORSTORE_ERROR = 'Error reading "gs://'
_PATH = re.compile(r"(?<![^\s\"'])/[^\s\"';,]+")


class UserError(ValueError):
  """An error that the user can fix: an invalid setting, file or data set.

  The message is one line that names the file, field or class and what to do. Commands print only
  that line. All other exceptions, except those that `describe_error` knows, are bugs and keep
  their traceback.
  """


def check_repeated(argv: Sequence[str], repeatable: Collection[str] = ()) -> None:
  """Raises UserError if a flag is given twice, since parsers silently use the last value.

  Args:
    argv: the command line, with the program's name first.
    repeatable: names of flags that may be repeated.
  """
  seen = set()
  for argument in argv[1:]:
    if argument == "--":
      return
    name = argument.partition("=")[0].lstrip("-")
    if not argument.startswith("-") or not name or name in repeatable:
      continue
    if name in seen:
      raise UserError(f"--{name}: given twice; give it once")
    seen.add(name)


def escape(text: str) -> str:
  """Returns text with all non-printable characters except line feeds escaped.

  File names can contain control sequences of terminals, characters that break an SVG, and invalid
  Unicode.
  """
  return "".join(
    c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
  )


def escape_line(text: str) -> str:
  """Returns `escape(text)` with line feeds escaped too, for a cell of a table for example."""
  return escape(text).replace("\n", "\\n")


def escape_cell(value: Any) -> Any:
  """Returns a cell of a CSV file: text that a spreadsheet would compute is prefixed with a quote.

  Text that starts with such a quote gets another one, so `parse_cell` restores the text exactly.
  """
  if not isinstance(value, str) or not value.lstrip("'").startswith(FORMULA_PREFIXES):
    return value
  try:
    float(value)
  except ValueError:
    return f"'{value}"
  return value


def parse_cell(cell: str) -> str:
  """Returns the text that `escape_cell` escaped."""
  is_escaped = cell.startswith("'") and cell.lstrip("'").startswith(FORMULA_PREFIXES)
  return cell[1:] if is_escaped else cell


def describe_bucket_error(error: BaseException | None) -> str | None:
  """Returns the message of an object store if it caused the error, else None."""
  while error is not None:
    module = f"{type(error).__module__}."
    text = " ".join(str(error).split())
    is_bucket_error = any(module.startswith(f"{package}.") for package in BUCKET_PACKAGES)
    if is_bucket_error or text.startswith("Forbidden: ") or _TENSORSTORE_ERROR in text:
      return f"cannot read or write the bucket: {text or type(error).__name__}"
    error = error.__cause__
  return None


def describe_error(error: Exception) -> str | None:
  """Returns the line that a command prints for an error of the user, None for a bug.

  Errors of the user are `UserError`, an OSError that names a file, lack of memory, and disk and
  bucket errors, from whatever library.
  """
  if isinstance(error, UserError):
    return escape(str(error))
  if message := describe_disk_error(error) or describe_bucket_error(error):
    return escape(f"{message}; fix this, then rerun the same command to resume")
  if message := describe_memory_error(error):
    return message
  if isinstance(error, OSError) and error.filename:
    return escape(" ".join(f"{error.filename}: {error.strerror}".split()))
  if type(error) is FileNotFoundError:  # raised in this repository: the message names the file
    return escape(" ".join(str(error).split()))
  return None


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
  """Exits with a one-line message on errors of the user; also usable as a decorator."""
  try:
    yield
  except Exception as error:
    message = describe_error(error)
    if message is None:
      raise
    sys.exit(f"error: {message}")


def describe_disk_error(error: BaseException | None) -> str | None:
  """Returns file and reason if a disk caused the error, else None.

  C++ libraries have no exception type for disk errors, so the system's message is searched for.
  """
  while error is not None:
    text = str(error)
    for number in DISK_ERRORS:
      if os.strerror(number) in text:
        found = _PATH.search(text)
        path = getattr(error, "filename", None) or (found[0] if found else None)
        if path is None and number == errno.EIO:
          return None  # a closed terminal, for example
        # Name the checkpoint, not the temporary directory that Orbax writes it to.
        name = str(path).split(".orbax-checkpoint-tmp")[0] if path else "a disk"
        return f"{name}: {os.strerror(number)}"
    error = error.__cause__
  return None


def describe_memory_error(error: BaseException | None) -> str | None:
  """Returns what ran out of memory and what to change if that caused the error, else None.

  XLA has no exception type for it, so its message is parsed; most messages contain the sizes.
  """
  while error is not None:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
      return (
        f"out of memory on the host{_format_sizes(text)}; use fewer workers or threads, a lower"
        " batch_size, or a machine with more memory"
      )
    is_exhausted = re.search("RESOURCE_?EXHAUSTED", text, re.I) and _NO_MEMORY.search(text)
    if is_exhausted or "CUDA_ERROR_OUT_OF_MEMORY" in text:
      return (
        f"out of memory{_format_sizes(text)}; lower batch_size or set accumulate_steps,"
        " model.remat=True or model.dtype=bfloat16 (in an evaluation lower eval.batch_size), see"
        " docs/scaling.md, or train a smaller network, such as configs/custom.py:small; a run keeps"
        " its checkpoints and resumes on devices with more memory"
      )
    error = error.__cause__
  return None


def _format_sizes(text: str) -> str:
  """Returns the needed and available memory that a message states, '' if it states neither."""
  sizes = []
  for pattern, name in ((_NEEDED, "needed"), (_AVAILABLE, "available")):
    if found := pattern.search(text):
      power = " KMGTP".index(found[2].upper() or " ")
      sizes.append(f"{float(found[1].rstrip('.')) * 1024**power / 2**30:.4g} GiB {name}")
  return f": {', '.join(sizes)}" if sizes else ""
