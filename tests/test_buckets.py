"""What lies in a bucket, on a real server of Google's protocol: files, the lease, checkpoints."""

import asyncio
import importlib.util
import json
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from tests import test_checkpoint as on_disk
from u2s_jax import files, lease, workdir
from u2s_jax.checkpoint import Checkpoints, read_networks
from u2s_jax.errors import UserError, bucket_error, one_line


@pytest.fixture
def folder(bucket_server, tmp_path):
  """A folder in the bucket that no other test has."""
  return files.named(f"gs://bucket/{tmp_path.name}")


@pytest.mark.parametrize(
  "address, message",
  [
    ("s3://bucket/run", "^s3://bucket/run: .* on disks and in gs:// alone"),
    ("https://host/run", "name one of these"),
    ("gs://nobody/run", "gs://nobody/run: no such bucket"),
    ("gs://", "gs://: no such bucket"),
  ],
)
def test_an_address_that_cannot_be_is_one_line(bucket_server, address, message):
  with pytest.raises(UserError, match=message):
    files.named(address)


def test_without_the_package_the_line_names_it(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="gs://bucket/run: needs the package `gcsfs`"):
    files.named("gs://bucket/run")


def test_files_come_back_as_they_went_in(folder):
  arrays = {"a": np.arange(5), "b": np.eye(3, dtype=np.float32)}
  workdir.write_npz(folder / "scores/x.npz", arrays)
  workdir.write_json(folder / "x.json", {"ä": 1})
  got = workdir.read_npz(folder / "scores/x.npz")
  assert got.keys() == arrays.keys()
  jax.tree.map(np.testing.assert_array_equal, got, arrays)
  assert json.loads((folder / "x.json").read_text()) == {"ä": 1}
  with files.on_disk(folder) as local:
    assert [path.name for path in local.iterdir()] == ["x.json"]
  with files.on_disk(folder / "x.json") as local:
    assert json.loads(local.read_text(encoding="utf-8")) == {"ä": 1}


def test_a_file_is_whole_or_stays_as_it_was(folder):
  workdir.write_json(folder / "x.json", 1)
  with pytest.raises(KeyError), files.whole_file(folder / "x.json") as file:
    file.write("2")
    raise KeyError
  with pytest.raises(KeyError), files.filled(folder / "report") as local:
    (local / "a.txt").write_text("a")
    raise KeyError
  assert (folder / "x.json").read_text() == "1\n" and not (folder / "report").exists()
  with files.filled(folder / "report") as local:
    (local / "b").mkdir()
    (local / "b" / "a.txt").write_text("a")
  assert (folder / "report/b/a.txt").read_text() == "a"


def test_files_that_grow_are_copied_when_they_did(folder):
  with files.copied(folder, 0.05) as local:
    (local / "events").write_bytes(b"1")
    until = time.monotonic() + 20
    while not (folder / "events").exists():
      assert time.monotonic() < until
      time.sleep(0.05)
    with open(local / "events", "ab") as file:
      file.write(b"2")
  assert (folder / "events").read_bytes() == b"12"


def test_a_bucket_out_of_reach_is_one_line_and_no_damage(folder, bucket_server, monkeypatch):
  checkpoints = Checkpoints(folder / "c", on_disk.STAGES, on_disk.MODEL, {})
  checkpoints.save("joint", 1, on_disk.state_of(1), {})
  checkpoints.wait()
  bucket_server.stop()
  sleep = asyncio.sleep
  try:
    with monkeypatch.context() as patch, pytest.raises(Exception, match=".") as error:
      patch.setattr(asyncio, "sleep", lambda seconds: sleep(0))  # between the tries
      (folder / "x.json").read_text()
  finally:
    bucket_server.start()
  assert bucket_error(error.value)
  assert one_line(error.value).startswith("the bucket cannot be read or written: ")
  assert "\n" not in one_line(error.value)
  assert checkpoints.restore("joint", 1, on_disk.abstract())[0].step == 1
  checkpoints.close()


def test_a_checkpoint_outlasts_a_server_that_is_away(folder, bucket_server):
  checkpoints = Checkpoints(folder / "c", on_disk.STAGES, on_disk.MODEL, {})
  checkpoints.save("joint", 1, on_disk.state_of(1), {})
  checkpoints.wait()
  bucket_server.stop()
  back = threading.Timer(3, bucket_server.start)
  back.start()
  checkpoints.save("joint", 2, on_disk.state_of(2), {"plateau": {}})
  checkpoints.close()
  back.join()
  again = Checkpoints(folder / "c", on_disk.STAGES, on_disk.MODEL, {})
  assert again.latest() == ("joint", 2)
  restored, record = again.restore("joint", 2, on_disk.abstract())
  jax.tree.map(np.testing.assert_array_equal, restored, on_disk.state_of(2))
  assert record["plateau"] == {}
  again.close()


def test_a_checkpoint_is_whole_or_not_there(folder, bucket_server):
  checkpoints = Checkpoints(folder / "c", on_disk.STAGES, on_disk.MODEL, {})
  for step in (1, 2, 3):
    checkpoints.save("joint", step, on_disk.state_of(step), {})
  checkpoints.close()
  below = bucket_server.bucket / folder.name / "c/joint"
  (below / "3/commit_success.txt").unlink()  # what Orbax writes last
  assert read_networks(folder / "c", on_disk.STAGES)[0] == folder / "c/joint/2"
  again = Checkpoints(folder / "c", on_disk.STAGES, on_disk.MODEL, {})
  assert again.latest() == ("joint", 2)
  shutil.rmtree(below / "2/record")
  with pytest.raises(UserError, match="c/joint/2 is damaged"):
    again.restore("joint", 2, on_disk.abstract())
  aside = again.set_aside("joint", 2)
  assert aside.name == "damaged_2_0" and again.any_damaged()
  assert again.latest() is None  # the first was given up for the third
  again.close()


@pytest.fixture
def quick(monkeypatch):
  """Leases that expire in a second."""
  monkeypatch.setattr(lease, "EVERY", 0.2)
  monkeypatch.setattr(lease, "EXPIRES", 1.5)


def test_one_at_a_time_holds_a_lease(folder, quick):
  lost = []
  for _ in range(2):  # given back, it is free at once
    with lease.held(folder, "taken", lost.append):
      with pytest.raises(UserError, match="^taken$"), lease.held(folder, "taken", lost.append):
        pass
  assert not lost and len(list(folder.iterdir())) == 1


def test_a_lease_without_signs_expires_and_its_holder_learns_of_it(folder, quick, monkeypatch):
  lost = threading.Event()
  standing, sign = threading.Event(), lease._Lease.sign
  monkeypatch.setattr(lease._Lease, "sign", lambda self: None if standing.is_set() else sign(self))
  with lease.held(folder, "taken", lambda line: lost.set()):
    standing.set()
    begun = time.monotonic()
    with lease.held(folder, "taken", pytest.fail):
      assert time.monotonic() - begun > 1.4
      assert lost.wait(20)


def test_of_many_that_want_a_lease_one_gets_it(folder, quick):
  held, refused, go = [], [], threading.Barrier(6)

  def want():
    go.wait()
    try:
      with lease.held(folder, "taken", pytest.fail):
        held.append(1)
        time.sleep(4)
    except UserError:
      refused.append(1)

  threads = [threading.Thread(target=want) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == 1 and len(refused) == 5
