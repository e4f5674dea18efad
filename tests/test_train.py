"""The loop over all stages, on batches made in memory: no TensorFlow, no files of others."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import tests as tests_config
from u2s_jax import checkpoint, evaluate, settings, train

CLASSES, TRAIN, VALIDATION = 3, 24, 12
ROOT = pathlib.Path(__file__).resolve().parent.parent


def config_of(**fields):
  config = tests_config.get_config()
  config.batch_size = config.eval.batch_size = 8
  config.data.num_frames, config.data.crop_size = 2, 32
  config.data.flip_label_map = ()
  config.csm.target_accuracy = 0.6
  with config.ignore_type():
    config.update_from_flattened_dict(fields)
  return config


def clips(split, numbers):
  """Clips of class `number % CLASSES`, whose colour tells the class, with noise."""
  labels = np.asarray(numbers, np.int32) % CLASSES
  video = np.stack(
    [
      np.random.default_rng((split == "train", int(n))).integers(0, 100, (2, 32, 32, 3), np.uint8)
      for n in numbers
    ]
  )
  video[np.arange(len(labels)), ..., labels] += 100
  return {"video": video, "label": labels}


class Source:
  """Batches of one host; counts what was asked for."""

  def __init__(self, poison=None):
    self.poison = poison  # (stage index, step) from which on frames are useless
    self.started = []

  def train_batches(self, stage, first_step):
    self.started.append((stage, first_step))
    step = first_step
    while True:
      numbers = np.random.default_rng((stage, step)).integers(0, TRAIN, 8)
      yield clips("train", numbers) | {"mask": np.ones(8, bool)}
      step += 1

  def eval_batches(self, split, views):
    assert views == "center"
    count = TRAIN if split == "train" else VALIDATION
    for start in range(0, count, 8):
      numbers = np.minimum(np.arange(start, start + 8), count - 1)
      batch = clips(split, numbers)
      batch["video"] = batch["video"][:, None]
      yield batch | {
        "mask": np.arange(start, start + 8) < count,
        "id": np.array([str(n).encode() for n in numbers], object),
      }

  def data(self):
    return train.Data(
      tuple(f"class {i}" for i in range(CLASSES)), TRAIN, self.train_batches, self.eval_batches
    )


class Writer:
  def __init__(self):
    self.scalars = {}

  def __call__(self, step, scalars):
    self.scalars.setdefault(step, {}).update(scalars)


def final_state(config, workdir):
  run = train.Run(config, workdir, Source().data(), Writer(), "x")
  state, _ = train.restore(run, *run.checkpoints.latest())
  run.checkpoints.close()
  return jax.device_get(state)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir, writer = tmp_path_factory.mktemp("run"), Writer()
  train.train(config_of(), workdir, Source().data(), writer, "configs/tests.py")
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
  for stage in ("universal", "specific", "joint"):
    assert (workdir / "checkpoints" / stage / "3").is_dir()
  assert set(writer.scalars) >= {3, 6, 9}  # three steps a stage, counted through
  assert "joint/validation_merged" in writer.scalars[9]


def test_the_csm_is_in_the_checkpoint(finished):
  workdir, _ = finished
  csm = final_state(config_of(), workdir).csm
  summary = json.loads((workdir / "summary.json").read_text())["csm"]
  assert summary["n"] == csm.n >= 1 and summary["alpha"] == pytest.approx(float(csm.alpha))
  np.testing.assert_array_equal(np.diag(csm.matrix), 1)
  np.testing.assert_array_equal(csm.matrix, csm.matrix.T)
  assert np.all(np.diff(csm.topn_accuracy) >= 0) and csm.topn_accuracy[-1] == 1


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


def test_another_config_is_refused_with_the_field(finished):
  workdir, _ = finished
  config = config_of(**{"joint.learning_rate": 0.5})
  with pytest.raises(ValueError, match=r"config.json: this run began with joint.learning_rate = "):
    train.train(config, workdir, Source().data(), Writer(), "x")
  # What changes nothing in training may change.
  train.train(config_of(log_every_steps=1), workdir, Source().data(), Writer(), "x")


def test_another_class_count_is_refused(finished):
  workdir, _ = finished
  data = Source().data()
  other = train.Data((*data.class_names, "one more"), TRAIN, data.train_batches, data.eval_batches)
  with pytest.raises(ValueError, match="another model's: num_classes is 3 there and 4 here"):
    train.evaluate_latest(config_of(), workdir, other, Writer(), "x")


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("log_every_steps", 0, "log_every_steps: 0 is not at least 1"),
    ("data.num_frames", 0, "data.num_frames: 0 is not at least 1"),
    ("data.crop_size", 37, r"data.crop_size: 37 is not between 1 and data.short_edge \(36\)"),
    ("csm.distance", "l1", "csm.distance: 'l1' is not one of"),
    ("csm.target_accuracy", 85.0, "csm.target_accuracy: 85.0 is no fraction"),
    ("model.dtype", "float17", "model.dtype: 'float17' is not one of float32, bfloat16"),
    ("model.attention", "x", "model.attention: 'x' is not one of"),
    ("eval.views", "4crop", "eval.views: '4crop' is not one of center, 3crop"),
    ("eval.batch_size", 12, "eval.batch_size: 12 is not a positive multiple of the 8 devices"),
  ],
)
def test_a_config_that_cannot_work_is_found_at_once(tmp_path, field, value, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    settings.check(config_of(**{field: value}), tmp_path)


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


@pytest.mark.parametrize("module", ["train", "settings", "fusion"])
def test_no_tensorflow(module):
  code = f"import u2s_jax.{module}, sys; assert 'tensorflow' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
