"""The command that merges two streams."""

import dataclasses

import numpy as np
import pytest

from u2s_jax import fusion
from u2s_jax.evaluation import scores
from u2s_jax.evaluation.scores import Scores

CERTAIN = np.array([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32)  # right on a and b


def stream(**predictions):
  """Scores of four clips."""
  ids, labels = np.array(["a", "b", "c", "d"]), np.array([0, 1, 1, 0], np.int32)
  return Scores(ids, labels, np.array(["x", "y"]), predictions)


def test_the_command_prints_every_stream_and_their_fusion(tmp_path, capsys):
  paths = []
  for i, values in enumerate((CERTAIN, 0.9 * CERTAIN[:, ::-1] + 0.05)):
    path = tmp_path / f"{i}.npz"
    scores.write(path, stream(universal=values))
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
  both = stream(universal=CERTAIN, bridge=CERTAIN), stream(universal=CERTAIN)
  for path, result in zip(paths, both, strict=True):
    scores.write(path, result)
  fusion.main(["--scores", *map(str, paths)])
  assert "not fused, because not every file has them: bridge" in capsys.readouterr().out
  out = tmp_path / "out.npz"
  for path in paths:
    scores.write(path, dataclasses.replace(both[1], labels=np.full(4, -1, np.int32)))
  fusion.main(["--scores", *map(str, paths), "--out", str(out)])
  assert out.exists() and "no accuracies" in capsys.readouterr().out
