"""Checks that a control is comparable with its run, field by field."""

import json
import shutil

import numpy as np
import pytest

from tests.memory_run import make_config
from u2s_jax.evaluation import control as control_lib
from u2s_jax.run import saved_config
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError


@pytest.fixture
def pair(finished, tmp_path):
  """Returns the workdirs of a control and its run, copies of one run."""
  run, control = tmp_path / "run", tmp_path / "control"
  for folder in (run, control):
    shutil.copytree(finished[0], folder, ignore=shutil.ignore_patterns("checkpoints", "profile"))
  write_config(control)
  return Workdir(control), Workdir(run)


def write_config(folder, **fields):
  """Writes the config of a control with these fields into a workdir."""
  with_own = {"eval.pairs": 2, "profile": True, "control": True, **fields}
  saved_config.write(Workdir(folder), make_config(**with_own))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("model.backbone.width", 1),
    ("model.backbone.depth", 26),
    ("model.backbone.strides", (1, 2, 2, 2)),
    ("model.backbone.name", "resnet"),
    ("model.backbone.stem_pool", False),
    ("model.dropout", 0.5),
    ("model.pixel_mean", (0.5, 0.5, 0.5)),
    ("model.dtype", "bfloat16"),
    ("data.num_frames", 4),
    ("data.crop_size", 24),
    ("data.short_edge", 40),
    ("data.flip", True),
    ("data.balance", 0.5),
    ("data.multi_scale", (1.0, 0.5)),
    ("data.render.num_train", 35),
    ("batch_size", 16),
    ("accumulate_steps", 2),
    ("specific.epochs", 2.0),
    ("joint.epochs", 2.0),
    ("optimizer.momentum", 0.5),
    ("optimizer.weight_decay", 0.0),
    ("label_smoothing", 0.1),
    ("trainable", ("universal", "specific", "mask")),
    ("eval.views", "3crop"),
  ],
)
def test_control_with_a_different_setting_raises(pair, field, value):
  write_config(pair[0].root, **{field: value})
  with pytest.raises(
    UserError, match=f"^control {pair[0].root}: {field} is .*, but .* in the run; train the control"
  ):
    control_lib.read(*pair)


@pytest.mark.parametrize(
  "fields",
  [
    {"seed": 7, "log_every_steps": 1, "eval.pairs": 0},
    {"data.dir": "/elsewhere", "data.num_threads": 1, "data.render.dir": "/videos"},
    # Settings of networks that a control lacks.
    {"csm.n": 1, "csm.target_accuracy": 0.9, "regularizer_weight": 0.0, "model.mask_limit": 0.0},
    {"model.attention": "none", "model.specific_init": "random", "model.detached": True},
    {"trainable": ("trunk", "universal")},
    # Equal scores: stage 1 is shared, whichever run it was trained in.
    {"init_from": "/gone/checkpoints/universal", "universal.epochs": 0.0},
    {"init_from": "/another/place", "universal.epochs": 0.0},
  ],
)
def test_comparable_control(pair, fields):
  write_config(pair[0].root, **fields)
  read = control_lib.read(*pair)
  summary = json.loads(pair[0].summary.read_text())
  assert read.accuracies == list(summary["predictions"].values())[-1] and read.rates == ""


def test_reports_rates_that_differ(pair):
  write_config(pair[0].root, **{"specific.learning_rate": 1e-6, "joint.decay": "cosine"})
  read = control_lib.read(*pair)
  assert read.rates == (
    "joint.decay cosine (the run's: epochs), specific.learning_rate 1e-06 (the run's: 0.05)"
  )


PER_DATA_SET = ("class_names", "data_digest")  # arrays without a row per clip


def edit(path, **changed):
  """Applies functions to arrays of a file of scores, by name."""
  with np.load(path) as file:
    arrays = dict(file)
  np.savez(path, **arrays | {name: change(arrays[name]) for name, change in changed.items()})


def test_clips_must_be_the_same(pair):
  control, _ = pair
  file, where = control.scores("validation"), f"^control {control.root}: "
  with np.load(file) as arrays:
    original = dict(arrays)
  order = np.argsort(original["labels"], kind="stable")  # the order does not matter
  np.savez(file, **{k: v if k in PER_DATA_SET else v[order] for k, v in original.items()})
  control_lib.read(*pair)
  np.savez(file, **original | {"ids": np.array([f"x{i}" for i in original["ids"]])})
  with pytest.raises(
    UserError, match=where + r"validation clips differ from the run's .12, the run has 12; '0'"
  ):
    control_lib.read(*pair)
  np.savez(file, **{k: v if k in PER_DATA_SET else v[:7] for k, v in original.items()})
  with pytest.raises(UserError, match=where + "validation clips differ from the run's .7, the run"):
    control_lib.read(*pair)
  np.savez(file, **original | {"labels": original["labels"][::-1]})
  with pytest.raises(UserError, match=where + "validation clips differ"):
    control_lib.read(*pair)
  np.savez(file, **original | {"class_names": original["class_names"][::-1]})
  with pytest.raises(UserError, match=where + "classes differ"):
    control_lib.read(*pair)
  np.savez(file, **original)
  summary = json.loads(control.summary.read_text())
  control.summary.write_text(json.dumps(summary | {"training_clips": [9, 8, 6]}))
  with pytest.raises(
    UserError, match=where + "class 'class 1' has 8 training clips, but 9 in the run"
  ):
    control_lib.read(*pair)


def test_stage_1_must_be_shared_or_configured_alike(pair, finished):
  control, run = pair
  edit(control.one_pass_scores("validation"), universal=lambda scores: scores[:, ::-1])
  control_lib.read(*pair)  # such as of another seed
  write_config(control.root, **{"universal.epochs": 2.0})
  where = f"^control {control.root}: stage 1 differs: universal.epochs is "
  with pytest.raises(
    UserError, match=where + "2.0, but 1.0 in the run; start both from one stage 1"
  ):
    control_lib.read(*pair)
  # Stage 1 was taken from another run: that run's config counts.
  write_config(control.root, init_from=str(run.root), **{"universal.epochs": 0.0})
  control_lib.read(*pair)
  write_config(control.root, init_from="/gone", **{"universal.epochs": 0.0})
  with pytest.raises(UserError, match="stage 1 differs: init_from is /gone, but"):
    control_lib.read(*pair)
