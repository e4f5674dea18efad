"""Draws the paper's figures, and further ones of a run, with matplotlib from plain numbers.

Every `plot_*` function returns a `Figure`; `save` writes it. Colours suit colour-blind readers, and
every series also has its own marker or line style.
"""

import functools
import io
import itertools
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Num
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn.manifold import TSNE

from u2s_jax import csm as csm_lib
from u2s_jax.stages import PREDICTIONS, STAGES

# Colour of text and axes; the page replaces it by its own text colour, light or dark.
INK = "#1b1f24"
# Okabe and Ito's colours, distinguishable with all kinds of colour vision.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Markers and colours of Fig. 4's kinds of features, similar to the paper's.
KIND_STYLES = {
  "one-pass": ("^", "#009e73"),
  "universal": ("x", "#e69f00"),
  "specific": ("*", "#d55e00"),
  "U2S": ("+", "#0072b2"),
}
LINES = ("-", "--", ":", "-.")
MEAN_SIMILARITY = "mean similarity with the other classes (Eq. 7)"
MAX_NAMES = 40  # classes up to which an axis shows their names
MAX_COUNTS = 30  # classes up to which the confusion matrix shows counts
STYLE: dict[str, Any] = {
  "text.color": INK,
  "axes.edgecolor": INK,
  "axes.labelcolor": INK,
  "xtick.color": INK,
  "ytick.color": INK,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.facecolor": "none",
  "axes.prop_cycle": matplotlib.cycler(color=COLORS),
  "legend.frameon": False,
  "font.size": 9,
  "svg.fonttype": "none",  # text stays text, which is searchable, accessible and small
  "text.parse_math": False,  # a class name may be "$5 to $10"
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
  """Makes `draw` use `STYLE` and, for characters that the default font lacks, other fonts."""

  @functools.wraps(draw)
  def styled(*args, **kwargs):
    with matplotlib.rc_context(STYLE):
      figure = draw(*args, **kwargs)
      for text in figure.findobj(Text):
        if families := {_find_font(character) for character in text.get_text()} - {"", None}:
          text.set_fontfamily([*text.get_fontfamily(), *sorted(families)])
      return figure

  return styled


@functools.cache
def _code_points(family: str) -> frozenset[int]:
  """Returns the code points that a font has; none if the font cannot be read."""
  try:
    path = font_manager.findfont(family, fallback_to_default=False)
    return frozenset(font_manager.get_font(path).get_charmap())
  except (ValueError, RuntimeError):
    return frozenset()


@functools.cache
def _find_font(character: str) -> str | None:
  """Returns an installed font family with a character; "" for the default font, None for none."""
  if not character.isprintable() or ord(character) in _code_points("DejaVu Sans"):
    return ""
  families = sorted(font_manager.get_font_names())
  return next((name for name in families if ord(character) in _code_points(name)), None)


def _subplots(size: Sequence[float | int], *shape: int, **options: Any) -> tuple[Figure, Any]:
  figure = Figure(figsize=size, layout="constrained")
  return figure, figure.subplots(*shape, **options)


def missing_characters(texts: Iterable[str]) -> str:
  """Returns the characters that no installed font has, for which figures show boxes."""
  return "".join(sorted({c for text in texts for c in text if _find_font(c) is None}))


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes `<path>.png` on white and `<path>.svg` with a transparent background."""
  png = _render(figure, path.name, format="png", dpi=150, facecolor="white")
  path.with_suffix(".png").write_bytes(png)
  path.with_suffix(".svg").write_text(render_svg(figure, path.name), encoding="utf-8")


def render_svg(figure: Figure, name: str, transparent: bool = True) -> str:
  """Returns a figure as SVG, deterministic for the same figure and name."""
  options = {"transparent": transparent, "metadata": {"Date": None}}
  return _render(figure, name, format="svg", **options).decode()


def _render(figure: Figure, name: str, **options: Any) -> bytes:
  file = io.BytesIO()
  with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
    # One warning for each missing glyph; the report logs them in one line.
    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
    figure.savefig(file, **options)
  return file.getvalue()


def stack(figure: Figure) -> None:
  """Arranges the panels of a figure in one column, for narrow screens."""
  panels = [axis for axis in figure.axes if axis.get_subplotspec()]  # colour bars have none
  rows, columns, *_ = panels[0].get_subplotspec().get_geometry()
  width, height = figure.get_size_inches()
  grid = figure.add_gridspec(len(panels), 1)
  for k, axis in enumerate(panels):
    axis.set_subplotspec(grid[k])
  figure.set_size_inches(width / columns, height / rows * len(panels))


@_styled
def plot_training_curves(
  history: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]],
) -> Figure:
  """Plots losses and accuracies over the steps of all stages.

  Args:
    history: for each run, by its name, scalars by tags `<stage>/<name>`: steps, counted through all
      stages, and values. Training accuracies are fractions, validation accuracies percent.
  """
  figure, axes = _subplots((9, 6.5), 2, 2, sharex=True)
  panels = {
    "Loss": ["loss"],
    "Loss terms": ["loss_universal", "loss_bridge", "loss_specific", "regularizer"],
    "Training top-1 (%)": [f"accuracy_{name}" for name in PREDICTIONS],
    "Validation top-1 (%)": [f"validation_{name}" for name in (*PREDICTIONS, "merged")],
  }
  for axis, (title, names) in zip(axes.flat, panels.items(), strict=True):
    axis.set_title(title)
    factor = 100 if title.startswith("Training") else 1
    for line, (run, scalars) in zip(itertools.cycle(LINES), history.items(), strict=False):
      prefix = f"{run}: " if len(history) > 1 else ""
      _plot_scalars(axis, scalars, names, factor, line, prefix)
      for start in _stage_starts(scalars):
        axis.axvline(start, color="grey", linewidth=0.7, linestyle=line)
    if axis.get_legend_handles_labels()[0]:
      axis.legend(fontsize=7)
  for axis in axes[1]:
    axis.set_xlabel("step; vertical lines: a stage begins")
  return figure


def _plot_scalars(axis, scalars, names: Sequence[str], factor: int, line: str, prefix: str) -> None:
  """Plots scalars of one run, each joined over its stages, times `factor`."""
  for color, name in zip(itertools.cycle(COLORS), names, strict=False):
    parts = [scalars[tag] for stage in STAGES if (tag := f"{stage}/{name}") in scalars]
    if not parts:
      continue
    steps, values = (np.concatenate(part) for part in zip(*parts, strict=True))
    axis.plot(
      steps,
      factor * values,
      line,
      color=color,
      marker="." if len(steps) < 60 else None,
      label=prefix + name.rpartition("_")[2],
    )


def _stage_starts(scalars: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[int]:
  """Returns the steps at which later stages begin, the last steps of the stages before."""
  ends = [
    max(int(steps[-1]) for tag, (steps, _) in scalars.items() if tag.startswith(f"{stage}/"))
    for stage in STAGES
    if any(tag.startswith(f"{stage}/") for tag in scalars)
  ]
  return ends[:-1]


@_styled
def plot_confusion(counts: Integer[np.ndarray, "m m"], names: Sequence[str]) -> Figure:
  """Plots the share of each class's clips (row) that are predicted as each class (column).

  With at most 30 classes also the numbers of clips.
  """
  figure, axis = _subplots(_matrix_size(names))
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  _plot_matrix(axis, shares, names, "share of the class's clips", is_confusion=True)
  if len(names) <= MAX_COUNTS:
    for i, j in zip(*np.nonzero(counts), strict=True):
      color = "black" if shares[i, j] > 0.6 else "white"  # on cividis' yellow and blue
      axis.text(j, i, str(counts[i, j]), color=color, fontsize=6, ha="center", va="center")
  axis.set(xlabel="predicted class", ylabel="class")
  return figure


@_styled
def plot_class_accuracy(rows: Sequence[Mapping], limit: int = 40) -> Figure:
  """Plots each class's accuracy, one-pass and U2S, from the largest gain to the largest loss.

  Args:
    rows: rows of `results.per_class`; classes without a clip are omitted.
    limit: the maximum number of classes; of more, the first and the last are shown.
  """
  rows = sorted((row for row in rows if row["clips"]), key=lambda row: -row["gain"])
  if len(rows) > limit:
    rows = rows[: limit // 2] + rows[-(limit // 2) :]
  figure, axis = _subplots((6.5, 1.2 + 0.2 * len(rows)))
  places = np.arange(len(rows))[::-1]
  before, after = (np.array([row[key] for row in rows]) for key in ("one_pass", "merged"))
  axis.hlines(places, before, after, color="grey", linewidth=1)
  axis.plot(before, places, "^", color=KIND_STYLES["one-pass"][1], label="one-pass")
  axis.plot(after, places, "P", color=KIND_STYLES["U2S"][1], label="U2S")
  axis.set_yticks(places, [_shorten(row["class"]) for row in rows], fontsize=7)
  axis.set(xlabel="top-1 accuracy (%)", xlim=(-2, 102), ymargin=0.02)
  figure.legend(loc="outside upper right", ncols=2)
  return figure


@_styled
def plot_accuracy_against_size(sizes: Sequence[int], rows: Sequence[Mapping]) -> Figure:
  """Plots each class's accuracy (see `results.per_class`) against its number of training clips.

  Classes without a validation clip are omitted.
  """
  known = [(size, row["merged"]) for size, row in zip(sizes, rows, strict=True) if row["clips"]]
  figure, axis = _subplots((5, 3.2))
  axis.plot(*zip(*known, strict=True), "P", color=KIND_STYLES["U2S"][1])
  axis.set_xscale("log")
  axis.xaxis.set_major_formatter("{x:g}")
  axis.xaxis.set_minor_formatter("{x:g}" if max(sizes) < 10 * min(sizes) else "")
  axis.set(xlabel="training clips of the class", ylabel="top-1 accuracy (%)", ylim=(-2, 102))
  return figure


@_styled
def plot_similarity_and_accuracy(
  similarity: Float[np.ndarray, "m m"], accuracy: Float[np.ndarray, " m"], names: Sequence[str]
) -> Figure:
  """Plots Fig. 1: the similarity of all classes, and accuracy against mean similarity (Eq. 7).

  Similarity (Eq. 2) and accuracy (percent) are those of the one-pass model.
  """
  width, height = _matrix_size(names)
  figure, (left, right) = _subplots((2 * width, height), 1, 2)
  _plot_matrix(left, similarity, names, "similarity")
  x = csm_lib.mean_similarity(similarity)
  marker, color = KIND_STYLES["one-pass"]
  right.plot(x, accuracy, marker, color=color)
  _plot_regression(right, x, accuracy, color)
  right.set(xlabel=MEAN_SIMILARITY, ylabel="top-1 accuracy (%)")
  return figure


@_styled
def plot_similarity_by_features(
  similarities: Mapping[str, Float[np.ndarray, "m m"]],
  accuracies: Mapping[str, Float[np.ndarray, " m"]],
) -> Figure:
  """Plots Fig. 4: accuracy against mean similarity (Eq. 7), and the histogram of the latter.

  As in the paper, Eq. 7 is normalised over all kinds of features together, which makes them
  comparable.

  Args:
    similarities: Eq. 2 by kind of features: 'one-pass', 'universal', 'specific', 'U2S'.
    accuracies: top-1 accuracy by kind, percent.
  """
  figure, (left, right) = _subplots((10, 4), 1, 2)
  means = mean_similarity_by_features(similarities)
  for kind, x in means.items():
    marker, color = KIND_STYLES[kind]
    left.plot(x, accuracies[kind], marker, color=color, label=kind)
  left.set(xlabel=MEAN_SIMILARITY, ylabel="top-1 accuracy (%)")
  left.legend()
  colors = [KIND_STYLES[kind][1] for kind in means]
  right.hist(list(means.values()), np.linspace(0, 1, 11), label=list(means), color=colors)
  right.set(xlabel=MEAN_SIMILARITY, ylabel="classes")
  right.legend()
  return figure


def mean_similarity_by_features(
  similarities: Mapping[str, Float[np.ndarray, "m m"]],
) -> dict[str, Float[np.ndarray, " m"]]:
  """Returns Eq. 7, min-max normalised over all kinds of features; all 0 if nothing differs."""
  sums = {}
  for kind, similarity in similarities.items():
    off_diagonal = np.array(similarity, np.float64)
    np.fill_diagonal(off_diagonal, 0)
    sums[kind] = off_diagonal.sum(1)
  low = min(values.min() for values in sums.values())
  span = max(values.max() for values in sums.values()) - low
  return {kind: (values - low) / (span or 1) for kind, values in sums.items()}


@_styled
def plot_top_n(curve: Float[np.ndarray, " m"], n: int) -> Figure:
  """Plots the top-N accuracy of the one-pass model and the N of the CSM."""
  figure, axis = _subplots((5, 3))
  shown = min(len(curve), max(2 * n, 10))
  axis.plot(np.arange(1, shown + 1), 100 * curve[:shown], ".-", color=COLORS[0])
  axis.axvline(n, color=COLORS[1], linestyle="--", label=f"N = {n}")
  axis.set(xlabel="N", ylabel="top-N accuracy (%)")
  axis.legend()
  return figure


@_styled
def plot_embeddings(
  features: Mapping[str, Float[np.ndarray, "n _"]],
  labels: Integer[np.ndarray, " n"],
  names: Mapping[int, str],
) -> Figure:
  """Plots Fig. 6 f and g: t-SNE of two confusing classes, one panel per kind of features.

  Args:
    features: pooled features of the clips, by the panel's title.
    names: names of the two classes by label.
  """
  figure, (axes,) = _subplots((4.5 * len(features), 4), 1, len(features), squeeze=False)
  for axis, (title, values) in zip(axes, features.items(), strict=True):
    # The perplexity, 30 by default, should not exceed (n - 1) / 3.
    perplexity = min(30.0, (len(labels) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(values)
    for color, marker, (label, name) in zip(COLORS, "o^", names.items(), strict=False):
      axis.plot(*points[labels == label].T, marker, color=color, label=_shorten(name), alpha=0.8)
    axis.set(title=title, xticks=[], yticks=[])
  # Set afterwards, because matplotlib omits labels that begin with an underscore.
  legend = figure.legend(axis.lines, [""] * len(names), loc="outside lower center", ncols=2)
  for text, name in zip(legend.get_texts(), names.values(), strict=True):
    text.set_text(_shorten(name))
  return figure


@_styled
def plot_weight_similarities(
  similarities: Mapping[str, Float[np.ndarray, "m m"]], names: Sequence[str]
) -> Figure:
  """Plots Fig. 7: each run's weight similarity (Eq. 4) and their histograms over all pairs.

  Rows and columns are sorted by the classes' names, as in the paper.
  """
  order = np.argsort(names, kind="stable")
  names = [names[i] for i in order]
  width, height = _matrix_size(names, 0.8)
  size = width * len(similarities) + 4.5, height
  figure, (*panels, last) = _subplots(size, 1, len(similarities) + 1)
  for axis, (run, similarity) in zip(panels, similarities.items(), strict=True):
    _plot_matrix(axis, similarity[np.ix_(order, order)], names, "weight similarity")
    axis.set_title(run)
  pairs = [s[np.triu_indices(len(s), 1)] for s in similarities.values()]
  last.hist(pairs, np.linspace(0, 1, 21), label=list(similarities), color=COLORS[: len(pairs)])
  last.set(xlabel="weight similarity (Eq. 4)", ylabel="pairs of classes")
  last.legend()
  return figure


@_styled
def plot_accuracy_against_n(
  n: Sequence[int], accuracies: Mapping[str, Sequence[float]], one_pass: Mapping[str, float]
) -> Figure:
  """Plots Fig. 8: accuracy against the average number N of confusing classes, over several runs.

  Args:
    n: N of each run.
    accuracies: of each run, percent, by 'top-1' and 'top-5'.
    one_pass: accuracies of the one-pass model, percent, drawn as lines.
  """
  order = np.argsort(n, kind="stable")
  figure, axes = _subplots((4.5 * len(accuracies), 3.2), 1, len(accuracies))
  for axis, (name, values) in zip(axes, accuracies.items(), strict=True):
    axis.plot(
      np.array(n)[order], np.array(values)[order], "o-", color=KIND_STYLES["U2S"][1], label="U2S"
    )
    axis.axhline(one_pass[name], color=KIND_STYLES["one-pass"][1], linestyle="--", label="one-pass")
    axis.set(xlabel="average number of confusing classes N", ylabel=f"{name} accuracy (%)")
    axis.legend()
  return figure


def _shorten(name: str, width: int = 46) -> str:
  """Cuts out the middle of a name, as similar classes often differ only at one end."""
  tail = width // 2
  return name if len(name) <= width else f"{name[: width - tail - 1].rstrip()}…{name[-tail:]}"


def _matrix_size(names: Sequence[str], factor: float = 1.0) -> tuple[float, float]:
  """Returns width and height in inches at which names, if shown, are legible."""
  edge = 1 + 0.12 * len(names) if len(names) <= MAX_NAMES else 4.5
  return factor * (edge + 2.7), factor * (edge + 0.8)


def _plot_matrix(
  axis, matrix: Num[np.ndarray, "m m"], names, label: str, is_confusion: bool = False
) -> None:
  """Plots a heat map; the scale of similarities ignores the diagonal, which is always 1."""
  scaled = np.array([0, 1]) if is_confusion else matrix[~np.eye(len(matrix), dtype=bool)]
  low, high = scaled.min(), scaled.max()
  image = axis.imshow(matrix, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
  if not is_confusion:
    axis.set_xticks([])
  if len(names) <= MAX_NAMES:
    places, names = np.arange(len(names)), [_shorten(name, 32) for name in names]
    axis.set_yticks(places, names, fontsize=6)
    if is_confusion:
      axis.set_xticks(places, names, fontsize=6, rotation=90)
  axis.figure.colorbar(image, label=label, shrink=0.7)


def _plot_regression(axis, x: np.ndarray, y: np.ndarray, color: str) -> None:
  """Plots the least-squares line, with the correlation in the legend."""
  if len(x) < 3 or not np.ptp(x) or not np.ptp(y):
    return
  slope, offset = np.polyfit(x, y, 1)
  ends = np.array([x.min(), x.max()])
  label = f"r = {np.corrcoef(x, y)[0, 1]:+.2f}"
  axis.plot(ends, offset + slope * ends, "--", color=color, label=label)
  axis.legend()
