"""Tests of stages that start from the weights of another run, on batches in memory."""

import contextlib
import copy
import dataclasses
import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest
from flax import traverse_util

from tests.memory_run import (
  CLASS_NAMES,
  MemorySource,
  evaluate_latest,
  make_config,
  open_memory_run,
  restore_state,
  train,
)
from u2s_jax.evaluation import results
from u2s_jax.pretrained import adapt, read
from u2s_jax.pretrained.pixel_statistics import fit_pixels
from u2s_jax.report import page
from u2s_jax.report import run as report_run
from u2s_jax.run import checkpoint, saved_config, validation
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError
from u2s_jax.serving import card, predict
from u2s_jax.training import start


def test_network_without_trunk_statistics_starts_from_a_run(tmp_path):
  """VideoPrism's trunk has no BN."""
  config = make_config()
  config.model.backbone = ml_collections.ConfigDict(
    {"name": "videoprism", "width": 16, "heads": 2, "spatial_blocks": 1, "temporal_blocks": 1}
  )
  run = open_memory_run(config, tmp_path)
  with contextlib.closing(run.checkpoints):
    state = run.make_init(run.stages[0])(None)
    run.checkpoints.save("universal", 1, state, {"total_steps": 1})
  params, batch_stats = start.select_one_pass(state)
  assert params.keys() == {"trunk", "universal"} and batch_stats.keys() == {"universal"}
  others = jax.tree.map(lambda x: x + 1, (params, batch_stats))
  fitted = adapt.fit(read.read(tmp_path), *others, start.make_target(run), print)
  jax.tree.map(np.testing.assert_array_equal, fitted, (params, batch_stats))


