"""The errors that a user can cause, and the line that tells them."""

INTERRUPTED = 75  # exit status of a command that was asked to end: EX_TEMPFAIL of sysexits.h


class UserError(ValueError):
  """A setting, a file or data that cannot work.

  Its message is one line that names the file, the field or the class, and what to do; the commands
  print it alone. Every other exception but those of `one_line` is a bug and keeps its traceback.
  """


def one_line(error: Exception) -> str | None:
  """Returns what a command prints of an error that a user can cause; None for a bug.

  That is a `UserError`, or an OSError that names a file.
  """
  if isinstance(error, UserError):
    return str(error)
  if isinstance(error, OSError) and error.filename:
    return " ".join(f"{error.filename}: {error.strerror}".split())
  if type(error) is FileNotFoundError:  # of ours: its message names the file
    return " ".join(str(error).split())
  return None
