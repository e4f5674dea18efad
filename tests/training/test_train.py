"""Tests of the training loop over all stages, on batches in memory."""

import contextlib
import dataclasses
import gc
import json
import re
import shutil

import jax
import numpy as np
import pytest

from tests.memory_run import (
  CLASS_NAMES,
  VALIDATION,
  MemorySource,
  MemoryWriter,
  evaluate_latest,
  make_config,
  open_memory_run,
  restore_state,
  train,
)
from u2s_jax.evaluation import results, scores
from u2s_jax.run import checkpoint
from u2s_jax.run.run import training_lock
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError, describe_error
from u2s_jax.serving import card, predict
from u2s_jax.stages import STAGES
from u2s_jax.training import start
from u2s_jax.training import train as training


def test_writes_scores_summary_and_checkpoints(finished):
  workdir, writer, _ = finished
  summary = json.loads((workdir / "summary.json").read_text())
  assert set(summary) == {
    *("one_pass", "predictions", "csm", "parameters", "calibration", "config"),
    "training_clips",
  }
  assert len(summary["predictions"]) == 7 and summary["config"] == "tests/config.py"
  final = scores.read(workdir / "scores/validation.npz")
  assert set(final.predictions) == {"universal", "bridge", "specific"}
  assert sorted(map(int, final.ids)) == list(range(VALIDATION))
  one_pass = scores.read(workdir / "scores/validation_one_pass.npz")
  assert set(one_pass.predictions) == {"universal"}
  for read in (final, one_pass):
    assert tuple(read.class_names) == CLASS_NAMES
  for stage in STAGES:
    assert (workdir / "checkpoints" / stage / "3").is_dir()
  assert set(writer.scalars) >= {3, 6, 9}  # three steps per stage, counted over all stages
  assert "joint/validation_merged" in writer.scalars[9]
  assert len(list(workdir.glob("profile/**/perfetto_trace.json.gz"))) == 1
  with pytest.raises(UserError, match="no best checkpoint; train with eval.keep_best=True"):
    predict.load(Workdir(workdir), best=True)


def test_writes_an_image_of_the_masks_at_the_end_of_a_stage(finished):
  images = finished[1].images
  assert {step: list(by_name) for step, by_name in images.items()} == {
    6: ["specific/masks"],
    9: ["joint/masks"],
  }
  image = images[9]["joint/masks"]
  # Four clips of two frames, without and with their masks.
  assert image.dtype == np.uint8 and image.shape[0] == 1
  frame = 112 + 2
  assert image.shape[1:] == (8 * frame - 2, 2 * frame - 2, 3)


def test_long_stage_writes_few_images_and_keeps_its_best_checkpoint(tmp_path, monkeypatch):
  writer, save = MemoryWriter(), checkpoint.Checkpoints.save
  config = make_config(**{"joint.epochs": 6.0, "eval.every_epochs": 1, "eval.keep_best": True})

  def crash_at_first_best(self, stage, *args):
    if stage == "best":
      raise Crash
    save(self, stage, *args)

  with monkeypatch.context() as context, pytest.raises(Crash):
    context.setattr(checkpoint.Checkpoints, "save", crash_at_first_best)
    train(config, tmp_path, writer=writer)
  train(config, tmp_path, writer=writer)
  accuracies = {
    step - 6: by_name["joint/validation_merged"]
    for step, by_name in writer.scalars.items()
    if "joint/validation_merged" in by_name
  }
  summary = json.loads((tmp_path / "summary.json").read_text())
  best = summary["best"]
  assert (best["stage"], best["step"], best["chosen_on"]) == (
    "joint",
    max(accuracies, key=accuracies.get),  # the first of equal ones
    "validation",
  )
  assert len(accuracies) == 6 and best["top1"] == pytest.approx(max(accuracies.values()))
  trained, last = (predict.load(Workdir(tmp_path), best=choice) for choice in (True, False))
  kept = restore_state(config, tmp_path, stage="best", step=best["step"])[0]
  jax.tree.map(np.testing.assert_array_equal, trained.state.params, kept.params)
  assert "expect less" in card.format_card(trained, Workdir(tmp_path))
  assert "expect less" not in card.format_card(last, Workdir(tmp_path))
  (tmp_path / f"checkpoints/best/{best['step']}/record/metadata").write_text("{")
  (tmp_path / "summary.json").unlink()
  train(config, tmp_path)
  again = json.loads((tmp_path / "summary.json").read_text())
  assert (tmp_path / f"checkpoints/best/damaged_{best['step']}_0").is_dir()
  assert again == {key: value for key, value in summary.items() if key != "best"}
  joint = [step - 6 for step, by_name in writer.images.items() if "joint/masks" in by_name]
  assert joint == [3, 6, 12, 18]  # first, second, fourth and last epoch of three steps each