def test_ablation_starts_from_the_end_of_stage_1(finished, tmp_path, capsys):
  config = make_config(
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
  assert [stage for stage, _ in source.started] == [1, 2]  # stage 1 was skipped
  before, _ = restore_state(make_config(), finished[0], stage="universal", step=3)
  for stage, network in (("universal", "universal"), ("specific", "specific")):
    first, _ = restore_state(config, tmp_path, stage=stage, step=0)
    jax.tree.map(np.testing.assert_array_equal, first.params[network], before.params["universal"])
    jax.tree.map(np.testing.assert_array_equal, first.params["trunk"], before.params["trunk"])
  assert first.csm.n == 1
  summaries = [json.loads((path / "summary.json").read_text()) for path in (finished[0], tmp_path)]
  assert summaries[0]["one_pass"] == summaries[1]["one_pass"]
  printed = capsys.readouterr().out
  assert_reports_an_upper_bound(config, tmp_path, printed)
  table = printed.split("Improved")[1].splitlines()
  assert [row[:7] for row in table if row.startswith("class")][:2] == ["class 2", "class 0"]
  with pytest.raises(
    UserError, match="^csm.guide: 'label' requires labels, but 1 clips of the split 'test'"
  ):
    config.eval.split = "test"
    evaluate_latest(config, tmp_path, MemorySource(unknown=(3,)))


def assert_reports_an_upper_bound(config, folder, printed):
  """Checks console, summary, card and headline of a run whose labels select the masks."""
  summary = json.loads((folder / "summary.json").read_text())
  assert "the labels select the masks" in summary["upper_bound"]
  assert summary["upper_bound"] + ":\n" in printed
  assert printed.count("(upper bounds: labels select the masks)") == 2  # after stages 2 and 3
  config = copy.deepcopy(config)
  config.csm.guide, config.eval.classes = "prediction", ()
  evaluate_latest(config, folder)
  (guided,) = folder.glob("eval/*prediction*/summary.json")
  guided = json.loads(guided.read_text())
  assert "upper_bound" not in guided and "prediction_guided" not in guided
  assert summary["prediction_guided"] == guided["predictions"]
  bound, accuracy = (f"{results.get_merged_accuracies(s)['top1']:.2f}" for s in (summary, guided))
  text = card.format_card(predict.load(Workdir(folder)), Workdir(folder))
  assert f"| upper bound, no result: the labels select the masks | {bound} |" in text
  assert f"| all predictions | {accuracy} |" in text
  run = report_run.read(folder)
  headline = page.make_headline(run, None)
  assert f"{accuracy} % (all predictions merged, masks of the predicted classes)" in headline
  assert f"Upper bound, not a result: {bound} %" in headline
  # A run of an earlier version has no scores without labels.
  del summary["prediction_guided"], summary["upper_bound"], run.summary["prediction_guided"]
  assert "not evaluated (all predictions merged, masks of the" in page.make_headline(run, None)
  content = (folder / "summary.json").read_text()
  (folder / "summary.json").write_text(json.dumps(summary))
  text = card.format_card(predict.load(Workdir(folder)), Workdir(folder))
  assert "| all predictions |" not in text and "was not evaluated" in text
  (folder / "summary.json").write_text(content)


def test_rejects_an_unfinished_stage_1(finished, tmp_path):
  half, folder = tmp_path / "half", tmp_path / "run"
  shutil.copytree(finished[0] / "checkpoints/universal", half / "checkpoints/universal")
  shutil.rmtree(half / "checkpoints/universal/3")
  step = max(int(path.name) for path in (half / "checkpoints/universal").glob("[0-9]*"))
  config = make_config(init_from=str(half), **{"universal.epochs": 0.0})
  message = f"^init_from: .*universal/{step}: stage universal is at step {step} of 3; fin"
  with pytest.raises(UserError, match=message):
    train(config, folder)
  # It can be corrected in the same workdir.
  validation.check(make_config(init_from=str(finished[0])), Workdir(folder))


def test_rejects_an_unknown_part_of_a_later_stage_before_stage_1(tmp_path):
  config = make_config(trainable=("trunk", "universal", "specific/fc", "mask"))
  source = MemorySource()
  with pytest.raises(UserError, match="^trainable: 'specific/fc' does not exist; specific has "):
    train(config, tmp_path, source)
  assert source.started == []
  # It can be corrected in the same workdir.
  validation.check(make_config(), Workdir(tmp_path))


@pytest.fixture(scope="module")
def flow_run(finished, tmp_path_factory):
  """Returns folder and config of a flow run that starts from the RGB run and crashes in step 1."""
  folder = tmp_path_factory.mktemp("flow")
  flow = {"data.modality": "flow", "model.pixel_mean": (0.5,), "model.pixel_std": (0.2,)}
  # Only the one-pass model, whose programs compile fast.
  config = make_config(init_from=str(finished[0]), checkpoint_every_steps=1, control=True, **flow)
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


def test_flow_run_starts_from_an_rgb_run(finished, flow_run):
  folder, config = flow_run
  rgb, _ = restore_state(make_config(), finished[0])
  flow, _ = restore_state(config, folder, MemorySource(channels=10), "universal", 0)
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


def test_flow_run_resumes_without_the_rgb_run(flow_run, monkeypatch):
  folder, config = flow_run
  monkeypatch.setattr(adapt, "fit", lambda *args, **kwargs: 1 / 0)
  source = MemorySource(channels=10)
  train(config, folder, source)
  assert source.started[0] == (0, 1) and (folder / "summary.json").exists()


def load_weights(folder, workdir, source, lines, **fields):
  """Loads weights into a state that is 7 everywhere, which requires no compilation."""
  run = open_memory_run(make_config(**fields), workdir, source)
  with contextlib.closing(run.checkpoints):
    state = jax.eval_shape(run.make_init(run.stages[0]), None)
  sevens = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), (state.params, state.batch_stats))
  return adapt.load(folder, *sevens, start.make_target(run), lines.append)


