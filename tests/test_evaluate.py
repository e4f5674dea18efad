"""Evaluation: every example once, scores on disk, the summary from them."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax import evaluate, sharding, state

CLASSES = 3
CLASS_NAMES = ("Pouring éclairs", "Pushing X", "Bending Y")


STATE = state.TrainState(step=0.5, params={}, batch_stats={}, momentum=(), csm=())


def fake_step(current, video, label):
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
  return evaluate.score(run, STATE, batches(), mesh, CLASS_NAMES)


def test_every_example_counts_once_in_order(scores):
  assert list(scores["id"]) == [f"clip-é{n}" for n in range(10)]
  np.testing.assert_array_equal(scores["label"], np.arange(10) % CLASSES)
  np.testing.assert_array_equal(scores["universal"][:, 0], np.arange(10))


def test_scores_survive_the_file(scores, tmp_path):
  evaluate.write_scores(tmp_path / "scores/validation.npz", scores)
  with np.load(tmp_path / "scores/validation.npz") as file:
    assert set(file) == {"ids", "labels", "class_names", "universal"}
    assert tuple(file["class_names"]) == CLASS_NAMES
  again = evaluate.read_scores(tmp_path / "scores/validation.npz")
  assert again.keys() == scores.keys()
  for key, values in scores.items():
    np.testing.assert_array_equal(again[key], values)
  assert [path.name for path in (tmp_path / "scores").iterdir()] == ["validation.npz"]


def test_too_long_an_id_is_an_error():
  mesh = sharding.data_mesh()
  long = [{**batch, "id": np.array([b"x" * 257] * 8, object)} for batch in batches()]
  with pytest.raises(ValueError, match="^id x{257}: longer than 256 bytes$"):
    evaluate.score(evaluate.compile_eval(fake_step, mesh), STATE, long, mesh, CLASS_NAMES)


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


# Eight clips; class 2 has none. One-pass: both of class 0 and 3 of 6 of class 1 are right; at the
# end 1 of class 0 (the other goes to class 3) and 4 of class 1 (one to class 0, one to class 3).
LABELS = np.array([0, 0, 1, 1, 1, 1, 1, 1])
BEFORE = {"label": LABELS, "universal": np.eye(4)[[0, 0, 1, 1, 1, 0, 0, 2]]}
AFTER = {
  "label": LABELS,
  "universal": 0.4 * np.eye(4)[[0, 0, 1, 1, 1, 0, 0, 2]],
  "specific": np.eye(4)[[0, 3, 1, 1, 1, 1, 0, 3]],
}
FOUR = ("a", "b", "c", "d")
PAIRS = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]], np.float32)


def test_per_class_by_hand():
  first, second, third, fourth = evaluate.per_class(BEFORE, AFTER, FOUR, PAIRS)
  assert first == {
    "class": "a",
    "clips": 2,
    "one_pass": 100,
    "universal": 100,
    "specific": 50,
    "merged": 50,
    "gain": -50,
    "confused_with": "d (1)",
    "csm": "b",
  }
  assert (second["clips"], second["one_pass"], second["csm"]) == (6, 50, "a | d")
  assert second["merged"] == pytest.approx(400 / 6)
  assert second["gain"] == pytest.approx(100 / 6)
  assert second["confused_with"] == "a (1)"  # of equally frequent ones the first
  for row, csm in ((third, ""), (fourth, "b")):
    assert row["clips"] == 0 and row["merged"] is row["gain"] is row["one_pass"] is None
    assert row["confused_with"] == "" and row["csm"] == csm


def test_per_class_survives_the_file(tmp_path):
  names = ('a, "b"', "é", "c", "d")
  rows = evaluate.per_class(BEFORE, AFTER, names, PAIRS)
  evaluate.write_per_class(tmp_path / "per_class.csv", rows)
  with open(tmp_path / "per_class.csv", newline="", encoding="utf-8") as file:
    first, second, third, _ = csv.DictReader(file)
  assert first["class"] == 'a, "b"' and first["csm"] == "é"
  assert (second["clips"], second["merged"], second["gain"]) == ("6", "66.67", "16.67")
  assert (third["clips"], third["merged"], third["gain"]) == ("0", "", "")
  assert [path.name for path in tmp_path.iterdir()] == ["per_class.csv"]


def test_a_table_of_few_classes_shows_them_all():
  long = "Pretending to put something onto something else"
  rows = evaluate.per_class(BEFORE, AFTER, (long, "b", "c", "d"), PAIRS)
  header, _, first, second, third, _ = evaluate.per_class_table(rows).splitlines()
  assert header.split("  ")[0] == "Class" and header.rstrip().endswith("Most confused with")
  cut = "Pretending to put something onto some..."
  assert len(cut) == 40
  assert first.split() == [*cut.split(), "2", "100.00", "50.00", "-50.00", "d", "(1)"]
  assert second.split() == ["b", "6", "50.00", "66.67", "+16.67", *cut.split(), "(1)"]
  assert third.split() == ["c", "0", "-", "-", "-"]


def test_a_table_of_many_classes_shows_the_largest_gains_and_losses():
  # Class k gains k - 15 points, but class 15 none, and class 40 has no clip.
  rows = [
    {
      "class": f"c{k}",
      "clips": 5 * (k < 40),
      "one_pass": 50.0,
      "merged": 35.0 + k,
      "gain": k - 15.0 if k < 40 else None,
      "confused_with": "",
    }
    for k in range(41)
  ]
  shown = [line.split()[0] for line in evaluate.per_class_table(rows).splitlines()[2:]]
  assert shown == [f"c{k}" for k in (*range(39, 29, -1), *range(9, -1, -1))]
  for row in rows:
    row["gain"] = row["gain"] and max(row["gain"], 0.0)
  rows[3]["gain"] = -1.0
  shown = [line.split()[0] for line in evaluate.per_class_table(rows).splitlines()[2:]]
  assert shown == [*(f"c{k}" for k in range(39, 29, -1)), "c3"]
  assert len(evaluate.per_class_table(rows[:30]).splitlines()) == 32


def test_json_appears_complete_or_not_at_all(tmp_path):
  path = tmp_path / "summary.json"
  evaluate.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    evaluate.write_json(path, {"a": jax.numpy.ones(2)})
  assert json.loads(path.read_text()) == {"a": 1}