def test_checkpoint_contains_the_csm(finished):
  csm = restore_state(make_config(), finished[0])[0].csm
  summary = json.loads((finished[0] / "summary.json").read_text())["csm"]
  assert summary["n"] == csm.n >= 1 and summary["alpha"] == pytest.approx(float(csm.alpha))
  np.testing.assert_array_equal(np.diag(csm.matrix), 1)
  np.testing.assert_array_equal(csm.matrix, csm.matrix.T)
  assert np.all(np.diff(csm.topn_accuracy) >= 0) and csm.topn_accuracy[-1] == 1


def test_logs_the_most_similar_classes(finished):
  similarity = restore_state(make_config(), finished[0])[0].csm.similarity
  lines = finished[2].splitlines()
  begin = next(i for i, line in enumerate(lines) if "most similar" in line)
  named = [line.split("  ")[-2:] for line in lines[begin + 1 : begin + 4]]
  values = [similarity[int(pair[6]), int(pair[-1])] for _, pair in named]
  assert {pair for _, pair in named} == {
    f"class {i} / class {j}" for i, j in [(0, 1), (0, 2), (1, 2)]
  }
  assert [value for value, _ in named] == [f"{value:.4f}" for value in values]
  assert values == sorted(values, reverse=True)


class Crash(Exception):
  pass


def test_result_after_crashes_is_bitwise_equal(finished, tmp_path, monkeypatch):
  """One run crashes at every kind of moment, and resumes each time."""
  config = make_config(checkpoint_every_steps=1)

  def crash_now(*args):
    raise Crash

  def crash_after_save(stage_name, number):
    save = checkpoint.Checkpoints.save

    def save_then_crash(self, stage, step, *args):
      save(self, stage, step, *args)
      if (stage, step) == (stage_name, number):
        self.wait()
        raise Crash

    return checkpoint.Checkpoints, "save", save_then_crash

  crashes = (
    (crash_after_save("universal", 3), (0, 0)),
    ((start, "compute_similarity", crash_now), None),  # stage 1 has nothing left to train
    (crash_after_save("specific", 0), None),
    (crash_after_save("specific", 1), (1, 0)),
    (crash_after_save("joint", 3), (1, 1)),  # during a stage
    ((results, "summarize", crash_now), None),  # between the last scores and the summary
  )
  for patch, expected_start in crashes:
    source = MemorySource()
    with monkeypatch.context() as context, pytest.raises(Crash):
      context.setattr(*patch)
      train(config, tmp_path, source)
    assert source.started[:1] == ([expected_start] if expected_start else []), patch
  train(config, tmp_path)
  for name in ("validation", "validation_one_pass"):
    expected, actual = (
      scores.read(path / f"scores/{name}.npz") for path in (finished[0], tmp_path)
    )
    np.testing.assert_array_equal(expected.ids, actual.ids)
    jax.tree.map(np.testing.assert_array_equal, actual.predictions, expected.predictions)
  expected, got = restore_state(make_config(), finished[0])[0], restore_state(config, tmp_path)[0]
  jax.tree.map(np.testing.assert_array_equal, got, expected)


