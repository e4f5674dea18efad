"""Stages that begin from another run's weights, on batches made in memory."""

import contextlib
import copy
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import traverse_util

from tests.memory_run import (
  CLASS_NAMES,
  NAME,
  MemorySource,
  config_of,
  open_memory_run,
  state_at,
  train,
)
from u2s_jax import checkpoint, saved_config, settings
from u2s_jax.errors import UserError
from u2s_jax.evaluation import evaluate, results
from u2s_jax.pretrained import adapt, read
from u2s_jax.report import page
from u2s_jax.report import run as report_run
from u2s_jax.serving import card, predict
from u2s_jax.training import start
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
  printed = capsys.readouterr().out
  assert_an_upper_bound_is_called_one(config, tmp_path, printed)
  table = printed.split("Improved")[1].splitlines()
  assert [row[:7] for row in table if row.startswith("class")][:2] == ["class 2", "class 0"]
  with pytest.raises(UserError, match="^csm.guide: 'label', but clips of the split 'test' have"):
    config.eval.split = "test"
    evaluate.evaluate_latest(config, Workdir(tmp_path), MemorySource(unknown=(3,)).source(), NAME)


def assert_an_upper_bound_is_called_one(config, folder, printed):
  """Labels select the masks: in the console, the summary, the card and the headline."""
  summary = json.loads((folder / "summary.json").read_text())
  assert "the labels select the masks" in summary["upper_bound"]
  assert summary["upper_bound"] + ":\n" in printed
  assert printed.count("(upper bounds: labels select the masks)") == 2  # after stages 2 and 3
  config = copy.deepcopy(config)
  config.csm.guide, config.eval.classes = "prediction", ()
  evaluate.evaluate_latest(config, Workdir(folder), MemorySource().source(), NAME)
  (guided,) = folder.glob("eval/*prediction*/summary.json")
  guided = json.loads(guided.read_text())
  assert "upper_bound" not in guided and "prediction_guided" not in guided
  assert summary["prediction_guided"] == guided["predictions"]
  bound, own = (f"{results.merged(s)['top1']:.2f}" for s in (summary, guided))
  text = card.text(predict.load(Workdir(folder)), Workdir(folder))
  assert f"| upper bound, no result: the labels select the masks | {bound} |" in text
  assert f"| all predictions | {own} |" in text
  run = report_run.read(folder)
  told = page.headline(run, None)
  assert f"{own} % (all predictions merged, masks of the predicted classes)" in told
  assert f"An upper bound, no result: {bound} %" in told
  # A run of an earlier version has no scores without labels.
  del summary["prediction_guided"], summary["upper_bound"], run.summary["prediction_guided"]
  assert "not evaluated (all predictions merged, masks of the" in page.headline(run, None)
  content = (folder / "summary.json").read_text()
  (folder / "summary.json").write_text(json.dumps(summary))
  text = card.text(predict.load(Workdir(folder)), Workdir(folder))
  assert "| all predictions |" not in text and "was not evaluated" in text
  (folder / "summary.json").write_text(content)


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
  monkeypatch.setattr(adapt, "fit", lambda *args, **kwargs: 1 / 0)
  source = MemorySource(channels=10)
  train(config, folder, source)
  assert source.started[0] == (0, 1) and (folder / "summary.json").exists()


def start_from(folder, workdir, source, lines, **fields):
  """What `load` makes of a first state that is 7 throughout: its programs need no compiling."""
  run = open_memory_run(config_of(**fields), workdir, source)
  with contextlib.closing(run.checkpoints):
    state = jax.eval_shape(run.begin(run.stages[0]), None)
  sevens = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), (state.params, state.batch_stats))
  return adapt.load(folder, *sevens, start.target_of(run), lines.append)


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
    (
      {"model.pixel_mean": (0.7, 0.5, 0.1)},
      r"trained with pixel mean \(0.3, 0.3, 0.3\) and deviation \(0.25, 0.25, 0.25\), not "
      r"\(0.7, 0.5, 0.1\) and .*; set model.pixel_mean=\(\) and model.pixel_std=\(\) to take",
    ),
    ({"model.pixel_std": (0.2, 0.2, 0.2)}, "trained with pixel mean"),
    ({"model.pixel_mean": (0.5,), "model.pixel_std": (0.5,)}, "trained with pixel mean"),
  ],
)
def test_a_run_of_another_network_is_no_start(finished, tmp_path, fields, message):
  with pytest.raises(UserError, match=f"^init_from: .*joint/3: {message}") as error:
    start_from(finished[0], tmp_path, MemorySource(), [], **fields)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("source", "target", "kept"),
  [
    ("tsm_resnet", "resnet", True),
    ("resnet", "tsm_resnet", True),
    ("tsm_resnet", "tsm_resnet", False),
    ("resnet", "resnet", False),
  ],
)
def test_the_temporal_shift_is_no_shape(finished, tmp_path, source, target, kept):
  """All arrays of one fit the other: 87 of 87."""
  weights = read.read(finished[0] / "checkpoints/universal")
  weights = dataclasses.replace(weights, demands={**weights.demands, "name": source})
  backbone = config_of().model.backbone.to_dict() | {"name": target}
  aim = adapt.Target(backbone, CLASS_NAMES, False, weights.pixels)
  params = traverse_util.unflatten_dict(weights.arrays, sep="/")["params"]
  with pytest.raises(UserError, match=source) if kept else contextlib.nullcontext():
    adapt.check(weights, params, aim, print)


