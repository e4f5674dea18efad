"""Fusion of predictions, and the table that shows it."""

import numpy as np
import pytest

from u2s_jax import evaluate, fusion

A = np.array([[0.6, 0.4], [0.2, 0.8]])
B = np.array([[0.1, 0.9], [0.3, 0.7]])
C = np.array([[0.9, 0.1], [0.9, 0.1]])


def test_the_fusions_of_table_1():
  assert ["+".join(names) for names in fusion.FUSIONS] == [
    "universal",
    "bridge",
    "specific",
    "universal+bridge",
    "bridge+specific",
    "universal+specific",
    "universal+bridge+specific",
  ]


def test_fuse_by_hand():
  scores = {"a": A, "b": B, "c": C}
  np.testing.assert_array_equal(fusion.fuse(scores, ["b"]), B)
  np.testing.assert_allclose(fusion.fuse(scores, ("a", "b")), [[0.35, 0.65], [0.25, 0.75]])
  np.testing.assert_allclose(fusion.fuse(scores, ("a", "b"), (3, 1)), (3 * A + B) / 4)
  np.testing.assert_allclose(fusion.fuse(scores, ("a", "b", "c"), (0, 0.5, 1)), (B + 2 * C) / 3)


def test_fuse_is_computed_in_float64_and_leaves_its_arguments():
  scores = {"a": A.astype(np.float32), "b": B.astype(np.float32)}
  assert fusion.fuse(scores, ("a", "b")).dtype == np.float64
  np.testing.assert_array_equal(scores["a"], A.astype(np.float32))


@pytest.mark.parametrize(
  ("names", "weights", "message"),
  [
    (("a", "d", "e"), None, "no scores of d, e; there are: a, b"),
    ((), None, "no prediction"),
    (("a", "b"), (1,), "2 numbers >= 0 .* a, b, not"),
    (("a", "b"), (1, -1), "sum > 0"),
    (("a", "b"), (0, 0), "sum > 0"),
    (("a", "b"), (1, float("nan")), "sum > 0"),
    (("a", "b"), (1, float("inf")), "sum > 0"),
  ],
)
def test_fuse_refuses(names, weights, message):
  with pytest.raises(ValueError, match=message):
    fusion.fuse({"a": A, "b": B}, names, weights)


def test_fuse_names_shapes_that_differ():
  with pytest.raises(ValueError, match=r"differ in shape: a \(2, 2\), b \(1, 2\)"):
    fusion.fuse({"a": A, "b": B[:1]}, ("a", "b"))


def test_fusions_by_hand():
  # Labels 0, 1: A is right twice, B on the second, C on the first.
  scores = {"universal": A, "bridge": B, "specific": C}
  results = fusion.fusions(scores, np.array([0, 1]))
  assert list(results) == ["+".join(names) for names in fusion.FUSIONS]
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


def test_fusions_takes_what_is_there(tmp_path):
  # As without a mask network (Table III d), read from a scores file.
  path = tmp_path / "scores.npz"
  np.savez(path, ids=np.array(["1", "2"]), labels=np.array([0, 1]), universal=A, specific=C)
  with np.load(path) as file:
    results = fusion.fusions(file, file["labels"])
  assert list(results) == ["universal", "specific", "universal+specific"]


def _summary(top1, top5, mean_class):
  return {"top1": top1, "top5": top5, "mean_class": mean_class}


def test_table():
  text = fusion.table(
    _summary(56.52, 82.95, 50.0),
    {
      "universal+bridge+specific": _summary(58.474, 84.03, 100.0),
      "universal": _summary(57.67, 83.96, 9.5),
      "bridge": _summary(57.58, 83.26, 51.25),
    },
  )
  assert text.splitlines() == [
    "Universal  Bridge  Specific  Top-1 (%)  Top-5 (%)  Mean class (%)",
    "---------  ------  --------  ---------  ---------  --------------",
    "One-pass                         56.52      82.95           50.00",
    "    x                            57.67      83.96            9.50",
    "             x                   57.58      83.26           51.25",
    "    x        x        x          58.47      84.03          100.00",
  ]


def test_table_without_one_pass():
  text = fusion.table(None, fusion.fusions({"specific": C}, np.array([0, 1])))
  assert len(text.splitlines()) == 3
  assert len({len(line) for line in text.splitlines()}) == 1
  assert text.isascii()


def _stream(order, seed, names=("universal", "specific"), **changed):
  """Scores of four clips, in some order."""
  rng = np.random.default_rng(seed)
  scores = {"id": np.array(["a", "b", "c", "d"]), "label": np.array([0, 1, 1, 0], np.int32)}
  scores |= {name: rng.dirichlet([1, 1], 4).astype(np.float32) for name in names}
  scores |= changed
  return {key: value[list(order)] for key, value in scores.items()} | {
    "class_names": np.array(["x", "y"])
  }


