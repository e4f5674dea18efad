"""Stages that begin from another run's weights, on batches made in memory."""

import contextlib
import json
import shutil

import jax
import numpy as np
import pytest

from tests.memory_run import (
  CLASS_NAMES,
  NAME,
  MemorySource,
  config_of,
  open_memory_run,
  state_at,
  train,
)
from u2s_jax import checkpoint, settings
from u2s_jax.errors import UserError
from u2s_jax.evaluation import evaluate
from u2s_jax.pretrained import adapt
from u2s_jax.workdir import Workdir


def test_an_ablation_starts_from_the_end_of_stage_1(finished, tmp_path, capsys):
  config = config_of(
    **{
      "init_from": str(finished[0] / "checkpoints/universal"),
      "universal.epochs": 0.0,
      "model.specific_init": "pretrained",
      "csm.n": 1,
      "csm.selection": "own",
      "csm.guide": "label",
      "eval.classes": ("class 2", "class 0"),
    }
  )
  source = MemorySource()
  train(config, tmp_path, source)
  assert [stage for stage, _ in source.started] == [1, 2]  # stage 1 took nothing
  before, _ = state_at(config_of(), finished[0], stage="universal", step=3)
  for stage, network in (("universal", "universal"), ("specific", "specific")):
    begun, _ = state_at(config, tmp_path, stage=stage, step=0)
    jax.tree.map(np.testing.assert_array_equal, begun.params[network], before.params["universal"])
    jax.tree.map(np.testing.assert_array_equal, begun.params["trunk"], before.params["trunk"])
  assert begun.csm.n == 1
  summaries = [json.loads((path / "summary.json").read_text()) for path in (finished[0], tmp_path)]
  assert summaries[0]["one_pass"] == summaries[1]["one_pass"]
  table = capsys.readouterr().out.split("Improved")[1].splitlines()
  assert [row[:7] for row in table if row.startswith("class")][:2] == ["class 2", "class 0"]
  with pytest.raises(UserError, match="^csm.guide: 'label', but clips of the split 'test' have"):
    config.eval.split = "test"
    evaluate.evaluate_latest(config, Workdir(tmp_path), MemorySource(unknown=(3,)).source(), NAME)


def test_stages_2_and_3_start_from_no_half_trained_stage_1(finished, tmp_path):
  half, folder = tmp_path / "half", tmp_path / "run"
  shutil.copytree(finished[0] / "checkpoints/universal", half / "checkpoints/universal")
  shutil.rmtree(half / "checkpoints/universal/3")
  step = max(int(path.name) for path in (half / "checkpoints/universal").glob("[0-9]*"))
  config = config_of(init_from=str(half), **{"universal.epochs": 0.0})
  message = f"^init_from: .*universal/{step}: its stage universal is at step {step} of 3; let"
  with pytest.raises(UserError, match=message):
    train(config, folder)
  # Whoever corrects it may do so in the same folder.
  settings.check(config_of(init_from=str(finished[0])), Workdir(folder))


def test_a_part_that_a_later_stage_trains_is_missed_before_stage_1(tmp_path):
  config = config_of(trainable=("trunk", "universal", "specific/fc", "mask"))
  source = MemorySource()
  with pytest.raises(UserError, match="^trainable: 'specific/fc' is not there; specific has "):
    train(config, tmp_path, source)
  assert source.started == []
  # Whoever corrects it may do so in the same folder.
  settings.check(config_of(), Workdir(tmp_path))


@pytest.fixture(scope="module")
def flow_run(finished, tmp_path_factory):
  """A flow run from the finished RGB run, that crashed after a step: folder, config."""
  folder = tmp_path_factory.mktemp("flow")
  flow = {"data.modality": "flow", "model.pixel_mean": (0.5,), "model.pixel_std": (0.2,)}
  # The one-pass model alone: its programs compile fast.
  config = config_of(init_from=str(finished[0]), checkpoint_every_steps=1, control=True, **flow)
  save = checkpoint.Checkpoints.save

  def save_then_crash(self, stage, step, *args):
    save(self, stage, step, *args)
    if step == 1:
      self.wait()
      raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(checkpoint.Checkpoints, "save", save_then_crash)
    train(config, folder, MemorySource(channels=10))
  return folder, config


