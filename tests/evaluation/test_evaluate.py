"""Evaluations of a finished run and of an unfinished one, on batches made in memory."""

import csv
import json
import shutil

import jax
import numpy as np
import pytest

from tests.memory_run import (
  CLASS_NAMES,
  CLASSES,
  VALIDATION,
  MemorySource,
  clips,
  evaluate_latest,
  make_config,
  restore_state,
  train,
)
from u2s_jax.evaluation import scores
from u2s_jax.models.network import build_network
from u2s_jax.runtime.errors import UserError
from u2s_jax.training import start


def read_files(folder):
  """Returns contents and modification times of a run's files, without those below `eval/`."""
  return {
    path: (path.read_bytes(), path.stat().st_mtime_ns)
    for path in folder.rglob("*")
    if path.is_file() and "eval" not in path.relative_to(folder).parts
  }


def compute_outputs(folder, stage):
  """Returns the networks' outputs for all validation clips, and the clips."""
  state, _ = restore_state(make_config(), folder, stage=stage, step=3)
  network = build_network(make_config(), CLASSES)
  batch = clips("validation", range(VALIDATION))
  trees = jax.tree.map(jax.numpy.asarray, (state.params, state.batch_stats, state.csm))
  return network(*trees, jax.numpy.asarray(batch["video"]))[0], batch


def test_analysis_file_by_hand(finished):
  folder = finished[0]
  arrays = dict(np.load(folder / "analysis/validation.npz"))
  before, batch = compute_outputs(folder, "universal")
  after, _ = compute_outputs(folder, "joint")
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
  final = scores.read(folder / "scores/validation.npz")
  wrong = final.ids[final.merged.argmax(1) != final.labels]
  assert len(wrong) and sorted(arrays["mistake_id"]) == sorted(wrong)
  wrong_clips = batch["video"][arrays["mistake_id"].astype(int)]  # of two frames of 32 pixels
  np.testing.assert_array_equal(arrays["mistake_clip"], wrong_clips)
  assert arrays["mistake_path"].tolist() == [f"/videos/{name}" for name in arrays["mistake_id"]]
  assert json.loads((folder / "summary.json").read_text())["training_clips"] == [9, 9, 6]
  kernel = restore_state(make_config(), folder)[0].params["mask"]["kernel"]
  masks = np.asarray(after["universal_features"]) @ np.asarray(kernel)
  for k, (row, classes) in enumerate(zip(rows, arrays["mask_classes"], strict=True)):
    expected = masks[row][..., classes]
    np.testing.assert_allclose(arrays["class_masks"][k], expected, atol=1e-4)
  np.testing.assert_array_equal(arrays["mask_kernel"], kernel)


