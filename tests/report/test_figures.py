"""The numbers that the figures plot, by hand."""

import html

import numpy as np
import pytest

from u2s_jax.report import figures

# Three classes: a and c are similar, b is like neither.
SIMILARITY = np.array([[1.0, 0.2, 0.9], [0.2, 1.0, 0.3], [0.9, 0.3, 1.0]])
NAMES = ["a", "b", "c"]


def points(axis):
  """Returns the data of every line by its label."""
  return {line.get_label(): np.array(line.get_data()) for line in axis.lines}


def bars(axis):
  """Returns the heights of the bars of every histogram, in the order of drawing."""
  return [[patch.get_height() for patch in container] for container in axis.containers]


def test_training_curves_join_stages_and_mark_their_starts():
  scalars = {
    "universal/loss": (np.array([10, 20]), np.array([3.0, 2.0])),
    "specific/loss": (np.array([30, 40]), np.array([5.0, 4.0])),
    "universal/accuracy_universal": (np.array([10, 20]), np.array([0.25, 0.5])),
    "specific/validation_merged": (np.array([40]), np.array([61.0])),
    "joint/validation_merged": (np.array([50]), np.array([62.0])),
  }
  loss, _, training, validation = figures.plot_training_curves({"run": scalars}).axes
  np.testing.assert_array_equal(points(loss)["loss"], [[10, 20, 30, 40], [3, 2, 5, 4]])
  np.testing.assert_array_equal(points(training)["universal"], [[10, 20], [25, 50]])
  np.testing.assert_array_equal(points(validation)["merged"], [[40, 50], [61, 62]])
  starts = [line.get_xdata()[0] for line in loss.lines if len(set(line.get_xdata())) == 1]
  assert starts == [20, 40]


def test_training_curves_of_two_runs_have_their_own_labels_and_styles():
  runs = {n: {"universal/loss": (np.arange(2), np.full(2, float(n)))} for n in "12"}
  loss = figures.plot_training_curves(runs).axes[0]
  assert {"1: loss", "2: loss"} <= points(loss).keys()
  styles = {line.get_label(): line.get_linestyle() for line in loss.lines}
  assert styles["1: loss"] != styles["2: loss"]


def test_confusion_is_normalised_by_row():
  counts = np.array([[3, 1, 0], [0, 0, 0], [2, 2, 4]])
  image = figures.plot_confusion(counts, NAMES).axes[0].images[0]
  expected = [[0.75, 0.25, 0], [0, 0, 0], [0.25, 0.25, 0.5]]
  np.testing.assert_allclose(image.get_array(), expected)


def test_class_accuracy_is_sorted_by_gain():
  rows = [
    {"class": name, "clips": clips, "one_pass": one_pass, "merged": merged, "gain": gain}
    for name, clips, one_pass, merged, gain in (
      ("loses", 4, 50.0, 25.0, -25.0),
      ("gains", 4, 25.0, 75.0, 50.0),
      ("empty", 0, None, None, None),
      ("stays", 4, 50.0, 50.0, 0.0),
    )
  ]
  axis = figures.plot_class_accuracy(rows).axes[0]
  names = {
    place: label.get_text()
    for place, label in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
  }
  top_down = [names[place] for place in sorted(names, reverse=True)]
  assert top_down == ["gains", "stays", "loses"]
  x, y = points(axis)["U2S"]
  assert [names[place] for place in y] == top_down and x.tolist() == [75, 50, 25]
  assert points(axis)["one-pass"][0].tolist() == [25, 50, 50]
  few = figures.plot_class_accuracy(rows[:2] + rows[3:], limit=2).axes[0]
  assert [label.get_text() for label in few.get_yticklabels()] == ["gains", "loses"]


def test_accuracy_against_size_skips_empty_classes():
  rows = [{"clips": n, "merged": accuracy} for n, accuracy in ((4, 25.0), (0, None), (2, 50.0))]
  (line,) = figures.plot_accuracy_against_size([3, 9, 300], rows).axes[0].lines
  np.testing.assert_array_equal(line.get_data(), [[3, 300], [25, 50]])


def test_stacked_panels_keep_their_size(tmp_path):
  figure = figures.plot_similarity_and_accuracy(SIMILARITY, np.array([40.0, 90.0, 50.0]), NAMES)
  width, height = figure.get_size_inches()
  figures.stack(figure)
  figure.draw_without_rendering()
  left, right = (axis.get_position() for axis in figure.axes[:2])
  assert left.y0 > right.y1
  assert figure.get_size_inches().tolist() == [width / 2, height * 2]


def test_figure_1_by_hand():
  figure = figures.plot_similarity_and_accuracy(SIMILARITY, np.array([40.0, 90.0, 50.0]), NAMES)
  left, right = figure.axes[:2]
  np.testing.assert_array_equal(left.images[0].get_array(), SIMILARITY)
  # The scale ignores the diagonal.
  assert left.images[0].get_clim() == (0.2, 0.9)
  # Sums of a row without its diagonal: 1.1, 0.5, 1.2; from 0 to 1: 6/7, 0, 1.
  scatter, line = right.lines
  np.testing.assert_allclose(scatter.get_data(), [[6 / 7, 0, 1], [40, 90, 50]])
  r = np.corrcoef([6 / 7, 0, 1], [40, 90, 50])[0, 1]
  assert line.get_label() == f"r = {r:+.2f}" and r < -0.9


