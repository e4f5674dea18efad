"""Tests of paths, atomic writes and locks."""

import errno
import fcntl
import os
import pathlib
import subprocess
import sys

import pytest

from u2s_jax.runtime import files
from u2s_jax.runtime.errors import UserError, describe_error


def test_atomic_open_is_all_or_nothing(tmp_path):
  path = tmp_path / "new" / "a.json"
  with files.atomic_open(path) as file:
    file.write("ä\r\n")
    assert not path.exists()
  assert path.read_bytes() == "ä\r\n".encode()
  with pytest.raises(KeyError), files.atomic_open(path, "wb") as file:
    file.write(b"half")
    raise KeyError
  assert path.read_bytes() == "ä\r\n".encode()


@pytest.mark.parametrize(
  "error", [TimeoutError("timed out"), FileNotFoundError(errno.ENOENT, "none", "other.txt")]
)
def test_atomic_open_keeps_unrelated_errors(tmp_path, error):
  with pytest.raises(OSError) as caught, files.atomic_open(tmp_path / "a.csv"):
    raise error
  assert caught.value is error and not list(tmp_path.iterdir())


def test_full_disk_is_named_and_unchanged(tmp_path, full_disk):
  disk = full_disk(64)
  with files.atomic_open(disk / "before") as file:
    file.write("whole")
  with pytest.raises(OSError) as caught, files.atomic_open(disk / "a.csv", "wb") as file:
    file.write(bytes(200_000))
  assert describe_error(caught.value).startswith(
    f"{disk}/a.csv: No space left on device; fix this, then"
  )
  assert sorted(path.name for path in disk.iterdir()) == ["before"]
  assert (disk / "before").read_text() == "whole"


def test_data_dir_in_a_bucket_is_refused():
  with pytest.raises(UserError, match=r"^--out gs://bucket/a: a data set must be on a local disk"):
    files.parse_data_dir("gs://bucket/a", "--out")


@pytest.mark.parametrize("kind", [str, pathlib.Path])
@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("~/mine", "home/mine"),
    ("~", "home"),
    ("mine", "here/mine"),
    ("./a b/../ünï", "here/a b/../ünï"),
    ("a~b", "here/a~b"),  # elsewhere a tilde is part of the name
    ("$HOME", "here/$HOME"),  # only the shell expands variables
  ],
)
def test_parse_path_returns_absolute_paths(tmp_path, monkeypatch, kind, name, expected):
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  assert files.parse_local_path(kind(name)) == files.parse_path(kind(name)) == tmp_path / expected
  assert files.parse_data_dir(name, "--out") == tmp_path / expected


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("", "not a valid path"),
    ("a\0b", "not a valid path"),
    ("\udcff", "not UTF-8; rename it"),
    ("~nobody-of-this-name/x", "unknown home directory"),
  ],
)
def test_invalid_paths_are_one_line(name, words):
  with pytest.raises(UserError, match=words):
    files.parse_local_path(name)


def test_file_lock_is_exclusive_and_ends_with_its_process(tmp_path):
  path = tmp_path / ".lock"
  with files.file_lock(path, "taken"), pytest.raises(UserError, match=r"^taken$"):
    with files.file_lock(path, "taken"):
      pass
  program = f"""
import pathlib, time
from u2s_jax.runtime import files
with files.file_lock(pathlib.Path({str(path)!r}), "taken"):
  print("held", flush=True)
  time.sleep(60)
"""
  process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
  with process:
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=r"^taken$"), files.file_lock(path, "taken"):
      pass
    process.kill()
  with files.file_lock(path, "taken"):
    pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_file_lock_without_file_system_support(tmp_path, monkeypatch, number):
  def flock(*args):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  with files.file_lock(tmp_path / ".lock", "taken"):
    pass


def read_all(folder):
  return {
    str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()
  }


def write_version(path, version):
  with files.output_dir(path) as local:
    (local / "a.txt").write_text(version)
    (local / "b").mkdir()
    (local / "b/c.txt").write_text(version)


def test_output_dir_is_atomic_and_keeps_other_files(tmp_path):
  path = tmp_path / "new/export"
  with files.output_dir(path) as local:
    (local / "a.txt").write_text("1")
    assert not path.exists()
  (path / "b").mkdir()
  (path / "notes.txt").write_text("mine")
  (path / "b/clips.txt").write_text("mine")
  with pytest.raises(KeyError), files.output_dir(path) as local:
    (local / "a.txt").write_text("half")
    raise KeyError
  assert read_all(path)["a.txt"] == "1"
  write_version(path, "2")
  expected = {"a.txt": "2", "b/c.txt": "2", "notes.txt": "mine", "b/clips.txt": "mine"}
  assert read_all(path) == expected
  assert [entry.name for entry in path.parent.iterdir()] == ["export"]
  link = tmp_path / "link"
  link.symlink_to(path)
  write_version(link, "3")
  assert link.is_symlink() and read_all(path)["b/c.txt"] == "3"
  umask = os.umask(0o027)
  try:
    write_version(tmp_path / "umask", "1")
  finally:
    os.umask(umask)
  assert (tmp_path / "umask").stat().st_mode & 0o777 == 0o750


def test_output_dir_is_unchanged_after_a_kill(tmp_path):
  path = tmp_path / "export"
  write_version(path, "1")
  before = read_all(path)
  code = f"""
import os, pathlib
from u2s_jax.runtime import files
with files.output_dir(pathlib.Path({str(path)!r})) as local:
  (local / "a.txt").write_text("half")
  os._exit(9)
"""
  assert subprocess.run([sys.executable, "-c", code]).returncode == 9
  assert read_all(path) == before
  write_version(path, "2")
  assert set(read_all(path).values()) == {"2"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_output_dir_recovers_from_a_kill_between_renames(tmp_path, monkeypatch, renames):
  """Renames, in order: the old directory, the new one, and the files that only the old one has."""
  path = tmp_path / "export"
  write_version(path, "1")
  (path / "notes.txt").write_text("mine")
  rename, renamed = type(path).rename, []

  def rename_or_fail(self, target):
    renamed.append(self)
    if len(renamed) == renames:
      raise KeyboardInterrupt
    return rename(self, target)

  with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
    context.setattr(type(path), "rename", rename_or_fail)
    write_version(path, "2")
  write_version(path, "3")
  assert read_all(path) == {"a.txt": "3", "b/c.txt": "3", "notes.txt": "mine"}
  assert len(list(tmp_path.iterdir())) == 1