def test_per_class_accuracies_are_written_and_printed(finished):
  folder = finished[0]
  with open(folder / "per_class.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  assert [row["class"] for row in rows] == list(CLASS_NAMES)
  assert [row["clips"] for row in rows] == ["4"] * CLASSES
  summary = json.loads((folder / "summary.json").read_text())
  merged = np.mean([float(row["merged"]) for row in rows])
  assert merged == pytest.approx(
    summary["predictions"]["universal+bridge+specific"]["top1"], abs=0.01
  )
  csm = restore_state(make_config(), folder)[0].csm.matrix
  for i, row in enumerate(rows):
    assert row["csm"] == " | ".join(CLASS_NAMES[j] for j in range(3) if j != i and csm[j, i])
  *lines, second, last = finished[2].splitlines()
  assert str(folder / "per_class.csv") in second and str(folder / "summary.json") in last
  assert [line[:7] for line in lines[-CLASSES:]] == list(CLASS_NAMES)


def test_evaluate_latest_regenerates_the_same_scores(finished):
  folder = finished[0]
  before = scores.read(folder / "scores/validation.npz")
  (folder / "scores/validation.npz").unlink()
  source = MemorySource()
  evaluate_latest(make_config(), folder, source)
  after = scores.read(folder / "scores/validation.npz")
  np.testing.assert_array_equal(before.ids, after.ids)
  jax.tree.map(np.testing.assert_array_equal, before.predictions, after.predictions)
  assert not source.started and not (folder / "eval").exists()


def test_evaluation_of_an_unfinished_run_leaves_its_files_alone(finished, tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
    patch.setattr(start, "compute_similarity", lambda *args: 1 / 0)
    train(make_config(), tmp_path)
  one_pass = (tmp_path / "scores/validation_one_pass.npz").read_bytes()
  evaluate_latest(make_config(), tmp_path)
  (folder,) = (tmp_path / "eval").glob("data_universal_3-????????-center")
  assert (folder / "summary.json").exists()
  assert not (tmp_path / "summary.json").exists()
  assert (tmp_path / "scores/validation_one_pass.npz").read_bytes() == one_pass


@pytest.mark.parametrize("unknown", [(), (5, 7)])
def test_evaluation_of_another_split_has_its_own_folder(finished, capsys, unknown):
  root = finished[0]
  before = {path: path.stat().st_mtime_ns for path in root.glob("*.*")}
  evaluate_latest(make_config(**{"eval.split": "test"}), root, MemorySource(unknown=unknown))
  (folder,) = (root / "eval").glob("data_test-????????-center")
  final = scores.read(folder / "scores/test.npz")
  one_pass = scores.read(folder / "scores/test_one_pass.npz")
  assert one_pass.num_unknown == final.num_unknown == len(unknown)
  # In this test both splits have the same frames, and so the same scores.
  validation = scores.read(root / "scores/validation.npz")
  np.testing.assert_array_equal(final.predictions["specific"], validation.predictions["specific"])
  names = {"summary.json", "per_class.csv"} if not unknown else set()
  assert {path.name for path in folder.glob("*.*")} == names
  is_reported = "2 of 12 clips have no label: scores only" in capsys.readouterr().out
  assert is_reported == bool(unknown)
  assert {path: path.stat().st_mtime_ns for path in root.glob("*.*")} == before
  shutil.rmtree(root / "eval")


@pytest.mark.parametrize(
  ("source", "message"),
  [
    (
      MemorySource(class_names=(*CLASS_NAMES, "one more")),
      "data set data: the class 'one more' is not among the 3 classes of this run",
    ),
    (MemorySource(class_names=("CLASS 0",)), "the class 'CLASS 0' is not among the 3 classes"),
    (MemorySource(channels=10), "a different model: channels is 3 in the checkpoint, 10 in"),
  ],
)
def test_incompatible_data_raise(finished, source, message):
  with pytest.raises(UserError, match=message):
    evaluate_latest(make_config(), finished[0], source)


@pytest.mark.parametrize(
  ("trained_on", "evaluated"),
  [
    (MemorySource(digest="a" * 16), MemorySource(digest="b" * 16)),  # the same ids
    (MemorySource(digest="a" * 16), MemorySource(digest="b" * 16, ids="x")),
    (MemorySource(), MemorySource(ids="x")),  # earlier versions: no digest, ids are compared
    (MemorySource(), MemorySource(ids="x", digest="b" * 16)),
  ],
)
def test_evaluation_of_other_data_has_its_own_folder(
  finished, tmp_path, capsys, trained_on, evaluated
):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  if trained_on.digest:
    for path in tmp_path.glob("checkpoints/*/*/record/metadata"):
      path.write_text(path.read_text().replace('"data_digest": "', f'"data_digest": "{"a" * 16}'))
      assert "a" * 16 in path.read_text()
  before = read_files(tmp_path)
  evaluate_latest(make_config(), tmp_path, evaluated)
  (folder,) = (tmp_path / "eval").iterdir()
  name, digest, views = folder.name.split("-")
  assert (name, views, len(digest)) == ("data", "center", 8)
  assert digest == "bbbbbbbb" or not evaluated.digest
  assert "data set (data) differs from the training run's; writing" in capsys.readouterr().out
  written = scores.read(folder / "scores/validation.npz")
  assert written.ids[0] == f"{evaluated.ids}0" and written.data_digest == evaluated.digest
  assert "training_clips" not in json.loads((folder / "summary.json").read_text())
  evaluate_latest(make_config(), tmp_path, trained_on)  # its own data
  assert "validation.npz: already exists with the same scores" in capsys.readouterr().out
  assert read_files(tmp_path) == before and len(list((tmp_path / "eval").iterdir())) == 1


def test_differing_scores_are_kept(finished, tmp_path, capsys):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  path = tmp_path / "scores/validation.npz"
  changed = scores.read(path)
  changed.predictions["bridge"][0] = changed.predictions["bridge"][1]
  scores.write(path, changed)
  before = read_files(tmp_path)
  evaluate_latest(make_config(), tmp_path)
  assert "already exists with other scores; delete it to write" in capsys.readouterr().out
  assert read_files(tmp_path) == before


def test_classes_are_matched_by_name(finished, tmp_path):
  shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
  own = scores.read(tmp_path / "scores/validation.npz")
  evaluate_latest(
    make_config(), tmp_path, MemorySource(class_names=("class 2", "class 0", "class 1"))
  )
  (folder,) = (tmp_path / "eval").iterdir()
  other = scores.read(folder / "scores/validation.npz")
  assert other.labels.tolist() == [(2, 0, 1)[label] for label in own.labels]
  assert other.class_names.tolist() == list(CLASS_NAMES)
  np.testing.assert_array_equal(other.predictions["specific"], own.predictions["specific"])


def test_missing_checkpoint_raises(tmp_path):
  with pytest.raises(UserError, match="checkpoints: no checkpoint to evaluate; train first"):
    evaluate_latest(make_config(), tmp_path)


def test_evaluation_with_other_masks_has_its_own_folder(finished):
  folder = finished[0]
  before = (folder / "summary.json").read_bytes()
  evaluate_latest(make_config(**{"csm.guide": "label", "csm.selection": "own"}), folder)
  (other,) = (folder / "eval").glob("data_own_label-????????-center")
  assert (other / "summary.json").exists()
  assert (folder / "summary.json").read_bytes() == before
  shutil.rmtree(folder / "eval")
