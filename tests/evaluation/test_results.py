"""Summaries and tables from scores, by hand."""

import csv
import json

import numpy as np
import pytest

from u2s_jax.csm import make_identity_similarity
from u2s_jax.evaluation import results
from u2s_jax.evaluation.scores import Scores, fusions
from u2s_jax.run import workdir

CLASSES = 3


def make_scores(labels, names=("a", "b", "c"), **predictions):
  ids = np.array([f"v{i}" for i in range(len(labels))])
  return Scores(ids, np.asarray(labels, np.int32), np.array(names), predictions)


def test_summary():
  labels = np.array([0, 1, 2, 0])
  good, bad = np.eye(CLASSES)[labels] * 0.8 + 0.1, np.eye(CLASSES)[(labels + 1) % 3] * 0.8 + 0.1
  csm = make_identity_similarity(CLASSES).replace(
    matrix=np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]]), alpha=np.float32(0.75), n=np.int32(1)
  )
  summary = results.summarize(
    make_scores(labels, universal=bad),
    make_scores(labels, universal=bad, bridge=good, specific=good),
    csm,
    {"trunk": 2, "universal": 3, "specific": 3, "mask": 4},
  )
  assert summary["one_pass"]["top1"] == 0 and summary["one_pass"]["top5"] == 100
  assert len(summary["predictions"]) == 7
  assert summary["predictions"]["universal"]["top1"] == 0
  assert summary["predictions"]["universal+bridge+specific"]["mean_class"] == 100
  assert summary["csm"] == {"alpha": 0.75, "n": 1, "average_confusing": pytest.approx(2 / 3)}
  assert summary["parameters"] == {"one_pass": 5, "u2s": 12}
  json.dumps(summary)


def test_likely_mislabelled_clips_are_sorted_by_self_confidence():
  labels = np.array([0, 1, 2, 0, 1])
  values = np.array([[0.5, 0.4, 0.1], [0.1, 0.8, 0.1], [0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0, 0, 1]])
  wrong = make_scores(labels, universal=values)
  # The scores of the labels are 0.5, 0.8, 0, 0.3 and 0; the first two clips are correct.
  assert results.likely_mislabelled(wrong, 9).tolist() == [2, 4, 3]
  assert results.likely_mislabelled(wrong, 2).tolist() == [2, 4]
  assert results.likely_mislabelled(make_scores(labels[:2], universal=values[:2]), 9).size == 0


# Eight clips; class 2 has none. One-pass: both of class 0 and 3 of 6 of class 1 are correct; at the
# end 1 of class 0 (the other goes to class 3) and 4 of class 1 (one to class 0, one to class 3).
LABELS = np.array([0, 0, 1, 1, 1, 1, 1, 1])
FOUR = ("a", "b", "c", "d")


def before(names=FOUR):
  return make_scores(LABELS, names, universal=np.eye(4)[[0, 0, 1, 1, 1, 0, 0, 2]])


def after(names=FOUR):
  return make_scores(
    LABELS,
    names,
    universal=0.4 * np.eye(4)[[0, 0, 1, 1, 1, 0, 0, 2]],
    specific=np.eye(4)[[0, 3, 1, 1, 1, 1, 0, 3]],
  )


PAIRS = np.array([[1, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0], [0, 1, 0, 1]], np.float32)


def test_per_class_by_hand():
  first, second, third, fourth = results.per_class(before(), after(), PAIRS)
  assert first == {
    "class": "a",
    "clips": 2,
    "one_pass": 100,
    "universal": 100,
    "specific": 50,
    "merged": 50,
    "gain": -50,
    "confused_with": "d (1)",
    "csm": "b",
  }
  assert (second["clips"], second["one_pass"], second["csm"]) == (6, 50, "a | d")
  assert second["merged"] == pytest.approx(400 / 6)
  assert second["gain"] == pytest.approx(100 / 6)
  assert second["confused_with"] == "a (1)"  # of equally frequent ones the first
  for row, csm in ((third, ""), (fourth, "b")):
    assert row["clips"] == 0 and row["merged"] is row["gain"] is row["one_pass"] is None
    assert row["confused_with"] == "" and row["csm"] == csm


