"""Text of strangers: on terminals, in spreadsheets, in JSON."""

import csv
import json

import pytest

from u2s_jax.errors import UserError, cell_text, one_line, printable, spreadsheet_cell
from u2s_jax.serving import answers
from u2s_jax.workdir import write_csv


def test_nothing_moves_a_terminals_cursor():
  name = "a\x1b[2Jb\r\u202ec\udcff\x00é 中\n"
  assert printable(name) == "a\\x1b[2Jb\\r\\u202ec\\udcff\\x00é 中\n"
  assert one_line(UserError("bad \x1b[31m")) == "bad \\x1b[31m"
  assert one_line(FileNotFoundError(2, "none", "x\x07")) == "x\\x07: none"


@pytest.mark.parametrize(
  ("value", "cell"),
  [
    ("=1+1", "'=1+1"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("-rf.mp4", "'-rf.mp4"),
    ("+12.50", "+12.50"),
    ("-3", "-3"),
    ("a=1", "a=1"),
    ("'-a", "''-a"),
    ("it's", "it's"),
    ("'", "'"),
    ("", ""),
    (-3.5, -3.5),
  ],
)
def test_a_spreadsheet_computes_nothing(value, cell, tmp_path):
  assert spreadsheet_cell(value) == cell
  assert cell_text(str(cell)) == str(value)
  write_csv(tmp_path / "a.csv", [{"class": value}])
  with open(tmp_path / "a.csv", newline="") as file:
    assert next(csv.DictReader(file))["class"] == str(cell)


@pytest.mark.parametrize(
  "name", ["é.mp4", "a\udcff.mp4", "3.00\u202fPM.mov", "a\x9b2J.mp4", "a\xa0b"]
)
def test_json_is_utf8_whatever_a_file_is_called(name):
  line = answers.of_file(name, "no video", "json", details=False)
  assert line.isprintable()
  assert json.loads(line.encode()) == {"path": name, "error": "no video"}


TENSORSTORE = (
  'RESOURCE_EXHAUSTED: Error writing "csm.alpha/0" in OCDBT database at local file'
  ' "/runs/a/checkpoints/joint/3.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/ocdbt/": Failed'
  " to write 22047 bytes to file [OS error 28: ENOSPC No space left on device]"
)


@pytest.mark.parametrize(
  ("error", "line"),
  [
    (OSError(28, "No space left on device", "/runs/a.csv"), "/runs/a.csv: No space left on device"),
    (OSError(30, "Read-only file system"), "a disk: Read-only file system"),
    (ValueError(TENSORSTORE), "/runs/a/checkpoints/joint/3: No space left on device"),
    (
      RuntimeError("write() failed: No space left on device; writing /data/.a.partial; at byte 3"),
      "/data/.a.partial: No space left on device",
    ),
  ],
)
def test_a_disk_s_error_is_a_line_whoever_met_it(error, line):
  assert one_line(error) == f"{line}; once that is mended the same command goes on"
  wrapped = RuntimeError("a thread failed")
  wrapped.__cause__ = error
  assert one_line(wrapped) == one_line(error)


def test_other_errors_of_libraries_are_bugs():
  assert one_line(ValueError("INVALID_ARGUMENT: no such /runs/a")) is None
  assert one_line(RuntimeError("no space in this list")) is None
  bug = KeyError("x")
  bug.__context__ = OSError(28, "No space left on device", "/runs/a")
  assert one_line(bug) is None  # it was raised while the other one was handled
  assert one_line(OSError(5, "Input/output error")) is None  # a terminal's, say
