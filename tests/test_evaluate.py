"""Evaluation: every example once, scores on disk, the summary from them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax import evaluate, sharding, state

CLASSES = 3


STATE = state.TrainState(step=0.5, params={}, batch_stats={}, momentum=(), csm=())


def fake_step(current, video):
  """Scores that tell which clip they are of: its first pixel."""
  first = video[:, 0, 0, 0, 0, 0].astype(jnp.float32)
  return {"universal": jnp.stack([first, current.step * jnp.ones_like(first), -first], -1)}


def batches():
  """Ten clips in two batches of eight, the last one padded."""
  for start in (0, 8):
    numbers = np.minimum(np.arange(start, start + 8), 9)
    yield {
      "video": np.broadcast_to(
        numbers.astype(np.uint8)[:, None, None, None, None, None], (8, 1, 2, 4, 4, 3)
      ).copy(),
      "label": (numbers % CLASSES).astype(np.int32),
      "mask": np.arange(start, start + 8) < 10,
      "id": np.array([f"clip-é{n}".encode() for n in numbers], object),
    }


@pytest.fixture(scope="module")
def scores():
  mesh = sharding.data_mesh()
  run = evaluate.compile_eval(fake_step, mesh)
  return evaluate.score(run, STATE, batches(), mesh)


def test_every_example_counts_once_in_order(scores):
  assert list(scores["id"]) == [f"clip-é{n}" for n in range(10)]
  np.testing.assert_array_equal(scores["label"], np.arange(10) % CLASSES)
  np.testing.assert_array_equal(scores["universal"][:, 0], np.arange(10))


def test_scores_survive_the_file(scores, tmp_path):
  evaluate.write_scores(tmp_path / "scores/validation.npz", scores)
  with np.load(tmp_path / "scores/validation.npz") as file:
    assert set(file) == {"ids", "labels", "universal"}
  again = evaluate.read_scores(tmp_path / "scores/validation.npz")
  assert again.keys() == scores.keys()
  for key, values in scores.items():
    np.testing.assert_array_equal(again[key], values)
  assert [path.name for path in (tmp_path / "scores").iterdir()] == ["validation.npz"]


def test_too_long_an_id_is_an_error():
  mesh = sharding.data_mesh()
  long = [{**batch, "id": np.array([b"x" * 65] * 8, object)} for batch in batches()]
  with pytest.raises(ValueError, match="^id x{65}: longer than 64 bytes$"):
    evaluate.score(evaluate.compile_eval(fake_step, mesh), STATE, long, mesh)


def test_mirror_columns():
  columns = evaluate.mirror_columns("10crop", 4, ((1, 3),))
  assert columns[:5] == (None,) * 5
  for mirrored in columns[5:]:
    np.testing.assert_array_equal(mirrored, [0, 3, 2, 1])
  assert evaluate.mirror_columns("center", 4, ((1, 3),)) == (None,)
  # Without a mirrored view the map is of no use, and of no harm.
  assert evaluate.mirror_columns("3crop", 4, ((86, 87),)) == (None,) * 3
  with pytest.raises(ValueError, match=r"data.flip_label_map: \(86, 87\) is no pair of the 4"):
    evaluate.mirror_columns("10crop", 4, ((86, 87),))


def test_summary():
  labels = np.array([0, 1, 2, 0])
  good, bad = np.eye(CLASSES)[labels] * 0.8 + 0.1, np.eye(CLASSES)[(labels + 1) % 3] * 0.8 + 0.1
  csm = state.no_similarity(CLASSES).replace(
    matrix=jnp.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), alpha=jnp.float32(0.75), n=jnp.int32(1)
  )
  params = {
    name: {"w": jnp.zeros(size)}
    for name, size in [("trunk", 2), ("universal", 3), ("specific", 3), ("mask", 4)]
  }
  current = state.TrainState(step=jnp.int32(0), params=params, batch_stats={}, momentum=(), csm=csm)
  summary = evaluate.summarize(
    {"label": labels, "universal": bad},
    {"label": labels, "universal": bad, "bridge": good, "specific": good},
    current,
    "configs/x.py",
  )
  assert summary["one_pass"]["top1"] == 0 and summary["one_pass"]["top5"] == 100
  assert len(summary["predictions"]) == 7
  assert summary["predictions"]["universal"]["top1"] == 0
  assert summary["predictions"]["universal+bridge+specific"]["mean_class"] == 100
  assert summary["csm"] == {"alpha": 0.75, "n": 1, "average_confusing": pytest.approx(2 / 3)}
  assert summary["parameters"] == {"one_pass": 5, "u2s": 12}
  assert summary["config"] == "configs/x.py"
  json.dumps(summary)


def test_json_appears_complete_or_not_at_all(tmp_path):
  path = tmp_path / "summary.json"
  evaluate.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    evaluate.write_json(path, {"a": jax.numpy.ones(2)})
  assert json.loads(path.read_text()) == {"a": 1}
