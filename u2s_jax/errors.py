"""The errors that a user can cause, the line that tells them, and harmless text of strangers."""

import errno
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

INTERRUPTED = 75  # exit status of a command that was asked to end: EX_TEMPFAIL of sysexits.h
# Seconds within which repeated signals count as one: `timeout` and some clusters send two at once.
SAME_SIGNAL = 1.0


# What a disk says when it is full, read-only or gone.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG)
# What reaches a bucket: their errors have no type in common.
BUCKET_PACKAGES = (
  "gcsfs fsspec aiohttp requests google.auth google.api_core google.cloud google.resumable_media"
).split()
COMPUTED = ("=", "+", "-", "@", "\t", "\r")  # beginnings of what a spreadsheet computes
# What XLA, NumPy and TensorFlow say of an allocation, and XLA of a TPU's memory.
_NO_MEMORY = re.compile(
  r"out of memory(?! in memory space (?!hbm))|failed to allocate|\boom when"
  r"|attempting to (allocate|reserve)",
  re.I,
)
_NEEDED = re.compile(r"(?:\bused|allocat\w+|reserve|request for) ([\d.]+) ?([KMGTP]?)", re.I)
_AVAILABLE = re.compile(r"(?:\bof|there are) ([\d.]+)([KMGTP]?)(?: hbm| free)", re.I)
_TENSORSTORE = 'Error reading "gs://'
_PATH = re.compile(r"(?<![^\s\"'])/[^\s\"';,]+")


class UserError(ValueError):
  """A setting, a file or data that cannot work.

  Its message is one line that names the file, the field or the class, and what to do; the commands
  print it alone. Every other exception but those of `one_line` is a bug and keeps its traceback.
  """


def check_repeated(argv: Sequence[str], repeatable: Collection[str] = ()) -> None:
  """Checks that no flag is given twice: parsers would take the last value without a word.

  Args:
    argv: a command line, the program first.
    repeatable: names of flags that make lists.

  Raises:
    UserError: a flag that is given twice.
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


def printable(text: str) -> str:
  """Returns text with all that is no visible character written as an escape, but for line ends.

  A file's name may hold what moves a terminal's cursor, breaks an SVG, or is no Unicode.
  """
  return "".join(
    c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
  )


def printable_line(text: str) -> str:
  """Returns `printable` text on one line: a class name in a table, say."""
  return printable(text).replace("\n", "\\n")


def spreadsheet_cell(value: Any) -> Any:
  """Returns a cell of a CSV file: text that a spreadsheet would compute gets a quote in front.

  So does text that begins with such a quote: `cell_text` takes it away again.
  """
  if not isinstance(value, str) or not value.lstrip("'").startswith(COMPUTED):
    return value
  try:
    float(value)
  except ValueError:
    return f"'{value}"
  return value


def cell_text(cell: str) -> str:
  """Returns the text that `spreadsheet_cell` made a cell of."""
  return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(COMPUTED) else cell


def bucket_error(error: BaseException | None) -> str | None:
  """Returns what an object store said where one is behind an error, None where none is."""
  while error is not None:
    module = f"{type(error).__module__}."
    text = " ".join(str(error).split())
    packaged = any(module.startswith(f"{package}.") for package in BUCKET_PACKAGES)
    if packaged or text.startswith("Forbidden: ") or _TENSORSTORE in text:
      return f"the bucket cannot be read or written: {text or type(error).__name__}"
    error = error.__cause__
  return None


def one_line(error: Exception) -> str | None:
  """Returns what a command prints of an error that a user can cause; None for a bug.

  That is a `UserError`, an OSError that names a file, too little memory, or a disk's or a bucket's
  error, whichever library met it.
  """
  if isinstance(error, UserError):
    return printable(str(error))
  if outside := disk_error(error) or bucket_error(error):
    return printable(f"{outside}; once that is mended the same command goes on")
  if short := memory_error(error):
    return short
  if isinstance(error, OSError) and error.filename:
    return printable(" ".join(f"{error.filename}: {error.strerror}".split()))
  if type(error) is FileNotFoundError:  # of ours: its message names the file
    return printable(" ".join(str(error).split()))
  return None


def disk_error(error: BaseException | None) -> str | None:
  """Returns file and reason where a disk is behind an error, None where none is.

  Libraries in C++ have no types for it, but the system's words.
  """
  while error is not None:
    text = str(error)
    for number in DISK_ERRORS:
      if os.strerror(number) in text:
        named = getattr(error, "filename", None) or _PATH.search(text)
        path = named[0] if isinstance(named, re.Match) else named
        if path is None and number == errno.EIO:
          return None  # of a terminal that is gone, say
        # Orbax's name for a checkpoint that is not yet whole.
        place = str(path).split(".orbax-checkpoint-tmp")[0] if path else "a disk"
        return f"{place}: {os.strerror(number)}"
    error = error.__cause__
  return None


def memory_error(error: BaseException | None) -> str | None:
  """Returns what is short of memory and what to change where memory is behind an error, else None.

  XLA has no type for it, but a status and words, with the bytes in most of them.
  """
  while error is not None:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
      return (
        f"out of memory on the host{_sizes(text)}; use fewer workers or threads, a lower"
        " batch_size, or a machine with more memory"
      )
    exhausted = re.search("RESOURCE_?EXHAUSTED", text, re.I) and _NO_MEMORY.search(text)
    if exhausted or "CUDA_ERROR_OUT_OF_MEMORY" in text:
      return (
        f"out of memory{_sizes(text)}; lower batch_size or set accumulate_steps, model.remat=True"
        " or model.dtype=bfloat16 (in an evaluation lower eval.batch_size), see docs/scaling.md;"
        " the checkpoints of a run stay, and it resumes on devices with more memory"
      )
    error = error.__cause__
  return None


def _sizes(text: str) -> str:
  """Returns the bytes that a message says are needed and available, '' where it says none."""
  sizes = []
  for pattern, name in ((_NEEDED, "needed"), (_AVAILABLE, "available")):
    if found := pattern.search(text):
      power = " KMGTP".index(found[2].upper() or " ")
      sizes.append(f"{float(found[1].rstrip('.')) * 1024**power / 2**30:.4g} GiB {name}")
  return f": {', '.join(sizes)}" if sizes else ""
