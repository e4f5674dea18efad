"""The loop over all stages, on batches made in memory."""

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
  MemoryBoard,
  MemorySource,
  config_of,
  open_memory_run,
  state_at,
  train,
)
from u2s_jax import checkpoint
from u2s_jax.console import Board
from u2s_jax.errors import UserError, one_line
from u2s_jax.evaluation import results, scores
from u2s_jax.run import locked
from u2s_jax.serving import card, predict
from u2s_jax.stages import STAGES
from u2s_jax.training import rate, start
from u2s_jax.training import train as training
from u2s_jax.training.pictures import Pictures
from u2s_jax.workdir import Workdir


def test_a_run_leaves_scores_summary_and_checkpoints(finished):
  workdir, writer, _ = finished
  summary = json.loads((workdir / "summary.json").read_text())
  assert set(summary) == {
    *("one_pass", "predictions", "csm", "parameters", "config", "training_clips")
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
  assert set(writer.scalars) >= {3, 6, 9}  # three steps a stage, counted through
  assert "joint/validation_merged" in writer.scalars[9]
  assert len(list(workdir.glob("profile/**/perfetto_trace.json.gz"))) == 1
  with pytest.raises(UserError, match="kept no best checkpoint; see eval.keep_best"):
    predict.load(Workdir(workdir), best=True)


def test_an_epoch_ends_with_a_picture_of_the_masks(finished):
  images = finished[1].images
  assert {step: list(by_name) for step, by_name in images.items()} == {
    6: ["specific/masks"],
    9: ["joint/masks"],
  }
  picture = images[9]["joint/masks"]
  # Four clips of two frames, plain and under the mask.
  assert picture.dtype == np.uint8 and picture.shape[0] == 1
  frame = 112 + 2
  assert picture.shape[1:] == (8 * frame - 2, 2 * frame - 2, 3)


def test_a_long_stage_has_few_pictures_and_keeps_its_best_checkpoint(tmp_path, monkeypatch):
  board, save = MemoryBoard(), checkpoint.Checkpoints.save
  config = config_of(**{"joint.epochs": 6.0, "eval.every_epochs": 1, "eval.keep_best": True})

  def crash_at_the_first_best(self, stage, *args):
    if stage == "best":
      raise Crash
    save(self, stage, *args)

  with monkeypatch.context() as context, pytest.raises(Crash):
    context.setattr(checkpoint.Checkpoints, "save", crash_at_the_first_best)
    train(config, tmp_path, board=board)
  train(config, tmp_path, board=board)
  told = {
    step - 6: by_name["joint/validation_merged"]
    for step, by_name in board.scalars.items()
    if "joint/validation_merged" in by_name
  }
  summary = json.loads((tmp_path / "summary.json").read_text())
  best = summary["best"]
  assert (best["stage"], best["step"], best["chosen_on"]) == (
    "joint",
    max(told, key=told.get),  # the first of equal ones
    "validation",
  )
  assert len(told) == 6 and best["top1"] == pytest.approx(max(told.values()))
  trained, last = (predict.load(Workdir(tmp_path), best=choice) for choice in (True, False))
  kept = state_at(config, tmp_path, stage="best", step=best["step"])[0]
  jax.tree.map(np.testing.assert_array_equal, trained.state.params, kept.params)
  assert "expect less" in card.text(trained, Workdir(tmp_path))
  assert "expect less" not in card.text(last, Workdir(tmp_path))
  (tmp_path / f"checkpoints/best/{best['step']}/record/metadata").write_text("{")
  (tmp_path / "summary.json").unlink()
  train(config, tmp_path)
  again = json.loads((tmp_path / "summary.json").read_text())
  assert (tmp_path / f"checkpoints/best/damaged_{best['step']}_0").is_dir()
  assert again == {key: value for key, value in summary.items() if key != "best"}
  joint = [step - 6 for step, by_name in board.images.items() if "joint/masks" in by_name]
  assert joint == [3, 6, 12, 18]  # of three steps an epoch: the first, second, fourth and last


def test_the_csm_is_in_the_checkpoint(finished):
  csm = state_at(config_of(), finished[0])[0].csm
  summary = json.loads((finished[0] / "summary.json").read_text())["csm"]
  assert summary["n"] == csm.n >= 1 and summary["alpha"] == pytest.approx(float(csm.alpha))
  np.testing.assert_array_equal(np.diag(csm.matrix), 1)
  np.testing.assert_array_equal(csm.matrix, csm.matrix.T)
  assert np.all(np.diff(csm.topn_accuracy) >= 0) and csm.topn_accuracy[-1] == 1


def test_the_most_similar_classes_are_named(finished):
  similarity = state_at(config_of(), finished[0])[0].csm.similarity
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


def test_crashes_change_no_bit(finished, tmp_path, monkeypatch):
  """One run that crashes at every kind of moment, and goes on each time."""
  config = config_of(checkpoint_every_steps=1)

  def crash_now(*args):
    raise Crash

  def crash_behind(stage_name, number):
    save = checkpoint.Checkpoints.save

    def save_then_crash(self, stage, step, *args):
      save(self, stage, step, *args)
      if (stage, step) == (stage_name, number):
        self.wait()
        raise Crash

    return checkpoint.Checkpoints, "save", save_then_crash

  crashes = (
    (crash_behind("universal", 3), (0, 0)),
    ((start, "category_similarity", crash_now), None),  # nothing left to train of stage 1
    (crash_behind("specific", 0), None),
    (crash_behind("specific", 1), (1, 0)),
    (crash_behind("joint", 3), (1, 1)),  # in the midst of a stage
    ((results, "summarize", crash_now), None),  # between the last scores and the summary
  )
  for patch, began in crashes:
    source = MemorySource()
    with monkeypatch.context() as context, pytest.raises(Crash):
      context.setattr(*patch)
      train(config, tmp_path, source)
    assert source.started[:1] == ([began] if began else []), patch
  train(config, tmp_path)
  for name in ("validation", "validation_one_pass"):
    theirs, ours = (scores.read(path / f"scores/{name}.npz") for path in (finished[0], tmp_path))
    np.testing.assert_array_equal(theirs.ids, ours.ids)
    jax.tree.map(np.testing.assert_array_equal, ours.predictions, theirs.predictions)
  expected, got = state_at(config_of(), finished[0])[0], state_at(config, tmp_path)[0]
  jax.tree.map(np.testing.assert_array_equal, got, expected)


# Orbax's reads that are still under way when one of them fails come back to a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_damaged_is_set_aside_or_made_anew(finished, tmp_path, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  (workdir / "summary.json").unlink()
  (workdir / "scores/validation_one_pass.npz").write_bytes(b"PK")
  shutil.rmtree(workdir / "checkpoints/joint/3/state")
  (workdir / "checkpoints/joint/999").mkdir()
  train(config_of(**{"eval.pairs": 2, "profile": True}), workdir)
  printed = capsys.readouterr().out
  assert re.search(r"joint/999 is damaged \(.*\); set aside as damaged_999_0\n", printed)
  assert re.search(r"joint/3 is damaged \(.*\); set aside as damaged_3_0\n", printed)
  assert "going on at stage joint, step 0" in printed
  assert "validation_one_pass.npz: gone or damaged; made anew" in printed
  for name in ("validation", "validation_one_pass"):
    theirs, ours = (scores.read(path / f"scores/{name}.npz") for path in (finished[0], workdir))
    jax.tree.map(np.testing.assert_array_equal, ours.predictions, theirs.predictions)
  expected, got = (state_at(config_of(), folder)[0] for folder in (finished[0], workdir))
  jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_no_checkpoint_is_whole_nothing_begins_anew(finished, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  (workdir / "summary.json").unlink()
  for file in workdir.glob("checkpoints/*/*/state/_METADATA"):
    file.unlink()
  for _ in range(2):  # the next start does not begin anew either
    with pytest.raises(UserError, match="checkpoints: no checkpoint is whole; take another"):
      train(config_of(**{"eval.pairs": 2, "profile": True}), workdir)
  assert len(list(workdir.glob("checkpoints/*/damaged_*"))) == 6


# What Orbax leaves when a write fails: coroutines, and callbacks into a closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
def test_a_full_disk_loses_nothing_that_was_whole(finished, full_disk):
  disk, config = full_disk(1000), config_of(**{"eval.pairs": 2})
  with pytest.raises((OSError, ValueError)) as caught:
    train(config, disk / "run")
  line = one_line(caught.value)
  assert line.startswith(f"{disk}/run") and "No space left on device; once that is mended" in line
  full_disk.change("size=40m")
  train(config, disk / "run")
  expected, got = (state_at(config_of(), folder)[0] for folder in (finished[0], disk / "run"))
  jax.tree.map(np.testing.assert_array_equal, got, expected)
  for name in ("validation", "validation_one_pass"):
    theirs, ours = (
      scores.read(path / f"scores/{name}.npz") for path in (finished[0], disk / "run")
    )
    jax.tree.map(np.testing.assert_array_equal, ours.predictions, theirs.predictions)
  del caught  # its traceback holds what Orbax left, and the collector would find it in another test
  gc.collect()


def test_a_folder_that_is_removed_ends_the_run(tmp_path, monkeypatch):
  workdir, save = tmp_path / "run", checkpoint.Checkpoints.save

  def save_then_remove(self, *args):
    save(self, *args)
    self.wait()
    if args[1]:  # the first one is read back
      shutil.rmtree(workdir)

  monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_remove)
  with pytest.raises(UserError, match=r"run/config.json: gone while the run was training"):
    train(config_of(), workdir)
  assert not (workdir / "summary.json").exists()


def test_a_first_checkpoint_that_cannot_be_read_back_ends_the_run(tmp_path, monkeypatch):
  save = checkpoint.Checkpoints.save

  def save_then_damage(self, *args):
    save(self, *args)
    self.wait()
    (path,) = (tmp_path / "checkpoints").glob("*/0/record/metadata")
    path.write_text(path.read_text().replace('"checksum": ', '"checksum": 1'))

  monkeypatch.setattr(checkpoint.Checkpoints, "save", save_then_damage)
  source = MemorySource()
  with pytest.raises(UserError, match="the first checkpoint cannot be read back"):
    train(config_of(), tmp_path, source)
  assert not source.started


@pytest.mark.parametrize("name", ["lr=[0.1]", "back\\slash", "a*b", "what?", "[x", "runs[1]/a"])
def test_a_path_that_orbax_reads_as_a_pattern_is_refused(tmp_path, name):
  source = MemorySource()
  with pytest.raises(UserError, match="checkpoints cannot be read from a path with"):
    train(config_of(), tmp_path / name, source)
  assert not source.started and not (tmp_path / name).exists()


def test_a_test_split_alone_is_not_trained_on(tmp_path):
  source = dataclasses.replace(MemorySource().source(), num_train=0)
  with pytest.raises(UserError, match="data set data: no training clips"):
    training.train(config_of(), Workdir(tmp_path), source, Board(print, print), "name")
  assert not list(tmp_path.iterdir())


def test_a_run_without_its_config_is_refused_at_the_start(finished, tmp_path):
  shutil.copytree(finished[0] / "checkpoints/universal", tmp_path / "checkpoints/universal")
  source = MemorySource()
  with pytest.raises(UserError, match=r"config.json: missing, but there are checkpoints; restore"):
    train(config_of(), tmp_path, source)
  assert not source.started


def test_a_run_does_not_resume_on_other_data(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
    patch.setattr(start, "category_similarity", lambda *args: 1 / 0)
    train(config_of(), tmp_path, MemorySource(digest="0123456789abcdef"))
  other = MemorySource(digest="fedcba9876543210")
  with pytest.raises(UserError, match=r"another data set \(digest 0123456789abcdef\)"):
    train(config_of(), tmp_path, other)
  assert not other.started


def test_one_class_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(UserError, match="data.dir: the data set has one class only, 'a'"):
    train(config_of(), tmp_path, MemorySource(class_names=("a",)))
  assert not list(tmp_path.iterdir())


def test_one_run_at_a_time_trains_in_a_folder(tmp_path):
  workdir = Workdir(tmp_path)
  with locked(workdir):
    with pytest.raises(UserError, match=f"{tmp_path}: another run trains there; wait for it"):
      with locked(workdir):
        pass
  with locked(workdir):
    pass


def test_a_finished_run_says_so_and_does_nothing(finished, capsys):
  workdir = finished[0]
  before = (workdir / "summary.json").stat().st_mtime_ns
  source = MemorySource()
  train(config_of(), workdir, source)
  printed = capsys.readouterr().out
  assert "finished" in printed and not source.started and "missing" not in printed
  assert (workdir / "summary.json").stat().st_mtime_ns == before


def test_a_finished_run_says_what_is_gone(finished, tmp_path, capsys):
  shutil.copytree(finished[0], tmp_path / "run")
  (tmp_path / "run/per_class.csv").unlink()
  train(config_of(), tmp_path / "run", MemorySource())
  assert f"{tmp_path}/run/per_class.csv: missing; --mode=eval" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
  config = config_of(**{"specific.learning_rate": 1e30, "checkpoint_every_steps": 1})
  with pytest.raises(UserError, match="^stage specific, step [123]: .* is (nan|inf)") as error:
    train(config, tmp_path)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "checkpoints/joint").exists()
  state, _ = state_at(config, tmp_path)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
  # The very first step already went off, so stage 2's beginning is the last good one.
  assert state.step == 0


def test_the_control_trains_the_one_pass_model_on(finished, tmp_path):
  train(config_of(control=True), tmp_path)
  state, _ = state_at(config_of(control=True), tmp_path)
  assert set(state.params) == {"trunk", "universal"}
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert set(summary["predictions"]) == {"universal"}
  # Stage 1 is the very same.
  theirs, ours = (
    scores.read(path / "scores/validation_one_pass.npz").predictions["universal"]
    for path in (finished[0], tmp_path)
  )
  np.testing.assert_array_equal(theirs, ours)


def test_a_plateau_is_of_the_merged_prediction_and_survives_a_restart(tmp_path):
  config = config_of(**{"specific.decay": "plateau", "specific.patience": 1})
  writer = MemoryBoard()
  train(config, tmp_path, board=writer)
  _, record = state_at(config, tmp_path, stage="specific", step=3)
  assert not record["validated"]  # what is saved before an evaluation has it done again
  error = 1 - writer.scalars[6]["specific/validation_merged"] / 100
  run = open_memory_run(config, tmp_path)
  with contextlib.closing(run.checkpoints):
    state, _ = run.restore("specific", 3)
    again, plateau = MemoryBoard(), rate.Plateau()
    shown = Board(again.write_scalars, again.write_images)
    pictures = Pictures(run, again.write_images)
    training.validate(run, run.stages[1], state, plateau, shown, pictures)
  assert plateau.best == pytest.approx(error)
  assert again.scalars[6]["specific/validation_merged"] == pytest.approx(100 * (1 - error))


def test_without_mask_network(tmp_path):
  train(config_of(**{"model.attention": "none"}), tmp_path)
  summary = json.loads((tmp_path / "summary.json").read_text())
  assert set(summary["predictions"]) == {"universal", "specific", "universal+specific"}
