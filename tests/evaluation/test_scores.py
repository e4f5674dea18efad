"""Fusion of predictions, and of runs, by hand."""

import dataclasses

import numpy as np
import pytest

from u2s_jax.evaluation import scores
from u2s_jax.evaluation.scores import Scores
from u2s_jax.runtime.errors import UserError

A = np.array([[0.6, 0.4], [0.2, 0.8]])
B = np.array([[0.1, 0.9], [0.3, 0.7]])
C = np.array([[0.9, 0.1], [0.9, 0.1]])


def make_scores(**predictions):
  """Returns scores of two clips, of class 0 and 1."""
  return Scores(np.array(["1", "2"]), np.array([0, 1]), np.array(["x", "y"]), predictions)


def test_the_fusions_of_table_1():
  assert ["+".join(names) for names in scores.FUSIONS] == [
    "universal",
    "bridge",
    "specific",
    "universal+bridge",
    "bridge+specific",
    "universal+specific",
    "universal+bridge+specific",
  ]


def test_fuse_by_hand():
  three = {"a": A, "b": B, "c": C}
  np.testing.assert_array_equal(scores.fuse(three, ["b"]), B)
  np.testing.assert_allclose(scores.fuse(three, ("a", "b")), [[0.35, 0.65], [0.25, 0.75]])
  np.testing.assert_allclose(scores.fuse(three, ("a", "b"), (3, 1)), (3 * A + B) / 4)
  np.testing.assert_allclose(scores.fuse(three, ("a", "b", "c"), (0, 0.5, 1)), (B + 2 * C) / 3)


def test_fuse_computes_in_float64_and_keeps_its_arguments():
  two = {"a": A.astype(np.float32), "b": B.astype(np.float32)}
  assert scores.fuse(two, ("a", "b")).dtype == np.float64
  np.testing.assert_array_equal(two["a"], A.astype(np.float32))


@pytest.mark.parametrize(
  ("names", "weights", "message"),
  [
    (("a", "d", "e"), None, "no scores of d, e; available: a, b"),
    ((), None, "predictions to fuse: none given"),
    (("a", "b"), (1,), "must be 2 numbers >= 0 .* a, b$"),
    (("a", "b"), (1, -1), "sum > 0"),
    (("a", "b"), (0, 0), "sum > 0"),
    (("a", "b"), (1, float("nan")), "sum > 0"),
    (("a", "b"), (1, float("inf")), "sum > 0"),
  ],
)
def test_fuse_raises(names, weights, message):
  with pytest.raises(UserError, match=message):
    scores.fuse({"a": A, "b": B}, names, weights)


def test_fuse_raises_if_shapes_differ():
  with pytest.raises(UserError, match=r"shapes differ: a \(2, 2\), b \(1, 2\)"):
    scores.fuse({"a": A, "b": B[:1]}, ("a", "b"))


def test_fusions_by_hand():
  # Labels 0, 1: A is right twice, B on the second, C on the first.
  results = scores.fusions(make_scores(universal=A, bridge=B, specific=C))
  assert list(results) == ["+".join(names) for names in scores.FUSIONS]
  top1 = {name: result["top1"] for name, result in results.items()}
  assert top1 == {
    "universal": 100,
    "bridge": 50,
    "specific": 50,
    "universal+bridge": 50,  # (0.35, 0.65) and (0.25, 0.75): class 1 twice
    "bridge+specific": 50,  # (0.5, 0.5): the tie goes to class 0; (0.6, 0.4)
    "universal+specific": 50,  # (0.75, 0.25) and (0.55, 0.45): class 0 twice
    "universal+bridge+specific": 100,  # (0.53, 0.47) and (0.47, 0.53)
  }
  assert set(results["universal"]) == {"top1", "top5", "mean_class"}


def test_fusions_of_the_available_predictions(tmp_path):
  # As without a mask network (Table III d), read from a file.
  path = tmp_path / "scores.npz"
  scores.write(path, make_scores(universal=A, specific=C))
  assert list(scores.fusions(scores.read(path))) == ["universal", "specific", "universal+specific"]
  np.savez(path, ids=np.array(["1"]), universal=A)
  with pytest.raises(UserError, match="scores.npz: not a file of scores, 'labels' is missing"):
    scores.read(path)


def make_stream(order, seed, names=("universal", "specific"), **changed):
  """Returns scores of four clips, in some order."""
  rng, order = np.random.default_rng(seed), list(order)
  predictions = {name: rng.dirichlet([1, 1], 4).astype(np.float32)[order] for name in names}
  fields = {"ids": np.array(["a", "b", "c", "d"]), "labels": np.array([0, 1, 1, 0], np.int32)}
  fields = {key: value[order] for key, value in (fields | changed).items()}
  return Scores(class_names=np.array(["x", "y"]), predictions=predictions, **fields)


def test_join_matches_clips_by_id():
  rgb, flow = make_stream([2, 0, 3, 1], 0), make_stream([0, 1, 2, 3], 1)
  fused = scores.fuse_runs({"rgb": rgb, "flow": flow}, (1, 3))
  assert list(fused.ids) == ["c", "a", "d", "b"] and list(fused.labels) == [1, 0, 0, 1]
  for name in ("universal", "specific"):
    expected = (rgb.predictions[name] + 3 * flow.predictions[name][[2, 0, 3, 1]]) / 4
    np.testing.assert_allclose(fused.predictions[name], expected, rtol=1e-6)
  alone = scores.fuse_runs({"rgb": rgb, "flow": make_stream(range(4), 1, names=("specific",))})
  assert set(alone.predictions) == {"specific"}


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"ids": np.array(["a", "b", "b", "d"])}, "flow: the id b occurs twice"),
    ({"ids": np.array(["a", "b", "c", "e"])}, r"flow: no scores of d, which rgb has \(1 such"),
    ({"labels": np.array([0, 1, 0, 0])}, "flow: c has the label 0, but 1 in rgb"),
  ],
)
def test_join_raises_if_ids_or_labels_differ(changed, message):
  with pytest.raises(UserError, match=message):
    scores.fuse_runs(
      {"rgb": make_stream(range(4), 0), "flow": make_stream([1, 3, 0, 2], 1, **changed)}
    )


def test_join_raises_if_lengths_classes_or_predictions_differ():
  rgb, longer = make_stream([0, 1], 0), make_stream(range(4), 0)
  with pytest.raises(UserError, match=r"rgb: no scores of c, which flow has \(2 such ids\)"):
    scores.fuse_runs({"rgb": rgb, "flow": longer})
  with pytest.raises(UserError, match="flow: classes differ from those of rgb"):
    scores.fuse_runs(
      {"rgb": longer, "flow": dataclasses.replace(longer, class_names=np.array(["y", "x"]))}
    )
  with pytest.raises(UserError, match="rgb, flow: no prediction in common"):
    scores.fuse_runs({"rgb": longer, "flow": make_stream(range(4), 0, names=("bridge",))})
