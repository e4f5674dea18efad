"""Files of a run: whole or not at all, and damaged ones are named."""

import json

import numpy as np
import pytest

from u2s_jax import workdir
from u2s_jax.errors import UserError
from u2s_jax.workdir import Workdir


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / "new" / "summary.json"
  workdir.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    workdir.write_json(path, {"a": np.ones(2)})
  assert json.loads(path.read_text()) == {"a": 1}


def test_paths_of_an_evaluation_are_laid_out_as_the_runs(tmp_path):
  run = Workdir(tmp_path)
  other = run.evaluation("10crop_joint_7")
  for path in (lambda w: w.summary, lambda w: w.scores("test"), lambda w: w.analysis("test")):
    assert path(other).relative_to(other.root) == path(run).relative_to(run.root)
  assert other.root == tmp_path / "eval" / "10crop_joint_7"


@pytest.mark.parametrize("content", [b"words", b""])
def test_damaged_arrays_are_named(tmp_path, content):
  path = tmp_path / "scores.npz"
  path.write_bytes(content)
  with pytest.raises(UserError, match="scores.npz: damaged, or no .npz file"):
    workdir.read_npz(path)


def test_a_damaged_config_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match="config.json: damaged"):
    Workdir(tmp_path).read_config()
