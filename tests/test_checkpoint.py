"""Checkpoints: what comes back is what went in, and another model's is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.checkpoint import Checkpoints, abstract_state
from u2s_jax.csm import no_similarity
from u2s_jax.errors import UserError
from u2s_jax.state import TrainState

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