@pytest.mark.parametrize("names", [(*CLASS_NAMES, "one more"), ("class 0", "class 2", "class 1")])
def test_classifier_of_other_classes_is_not_loaded(finished, tmp_path, names):
  lines = []
  params, batch_stats = load_weights(finished[0], tmp_path, MemorySource(class_names=names), lines)
  for leaf, shape in (("kernel", (64, len(names))), ("bias", (len(names),))):
    np.testing.assert_array_equal(params["universal"]["head"][leaf], np.full(shape, 7))
  rgb, _ = restore_state(make_config(), finished[0])
  for network in ("trunk", "universal"):
    for tree in (params, rgb.params):
      tree[network].pop("head", None)
    jax.tree.map(np.testing.assert_array_equal, params[network], rgb.params[network])
    jax.tree.map(np.testing.assert_array_equal, batch_stats[network], rgb.batch_stats[network])
  count = len(jax.tree.leaves((params, batch_stats))) + 2  # with the classifier
  assert lines == [
    f"starting from the one-pass model of {finished[0] / 'checkpoints/joint/3'}",
    "  classifier: newly initialised, classes differ",
    f"  {count - 2} of {count} arrays loaded",
  ]


def test_logs_the_first_convolution_for_flow(finished, tmp_path):
  lines = []
  load_weights(finished[0], tmp_path, MemorySource(channels=10), lines)
  assert "  first convolution: mean over 3 input channels, for each of 10" in lines
  assert not any("classifier" in line for line in lines)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"model.backbone.temporal": ((1, 3, 3, 3), (3, 3, 3, 1))},
      r"params/universal/group2/block0/conv1/kernel is of shape \(3, 1, 1, 16, 8\) in the "
      r"weights, but of shape \(1, 1, 1, 16, 8\) in this config; set model.backbone to match",
    ),
    ({"model.backbone.depth": 26}, "params/trunk/group0/block1/.* is missing in the weights"),
    ({"model.backbone.strides": (2, 2, 2, 2)}, "its network has backbone.strides = "),
    (
      {"model.pixel_mean": (0.7, 0.5, 0.1)},
      r"trained with pixel mean \(0.3, 0.3, 0.3\) and deviation \(0.25, 0.25, 0.25\), not "
      r"\(0.7, 0.5, 0.1\) and .*; set model.pixel_mean=\(\) and model.pixel_std=\(\) to use",
    ),
    ({"model.pixel_std": (0.2, 0.2, 0.2)}, "trained with pixel mean"),
    ({"model.pixel_mean": (0.5,), "model.pixel_std": (0.5,)}, "trained with pixel mean"),
  ],
)
def test_rejects_weights_of_another_network(finished, tmp_path, fields, message):
  with pytest.raises(UserError, match=f"^init_from: .*joint/3: {message}") as error:
    load_weights(finished[0], tmp_path, MemorySource(), [], **fields)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("source", "target", "is_error"),
  [
    ("tsm_resnet", "resnet", True),
    ("resnet", "tsm_resnet", True),
    ("tsm_resnet", "tsm_resnet", False),
    ("resnet", "resnet", False),
  ],
)
def test_rejects_another_temporal_shift(finished, tmp_path, source, target, is_error):
  """The shapes do not show the difference: all arrays fit, 87 of 87."""
  weights = read.read(finished[0] / "checkpoints/universal")
  weights = dataclasses.replace(
    weights, required_fields={**weights.required_fields, "name": source}
  )
  backbone = make_config().model.backbone.to_dict() | {"name": target}
  adapt_target = adapt.Target(backbone, CLASS_NAMES, False, weights.pixels)
  params = traverse_util.unflatten_dict(weights.arrays, sep="/")["params"]
  with pytest.raises(UserError, match=source) if is_error else contextlib.nullcontext():
    adapt.check(weights, params, adapt_target, print)


