"""Checkpoints: what comes back is what went in, and another model's is refused."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from u2s_jax import devices
from u2s_jax.checkpoint import Checkpoints, DamagedError, abstract_state, read_networks
from u2s_jax.csm import no_similarity
from u2s_jax.errors import UserError
from u2s_jax.state import TrainState, checksum

STAGES = ("universal", "specific", "joint")
MODEL = {"num_classes": 3, "class_names": ["a", "b", "c"], "blocks": [1, 1, 1, 1]}


def state_of(value):
  return TrainState(
    step=jnp.asarray(value, jnp.int32),
    params={"trunk": {"kernel": jnp.full((2, 3), value, jnp.float32)}},
    batch_stats={},
    momentum=(),
    csm=no_similarity(3),
  )


def abstract():
  return abstract_state(state_of(0), jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def test_round_trip_in_the_order_of_the_stages(tmp_path):
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


def test_only_the_newest_of_a_stage_stay(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  for step in (1, 2, 3):
    checkpoints.save("universal", step, state_of(step), {})
  checkpoints.save("specific", 1, state_of(1), {})
  checkpoints.close()
  assert sorted(path.name for path in (tmp_path / "universal").iterdir()) == ["2", "3"]


def test_replicas_that_differ_are_not_saved(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 1, state_of(1), {})
  other = np.uint32(checksum(state_of(2))) ^ np.uint32(1)  # as process 0 has it
  monkeypatch.setattr(devices, "broadcast_from_host0", lambda value: other)
  with pytest.raises(
    UserError, match="at stage universal, step 2 the processes do not have the sa"
  ):
    checkpoints.save("universal", 2, state_of(2), {})
  monkeypatch.undo()
  assert checkpoints.latest() == ("universal", 1)
  checkpoints.close()


def test_a_step_saved_twice_stays_as_it_was(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 1, state_of(1), {})
  checkpoints.wait()
  checkpoints.save("universal", 1, state_of(2), {})
  assert checkpoints.restore("universal", 1, abstract())[0].step == 1
  checkpoints.close()


@pytest.mark.parametrize(
  ("other", "message"),
  [
    ({"num_classes": 4}, "num_classes is 3 there and 4 here"),
    ({"class_names": ["a", "x", "y"]}, r"class_names\[1\] is 'b' there and 'x' here"),
    ({"blocks": [2, 1, 1, 1]}, r"blocks is \[1, 1, 1, 1\] there and \[2, 1, 1, 1\] here"),
    ({"new": 2}, "new is 1 there and 2 here"),  # a field that the checkpoint did not know
  ],
)
def test_another_models_checkpoint_is_an_error_that_names_the_field(tmp_path, other, message):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 1, state_of(1), {})
  checkpoints.close()
  with pytest.raises(UserError, match=f"universal/1 is another model's: {message}") as error:
    Checkpoints(tmp_path, STAGES, MODEL | other, {"new": 1}).restore("universal", 1, abstract())
  assert "\n" not in str(error.value)


def test_a_field_that_a_checkpoint_did_not_know_counts_as_its_default(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("universal", 1, state_of(1), {})
  checkpoints.close()
  newer = Checkpoints(tmp_path, STAGES, MODEL | {"new": 1}, {"new": 1})
  assert newer.restore("universal", 1, abstract())[0].step == 1
  newer.close()


def flip_a_bit(path):
  """Flips one in the middle of every file of numbers: which of them Orbax reads differs."""
  for file in (path / "state").rglob("d/*"):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def empty_numbers(path):
  for file in (path / "state").rglob("d/*"):
    file.write_bytes(b"")


def empty_all(path):
  shutil.rmtree(path)
  path.mkdir()


# Orbax's reads that are still under way when one of them fails come back to a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
  "damage",
  [
    flip_a_bit,
    empty_numbers,
    lambda path: [file.unlink() for file in path.rglob("manifest.ocdbt")],
    lambda path: (path / "state/_METADATA").unlink(),
    lambda path: shutil.rmtree(path / "record"),
    lambda path: shutil.rmtree(path / "state"),
    empty_all,
  ],
  ids=["bit", "empty numbers", "manifest", "metadata", "record", "state", "empty folder"],
)
def test_a_damaged_checkpoint_is_named_and_set_aside(damage, tmp_path):
  checkpoints = Checkpoints(tmp_path / "c", STAGES, MODEL, {})
  for step in (1, 2):
    checkpoints.save("joint", step, state_of(step), {})
  checkpoints.close()
  damage(tmp_path / "c/joint/2")
  assert checkpoints.latest() == ("joint", 2)
  with pytest.raises(DamagedError, match=r"^checkpoint .*c/joint/2 is damaged \(") as error:
    checkpoints.restore("joint", 2, abstract())
  assert "\n" not in str(error.value)
  if damage is not flip_a_bit:  # that is found by the sum over all numbers alone
    with pytest.raises(DamagedError, match="c/joint/2 is damaged"):
      read_networks(tmp_path / "c", STAGES)
  aside = checkpoints.set_aside("joint", 2)
  assert aside.name == "damaged_2_0" and aside.is_dir() and checkpoints.latest() == ("joint", 1)
  jax.tree.map(
    np.testing.assert_array_equal, checkpoints.restore("joint", 1, abstract())[0], state_of(1)
  )
  checkpoints.save("joint", 2, state_of(2), {})
  checkpoints.close()
  assert aside.is_dir() and Checkpoints(tmp_path / "c", STAGES, MODEL, {}).last_step("joint") == 2


def test_another_models_checkpoint_is_not_damaged(tmp_path):
  checkpoints = Checkpoints(tmp_path, STAGES, MODEL, {})
  checkpoints.save("joint", 1, state_of(1), {})
  checkpoints.close()
  other = Checkpoints(tmp_path, STAGES, MODEL | {"num_classes": 4}, {})
  with pytest.raises(UserError, match="another model's: num_classes is 3") as error:
    other.restore("joint", 1, abstract())
  assert not isinstance(error.value, DamagedError)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_every_bit_counts_in_the_checksum(dtype):
  leaf = jnp.arange(6, dtype=dtype)
  words = np.asarray(leaf).view(f"uint{8 * leaf.dtype.itemsize}")
  expected = int(words.astype(np.uint64).sum() % 2**32)
  assert int(checksum({"a": leaf, "b": jnp.zeros((), jnp.int32)})) == expected
  for bit in range(8 * leaf.dtype.itemsize):
    changed = words.copy()
    changed[2] ^= np.asarray(1 << bit, words.dtype)
    assert int(checksum({"a": jnp.asarray(changed.view(leaf.dtype))})) != expected


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_folder_that_is_removed_while_a_checkpoint_is_written_is_named(
  made_anew, tmp_path, monkeypatch
):
  checkpoints = Checkpoints(tmp_path / "c", STAGES, MODEL, {})
  checkpoints.save("joint", 1, state_of(1), {})
  checkpoints.wait()

  def save(*args, **keywords):
    shutil.rmtree(tmp_path / "c")
    if made_anew:
      (tmp_path / "c").mkdir()
    raise ValueError("no ArrayMetadata")  # as Orbax says it

  with monkeypatch.context() as context:
    context.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(UserError, match="c: removed while a checkpoint was written"):
      checkpoints.save("joint", 2, state_of(2), {})
  checkpoints.close()
