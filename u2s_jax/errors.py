"""The errors that a user can cause, the line that tells them, and harmless text of strangers."""

from typing import Any

INTERRUPTED = 75  # exit status of a command that was asked to end: EX_TEMPFAIL of sysexits.h


class UserError(ValueError):
  """A setting, a file or data that cannot work.

  Its message is one line that names the file, the field or the class, and what to do; the commands
  print it alone. Every other exception but those of `one_line` is a bug and keeps its traceback.
  """


def printable(text: str) -> str:
  """Returns text with all that is no visible character written as an escape, but for line ends.

  A file's name may hold what moves a terminal's cursor, breaks an SVG, or is no Unicode.
  """
  return "".join(
    c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
  )


def spreadsheet_cell(value: Any) -> Any:
  """Returns a cell of a CSV file: text that a spreadsheet would compute gets a quote in front."""
  if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
    return value
  try:
    float(value)
  except ValueError:
    return f"'{value}"
  return value


def one_line(error: Exception) -> str | None:
  """Returns what a command prints of an error that a user can cause; None for a bug.

  That is a `UserError`, or an OSError that names a file.
  """
  if isinstance(error, UserError):
    return printable(str(error))
  if isinstance(error, OSError) and error.filename:
    return printable(" ".join(f"{error.filename}: {error.strerror}".split()))
  if type(error) is FileNotFoundError:  # of ours: its message names the file
    return printable(" ".join(str(error).split()))
  return None
