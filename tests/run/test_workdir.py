"""Tests of the paths and files of a workdir."""

import json

import numpy as np
import pytest

from u2s_jax.run import saved_config, workdir
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError


def test_write_json_is_all_or_nothing(tmp_path):
  path = tmp_path / "new" / "summary.json"
  workdir.write_json(path, {"a": 1})
  with pytest.raises(TypeError):
    workdir.write_json(path, {"a": np.ones(2)})
  assert json.loads(path.read_text()) == {"a": 1}


def test_evaluation_has_the_layout_of_the_run(tmp_path):
  run = Workdir(tmp_path)
  other = run.evaluation("10crop_joint_7")
  for path in (lambda w: w.summary, lambda w: w.scores("test"), lambda w: w.analysis("test")):
    assert path(other).relative_to(other.root) == path(run).relative_to(run.root)
  assert other.root == tmp_path / "eval" / "10crop_joint_7"


@pytest.mark.parametrize("content", [b"words", b""])
def test_damaged_arrays(tmp_path, content):
  path = tmp_path / "scores.npz"
  path.write_bytes(content)
  with pytest.raises(UserError, match="scores.npz: damaged, or not an .npz file"):
    workdir.read_npz(path)


def test_damaged_config(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(UserError, match="config.json: damaged"):
    saved_config.read(Workdir(tmp_path))
