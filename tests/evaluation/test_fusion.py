"""The command that fuses two streams."""

import dataclasses

import numpy as np
import pytest

from u2s_jax.evaluation import fusion, scores
from u2s_jax.evaluation.scores import Scores

CERTAIN = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)  # correct for a and b


def make_stream(**predictions):
  """Returns scores of four clips."""
  ids, labels = np.array(["a", "b", "c", "d"]), np.array([0, 1, 1, 0], np.int32)
  return Scores(ids, labels, np.array(["x", "y"]), predictions)


def test_command_prints_streams_and_their_fusion(tmp_path, capsys):
  paths = []
  for i, values in enumerate((CERTAIN, 0.9 * CERTAIN[:, ::-1] + 0.05)):
    path = tmp_path / f"{i}.npz"
    scores.write(path, make_stream(universal=values))
    paths.append(str(path))
  out = tmp_path / "fused.npz"
  fusion.main(["--scores", *paths, "--weights", "1", "3", "--out", str(out)])
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == f"written: {out}"
  assert lines[3].split() == [paths[0], "1", "50.00", "100.00", "50.00"]
  assert lines[5].split() == ["fused", "50.00", "100.00", "50.00"]
  fused = scores.read(out).predictions["universal"]
  np.testing.assert_allclose(fused[0], [(1 + 3 * 0.05) / 4, 3 * 0.95 / 4], rtol=1e-6)
  words, weights = tmp_path / "words.npz", tmp_path / "weights.npz"
  words.write_text("words")
  np.savez(weights, kernel=np.zeros(2))
  for arguments, message in (
    (["--scores", *paths, "--out", str(out)], "already exists; choose another file"),
    (["--scores", *paths, "--weights", "1"], "weights: 1 for 2 files"),
    (["--scores", paths[0], str(tmp_path / "none.npz")], "No such file"),
    (["--scores", paths[0], str(words)], "words.npz: damaged, or not an .npz file"),
    (["--scores", paths[0], str(weights)], "weights.npz: not a file of scores, 'ids' is missing"),
  ):
    with pytest.raises(SystemExit, match=message):
      fusion.main(arguments)


def test_streams_without_labels_or_with_different_predictions(tmp_path, capsys):
  paths = [tmp_path / f"{i}.npz" for i in range(2)]
  both = make_stream(universal=CERTAIN, bridge=CERTAIN), make_stream(universal=CERTAIN)
  for path, result in zip(paths, both, strict=True):
    scores.write(path, result)
  fusion.main(["--scores", *map(str, paths)])
  assert "not fused, because not every file has them: bridge" in capsys.readouterr().out
  out = tmp_path / "out.npz"
  for path in paths:
    scores.write(path, dataclasses.replace(both[1], labels=np.full(4, -1, np.int32)))
  fusion.main(["--scores", *map(str, paths), "--out", str(out)])
  assert out.exists() and "no accuracies" in capsys.readouterr().out
