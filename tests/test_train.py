"""The loop over all stages, on batches made in memory: no TensorFlow, no files of others."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import tests as tests_config
from u2s_jax import checkpoint, evaluate, pretrained, settings, train

CLASSES, TRAIN, VALIDATION = 3, 24, 12
CLASS_NAMES = tuple(f"class {i}" for i in range(CLASSES))
ROOT = pathlib.Path(__file__).resolve().parent.parent


def config_of(**fields):
  config = tests_config.get_config()
  config.batch_size = config.eval.batch_size = 8
  config.data.num_frames, config.data.crop_size = 2, 32
  config.data.flip_label_map = ()
  config.csm.target_accuracy = 0.6
  config.eval.pairs = 0
  with config.ignore_type():
    config.update_from_flattened_dict(fields)
  return config


def flow_config(**fields):
  """Optical flow, and the one-pass model alone: its programs compile fast."""
  flow = {"data.modality": "flow", "model.pixel_mean": (0.5,), "model.pixel_std": (0.2,)}
  return config_of(control=True, **flow, **fields)


def clips(split, numbers, channels=3):
  """Clips of class `number % CLASSES`, whose colour tells the class, with noise."""
  labels = np.asarray(numbers, np.int32) % CLASSES
  video = np.stack(
    [
      np.random.default_rng((split == "train", int(n))).integers(
        0, 100, (2, 32, 32, channels), np.uint8
      )
      for n in numbers
    ]
  )
  video[np.arange(len(labels)), ..., labels] += 100
  return {"video": video, "label": labels}


class Source:
  """Batches of one host; counts what was asked for.

  Args:
    channels: of the frames.
    unknown: clips of the split `test` that come without a label.
  """

  def __init__(self, channels=3, unknown=()):
    self.channels, self.unknown = channels, unknown
    self.started = []

  def train_batches(self, stage, first_step):
    self.started.append((stage, first_step))
    step = first_step
    while True:
      numbers = np.random.default_rng((stage, step)).integers(0, TRAIN, 8)
      yield clips("train", numbers, self.channels) | {"mask": np.ones(8, bool)}
      step += 1

  def eval_batches(self, split, views):
    assert views == "center"
    count = TRAIN if split == "train" else VALIDATION
    for start in range(0, count, 8):
      numbers = np.minimum(np.arange(start, start + 8), count - 1)
      batch = clips(split, numbers, self.channels)
      batch["video"] = batch["video"][:, None]
      if split == "test":
        batch["label"][np.isin(numbers, self.unknown)] = -1
      yield batch | {
        "mask": np.arange(start, start + 8) < count,
        "id": np.array([str(n).encode() for n in numbers], object),
      }

  def data(self, class_names=CLASS_NAMES):
    return train.Data(class_names, TRAIN, self.channels, self.train_batches, self.eval_batches)


LINES = []  # that the finished run printed


class Writer:
  def __init__(self):
    self.scalars, self.images = {}, {}

  def write_images(self, step, images):
    self.images.setdefault(step, {}).update(images)

  def __call__(self, step, scalars):
    self.scalars.setdefault(step, {}).update(scalars)


def final_state(config, workdir):
  run = train.Run(config, workdir, Source().data(), Writer(), "x")
  state, _ = train.restore(run, *run.checkpoints.latest())
  run.checkpoints.close()
  return jax.device_get(state)


def state_at(config, workdir, data, stage, step):
  run = train.Run(config, workdir, data, Writer(), "x")
  state, _ = train.restore(run, stage, step)
  run.checkpoints.close()
  return jax.device_get(state)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir, writer = tmp_path_factory.mktemp("run"), Writer()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, "log", LINES.append)
    config = config_of(**{"eval.pairs": 2, "profile": True})
    data = Source().data()
    train.train(config, workdir, data, writer, "configs/tests.py", writer.write_images)
  return workdir, writer


def test_a_run_leaves_scores_summary_and_checkpoints(finished):
  workdir, writer = finished
  summary = json.loads((workdir / "summary.json").read_text())
  assert set(summary) == {"one_pass", "predictions", "csm", "parameters", "config"}
  assert len(summary["predictions"]) == 7 and summary["config"] == "configs/tests.py"
  scores = evaluate.read_scores(workdir / "scores/validation.npz")
  assert set(evaluate.predictions(scores)) == {"universal", "bridge", "specific"}
  assert sorted(map(int, scores["id"])) == list(range(VALIDATION))
  one_pass = evaluate.read_scores(workdir / "scores/validation_one_pass.npz")
  assert set(evaluate.predictions(one_pass)) == {"universal"}
  for read in (scores, one_pass):
    assert tuple(read["class_names"]) == CLASS_NAMES
  for stage in ("universal", "specific", "joint"):
    assert (workdir / "checkpoints" / stage / "3").is_dir()
  assert set(writer.scalars) >= {3, 6, 9}  # three steps a stage, counted through
  assert "joint/validation_merged" in writer.scalars[9]
  assert len(list(workdir.glob("profile/**/perfetto_trace.json.gz"))) == 1


def outputs_of(workdir, stage):
  """The networks' outputs for all validation clips, and the clips."""
  state = state_at(config_of(), workdir, Source().data(), stage, 3)
  config = config_of()
  model = settings.build_model(config, CLASSES)
  batch = clips("validation", range(VALIDATION))
  video = (batch["video"] / 255 - np.array(config.model.pixel_mean)) / config.model.pixel_std
  video = jax.numpy.asarray(video, np.float32)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  variables = jax.tree.map(jax.numpy.asarray, variables)
  if stage == "universal":
    return model.apply(variables, video, method="one_pass"), batch
  return model.apply(variables, video, jax.numpy.asarray(state.csm.matrix)), batch