def test_per_class_csv_round_trip(tmp_path):
  names = ('a, "b"', "é", "c", "d")
  rows = results.per_class(before(names), after(names), PAIRS)
  workdir.write_csv(tmp_path / "per_class.csv", [results.format_row(row) for row in rows])
  with open(tmp_path / "per_class.csv", newline="", encoding="utf-8") as file:
    first, second, third, _ = csv.DictReader(file)
  assert first["class"] == 'a, "b"' and first["csm"] == "é"
  assert (second["clips"], second["merged"], second["gain"]) == ("6", "66.67", "16.67")
  assert (third["clips"], third["merged"], third["gain"]) == ("0", "", "")
  assert [path.name for path in tmp_path.iterdir()] == ["per_class.csv"]


def test_table_of_few_classes_shows_all():
  long = "Pretending to put something onto something else"
  names = (long, "b", "c", "d")
  rows = results.per_class(before(names), after(names), PAIRS)
  header, _, first, second, third, _ = results.format_per_class(rows).splitlines()
  assert header.split("  ")[0] == "Class" and header.rstrip().endswith("Most confused with")
  cut = "Pretending to put something onto some..."
  assert len(cut) == 40
  assert first.split() == [*cut.split(), "2", "100.00", "50.00", "-50.00", "d", "(1)"]
  assert second.split() == ["b", "6", "50.00", "66.67", "+16.67", *cut.split(), "(1)"]
  assert third.split() == ["c", "0", "-", "-", "-"]


def test_table_of_many_classes_shows_largest_gains_and_losses():
  # Class k gains k - 15 points, but class 15 none, and class 40 has no clip.
  rows = [
    {
      "class": f"c{k}",
      "clips": 5 * (k < 40),
      "one_pass": 50.0,
      "merged": 35.0 + k,
      "gain": k - 15.0 if k < 40 else None,
      "confused_with": "",
    }
    for k in range(41)
  ]
  shown = [line.split()[0] for line in results.format_per_class(rows).splitlines()[2:]]
  assert shown == [f"c{k}" for k in (*range(39, 29, -1), *range(9, -1, -1))]
  for row in rows:
    row["gain"] = row["gain"] and max(row["gain"], 0.0)
  rows[3]["gain"] = -1.0
  shown = [line.split()[0] for line in results.format_per_class(rows).splitlines()[2:]]
  assert shown == [*(f"c{k}" for k in range(39, 29, -1)), "c3"]
  assert len(results.format_per_class(rows[:30]).splitlines()) == 32


def _accuracies(top1, top5, mean_class):
  return {"top1": top1, "top5": top5, "mean_class": mean_class}


def test_fusions_table():
  text = results.format_fusions(
    _accuracies(56.52, 82.95, 50.0),
    {
      "universal+bridge+specific": _accuracies(58.474, 84.03, 100.0),
      "universal": _accuracies(57.67, 83.96, 9.5),
      "bridge": _accuracies(57.58, 83.26, 51.25),
    },
  )
  assert text.splitlines() == [
    "Universal  Bridge  Specific  Top-1 (%)  Top-5 (%)  Mean class (%)",
    "---------  ------  --------  ---------  ---------  --------------",
    "One-pass                         56.52      82.95           50.00",
    "    x                            57.67      83.96            9.50",
    "             x                   57.58      83.26           51.25",
    "    x        x        x          58.47      84.03          100.00",
  ]


def test_fusions_table_without_one_pass():
  text = results.format_fusions(
    None, fusions(make_scores([0, 1], ("x", "y"), specific=np.array([[0.9, 0.1], [0.9, 0.1]])))
  )
  assert len(text.splitlines()) == 3
  assert len({len(line) for line in text.splitlines()}) == 1
  assert text.isascii()


def test_table_is_aligned_with_wide_characters_and_accents():
  cells = [["開ける", "1"], ["e\u0301te\u0301", "1"], ["plain", "1"]]
  lines = results.format_table(["Class", "Clips"], cells, [str.ljust, str.rjust]).splitlines()
  # 12 columns before the number: six for three Chinese letters, three for "ete" with its accents.
  assert [line.index("1") for line in lines[2:]] == [9, 14, 12]
  assert "a\\nb" in results._shorten("a\nb")
