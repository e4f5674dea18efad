"""Tests of files, leases and checkpoints in a bucket, with a local server of Google's protocol."""

import asyncio
import importlib.util
import json
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from tests.run import test_checkpoint as local_tests
from u2s_jax.run import workdir
from u2s_jax.run.checkpoint import Checkpoints, read_networks
from u2s_jax.runtime import files, lease
from u2s_jax.runtime.errors import UserError, describe_bucket_error, describe_error


@pytest.fixture
def folder(bucket_server, tmp_path):
  """Returns a path in the bucket that only this test uses."""
  return files.parse_path(f"gs://bucket/{tmp_path.name}")


@pytest.mark.parametrize(
  "address, message",
  [
    ("s3://bucket/run", "^s3://bucket/run: .* only on disks and in gs://"),
    ("https://host/run", "choose one of these"),
    ("gs://nobody/run", "gs://nobody/run: no such bucket"),
    ("gs://", "gs://: no such bucket"),
  ],
)
def test_invalid_addresses_are_one_line(bucket_server, address, message):
  with pytest.raises(UserError, match=message):
    files.parse_path(address)


def test_missing_package_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match="gs://bucket/run: requires the package `gcsfs`"):
    files.parse_path("gs://bucket/run")


def test_round_trip_of_files(folder):
  arrays = {"a": np.arange(5), "b": np.eye(3, dtype=np.float32)}
  workdir.write_npz(folder / "scores/x.npz", arrays)
  workdir.write_json(folder / "x.json", {"ä": 1})
  got = workdir.read_npz(folder / "scores/x.npz")
  assert got.keys() == arrays.keys()
  jax.tree.map(np.testing.assert_array_equal, got, arrays)
  assert json.loads((folder / "x.json").read_text()) == {"ä": 1}
  with files.local_copy(folder) as local:
    assert [path.name for path in local.iterdir()] == ["x.json"]
  with files.local_copy(folder / "x.json") as local:
    assert json.loads(local.read_text(encoding="utf-8")) == {"ä": 1}


def test_writes_are_all_or_nothing(folder):
  workdir.write_json(folder / "x.json", 1)
  with pytest.raises(KeyError), files.atomic_open(folder / "x.json") as file:
    file.write("2")
    raise KeyError
  with pytest.raises(KeyError), files.output_dir(folder / "report") as local:
    (local / "a.txt").write_text("a")
    raise KeyError
  assert (folder / "x.json").read_text() == "1\n" and not (folder / "report").exists()
  with files.output_dir(folder / "report") as local:
    (local / "b").mkdir()
    (local / "b" / "a.txt").write_text("a")
  assert (folder / "report/b/a.txt").read_text() == "a"


def test_synced_dir_copies_files_that_have_grown(folder):
  with files.synced_dir(folder, 0.05) as local:
    (local / "events").write_bytes(b"1")
    until = time.monotonic() + 20
    while not (folder / "events").exists():
      assert time.monotonic() < until
      time.sleep(0.05)
    with open(local / "events", "ab") as file:
      file.write(b"2")
  assert (folder / "events").read_bytes() == b"12"


def test_unreachable_bucket_is_one_line_and_damages_nothing(folder, bucket_server, monkeypatch):
  checkpoints = Checkpoints(folder / "c", local_tests.STAGES, local_tests.MODEL, {})
  checkpoints.save("joint", 1, local_tests.state_of(1), {})
  checkpoints.wait()
  bucket_server.stop()
  sleep = asyncio.sleep
  try:
    with monkeypatch.context() as patch, pytest.raises(Exception, match=".") as error:
      patch.setattr(asyncio, "sleep", lambda seconds: sleep(0))  # between the retries
      (folder / "x.json").read_text()
  finally:
    bucket_server.start()
  assert describe_bucket_error(error.value)
  assert describe_error(error.value).startswith("cannot read or write the bucket: ")
  assert "\n" not in describe_error(error.value)
  assert checkpoints.restore("joint", 1, local_tests.abstract())[0].step == 1
  checkpoints.close()


def test_saving_survives_an_outage_of_the_server(folder, bucket_server):
  checkpoints = Checkpoints(folder / "c", local_tests.STAGES, local_tests.MODEL, {})
  checkpoints.save("joint", 1, local_tests.state_of(1), {})
  checkpoints.wait()
  bucket_server.stop()
  back = threading.Timer(3, bucket_server.start)
  back.start()
  checkpoints.save("joint", 2, local_tests.state_of(2), {"plateau": {}})
  checkpoints.close()
  back.join()
  again = Checkpoints(folder / "c", local_tests.STAGES, local_tests.MODEL, {})
  assert again.latest() == ("joint", 2)
  restored, record = again.restore("joint", 2, local_tests.abstract())
  jax.tree.map(np.testing.assert_array_equal, restored, local_tests.state_of(2))
  assert record["plateau"] == {}
  again.close()


def test_incomplete_checkpoints_are_ignored(folder, bucket_server):
  checkpoints = Checkpoints(folder / "c", local_tests.STAGES, local_tests.MODEL, {})
  for step in (1, 2, 3):
    checkpoints.save("joint", step, local_tests.state_of(step), {})
  checkpoints.close()
  joint = bucket_server.bucket / folder.name / "c/joint"
  (joint / "3/commit_success.txt").unlink()  # what Orbax writes last
  assert read_networks(folder / "c", local_tests.STAGES)[0] == folder / "c/joint/2"
  again = Checkpoints(folder / "c", local_tests.STAGES, local_tests.MODEL, {})
  assert again.latest() == ("joint", 2)
  shutil.rmtree(joint / "2/record")
  with pytest.raises(UserError, match="c/joint/2 is damaged"):
    again.restore("joint", 2, local_tests.abstract())
  quarantined = again.quarantine("joint", 2)
  assert quarantined.name == "damaged_2_0" and again.has_quarantined()
  assert again.latest() is None  # step 1 was deleted when step 3 was saved
  again.close()


@pytest.fixture
def short_timeout(monkeypatch):
  """Makes leases expire after 1.5 seconds."""
  monkeypatch.setattr(lease, "HEARTBEAT", 0.2)
  monkeypatch.setattr(lease, "TIMEOUT", 1.5)


def test_lease_is_exclusive(folder, short_timeout):
  lost = []
  for _ in range(2):  # a released lease is free at once
    with lease.hold_lease(folder, "taken", lost.append):
      with (
        pytest.raises(UserError, match="^taken$"),
        lease.hold_lease(folder, "taken", lost.append),
      ):
        pass
  assert not lost and len(list(folder.iterdir())) == 1


def test_lease_without_heartbeat_expires_and_notifies_its_holder(
  folder, short_timeout, monkeypatch
):
  lost = threading.Event()
  suspended, renew = threading.Event(), lease._Lease.renew
  monkeypatch.setattr(
    lease._Lease, "renew", lambda self: None if suspended.is_set() else renew(self)
  )
  with lease.hold_lease(folder, "taken", lambda message: lost.set()):
    suspended.set()
    start = time.monotonic()
    with lease.hold_lease(folder, "taken", pytest.fail):
      assert time.monotonic() - start > 1.4
      assert lost.wait(20)


def test_one_of_many_contenders_gets_the_lease(folder, short_timeout):
  held, refused, barrier = [], [], threading.Barrier(6)

  def contend():
    barrier.wait()
    try:
      with lease.hold_lease(folder, "taken", pytest.fail):
        held.append(1)
        time.sleep(4)
    except UserError:
      refused.append(1)

  threads = [threading.Thread(target=contend) for _ in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(held) == 1 and len(refused) == 5