def test_a_flow_run_starts_from_an_rgb_run(finished, flow_run):
  folder, config = flow_run
  rgb, _ = state_at(config_of(), finished[0])
  flow, _ = state_at(config, folder, MemorySource(channels=10), "universal", 0)
  stem = rgb.params["trunk"]["stem"].pop("kernel")
  averaged = flow.params["trunk"]["stem"].pop("kernel")
  assert averaged.shape == (1, 7, 7, 10, 2) and flow.step == 0
  for channel in range(10):
    np.testing.assert_allclose(averaged[..., channel, :], stem.mean(3), rtol=1e-5, atol=1e-7)
  for collection in ("params", "batch_stats"):
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(flow, collection),
      {name: getattr(rgb, collection)[name] for name in ("trunk", "universal")},
    )


def test_a_flow_run_goes_on_without_the_rgb_run(flow_run, monkeypatch):
  folder, config = flow_run
  monkeypatch.setattr(adapt, "load", lambda *args, **kwargs: 1 / 0)
  source = MemorySource(channels=10)
  train(config, folder, source)
  assert source.started[0] == (0, 1) and (folder / "summary.json").exists()


def start_from(folder, workdir, source, lines, **fields):
  """What `load` makes of a first state that is 7 throughout: its programs need no compiling."""
  run = open_memory_run(config_of(**fields), workdir, source)
  with contextlib.closing(run.checkpoints):
    state = jax.eval_shape(run.begin(run.stages[0]), None)
  sevens = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), (state.params, state.batch_stats))
  target = adapt.Target(
    run.config.model.backbone.to_dict(), source.class_names, needs_classifier=False
  )
  return adapt.load(folder, *sevens, target, lines.append)


@pytest.mark.parametrize("names", [(*CLASS_NAMES, "one more"), ("class 0", "class 2", "class 1")])
def test_the_classifier_of_other_classes_is_fresh(finished, tmp_path, names):
  lines = []
  params, batch_stats = start_from(finished[0], tmp_path, MemorySource(class_names=names), lines)
  for leaf, shape in (("kernel", (64, len(names))), ("bias", (len(names),))):
    np.testing.assert_array_equal(params["universal"]["head"][leaf], np.full(shape, 7))
  rgb, _ = state_at(config_of(), finished[0])
  for network in ("trunk", "universal"):
    for tree in (params, rgb.params):
      tree[network].pop("head", None)
    jax.tree.map(np.testing.assert_array_equal, params[network], rgb.params[network])
    jax.tree.map(np.testing.assert_array_equal, batch_stats[network], rgb.batch_stats[network])
  count = len(jax.tree.leaves((params, batch_stats))) + 2  # with the classifier
  assert lines == [
    f"starting from the one-pass model of {finished[0] / 'checkpoints/joint/3'}",
    "  classifier: freshly initialised, the classes are others",
    f"  {count - 2} of {count} arrays loaded",
  ]


def test_the_first_convolution_for_flow_is_said(finished, tmp_path):
  lines = []
  start_from(finished[0], tmp_path, MemorySource(channels=10), lines)
  assert "  first convolution: mean over 3 input channels, for each of 10" in lines
  assert not any("classifier" in line for line in lines)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"model.backbone.temporal": ((1, 3, 3, 3), (3, 3, 3, 1))},
      r"params/universal/group2/block0/conv1/kernel has shape \(3, 1, 1, 16, 8\) there and "
      r"\(1, 1, 1, 16, 8\) here; set config.model.backbone as there",
    ),
    ({"model.backbone.depth": 26}, "params/trunk/group0/block1/.* has shape None there and"),
    ({"model.backbone.strides": (2, 2, 2, 2)}, "its network has backbone.strides = "),
  ],
)
def test_a_run_of_another_network_is_no_start(finished, tmp_path, fields, message):
  with pytest.raises(UserError, match=f"^init_from: .*joint/3: {message}") as error:
    start_from(finished[0], tmp_path, MemorySource(), [], **fields)
  assert "\n" not in str(error.value)


def test_a_run_without_a_checkpoint_is_no_start(tmp_path):
  with pytest.raises(UserError, match="^init_from: no checkpoint in .*; name the --w"):
    start_from(tmp_path, tmp_path / "run", MemorySource(), [])
