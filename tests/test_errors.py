"""Text of strangers: on terminals, in spreadsheets, in JSON."""

import csv
import json

import pytest

from u2s_jax.errors import UserError, one_line, printable, spreadsheet_cell
from u2s_jax.serving import predict
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
    ("", ""),
    (-3.5, -3.5),
  ],
)
def test_a_spreadsheet_computes_nothing(value, cell, tmp_path):
  assert spreadsheet_cell(value) == cell
  write_csv(tmp_path / "a.csv", [{"class": value}])
  with open(tmp_path / "a.csv", newline="") as file:
    assert next(csv.DictReader(file))["class"] == str(cell)


@pytest.mark.parametrize("name", ["é.mp4", "a\udcff.mp4"])
def test_json_is_utf8_whatever_a_file_is_called(name):
  text = predict.as_text([{"file": name, "predictions": {}}])
  assert json.loads(text.encode()) == [{"file": name, "predictions": {}}]