# When one of Orbax's reads fails, pending ones return to a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_quarantines_or_regenerates_damaged_files(finished, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  (workdir / "summary.json").unlink()
  (workdir / "scores/validation_one_pass.npz").write_bytes(b"PK")
  shutil.rmtree(workdir / "checkpoints/joint/3/state")
  (workdir / "checkpoints/joint/999").mkdir()
  train(make_config(**{"eval.pairs": 2, "profile": True}), workdir)
  printed = capsys.readouterr().out
  assert re.search(r"joint/999 is damaged \(.*\); renamed to damaged_999_0\n", printed)
  assert re.search(r"joint/3 is damaged \(.*\); renamed to damaged_3_0\n", printed)
  assert "resuming at stage joint, step 0" in printed
  assert "validation_one_pass.npz: missing or damaged; regenerating it" in printed
  for name in ("validation", "validation_one_pass"):
    expected, actual = (scores.read(path / f"scores/{name}.npz") for path in (finished[0], workdir))
    jax.tree.map(np.testing.assert_array_equal, actual.predictions, expected.predictions)
  expected, got = (restore_state(make_config(), folder)[0] for folder in (finished[0], workdir))
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_does_not_restart_if_all_checkpoints_are_damaged(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  (workdir / "summary.json").unlink()
  for file in workdir.glob("checkpoints/*/*/state/_METADATA"):
    file.unlink()
  for _ in range(2):  # the second start does not begin again either
    with pytest.raises(UserError, match="checkpoints: no intact checkpoint; choose another"):
      train(make_config(**{"eval.pairs": 2, "profile": True}), workdir)
  assert len(list(workdir.glob("checkpoints/*/damaged_*"))) == 6


# After a failed write Orbax leaves coroutines and callbacks into a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_full_disk_does_not_damage_earlier_checkpoints(finished, full_disk):
  disk, config = full_disk(1000), make_config(**{"eval.pairs": 2})
  with pytest.raises((OSError, ValueError)) as caught:
    train(config, disk / "run")
  line = describe_error(caught.value)
  assert line.startswith(f"{disk}/run") and "No space left on device; fix this, then" in line
  full_disk.change("size=40m")
  train(config, disk / "run")
  expected, got = (
    restore_state(make_config(), folder)[0] for folder in (finished[0], disk / "run")
  )
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  for name in ("validation", "validation_one_pass"):
    expected, actual = (
      scores.read(path / f"scores/{name}.npz") for path in (finished[0], disk / "run")
    )
    jax.tree.map(np.testing.assert_array_equal, actual.predictions, expected.predictions)
  # The traceback refers to what Orbax left, which would otherwise be collected in another test.
  del caught
  gc.collect()


def test_stops_if_the_workdir_is_deleted(tmp_path, monkeypatch):
  workdir, save = tmp_path / "run", checkpoint.Checkpoints.save

  def save_then_remove(self, *args):
    save(self, *args)
    self.wait()
    if args[1]:  # the first checkpoint is read back
      shutil.rmtree(workdir)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_remove)
  with pytest.raises(UserError, match=r"run/config.json: deleted while the run was training"):
    train(make_config(), workdir)
  assert not (workdir / "summary.json").exists()


def test_stops_if_the_first_checkpoint_cannot_be_read_back(tmp_path, monkeypatch):
  save = checkpoint.Checkpoints.save

  def save_then_damage(self, *args):
    save(self, *args)
    self.wait()
    (path,) = (tmp_path / "checkpoints").glob("*/0/record/metadata")
    path.write_text(path.read_text().replace('"checksum": ', '"checksum": 1'))

  monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_damage)
  source = MemorySource()
  with pytest.raises(UserError, match="the first checkpoint cannot be read back"):
    train(make_config(), tmp_path, source)
  assert not source.started


@pytest.mark.parametrize("name", ["lr=[0.1]", "back\\slash", "a*b", "what?", "[x", "runs[1]/a"])
def test_rejects_a_path_that_orbax_reads_as_a_pattern(tmp_path, name):
  source = MemorySource()
  with pytest.raises(UserError, match="checkpoints cannot be read from a path with"):
    train(make_config(), tmp_path / name, source)
  assert not source.started and not (tmp_path / name).exists()


def test_rejects_a_data_set_without_training_clips(tmp_path):
  source = dataclasses.replace(MemorySource().source(), num_train=0)
  with pytest.raises(UserError, match="data set data: no training clips"):
    training.train(make_config(), Workdir(tmp_path), source, MemoryWriter(), "name")
  assert not list(tmp_path.iterdir())


def test_rejects_a_run_without_its_config(finished, tmp_path):
  shutil.copytree(finished[0] / "checkpoints/universal", tmp_path / "checkpoints/universal")
  source = MemorySource()
  with pytest.raises(UserError, match=r"config.json: missing, but checkpoints exist; restore"):
    train(make_config(), tmp_path, source)
  assert not source.started


def test_does_not_resume_on_other_data(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
    patch.setattr(start, "compute_similarity", lambda *args: 1 / 0)
    train(make_config(), tmp_path, MemorySource(digest="0123456789abcdef"))
  other = MemorySource(digest="fedcba9876543210")
  with pytest.raises(UserError, match=r"another data set \(digest 0123456789abcdef\)"):
    train(make_config(), tmp_path, other)
  assert not other.started


def test_rejects_a_single_class_before_writing_anything(tmp_path):
  with pytest.raises(UserError, match="data.dir: the data set has only one class, 'a'"):
    train(make_config(), tmp_path, MemorySource(class_names=("a",)))
  assert not list(tmp_path.iterdir())


def test_only_one_run_trains_in_a_workdir(tmp_path):
  workdir = Workdir(tmp_path)
  with training_lock(workdir):
    with pytest.raises(UserError, match=f"{tmp_path}: another run is training here; wait for it"):
      with training_lock(workdir):
        pass
  with training_lock(workdir):
    pass


def test_finished_run_is_reported_and_not_changed(finished, capsys):
  workdir = finished[0]
  before = (workdir / "summary.json").stat().st_mtime_ns
  source = MemorySource()
  train(make_config(), workdir, source)
  printed = capsys.readouterr().out
  assert "finished" in printed and not source.started and "missing" not in printed
  assert (workdir / "summary.json").stat().st_mtime_ns == before


def test_finished_run_reports_missing_files(finished, tmp_path, capsys):
  shutil.copytree(finished[0], tmp_path / "run")
  (tmp_path / "run/per_class.csv").unlink()
  train(make_config(), tmp_path / "run", MemorySource())
  assert f"{tmp_path}/run/per_class.csv: missing; --mode=eval" in capsys.readouterr().out


def test_nonfinite_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  config = make_config(**{"specific.learning_rate": 1e30, "checkpoint_every_steps": 1})
  with pytest.raises(UserError, match="^stage specific, step [123]: .* is (nan|inf)") as error:
    train(config, tmp_path)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "checkpoints/joint").exists()
  state, _ = restore_state(config, tmp_path)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  # The first step already diverges, so the first state of stage 2 is the last good one.
  assert state.step == 0


