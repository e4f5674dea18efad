"""Tests of saving, restoring and refusing checkpoints."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from u2s_jax.csm import make_identity_similarity
from u2s_jax.run.checkpoint import (
  Checkpoints,
  DamagedError,
  abstract_state,
  find_newest,
  read_networks,
)
from u2s_jax.run.state import TrainState, compute_checksum
from u2s_jax.runtime import devices
from u2s_jax.runtime.errors import UserError

STAGES = ("universal", "specific", "joint")
MODEL = {"num_classes": 3, "class_names": ["a", "b", "c"], "blocks": [1, 1, 1, 1]}


def state_of(value):
  return TrainState(
    step=jnp.asarray(value, jnp.int32),
    params={"trunk": {"kernel": jnp.full((2, 3), value, jnp.float32)}},
    batch_stats={},
    momentum=(),
    csm=make_identity_similarity(3),
  )


def abstract():
  return abstract_state(state_of(0), jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def test_round_trip_and_latest(tmp_path):
  checkpoints = Checkpoints(tmp_path / "checkpoints", STAGES, MODEL, {})
  assert checkpoints.latest() is None
  for stage, step in (("universal", 5), ("universal", 10), ("specific", 0)):
    checkpoints.save(stage, step, state_of(step), {"plateau": {"best": 0.25}})
  checkpoints.close()

  again = Checkpoints(tmp_path / "checkpoints", STAGES, MODEL, {})
  assert again.latest() == ("specific", 0)
  restored, record = again.restore("universal", 10, abstract())
  jax.tree.map(np.testing.assert_array_equal, restored, state_of(10))
  assert record["plateau"] == {"best": 0.25}
  again.close()


def test_keeps_the_newest_of_each_stage(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  for step in (1, 2, 3):
    checkpoints.save("universal", step, state_of(step), {})
  checkpoints.save("specific", 1, state_of(1), {})
  checkpoints.close()
  assert sorted(path.name for path in (tmp_path / "universal").iterdir()) == ["2", "3"]


def test_refuses_to_save_differing_replicas(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 1, state_of(1), {})
  other = np.uint32(compute_checksum(state_of(2))) ^ np.uint32(1)  # the checksum of process 0
  monkeypatch.setattr(devices, "broadcast_from_host0", lambda value: other)
  with pytest.raises(
    UserError, match="the state differs between processes at stage universal, step 2"
  ):
    checkpoints.save("universal", 2, state_of(2), {})
  monkeypatch.undo()
  assert checkpoints.latest() == ("universal", 1)
  checkpoints.close()


def test_saving_a_step_again_keeps_the_first(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 1, state_of(1), {})
  checkpoints.wait()
  checkpoints.save("universal", 1, state_of(2), {})
  assert checkpoints.restore("universal", 1, abstract())[0].step == 1
  checkpoints.close()


@pytest.mark.parametrize(
  ("other", "message"),
  [
    ({"num_classes": 4}, "num_classes is 3 in the checkpoint, 4 in this config"),
    ({"class_names": ["a", "x", "y"]}, r"class_names\[1\] is 'b' in the checkpoint, 'x' in"),
    ({"blocks": [2, 1, 1, 1]}, r"blocks is \[1, 1, 1, 1\] in the .*, \[2, 1, 1, 1\] in"),
    ({"new": 2}, "new is 1 in the checkpoint, 2 in"),  # a field that the checkpoint lacks
  ],
)
def test_checkpoint_of_a_different_model_is_refused(tmp_path, other, message):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 1, state_of(1), {})
  checkpoints.close()
  other_model = Checkpoints(tmp_path, STAGES, MODEL | other, {"new": 1})
  with pytest.raises(UserError, match=f"/1 was saved by a different model: {message}") as error:
    other_model.restore("universal", 1, abstract())
  assert "\n" not in str(error.value)


def test_missing_fields_of_the_model_have_their_defaults(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 1, state_of(1), {})
  checkpoints.close()
  newer = Checkpoints(tmp_path, STAGES, MODEL | {"new": 1}, {"new": 1})
  assert newer.restore("universal", 1, abstract())[0].step == 1
  newer.close()


def flip_a_bit(path):
  """Flips a bit in the middle of every file of arrays; which of them Orbax reads varies."""
  for file in (path / "state").rglob("d/*"):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate_arrays(path):
  for file in (path / "state").rglob("d/*"):
    file.write_bytes(b"")


def delete_tree_metadata(path):
  (path / "state/_METADATA").unlink()


def empty_folder(path):
  shutil.rmtree(path)
  path.mkdir()


# When one read fails, Orbax's other reads return to a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
  "damage",
  [
    flip_a_bit,
    truncate_arrays,
    lambda path: [file.unlink() for file in path.rglob("manifest.ocdbt")],
    delete_tree_metadata,
    lambda path: shutil.rmtree(path / "record"),
    lambda path: shutil.rmtree(path / "state"),
    empty_folder,
  ],
  ids=["bit", "empty arrays", "manifest", "metadata", "record", "state", "empty folder"],
)
def test_damaged_checkpoint_is_named_and_quarantined(damage, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c", STAGES, MODEL, {})
  for step in (1, 2):
    checkpoints.save("joint", step, state_of(step), {})
  checkpoints.close()
  damage(tmp_path / "c/joint/2")
  assert checkpoints.latest() == ("joint", 2)
  with pytest.raises(DamagedError, match=r"^checkpoint .*c/joint/2 is damaged \(") as error:
    checkpoints.restore("joint", 2, abstract())
  assert "\n" not in str(error.value)
  if damage is delete_tree_metadata:  # the record has the names, and each array its own metadata
    _, networks, _ = read_networks(tmp_path / "c", STAGES)
    jax.tree.map(np.testing.assert_array_equal, networks["params"], state_of(2).params)
  elif damage is not flip_a_bit:  # only the checksum detects that
    with pytest.raises(DamagedError, match="c/joint/2 is damaged"):
      read_networks(tmp_path / "c", STAGES)
  quarantined = checkpoints.quarantine("joint", 2)
  assert quarantined.name == "damaged_2_0" and quarantined.is_dir()
  assert checkpoints.latest() == ("joint", 1)
  jax.tree.map(
    np.testing.assert_array_equal, checkpoints.restore("joint", 1, abstract())[0], state_of(1)
  )
  checkpoints.save("joint", 2, state_of(2), {})
  checkpoints.close()
  assert quarantined.is_dir()
  assert Checkpoints(tmp_path / "c", STAGES, MODEL, {}).last_step("joint") == 2


def test_stage_with_only_quarantined_checkpoints_has_no_newest(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 3, state_of(3), {})
  checkpoints.save("joint", 1, state_of(1), {})
  checkpoints.close()
  assert find_newest(tmp_path, STAGES) == tmp_path / "joint/1"
  checkpoints.quarantine("joint", 1)
  assert find_newest(tmp_path, STAGES) == tmp_path / "universal/3"


def test_checkpoint_of_a_different_model_is_not_damaged(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("joint", 1, state_of(1), {})
  checkpoints.close()
  other = Checkpoints(tmp_path, STAGES, MODEL | {"num_classes": 4}, {})
  with pytest.raises(UserError, match="a different model: num_classes is 3") as error:
    other.restore("joint", 1, abstract())
  assert not isinstance(error.value, DamagedError)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_checksum_depends_on_every_bit(dtype):
  leaf = jnp.arange(6, dtype=dtype)
  words = np.asarray(leaf).view(f"uint{8 * leaf.dtype.itemsize}")
  expected = int(words.astype(np.uint64).sum() % 2**32)
  assert int(compute_checksum({"a": leaf, "b": jnp.zeros((), jnp.int32)})) == expected
  for bit in range(8 * leaf.dtype.itemsize):
    changed = words.copy()
    changed[2] ^= np.asarray(1 << bit, words.dtype)
    assert int(compute_checksum({"a": jnp.asarray(changed.view(leaf.dtype))})) != expected


@pytest.mark.parametrize("recreated", [False, True])
def test_removing_the_folder_during_a_save_is_named(recreated, tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path / "c", STAGES, MODEL, {})
  checkpoints.save("joint", 1, state_of(1), {})
  checkpoints.wait()

  def save(*args, **keywords):
    shutil.rmtree(tmp_path / "c")
    if recreated:
      (tmp_path / "c").mkdir()
    raise ValueError("no ArrayMetadata")  # what Orbax raises

  with monkeypatch.context() as context:
    context.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(UserError, match="c: was removed while a checkpoint was written"):
      checkpoints.save("joint", 2, state_of(2), {})
  checkpoints.close()


def test_networks_of_earlier_versions_are_the_same(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  state = state_of(2).replace(batch_stats={"trunk": {}, "mask": {"mean": jnp.ones(3)}})
  checkpoints.save("specific", 2, state, {})
  checkpoints.close()
  path, networks, record = read_networks(tmp_path, STAGES)
  record.pop("networks")  # earlier versions did not record the names
  (path / "record" / "metadata").write_text(json.dumps(record))
  _, earlier, _ = read_networks(tmp_path, STAGES)
  jax.tree.map(np.testing.assert_array_equal, earlier, networks)
  np.testing.assert_array_equal(networks["params"]["trunk"]["kernel"], np.full((2, 3), 2.0))
  np.testing.assert_array_equal(networks["csm"]["matrix"], np.eye(3))