def test_what_the_report_is_made_of(finished):
  workdir, _ = finished
  arrays = dict(np.load(workdir / "analysis/validation.npz"))
  before, batch = outputs_of(workdir, "universal")
  after, _ = outputs_of(workdir, "joint")
  labels = batch["label"]
  features = {
    "one_pass": before["universal_features"],
    "universal": after["universal_features"],
    "specific": after["specific_features"],
  }
  for name, values in features.items():
    zeros = np.mean(np.asarray(values) == 0, axis=(1, 2, 3))
    expected = [zeros[labels == label].mean(0) for label in range(CLASSES)]
    np.testing.assert_allclose(arrays[f"sparsity_{name}"], expected, atol=2e-3)
    if name == "specific":
      values = values * after["mask"]
    pooled = np.mean(values, axis=(1, 2, 3))
    assert arrays["pairs"].shape == (2, 2)
    kept = np.isin(labels, arrays["pairs"])
    np.testing.assert_array_equal(arrays["label"], labels[kept])
    np.testing.assert_allclose(arrays[f"pooled_{name}"], pooled[kept], atol=1e-4)
  rows = arrays["example_id"].astype(int)
  assert set(labels[rows]) == set(arrays["pairs"].ravel())
  np.testing.assert_array_equal(arrays["example_label"], labels[rows])
  np.testing.assert_array_equal(arrays["video"], batch["video"][rows])
  np.testing.assert_allclose(arrays["mask"], np.asarray(after["mask"])[rows, ..., 0], atol=1e-4)
  for k, (row, classes) in enumerate(zip(rows, arrays["mask_classes"], strict=True)):
    expected = np.asarray(after["masks"])[row][..., classes]
    np.testing.assert_allclose(arrays["class_masks"][k], expected, atol=1e-4)
  kernel = final_state(config_of(), workdir).params["mask"]["kernel"]
  np.testing.assert_array_equal(arrays["mask_kernel"], kernel)


def test_an_epoch_ends_with_a_picture_of_the_masks(finished):
  images = finished[1].images
  assert {step: list(found) for step, found in images.items()} == {
    6: ["specific/masks"],
    9: ["joint/masks"],
  }
  picture = images[9]["joint/masks"]
  # Four clips of two frames, plain and under the mask.
  assert picture.dtype == np.uint8 and picture.shape[0] == 1
  frame = 112 + 2
  assert picture.shape[1:] == (8 * frame - 2, 2 * frame - 2, 3)


def test_on_a_terminal_the_live_line_gives_way(monkeypatch, capsys):
  monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
  train.log_live("step 1")
  train.log_live("step 2" + 500 * "x")
  train.log("done")
  out = capsys.readouterr().out
  assert out.startswith("\r\x1b[Kstep 1\r\x1b[Kstep 2x") and out.endswith("\r\x1b[Kdone\n")
  assert out.count("\n") == 1 and out.count("x") < 400
  monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
  train.log_live("step 1")
  assert capsys.readouterr().out == "step 1\n"