def test_pixels_of_other_classes_are_a_line(finished, tmp_path):
  lines, source = [], MemorySource(class_names=(*CLASS_NAMES, "one more"))
  start_from(finished[0], tmp_path, source, lines, **{"model.pixel_mean": (0.4, 0.3, 0.3)})
  assert lines[0].startswith(
    f"{finished[0] / 'checkpoints/joint/3'}: trained with pixel mean (0.3,"
  )
  # Written otherwise, or rounded: less than a grey level.
  for mean in ((0.3,), (0.302, 0.3, 0.299)):
    again = []
    fields = {"model.pixel_mean": mean, "model.pixel_std": (0.25,) * len(mean)}
    start_from(finished[0], tmp_path, source, again, **fields)
    assert again == lines[1:]


def test_pixels_of_an_earlier_version_are_in_its_config(finished, tmp_path):
  shutil.copytree(finished[0] / "checkpoints/universal", tmp_path / "checkpoints/universal")
  shutil.copy(finished[0] / "config.json", tmp_path)
  edit_record(tmp_path / "checkpoints/universal/3", "pixels")
  assert read.read(tmp_path).pixels == ((0.3,) * 3, (0.25,) * 3)
  (tmp_path / "config.json").unlink()
  assert read.read(tmp_path).pixels is None
  lines = []
  start_from(tmp_path, tmp_path / "run", MemorySource(), lines)
  assert "does not say which pixel mean" in lines[0]


def edit_record(checkpoint_folder, key):
  """Takes a key out of a checkpoint's record: earlier versions did not write it."""
  file = checkpoint_folder / "record/metadata"
  record = json.loads(file.read_text())
  del record[key]
  file.write_text(json.dumps(record))


def test_empty_pixel_statistics_are_those_of_the_start(finished, tmp_path):
  empty = {"model.pixel_mean": (), "model.pixel_std": ()}
  config = settings.fit_pixels(config_of(init_from=str(finished[0]), **empty), Workdir(tmp_path))
  assert config.model.pixel_mean == (0.3,) * 3 and config.model.pixel_std == (0.25,) * 3
  saved_config.write(Workdir(tmp_path), config)
  # The run goes on with them, also where the source is gone.
  again = settings.fit_pixels(config_of(init_from="/gone", **empty), Workdir(tmp_path))
  assert again.model.to_dict() == config.model.to_dict()
  half = settings.fit_pixels(
    config_of(init_from=str(finished[0]), **{"model.pixel_std": ()}), Workdir(tmp_path / "half")
  )
  assert half.model.pixel_std == (0.25,) * 3
  other = Workdir(tmp_path / "other")
  with pytest.raises(UserError, match="^model.pixel_mean: empty, but init_from is not set"):
    settings.fit_pixels(config_of(**empty), other)
  flow = {"data.modality": "flow", **empty}
  with pytest.raises(UserError, match="empty, but .* does not say it for 10 channels; set"):
    settings.fit_pixels(config_of(init_from=str(finished[0]), **flow), other)
  with pytest.raises(UserError, match="^init_from: /gone: no such file"):
    settings.fit_pixels(config_of(init_from="/gone", **empty), other)


def test_the_one_pass_model_is_stage_1s(finished, tmp_path):
  stage_1 = read.read(finished[0] / "checkpoints/universal")
  for place in (finished[0], finished[0] / "checkpoints/universal"):
    weights = read.read(place, one_pass=True)
    assert weights.origin == finished[0] / "checkpoints/universal/3"
    for name, value in stage_1.arrays.items():
      np.testing.assert_array_equal(weights.arrays[name], value)
  # Stage 2 leaves the universal network as it is; stage 3 does not.
  frozen = read.read(finished[0] / "checkpoints/specific", one_pass=True)
  for name, value in stage_1.arrays.items():
    np.testing.assert_array_equal(frozen.arrays[name], value)
  joint = finished[0] / "checkpoints/joint"
  assert any(
    (read.read(joint).arrays[name] != stage_1.arrays[name]).any() for name in stage_1.arrays
  )
  message = f"^init_from: {joint}: trained jointly .*; name {finished[0]}/checkpoints/universal$"
  with pytest.raises(UserError, match=message):
    read.read(joint, one_pass=True)
  shutil.copytree(joint, tmp_path / "checkpoints/joint")
  with pytest.raises(
    UserError, match=f"^init_from: no checkpoint of stage universal in {tmp_path}"
  ):
    read.read(tmp_path, one_pass=True)


