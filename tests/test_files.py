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


def contents(folder):
  return {
    str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()
  }


def fill(path, version):
  with files.filled(path) as local:
    (local / "a.txt").write_text(version)
    (local / "b").mkdir()
    (local / "b/c.txt").write_text(version)


def test_a_directory_appears_whole_and_keeps_what_others_put_there(tmp_path):
  path = tmp_path / "new/export"
  with files.filled(path) as local:
    (local / "a.txt").write_text("1")
    assert not path.exists()
  (path / "b").mkdir()
  (path / "notes.txt").write_text("mine")
  (path / "b/clips.txt").write_text("mine")
  with pytest.raises(KeyError), files.filled(path) as local:
    (local / "a.txt").write_text("half")
    raise KeyError
  assert contents(path)["a.txt"] == "1"
  fill(path, "2")
  expected = {"a.txt": "2", "b/c.txt": "2", "notes.txt": "mine", "b/clips.txt": "mine"}
  assert contents(path) == expected
  assert [entry.name for entry in path.parent.iterdir()] == ["export"]
  link = tmp_path / "link"
  link.symlink_to(path)
  fill(link, "3")
  assert link.is_symlink() and contents(path)["b/c.txt"] == "3"
  umask = os.umask(0o027)
  try:
    fill(tmp_path / "umask", "1")
  finally:
    os.umask(umask)
  assert (tmp_path / "umask").stat().st_mode & 0o777 == 0o750


def test_a_killed_process_leaves_the_directory_as_it_was(tmp_path):
  path = tmp_path / "export"
  fill(path, "1")
  before = contents(path)
  code = f"""
import os, pathlib
from u2s_jax import files
with files.filled(pathlib.Path({str(path)!r})) as local:
  (local / "a.txt").write_text("half")
  os._exit(9)
"""
  assert subprocess.run([sys.executable, "-c", code]).returncode == 9
  assert contents(path) == before
  fill(path, "2")
  assert set(contents(path).values()) == {"2"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_a_process_killed_at_a_rename_loses_nothing(tmp_path, monkeypatch, renames):
  """The old directory is renamed, then the new one, then what only the old one had is moved."""
  path = tmp_path / "export"
  fill(path, "1")
  (path / "notes.txt").write_text("mine")
  rename, done = type(path).rename, []

  def rename_then_die(self, target):
    done.append(self)
    if len(done) == renames:
      raise KeyboardInterrupt
    return rename(self, target)

  with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
    context.setattr(type(path), "rename", rename_then_die)
    fill(path, "2")
  fill(path, "3")
  assert contents(path) == {"a.txt": "3", "b/c.txt": "3", "notes.txt": "mine"}
  assert len(list(tmp_path.iterdir())) == 1