def test_the_csm_is_in_the_checkpoint(finished):
  workdir, _ = finished
  csm = final_state(config_of(), workdir).csm
  summary = json.loads((workdir / "summary.json").read_text())["csm"]
  assert summary["n"] == csm.n >= 1 and summary["alpha"] == pytest.approx(float(csm.alpha))
  np.testing.assert_array_equal(np.diag(csm.matrix), 1)
  np.testing.assert_array_equal(csm.matrix, csm.matrix.T)
  assert np.all(np.diff(csm.topn_accuracy) >= 0) and csm.topn_accuracy[-1] == 1


def test_accuracies_are_told_class_by_class(finished):
  workdir, _ = finished
  with open(workdir / "per_class.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["class"] for row in rows] == list(CLASS_NAMES)
  assert [row["clips"] for row in rows] == ["4"] * CLASSES
  summary = json.loads((workdir / "summary.json").read_text())
  merged = np.mean([float(row["merged"]) for row in rows])
  assert merged == pytest.approx(
    summary["predictions"]["universal+bridge+specific"]["top1"], abs=0.01
  )
  csm = final_state(config_of(), workdir).csm.matrix
  for i, row in enumerate(rows):
    assert row["csm"] == " | ".join(CLASS_NAMES[j] for j in range(3) if j != i and csm[j, i])
  assert str(workdir / "per_class.csv") in LINES[-2]
  assert all(name in LINES[-3] for name in CLASS_NAMES)


def test_the_most_similar_classes_are_named(finished):
  similarity = final_state(config_of(), finished[0]).csm.similarity
  start = next(i for i, line in enumerate(LINES) if "most similar" in line)
  found = [line.split("  ")[-2:] for line in LINES[start + 1 : start + 4]]
  values = [similarity[int(pair[6]), int(pair[-1])] for _, pair in found]
  assert {pair for _, pair in found} == {
    f"class {i} / class {j}" for i, j in [(0, 1), (0, 2), (1, 2)]
  }
  assert [value for value, _ in found] == [f"{value:.4f}" for value in values]
  assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(
  "crash",
  ["universal/3", "universal/csm", "specific/0", "specific/1", "joint/3", "end"],
)
def test_a_crash_changes_no_bit(finished, tmp_path, monkeypatch, crash):
  stage_name, _, point = crash.partition("/")
  config = config_of(checkpoint_every_steps=1)

  class Crash(Exception):
    pass

  def crash_now(*args):
    raise Crash

  if crash == "end":  # between the last scores and the summary
    monkeypatch.setattr(evaluate, "summarize", crash_now)
  elif point == "csm":
    monkeypatch.setattr(train, "category_similarity", crash_now)
  else:
    save = checkpoint.Checkpoints.save

    def save_then_crash(self, stage, step, *args):
      save(self, stage, step, *args)
      if (stage, step) == (stage_name, int(point)):
        self.wait()
        raise Crash

    monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_crash)
  with pytest.raises(Crash):
    train.train(config, tmp_path, Source().data(), Writer(), "x")
  monkeypatch.undo()

  source = Source()
  train.train(config, tmp_path, source.data(), Writer(), "x")
  if point == "1":  # in the midst of a stage
    assert source.started[0] == (train.STAGES.index(stage_name), int(point))
  for name in ("validation", "validation_one_pass"):
    theirs, ours = (
      evaluate.read_scores(path / f"scores/{name}.npz") for path in (finished[0], tmp_path)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  expected, got = final_state(config_of(), finished[0]), final_state(config, tmp_path)
  jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
  workdir, _ = finished
  before = (workdir / "summary.json").stat().st_mtime_ns
  source = Source()
  train.train(config_of(), workdir, source.data(), Writer(), "x")
  assert "finished" in capsys.readouterr().out and not source.started
  assert (workdir / "summary.json").stat().st_mtime_ns == before


def test_evaluation_alone_gives_the_same_scores(finished):
  workdir, _ = finished
  before = evaluate.read_scores(workdir / "scores/validation.npz")
  (workdir / "scores/validation.npz").unlink()
  source = Source()
  train.evaluate_latest(config_of(), workdir, source.data(), Writer(), "x")
  after = evaluate.read_scores(workdir / "scores/validation.npz")
  for name, values in before.items():
    np.testing.assert_array_equal(values, after[name])
  assert not source.started and not (workdir / "eval").exists()


def test_evaluation_half_way_touches_nothing(finished, tmp_path, monkeypatch):
  monkeypatch.setattr(train, "category_similarity", lambda *args: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    train.train(config_of(), tmp_path, Source().data(), Writer(), "x")
  monkeypatch.undo()
  one_pass = (tmp_path / "scores/validation_one_pass.npz").read_bytes()
  train.evaluate_latest(config_of(), tmp_path, Source().data(), Writer(), "x")
  assert (tmp_path / "eval/center_universal_3/summary.json").exists()
  assert not (tmp_path / "summary.json").exists()
  assert (tmp_path / "scores/validation_one_pass.npz").read_bytes() == one_pass


@pytest.mark.parametrize("unknown", [(), (5, 7)])
def test_another_split_is_evaluated_beside_the_run(finished, monkeypatch, unknown):
  workdir, lines = finished[0], []
  before = {path: path.stat().st_mtime_ns for path in workdir.glob("*.*")}
  monkeypatch.setattr(train, "log", lines.append)
  config = config_of(**{"eval.split": "test"})
  train.evaluate_latest(config, workdir, Source(unknown=unknown).data(), Writer(), "x")
  folder = workdir / "eval/test_center_joint_3"
  scores = evaluate.read_scores(folder / "scores/test.npz")
  one_pass = evaluate.read_scores(folder / "scores/test_one_pass.npz")
  assert (one_pass["label"] == -1).sum() == (scores["label"] == -1).sum() == len(unknown)
  # The very frames of validation in this test, so the very scores.
  validation = evaluate.read_scores(workdir / "scores/validation.npz")
  np.testing.assert_array_equal(scores["specific"], validation["specific"])
  names = {"summary.json", "per_class.csv"} if not unknown else set()
  assert {path.name for path in folder.glob("*.*")} == names
  assert ("2 of 12 clips have no label: scores only" in lines) == bool(unknown)
  assert {path: path.stat().st_mtime_ns for path in workdir.glob("*.*")} == before
  shutil.rmtree(workdir / "eval")


def test_another_config_is_refused_with_the_field(finished):
  workdir, _ = finished
  config = config_of(**{"joint.learning_rate": 0.5})
  with pytest.raises(ValueError, match=r"config.json: this run began with joint.learning_rate = "):
    train.train(config, workdir, Source().data(), Writer(), "x")
  # What changes nothing in training may change.
  train.train(config_of(log_every_steps=1), workdir, Source().data(), Writer(), "x")


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (Source().data((*CLASS_NAMES, "one more")), "num_classes is 3 there and 4 here"),
    (
      Source().data(("class 0", "class 2", "class 1")),
      r"class_names\[1\] is 'class 1' there and 'class 2' here",
    ),
    (Source(channels=10).data(), "channels is 3 there and 10 here"),
  ],
)
def test_other_data_is_refused(finished, data, message):
  with pytest.raises(ValueError, match=f"another model's: {message}; set"):
    train.evaluate_latest(config_of(), finished[0], data, Writer(), "x")


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("log_every_steps", 0, "log_every_steps: 0 is not at least 1"),
    ("data.num_frames", 0, "data.num_frames: 0 is not at least 1"),
    ("data.crop_size", 37, r"data.crop_size: 37 is not between 1 and data.short_edge \(36\)"),
    ("data.modality", "audio", "data.modality: 'audio' is not one of rgb, flow"),
    ("data.flow_pairs", 0, "data.flow_pairs: 0 is not at least 1"),
    ("data.multi_scale", (1.0, 1.5), "data.multi_scale: 1.5 is no share of the short edge in"),
    ("data.multi_scale", (0.0,), "data.multi_scale: 0.0 is no share of the short edge in"),
    ("data.color_jitter", (0.1, 0.1), r"data.color_jitter: \(0.1, 0.1\) is not four numbers >= 0"),
    ("data.color_jitter", (0, 0, 0, -0.1), r"data.color_jitter: .* is not four numbers >= 0"),
    ("model.pixel_mean", (0.1, 0.2), "model.pixel_mean: 2 values for the 3 channels of rgb; give"),
    ("model.pixel_std", (0.5,), "model.pixel_std: 1 values, but model.pixel_mean has 3"),
    ("eval.split", "tset", "eval.split: 'tset' is not one of train, validation, test"),
    ("eval.split", "test", "eval.split: 'test' is for --mode=eval only"),
    ("init_from", "/no/run", "init_from: /no/run: no such file or folder"),
    ("csm.distance", "l1", "csm.distance: 'l1' is not one of"),
    ("csm.target_accuracy", 85.0, "csm.target_accuracy: 85.0 is no fraction"),
    ("csm.n", -1, "csm.n: -1 is negative"),
    ("accumulate_steps", 0, "accumulate_steps: 0 is not at least 1"),
    ("csm.selection", "all", "csm.selection: 'all' is not one of"),
    ("csm.guide", "oracle", "csm.guide: 'oracle' is not one of"),
    ("universal.epochs", 0.0, "universal.epochs: 0, but there is no init_from"),
    ("model.specific_init", "pretrained", "model.specific_init: 'pretrained', but there is no"),
    ("model.backbone.name", "vgg", "model.backbone.name: 'vgg' is not one of preact_resnet, "),
    ("model.backbone.name", "eco_lite", "model.backbone.depth: eco_lite has no such field"),
    ("model.backbone.depth", 51, "model.backbone.depth: 51 is not one of 14, 18,"),
    ("model.backbone.depth", 18, "model.backbone.temporal: .* 2 convolutions and a projection"),
    ("model.dtype", "float17", "model.dtype: 'float17' is not one of float32, bfloat16"),
    ("model.attention", "x", "model.attention: 'x' is not one of"),
    ("eval.views", "4crop", "eval.views: '4crop' is not one of center, 3crop"),
    ("eval.batch_size", 12, "eval.batch_size: 12 is not a positive multiple of the 8 devices"),
  ],
)
def test_a_config_that_cannot_work_is_found_at_once(tmp_path, field, value, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    settings.check(config_of(**{field: value}), tmp_path)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({}, None),
    ({"model.pixel_mean": (0.5,) * 10, "model.pixel_std": (0.2,) * 10}, None),
    (
      {"data.flow_pairs": 3, "model.pixel_mean": (0.5,) * 10},
      "model.pixel_mean: 10 values for the 6",
    ),
    ({"model.pixel_std": (0.2,) * 3}, "model.pixel_std: 3 values for the 10 channels of flow"),
    ({"data.color_jitter": (0.0, 0.0, 0.1, 0.0)}, "data.color_jitter: .* flow has no colours"),
  ],
)
def test_fields_of_optical_flow(tmp_path, fields, message):
  config = flow_config()
  with config.ignore_type():
    config.update_from_flattened_dict(fields)
  if message is None:
    settings.check(config, tmp_path)
  else:
    with pytest.raises(ValueError, match=f"^{message}"):
      settings.check(config, tmp_path)
  assert settings.input_channels(config) == 2 * config.data.flow_pairs
  assert settings.input_channels(config_of()) == 3


