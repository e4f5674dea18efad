"""Folds: every file is held out once, neighbours share a fold, and `ratio` makes a long tail."""

import collections

import pytest

from benchmarks.evidence import folds
from u2s_jax.runtime.errors import UserError


def test_every_file_is_held_out_once(tmp_path):
  for name in ("a_car", "b_car", "c_van"):
    (tmp_path / name).mkdir()
    for k in range(7):
      (tmp_path / name / f"{k}.jpg").touch()
  held_out = []
  for fold in range(3):
    rows = folds.list_rows(tmp_path, "car", 3, fold)
    assert {label for _, label, _ in rows} == {"a_car", "b_car"} and len(rows) == 14
    held_out.append([path for path, _, split in rows if split == "val"])
  assert sorted(sum(held_out, [])) == sorted(path for path, _, _ in rows)
  assert [len(paths) for paths in held_out] == [6, 4, 4]  # of both classes
  with pytest.raises(UserError, match="7 files are too few for 8 folds"):
    folds.list_rows(tmp_path, "", 8, 0)
  with pytest.raises(UserError, match="no class folder matches 'bus'"):
    folds.list_rows(tmp_path, "bus", 3, 0)


def test_ratio_makes_a_long_tail_of_training_files_only():
  sizes = {"a": 25, "b": 20, "c": 30}
  found = [
    (f"{name}{k}", name, "val" if k < size // 5 else "train")
    for name, size in sizes.items()
    for k in range(size)
  ]
  tails = []
  for fold in range(6):
    rows = folds.make_long_tail(found, 16.0, fold)
    assert rows == folds.make_long_tail(found, 16.0, fold) and set(rows) <= set(found)
    counts = collections.Counter(row[1:] for row in rows)
    assert all(counts[name, "val"] == 4 for name in sizes)
    assert sorted(counts[name, "train"] for name in sizes) == [1, 4, 16]
    tails.append(min(sizes, key=lambda name: counts[name, "train"]))
  assert len(set(tails)) > 1  # another order of the classes in each fold
