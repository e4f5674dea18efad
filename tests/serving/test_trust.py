"""Runs whose backbone is code of another package: nothing is imported until the user names it."""

import re
import sys

import jax
import ml_collections
import numpy as np
import PIL.Image
import pytest

import main
import u2s_jax
from tests import memory_run
from tests.models.test_check import EXAMPLE
from u2s_jax.evaluation import evaluate
from u2s_jax.run import config_flags
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError
from u2s_jax.serving import cli
from u2s_jax.training import steps

NAME = "my_networks:SmallCNN"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The workdir of a run with the backbone of docs/backbones.md, resumed once, and its folder."""
  folder = tmp_path_factory.mktemp("outside")
  (folder / "my_networks.py").write_text(EXAMPLE)
  sys.path.insert(0, str(folder))
  config = memory_run.make_config()
  config.model.backbone = ml_collections.ConfigDict({"name": NAME, "width": 4})
  config.data.short_edge = 32
  memory_run.train(config, folder / "run")
  yield folder / "run"
  sys.path.remove(str(folder))
  sys.modules.pop("my_networks", None)


@pytest.fixture
def forgotten():
  """Forgets that the module was imported."""
  sys.modules.pop("my_networks", None)


def test_trains_all_stages(trained):
  assert (trained / "summary.json").exists()


@pytest.mark.parametrize("named", [None, "my_networks:Other"])
def test_nothing_is_imported_unless_it_is_named(trained, forgotten, named, capsys, tmp_path):
  PIL.Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
  flags = [f"--config.model.backbone.name={named}"] * bool(named)
  message = re.escape(f"the run has '{NAME}', code of another package")
  with pytest.raises(UserError, match=message):
    u2s_jax.load(trained, backbone=named)
  for mode in ("predict", "export", "eval"):
    arguments = [f"--workdir={trained}", f"--mode={mode}", *flags]
    with pytest.raises(SystemExit) as stopped:
      main.main([*arguments, f"--video={tmp_path}/a.png"] if mode == "predict" else arguments)
    text = f"{stopped.value} {capsys.readouterr()}"
    assert f"add --config.model.backbone.name={NAME}" in text, (mode, text)
  main.main([f"--workdir={trained}", "--mode=report"])  # reads files only
  assert "my_networks" not in sys.modules


def test_works_once_it_is_named(trained, forgotten):
  model = u2s_jax.load(trained, backbone=NAME)
  assert model.class_names == memory_run.CLASS_NAMES and "my_networks" in sys.modules
  cli.main([f"--workdir={trained}", "--mode=export", f"--config.model.backbone.name={NAME}"])
  exported = jax.export.deserialize(bytearray((trained / "export/model.jax").read_bytes()))
  video = memory_run.clips("validation", [0, 1])["video"]
  scores = exported.call(video)
  expected = jax.jit(model.trained.outputs)(video)
  np.testing.assert_allclose(scores["specific"], expected["specific"], atol=1e-6)


def test_evaluates_once_it_is_named(trained, forgotten):
  arguments = [f"--config.model.backbone.name={NAME}"]
  config = config_flags.read_saved_config(Workdir(trained), arguments)
  source, tx = memory_run.MemorySource().source(), steps.sgd(**config.optimizer)
  evaluate.evaluate_latest(config, Workdir(trained), source, memory_run.NAME, tx)