def test_a_damaged_config_is_named(tmp_path):
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json: damaged"):
    settings.check(config_of(), tmp_path)


def test_nothing_to_evaluate(tmp_path):
  with pytest.raises(ValueError, match="checkpoints: no checkpoint to evaluate; train first"):
    train.evaluate_latest(config_of(), tmp_path, Source().data(), Writer(), "x")


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  config = config_of(**{"specific.learning_rate": 1e30, "checkpoint_every_steps": 1})
  with pytest.raises(FloatingPointError, match="^stage specific, step [123]: .* is (nan|inf)") as e:
    train.train(config, tmp_path, Source().data(), Writer(), "x")
  assert "\n" not in str(e.value)
  assert not (tmp_path / "checkpoints/joint").exists()
  state = final_state(config, tmp_path)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  # The very first step already went off, so stage 2's beginning is the last good one.
  assert state.step == 0


def test_the_control_trains_the_one_pass_model_on(finished, tmp_path):
  train.train(config_of(control=True), tmp_path, Source().data(), Writer(), "x")
  state = final_state(config_of(control=True), tmp_path)
  assert set(state.params) == {"trunk", "universal"}
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert set(summary["predictions"]) == {"universal"}
  # Stage 1 is the very same.
  theirs, ours = (
    evaluate.read_scores(path / "scores/validation_one_pass.npz")
    for path in (finished[0], tmp_path)
  )
  np.testing.assert_array_equal(theirs["universal"], ours["universal"])