class Crash(Exception):
  pass


@pytest.fixture(scope="module")
def before_stage_2(finished, tmp_path_factory):
  """A run that started from another run's folder and crashed before stage 2: both folders."""
  folder = tmp_path_factory.mktemp("pinned")
  source, workdir = folder / "source", folder / "run"
  shutil.copytree(finished[0] / "checkpoints", source / "checkpoints")
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
    patch.setattr(start, "category_similarity", raise_crash)
    train(config_of(init_from=str(source)), workdir)
  return source, workdir


def raise_crash(*_):
  raise Crash


def begin_stage_2(workdir, config):
  """Parameters of the category-specific network as stage 2 begins."""
  begun = []
  save = checkpoint.Checkpoints.save

  def save_then_crash(self, stage, step, state, record):
    begun.append((stage, jax.device_get(state.params)))
    raise Crash

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
    patch.setattr(checkpoint.Checkpoints, "save", save_then_crash)
    train(config, workdir)
  assert save is checkpoint.Checkpoints.save and begun[0][0] == "specific"
  return begun[0][1]["specific"]


def universal_of(folder):
  """Parameters of the universal network that a run's folder, or a stage's, holds."""
  arrays = traverse_util.unflatten_dict(read.read(folder).arrays, sep="/")
  return arrays["params"]["universal"]


@pytest.mark.parametrize("event", ["stays", "is gone", "went on"])
def test_stage_2_starts_where_stage_1_did(finished, before_stage_2, tmp_path, event):
  source, workdir = before_stage_2
  expected = universal_of(finished[0])
  run = tmp_path / "run"
  shutil.copytree(workdir, run)
  moved = tmp_path / "elsewhere"
  source.rename(moved)
  try:
    if event == "stays":
      shutil.copytree(moved, source)
    if event == "went on":  # to weights that are not the start any more
      shutil.copytree(moved / "checkpoints/universal", source / "checkpoints/universal")
    begun = begin_stage_2(run, config_of(init_from=str(source)))
  finally:
    shutil.rmtree(source, ignore_errors=True)
    moved.rename(source)
  jax.tree.map(np.testing.assert_array_equal, begun, expected)


def test_a_start_that_changed_is_an_error(before_stage_2, tmp_path):
  source, workdir = before_stage_2
  shutil.copytree(workdir, tmp_path / "run")
  file = tmp_path / "run/start.safetensors"
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  for damage in (lambda: file.write_bytes(content), file.unlink):
    damage()
    with pytest.raises(UserError, match=f"^{file}: missing or changed since the run began"):
      train(config_of(init_from=str(source)), tmp_path / "run")


def test_a_run_of_an_earlier_version_reads_init_from_again(finished, before_stage_2, tmp_path):
  source, workdir = before_stage_2
  run = tmp_path / "run"
  shutil.copytree(workdir, run)
  (run / "start.safetensors").unlink()
  for step in (run / "checkpoints/universal").iterdir():
    edit_record(step, "start")
  begun = begin_stage_2(run, config_of(init_from=str(source)))
  jax.tree.map(np.testing.assert_array_equal, begun, universal_of(finished[0]))


def test_an_ablation_of_a_run_takes_that_runs_start(finished, before_stage_2, tmp_path):
  """Stage 1 is another run's as it is: the new network starts where that run did."""
  source, workdir = before_stage_2
  moved = tmp_path / "elsewhere"
  source.rename(moved)
  try:
    config = config_of(init_from=str(workdir), **{"universal.epochs": 0.0})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
      patch.setattr(start, "category_similarity", raise_crash)
      train(config, tmp_path / "run")
    copied = (workdir / "start.safetensors").read_bytes()
    begun = begin_stage_2(tmp_path / "run", config)
  finally:
    moved.rename(source)
  jax.tree.map(np.testing.assert_array_equal, begun, universal_of(finished[0]))
  theirs, ours = (read.read(f / "start.safetensors") for f in (workdir, tmp_path / "run"))
  assert theirs.demands == ours.demands and theirs.pixels == ours.pixels and copied
  for name, value in theirs.arrays.items():
    np.testing.assert_array_equal(ours.arrays[name], value)


def test_a_run_without_a_checkpoint_is_no_start(tmp_path):
  with pytest.raises(UserError, match="^init_from: no checkpoint in .*; name the wor"):
    start_from(tmp_path, tmp_path / "run", MemorySource(), [])