def test_logs_other_pixel_statistics_for_other_classes(finished, tmp_path):
  lines, source = [], MemorySource(class_names=(*CLASS_NAMES, "one more"))
  load_weights(finished[0], tmp_path, source, lines, **{"model.pixel_mean": (0.4, 0.3, 0.3)})
  assert lines[0].startswith(
    f"{finished[0] / 'checkpoints/joint/3'}: trained with pixel mean (0.3,"
  )
  # Another notation or rounding, a difference below one grey level, is not logged.
  for mean in ((0.3,), (0.302, 0.3, 0.299)):
    again = []
    fields = {"model.pixel_mean": mean, "model.pixel_std": (0.25,) * len(mean)}
    load_weights(finished[0], tmp_path, source, again, **fields)
    assert again == lines[1:]


def test_reads_pixel_statistics_of_an_earlier_version_from_its_config(finished, tmp_path):
  shutil.copytree(finished[0] / "checkpoints/universal", tmp_path / "checkpoints/universal")
  shutil.copy(finished[0] / "config.json", tmp_path)
  edit_record(tmp_path / "checkpoints/universal/3", "pixels")
  assert read.read(tmp_path).pixels == ((0.3,) * 3, (0.25,) * 3)
  (tmp_path / "config.json").unlink()
  assert read.read(tmp_path).pixels is None
  lines = []
  load_weights(tmp_path, tmp_path / "run", MemorySource(), lines)
  assert "pixel statistics are unknown" in lines[0]


def edit_record(checkpoint_folder, key):
  """Removes a key from the metadata of a checkpoint, as in earlier versions."""
  file = checkpoint_folder / "record/metadata"
  record = json.loads(file.read_text())
  del record[key]
  file.write_text(json.dumps(record))


def test_empty_pixel_statistics_are_read_from_init_from(finished, tmp_path):
  empty = {"model.pixel_mean": (), "model.pixel_std": ()}
  config = fit_pixels(make_config(init_from=str(finished[0]), **empty), Workdir(tmp_path))
  assert config.model.pixel_mean == (0.3,) * 3 and config.model.pixel_std == (0.25,) * 3
  saved_config.write(Workdir(tmp_path), config)
  # The run resumes with them, even if the source is deleted.
  again = fit_pixels(make_config(init_from="/gone", **empty), Workdir(tmp_path))
  assert again.model.to_dict() == config.model.to_dict()
  half = fit_pixels(
    make_config(init_from=str(finished[0]), **{"model.pixel_std": ()}), Workdir(tmp_path / "half")
  )
  assert half.model.pixel_std == (0.25,) * 3
  other = Workdir(tmp_path / "other")
  with pytest.raises(UserError, match="^model.pixel_mean: empty, but init_from is not set"):
    fit_pixels(make_config(**empty), other)
  flow = {"data.modality": "flow", **empty}
  with pytest.raises(UserError, match="empty, but unknown for 10 channels in .*; set"):
    fit_pixels(make_config(init_from=str(finished[0]), **flow), other)
  with pytest.raises(UserError, match="^init_from: /gone: no such file"):
    fit_pixels(make_config(init_from="/gone", **empty), other)


def test_one_pass_weights_are_those_of_stage_1(finished, tmp_path):
  stage_1 = read.read(finished[0] / "checkpoints/universal")
  for place in (finished[0], finished[0] / "checkpoints/universal"):
    weights = read.read(place, one_pass=True)
    assert weights.origin == finished[0] / "checkpoints/universal/3"
    for name, value in stage_1.arrays.items():
      np.testing.assert_array_equal(weights.arrays[name], value)
  # Stage 2 does not change the universal network; stage 3 does.
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
  with pytest.raises(UserError, match=f"^init_from: {tmp_path}: no checkpoint of stage universal"):
    read.read(tmp_path, one_pass=True)


class Crash(Exception):
  pass


@pytest.fixture(scope="module")
def before_stage_2(finished, tmp_path_factory):
  """Returns two folders: a run, and a run that started from it and crashed before stage 2."""
  folder = tmp_path_factory.mktemp("pinned")
  source, workdir = folder / "source", folder / "run"
  shutil.copytree(finished[0] / "checkpoints", source / "checkpoints")
  with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
    patch.setattr(start, "compute_similarity", raise_crash)
    train(make_config(init_from=str(source)), workdir)
  return source, workdir