def test_figure_4_normalises_all_kinds_together():
  other = np.array([[1.0, 0.1, 0.1], [0.1, 1.0, 0.3], [0.1, 0.3, 1.0]])
  kinds = {"one-pass": SIMILARITY, "specific": other}
  # Sums 1.1, 0.5, 1.2 and 0.2, 0.4, 0.4: lowest 0.2, highest 1.2.
  expected = {"one-pass": [0.9, 0.3, 1.0], "specific": [0.0, 0.2, 0.2]}
  means = figures.mean_similarity_by_features(kinds)
  for kind, values in expected.items():
    np.testing.assert_allclose(means[kind], values, atol=1e-12)
  accuracies = {"one-pass": np.array([1.0, 2, 3]), "specific": np.array([4.0, 5, 6])}
  left, right = figures.plot_similarity_by_features(kinds, accuracies).axes
  for kind, values in expected.items():
    np.testing.assert_allclose(points(left)[kind], [values, accuracies[kind]], atol=1e-12)
  counts = bars(right)
  assert np.sum(counts, axis=1).tolist() == [3, 3]
  assert counts[1][0] == 1 and counts[1][1] + counts[1][2] == 2
  same = figures.mean_similarity_by_features({"U2S": np.ones((2, 2))})
  np.testing.assert_array_equal(same["U2S"], 0)


def test_top_n_is_cut_after_ten_values():
  curve = np.linspace(0.5, 1, 51)
  axis = figures.plot_top_n(curve, 3).axes[0]
  line, mark = axis.lines
  np.testing.assert_allclose(line.get_ydata(), 100 * curve[:10])
  assert line.get_xdata()[0] == 1 and set(mark.get_xdata()) == {3}


def test_embeddings_separate_clusters():
  rng = np.random.default_rng(0)
  labels = np.repeat([7, 2], 8)
  apart = rng.normal(size=(16, 5)) + 100 * (labels == 7)[:, None]
  figure = figures.plot_embeddings(
    {"before": apart, "after": apart[:, :3]}, labels, {2: "x", 7: "y"}
  )
  assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
  for axis in figure.axes:
    found = points(axis)
    assert {name: part.shape for name, part in found.items()} == {"x": (2, 8), "y": (2, 8)}
    centres = {name: part.mean(1) for name, part in found.items()}
    for name, other in (("x", "y"), ("y", "x")):
      own, foreign = (
        np.linalg.norm(found[name] - centres[c][:, None], axis=0) for c in (name, other)
      )
      assert np.all(own < foreign)


def test_figure_7_is_sorted_by_name():
  figure = figures.plot_weight_similarities(
    {"with": SIMILARITY, "without": SIMILARITY}, ["z", "m", "a"]
  )
  panel = next(axis for axis in figure.axes if axis.get_title() == "with")
  np.testing.assert_array_equal(panel.images[0].get_array(), SIMILARITY[::-1, ::-1])
  histogram = next(axis for axis in figure.axes if axis.get_xlabel().startswith("weight"))
  for heights in bars(histogram):
    # Of three pairs: 0.2, 0.3, 0.9; bins of 0.05.
    assert np.flatnonzero(heights).tolist() in ([4, 6, 18], [4, 5, 18], [3, 5, 17], [4, 6, 17])
    assert sum(heights) == 3


def test_figure_8_is_sorted_by_n():
  figure = figures.plot_accuracy_against_n(
    [5, 1, 2],
    {"top-1": [60.0, 50.0, 55.0], "top-5": [90.0, 80.0, 85.0]},
    {"top-1": 45.0, "top-5": 79.0},
  )
  for axis, values, base in zip(figure.axes, ([50, 55, 60], [80, 85, 90]), (45, 79), strict=True):
    np.testing.assert_array_equal(points(axis)["U2S"], [[1, 2, 5], values])
    assert set(points(axis)["one-pass"][1]) == {base}


def test_saved_files_are_deterministic_and_keep_text(tmp_path):
  contents = []
  for name in ("one", "two"):
    (tmp_path / name).mkdir()
    figures.save(figures.plot_top_n(np.linspace(0.5, 1, 4), 2), tmp_path / name / "figure")
    contents.append((tmp_path / name / "figure.svg").read_bytes())
    assert (tmp_path / name / "figure.png").read_bytes().startswith(b"\x89PNG")
  assert contents[0] == contents[1] and b"top-N accuracy" in contents[0]


@pytest.mark.parametrize("name", ["short", "x" * 46, "the same start, then " * 3 + "another end"])
def test_shortened_names_keep_both_ends(name):
  short = figures._shorten(name)
  assert len(short) <= 46 and (short == name or short.endswith("another end"))


NAMES = ("$5 to $10", "a_b^{2}$", "_idle", "x\\frac", "%d & <b>", "開ける", "Ünïcødé", "50 % {x}")


@pytest.mark.parametrize("name", NAMES)
def test_class_names_are_not_parsed(tmp_path, name):
  names = [name, "other", "third"]
  rows = [{"class": n, "clips": 1, "one_pass": 50.0, "merged": 60.0, "gain": 10.0} for n in names]
  labels = np.arange(12) % 2
  drawn = {
    "confusion": figures.plot_confusion(np.eye(3, dtype=int), names),
    "classes": figures.plot_class_accuracy(rows),
    "pair": figures.plot_embeddings(
      {"one-pass": np.random.default_rng(0).normal(size=(12, 4))}, labels, {0: name, 1: "other"}
    ),
  }
  for title, figure in drawn.items():
    figures.save(figure, tmp_path / title)
    svg = (tmp_path / f"{title}.svg").read_text(encoding="utf-8")
    assert f">{html.escape(name, quote=False)}<" in svg, title


def test_missing_characters():
  assert figures.missing_characters(["plain", "Ünïcødé"]) == ""
  private = "\U000f1234"  # in a private use area, which most fonts lack
  assert figures.missing_characters(["a", f"b{private}", private]) in ("", private)