def test_a_plateau_is_of_the_merged_prediction_and_survives_a_restart(tmp_path):
  config = config_of(**{"specific.decay": "plateau", "specific.patience": 1})
  writer = Writer()
  train.train(config, tmp_path, Source().data(), writer, "x")
  run = train.Run(config, tmp_path, Source().data(), Writer(), "x")
  _, record = train.restore(run, "specific", 3)
  run.checkpoints.close()
  error = 1 - writer.scalars[6]["specific/validation_merged"] / 100
  assert record["plateau"]["best"] == pytest.approx(error)


def test_without_mask_network(tmp_path):
  train.train(config_of(**{"model.attention": "none"}), tmp_path, Source().data(), Writer(), "x")
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert set(summary["predictions"]) == {"universal", "specific", "universal+specific"}


def test_an_ablation_starts_from_the_end_of_stage_1(finished, tmp_path, monkeypatch):
  lines = []
  monkeypatch.setattr(train, "log", lines.append)
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
  source = Source()
  train.train(config, tmp_path, source.data(), Writer(), "x")
  assert [stage for stage, _ in source.started] == [1, 2]  # stage 1 took nothing
  before = state_at(config_of(), finished[0], Source().data(), "universal", 3)
  for stage, network in (("universal", "universal"), ("specific", "specific")):
    begun = state_at(config, tmp_path, Source().data(), stage, 0)
    jax.tree.map(np.testing.assert_array_equal, begun.params[network], before.params["universal"])
    jax.tree.map(np.testing.assert_array_equal, begun.params["trunk"], before.params["trunk"])
  assert begun.csm.n == 1
  summaries = [json.loads((path / "summary.json").read_text()) for path in (finished[0], tmp_path)]
  assert summaries[0]["one_pass"] == summaries[1]["one_pass"]
  table = next(line for line in lines if "Improved" in line).split("\n")
  assert [row[:7] for row in table if row.startswith("class")] == ["class 2", "class 0"]
  with pytest.raises(ValueError, match="^csm.guide: 'label', but clips of the split 'test' have"):
    config.eval.split = "test"
    train.evaluate_latest(config, tmp_path, Source(unknown=(3,)).data(), Writer(), "x")