def test_streams_are_joined_by_id():
  rgb, flow = _stream([2, 0, 3, 1], 0), _stream([0, 1, 2, 3], 1)
  fused = fusion.join({"rgb": rgb, "flow": flow}, (1, 3))
  assert list(fused["id"]) == ["c", "a", "d", "b"] and list(fused["label"]) == [1, 0, 0, 1]
  for name in ("universal", "specific"):
    expected = (rgb[name] + 3 * flow[name][[2, 0, 3, 1]]) / 4
    np.testing.assert_allclose(fused[name], expected, rtol=1e-6)
  alone = fusion.join({"rgb": rgb, "flow": _stream(range(4), 1, names=("specific",))})
  assert set(alone) == {"id", "label", "class_names", "specific"}


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"id": np.array(["a", "b", "b", "d"])}, "flow: the id b occurs twice"),
    ({"id": np.array(["a", "b", "c", "e"])}, r"flow: no scores of d, which rgb has \(1 such"),
    ({"label": np.array([0, 1, 0, 0])}, "flow: c has the label 0, but 1 in rgb"),
  ],
)
def test_streams_that_do_not_fit(changed, message):
  with pytest.raises(ValueError, match=message):
    fusion.join({"rgb": _stream(range(4), 0), "flow": _stream([1, 3, 0, 2], 1, **changed)})


def test_more_streams_that_do_not_fit():
  rgb, longer = _stream([0, 1], 0), _stream(range(4), 0)
  with pytest.raises(ValueError, match=r"rgb: no scores of c, which flow has \(2 such ids\)"):
    fusion.join({"rgb": rgb, "flow": longer})
  with pytest.raises(ValueError, match="flow: its classes are not those of rgb"):
    fusion.join({"rgb": longer, "flow": longer | {"class_names": np.array(["y", "x"])}})
  with pytest.raises(ValueError, match="rgb, flow: they have no prediction in common"):
    fusion.join({"rgb": longer, "flow": _stream(range(4), 0, names=("bridge",))})


def test_the_command_prints_every_stream_and_their_fusion(tmp_path, capsys):
  certain = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)  # right on a and b
  paths = []
  for i, scores in enumerate((certain, 0.9 * certain[:, ::-1] + 0.05)):
    path = tmp_path / f"{i}.npz"
    evaluate.write_scores(path, _stream(range(4), 0, names=("universal",), universal=scores))
    paths.append(str(path))
  out = tmp_path / "fused.npz"
  fusion.main(["--scores", *paths, "--weights", "1", "3", "--out", str(out)])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f"written: {out}"
  assert lines[3].split() == [paths[0], "1", "50.00", "100.00", "50.00"]
  assert lines[5].split() == ["fused", "50.00", "100.00", "50.00"]
  fused = evaluate.read_scores(out)["universal"]
  np.testing.assert_allclose(fused[0], [(1 + 3 * 0.05) / 4, 3 * 0.95 / 4], rtol=1e-6)
  words, weights = tmp_path / "words.npz", tmp_path / "weights.npz"
  words.write_text("words")
  np.savez(weights, kernel=np.zeros(2))
  for arguments, message in (
    (["--scores", *paths, "--out", str(out)], "it is there already"),
    (["--scores", *paths, "--weights", "1"], "--weights: 1 for 2 files"),
    (["--scores", paths[0], str(tmp_path / "none.npz")], "No such file"),
    (["--scores", paths[0], str(words)], "words.npz: damaged, or no .npz"),
    (["--scores", paths[0], str(weights)], "weights.npz: no scores .*'ids'"),
  ):
    with pytest.raises(SystemExit, match=message):
      fusion.main(arguments)


def test_streams_without_labels_and_with_other_predictions(tmp_path, capsys):
  paths = [tmp_path / f"{i}.npz" for i in range(2)]
  for path, names in zip(paths, (("universal", "bridge"), ("universal",)), strict=True):
    evaluate.write_scores(path, _stream(range(4), 0, names=names))
  fusion.main(["--scores", *map(str, paths)])
  assert "not fused, because not every file has them: bridge" in capsys.readouterr().out
  out = tmp_path / "out.npz"
  for path in paths:
    unlabelled = _stream(range(4), 0, names=("universal",))
    unlabelled["label"] = np.full(4, -1)
    evaluate.write_scores(path, unlabelled)
  fusion.main(["--scores", *map(str, paths), "--out", str(out)])
  assert out.exists() and "no accuracies" in capsys.readouterr().out