def raise_crash(*_):
  raise Crash


def begin_stage_2(workdir, config):
  """Returns the parameters of the category-specific network at the beginning of stage 2."""
  saved = []
  save = checkpoint.Checkpoints.save

  def save_then_crash(self, stage, step, state, record):
    saved.append((stage, jax.device_get(state.params)))
    raise Crash

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
    patch.setattr(checkpoint.Checkpoints, "save", save_then_crash)
    train(config, workdir)
  assert save is checkpoint.Checkpoints.save and saved[0][0] == "specific"
  return saved[0][1]["specific"]


def read_universal(folder):
  """Returns the parameters of the universal network in the folder of a run or a stage."""
  arrays = traverse_util.unflatten_dict(read.read(folder).arrays, sep="/")
  return arrays["params"]["universal"]


@pytest.mark.parametrize("event", ["unchanged", "deleted", "continued"])
def test_stage_2_starts_from_the_weights_of_stage_1(finished, before_stage_2, tmp_path, event):
  source, workdir = before_stage_2
  expected = read_universal(finished[0])
  run = tmp_path / "run"
  shutil.copytree(workdir, run)
  moved = tmp_path / "elsewhere"
  source.rename(moved)
  try:
    if event == "unchanged":
      shutil.copytree(moved, source)
    if event == "continued":  # to weights that differ from the start
      shutil.copytree(moved / "checkpoints/universal", source / "checkpoints/universal")
    params = begin_stage_2(run, make_config(init_from=str(source)))
  finally:
    shutil.rmtree(source, ignore_errors=True)
    moved.rename(source)
  jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_rejects_a_changed_start(before_stage_2, tmp_path):
  source, workdir = before_stage_2
  shutil.copytree(workdir, tmp_path / "run")
  file = tmp_path / "run/start.safetensors"
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  for damage in (lambda: file.write_bytes(content), file.unlink):
    damage()
    with pytest.raises(UserError, match=f"^{file}: missing or changed since the run began"):
      train(make_config(init_from=str(source)), tmp_path / "run")


def test_run_of_an_earlier_version_reads_init_from_again(finished, before_stage_2, tmp_path):
  source, workdir = before_stage_2
  run = tmp_path / "run"
  shutil.copytree(workdir, run)
  (run / "start.safetensors").unlink()
  for step in (run / "checkpoints/universal").iterdir():
    edit_record(step, "start")
  params = begin_stage_2(run, make_config(init_from=str(source)))
  jax.tree.map(np.testing.assert_array_equal, params, read_universal(finished[0]))


def test_ablation_uses_the_start_of_the_other_run(finished, before_stage_2, tmp_path):
  """If stage 1 is another run's, the new network starts from the weights of that run's start."""
  source, workdir = before_stage_2
  moved = tmp_path / "elsewhere"
  source.rename(moved)
  try:
    config = make_config(init_from=str(workdir), **{"universal.epochs": 0.0})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
      patch.setattr(start, "compute_similarity", raise_crash)
      train(config, tmp_path / "run")
    copied = (workdir / "start.safetensors").read_bytes()
    params = begin_stage_2(tmp_path / "run", config)
  finally:
    moved.rename(source)
  jax.tree.map(np.testing.assert_array_equal, params, read_universal(finished[0]))
  expected, actual = (read.read(f / "start.safetensors") for f in (workdir, tmp_path / "run"))
  assert copied and expected.pixels == actual.pixels
  assert expected.required_fields == actual.required_fields
  for name, value in expected.arrays.items():
    np.testing.assert_array_equal(actual.arrays[name], value)


def test_rejects_a_run_without_a_checkpoint(tmp_path):
  with pytest.raises(UserError, match="^init_from: .*: no checkpoint; name the wor"):
    load_weights(tmp_path, tmp_path / "run", MemorySource(), [])