def test_an_evaluation_with_other_masks_lies_beside_the_run(finished):
  workdir = finished[0]
  before = (workdir / "summary.json").read_bytes()
  config = config_of(**{"csm.guide": "label", "csm.selection": "own"})
  train.evaluate_latest(config, workdir, Source().data(), Writer(), "x")
  assert (workdir / "eval/center_joint_3_own_label/summary.json").exists()
  assert (workdir / "summary.json").read_bytes() == before
  shutil.rmtree(workdir / "eval")


def test_stages_2_and_3_start_from_no_half_trained_stage_1(finished, tmp_path):
  half, folder = tmp_path / "half", tmp_path / "run"
  shutil.copytree(finished[0] / "checkpoints/universal", half / "checkpoints/universal")
  shutil.rmtree(half / "checkpoints/universal/3")
  step = max(int(path.name) for path in (half / "checkpoints/universal").glob("[0-9]*"))
  config = config_of(init_from=str(half), **{"universal.epochs": 0.0})
  message = f"^init_from: .*universal/{step}: its stage universal is at step {step} of 3; let"
  with pytest.raises(ValueError, match=message):
    train.train(config, folder, Source().data(), Writer(), "x")
  # Whoever corrects it may do so in the same folder.
  settings.check(config_of(init_from=str(finished[0])), folder)


def test_a_run_with_other_strides_is_no_start(finished, tmp_path):
  with pytest.raises(ValueError, match="joint/3: its network has backbone.strides = "):
    start_from(
      finished[0], tmp_path, Source().data(), [], **{"model.backbone.strides": (2, 2, 2, 2)}
    )


