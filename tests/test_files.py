"""Files that appear whole or not at all, and locks."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from u2s_jax import files
from u2s_jax.errors import UserError, one_line


def test_a_file_is_whole_or_stays_as_it_was(tmp_path):
  path = tmp_path / "new" / "a.json"
  with files.whole_file(path) as file:
    file.write("ä\r\n")
    assert not path.exists()
  assert path.read_bytes() == "ä\r\n".encode()
  with pytest.raises(KeyError), files.whole_file(path, "wb") as file:
    file.write(b"half")
    raise KeyError
  assert path.read_bytes() == "ä\r\n".encode()


@pytest.mark.parametrize(
  "error", [TimeoutError("timed out"), FileNotFoundError(errno.ENOENT, "none", "other.txt")]
)
def test_an_error_of_something_else_stays_what_it_is(tmp_path, error):
  with pytest.raises(OSError) as caught, files.whole_file(tmp_path / "a.csv"):
    raise error
  assert caught.value is error and not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_left_as_it_was(tmp_path, full_disk):
  disk = full_disk(64)
  with files.whole_file(disk / "before") as file:
    file.write("whole")
  with pytest.raises(OSError) as caught, files.whole_file(disk / "a.csv", "wb") as file:
    file.write(bytes(200_000))
  assert one_line(caught.value).startswith(f"{disk}/a.csv: No space left on device; once that is")
  assert sorted(path.name for path in disk.iterdir()) == ["before"]
  assert (disk / "before").read_text() == "whole"


def test_a_data_set_in_a_bucket_is_refused():
  with pytest.raises(UserError, match=r"^--out gs://bucket/a: a data set is read on a disk"):
    files.data_folder("gs://bucket/a", "--out")


@pytest.mark.parametrize("kind", [str, pathlib.Path])
@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("~/mine", "home/mine"),
    ("~", "home"),
    ("mine", "here/mine"),
    ("./a b/../ünï", "here/a b/../ünï"),
    ("a~b", "here/a~b"),  # a tilde elsewhere is a name's
    ("$HOME", "here/$HOME"),  # the shell's, and nobody else's
  ],
)
def test_a_user_s_path_is_absolute_whatever_the_folder(tmp_path, monkeypatch, kind, name, expected):
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert files.local_path(kind(name)) == files.named(kind(name)) == tmp_path / expected
  assert files.data_folder(name, "--out") == tmp_path / expected


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("", "not a path"),
    ("a\0b", "not a path"),
    ("\udcff", "not UTF-8; rename it"),
    ("~nobody-of-this-name/x", "no home directory"),
  ],
)
def test_a_path_that_no_library_takes_is_a_line(name, words):
  with pytest.raises(UserError, match=words):
    files.local_path(name)


def test_a_lock_is_one_process_s_and_ends_with_it(tmp_path):
  path = tmp_path / ".lock"
  with files.locked(path, "taken"), pytest.raises(UserError, match=r"^taken$"):
    with files.locked(path, "taken"):
      pass
  holds = f"""
import pathlib, time
from u2s_jax import files
with files.locked(pathlib.Path({str(path)!r}), "taken"):
  print("held", flush=True)
  time.sleep(60)
"""
  process = subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE, text=True)
  with process:
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=r"^taken$"), files.locked(path, "taken"):
      pass
    process.kill()
  with files.locked(path, "taken"):
    pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks_refuses_nobody(tmp_path, monkeypatch, number):
  def flock(*args):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  with files.locked(tmp_path / ".lock", "taken"):
    pass