def test_control_continues_to_train_the_one_pass_model(finished, tmp_path):
  train(make_config(control=True), tmp_path)
  state, _ = restore_state(make_config(control=True), tmp_path)
  assert set(state.params) == {"trunk", "universal"}
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert set(summary["predictions"]) == {"universal"}
  # Stage 1 is the same.
  expected, actual = (
    scores.read(path / "scores/validation_one_pass.npz").predictions["universal"]
    for path in (finished[0], tmp_path)
  )
  np.testing.assert_array_equal(expected, actual)


def test_plateau_follows_the_merged_prediction_and_is_resumed(tmp_path):
  config = make_config(**{"specific.decay": "plateau", "specific.patience": 1})
  writer = MemoryWriter()
  train(config, tmp_path, writer=writer)
  _, record = restore_state(config, tmp_path, stage="specific", step=3)
  assert not record["validated"]  # saved before its validation, which a resumed run repeats
  error = 1 - writer.scalars[6]["specific/validation_merged"] / 100
  run = open_memory_run(config, tmp_path)
  with contextlib.closing(run.checkpoints):
    state, _ = run.restore("specific", 3)
    again = MemoryWriter()
    validator = training.Validator(run, run.stages[1], record, again)
    validator.validate(state, record)
  assert validator.plateau.best == pytest.approx(error)
  assert again.scalars[6]["specific/validation_merged"] == pytest.approx(100 * (1 - error))


def test_stage_ends_early_and_resumes_as_ended(tmp_path, monkeypatch):
  """The validation error of each stage is the lowest at the first validation."""
  fields = {f"{name}.stop_patience": 2 for name in STAGES} | {"universal.epochs": 6.0}
  config = make_config(**fields, **{"checkpoint_every_steps": 100})
  monkeypatch.setattr(training, "compute_accuracies", lambda run, state: ({"a": 50.0}, 40.0, True))
  train(config, tmp_path)
  steps = {
    name: max(int(p.name) for p in (tmp_path / "checkpoints" / name).iterdir()) for name in STAGES
  }
  assert steps == {
    "universal": 9,
    "specific": 3,
    "joint": 3,
  }  # three epochs of three steps; of 18, 3, 3
  summary = (tmp_path / "summary.json").read_bytes()
  # Killed after the early end of stage 1, before stage 2 had a checkpoint.
  for name in ("specific", "joint"):
    shutil.rmtree(tmp_path / "checkpoints" / name)
  (tmp_path / "summary.json").unlink()
  source = MemorySource()
  train(config, tmp_path, source=source)
  assert [stage for stage, _ in source.started] == [1, 2]
  assert (tmp_path / "summary.json").read_bytes() == summary
  # The run is finished: an evaluation finds its own results, another run its stage 1.
  evaluate_latest(config, tmp_path)
  assert not (tmp_path / "eval").exists()
  other = make_config(**{"universal.epochs": 0.0, "init_from": str(tmp_path)})
  train(other, tmp_path / "other")


def test_questions_an_accuracy_at_chance_level(tmp_path, capsys):
  config = make_config(**{"universal.epochs": 7.0, "universal.learning_rate": 1e-9})
  train(config, tmp_path)
  printed = capsys.readouterr().out
  assert printed.count("not significantly better than chance (33.3 %) after 5 epochs") == 1
  assert "(chance 33.3 %)" in printed and "(run 0:" in printed


def test_trains_without_a_mask_network(tmp_path):
  train(make_config(**{"model.attention": "none"}), tmp_path)
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert set(summary["predictions"]) == {"universal", "specific", "universal+specific"}