@pytest.fixture(scope="module")
def flow_run(finished, tmp_path_factory):
  """A flow run from the finished RGB run, that crashed after a step: workdir, config, lines."""
  workdir, lines = tmp_path_factory.mktemp("flow"), []
  config = flow_config(init_from=str(finished[0]), checkpoint_every_steps=1)
  save = checkpoint.Checkpoints.save

  def save_then_crash(self, stage, step, *args):
    save(self, stage, step, *args)
    if step == 1:
      self.wait()
      raise KeyboardInterrupt

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, "log", lines.append)
    patch.setattr(checkpoint.Checkpoints, "save", save_then_crash)
    with pytest.raises(KeyboardInterrupt):
      train.train(config, workdir, Source(channels=10).data(), Writer(), "x")
  return workdir, config, lines


def test_a_flow_run_starts_from_an_rgb_run(finished, flow_run):
  workdir, config, lines = flow_run
  rgb = final_state(config_of(), finished[0])
  flow = state_at(config, workdir, Source(channels=10).data(), "universal", 0)
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
  assert f"starting from the one-pass model of {finished[0] / 'checkpoints/joint/3'}" in lines
  assert "  first convolution: mean over 3 input channels, for each of 10" in lines
  assert not any("classifier" in line for line in lines)


def test_a_flow_run_goes_on_without_the_rgb_run(flow_run, monkeypatch):
  workdir, config, _ = flow_run
  monkeypatch.setattr(pretrained, "load", lambda *args, **kwargs: 1 / 0)
  source = Source(channels=10)
  train.train(config, workdir, source.data(), Writer(), "x")
  assert source.started[0] == (0, 1) and (workdir / "summary.json").exists()


def start_from(folder, workdir, data, lines, **fields):
  """What `load` makes of a first state that is 7 throughout: its programs need no compiling."""
  run = train.Run(config_of(**fields), workdir, data, Writer(), "x")
  state = jax.eval_shape(run.begin(run.stages[0]), None)
  sevens = jax.tree.map(lambda x: np.full(x.shape, 7, x.dtype), (state.params, state.batch_stats))
  return pretrained.load(
    folder,
    *sevens,
    backbone=run.config.model.backbone.to_dict(),
    stages=train.STAGES,
    class_names=data.class_names,
    needs_classifier=False,
    log=lines.append,
  )


@pytest.mark.parametrize("names", [(*CLASS_NAMES, "one more"), ("class 0", "class 2", "class 1")])
def test_the_classifier_of_other_classes_is_fresh(finished, tmp_path, names):
  lines = []
  params, batch_stats = start_from(finished[0], tmp_path, Source().data(names), lines)
  for leaf, shape in (("kernel", (64, len(names))), ("bias", (len(names),))):
    np.testing.assert_array_equal(params["universal"]["head"][leaf], np.full(shape, 7))
  rgb = final_state(config_of(), finished[0])
  for network in ("trunk", "universal"):
    for tree in (params, rgb.params):
      tree[network].pop("head", None)
    jax.tree.map(np.testing.assert_array_equal, params[network], rgb.params[network])
    jax.tree.map(np.testing.assert_array_equal, batch_stats[network], rgb.batch_stats[network])
  assert lines[1] == "  classifier: freshly initialised, the classes are others"
  count = len(jax.tree.leaves((params, batch_stats))) + 2  # with the classifier
  assert lines[2:] == [f"  {count - 2} of {count} arrays loaded"]


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"model.backbone.temporal": ((1, 3, 3, 3), (3, 3, 3, 1))},
      r"params/universal/group2/block0/conv1/kernel has shape \(3, 1, 1, 16, 8\) there and "
      r"\(1, 1, 1, 16, 8\) here; set config.model.backbone as there",
    ),
    ({"model.backbone.depth": 26}, "params/trunk/group0/block1/.* has shape None there and"),
  ],
)
def test_a_run_of_another_network_is_no_start(finished, tmp_path, fields, message):
  with pytest.raises(ValueError, match=f"^init_from: .*joint/3: {message}") as error:
    start_from(finished[0], tmp_path, Source().data(), [], **fields)
  assert "\n" not in str(error.value)


def test_a_run_without_a_checkpoint_is_no_start(tmp_path):
  with pytest.raises(ValueError, match="^init_from: no checkpoint in .*; name the --w"):
    start_from(tmp_path, tmp_path / "run", Source().data(), [])


@pytest.mark.parametrize("module", ["train", "settings", "fusion"])
def test_no_tensorflow(module):
  code = f"import u2s_jax.{module}, sys; assert 'tensorflow' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
