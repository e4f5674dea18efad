"""The paper's figures, and those a run is judged by, drawn by matplotlib from plain numbers.

Every function returns a `Figure`; `save` writes it. Colours tell apart for colour-blind eyes, and
every series has its own marker or line style as well.
"""

import contextlib
import functools
import io
import pathlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Integer, Num
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn.manifold import TSNE

from u2s_jax import csm as csm_lib
from u2s_jax.stages import PREDICTIONS, STAGES

# Text and axes; the page replaces it by the colour of its own text, light or dark.
INK = "#1b1f24"
# Okabe and Ito's colours, which tell apart for all kinds of colour vision.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Fig. 4's kinds of features, with the paper's markers and much the same colours.
KINDS = {
  "one-pass": ("^", "#009e73"),
  "universal": ("x", "#e69f00"),
  "specific": ("*", "#d55e00"),
  "U2S": ("+", "#0072b2"),
}
LINES = ("-", "--", ":", "-.")
BINS = np.linspace(0, 1, 11)  # intervals of similarity, Fig. 4 b and 7 c
NAMED = 40  # classes up to which an axis of classes carries their names
STYLE = {
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
  "svg.fonttype": "none",  # text stays text: to be found, read aloud, and small
  "text.parse_math": False,  # a class name such as "$5 to $10" is no formula
}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
  """`draw` under our style, whatever the process's own is."""

  @functools.wraps(draw)
  def styled(*args, **kwargs):
    with matplotlib.rc_context(STYLE):
      figure = draw(*args, **kwargs)
      for text in figure.findobj(Text):
        if families := {_family_with(character) for character in text.get_text()} - {"", None}:
          text.set_fontfamily([*text.get_fontfamily(), *sorted(families)])
      return figure

  return styled


@functools.cache
def _characters_of(family: str) -> frozenset[int]:
  """Returns the code points that a font has; empty for a font that cannot be read."""
  try:
    path = font_manager.findfont(family, fallback_to_default=False)
    return frozenset(font_manager.get_font(path).get_charmap())
  except (ValueError, RuntimeError):
    return frozenset()


@functools.cache
def _family_with(character: str) -> str | None:
  """Returns an installed font for a character that the default font lacks.

  Args:
    character: one character.

  Returns:
    The family's name; "" where the default font has the character, None where no font has it.
  """
  if not character.isprintable() or ord(character) in _characters_of("DejaVu Sans"):
    return ""
  families = sorted(font_manager.get_font_names())
  return next((name for name in families if ord(character) in _characters_of(name)), None)


def missing_characters(texts: Iterable[str]) -> str:
  """Returns the characters that no installed font has: figures show boxes in their place."""
  return "".join(sorted({c for text in texts for c in text if _family_with(c) is None}))


@contextlib.contextmanager
def _without_glyph_warnings() -> Iterator[None]:
  """Leaves out matplotlib's line for each missing glyph; the page names them in one."""
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
    yield


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes `<path>.png`, on white, and `<path>.svg`, on nothing."""
  with matplotlib.rc_context(STYLE), _without_glyph_warnings():
    figure.savefig(path.with_suffix(".png"), dpi=150, facecolor="white")
  path.with_suffix(".svg").write_text(svg(figure, path.name), encoding="utf-8")


def svg(figure: Figure, name: str, transparent: bool = True) -> str:
  """Returns a figure as SVG, on nothing or white, always the same for the same figure and name."""
  file = io.StringIO()
  with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), _without_glyph_warnings():
    figure.savefig(file, format="svg", transparent=transparent, metadata={"Date": None})
  return file.getvalue()


def stack(figure: Figure) -> None:
  """Puts the panels of a figure one below the other, as a telephone shows them."""
  panels = [axis for axis in figure.axes if axis.get_subplotspec()]  # without colour bars
  rows, columns, *_ = panels[0].get_subplotspec().get_geometry()
  width, height = figure.get_size_inches()
  grid = figure.add_gridspec(len(panels), 1)
  for k, axis in enumerate(panels):
    axis.set_subplotspec(grid[k])
  figure.set_size_inches(width / columns, height / rows * len(panels))


@_styled
def training_curves(history: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]) -> Figure:
  """Loss and accuracy over the steps of all stages.

  Args:
    history: of each run, by its name, the scalars by tag `<stage>/<name>`: steps, counted through
      all stages, and values. Accuracies in training are fractions, in validation percent.
  """
  figure = Figure(figsize=(9, 6.5), layout="constrained")
  axes = figure.subplots(2, 2, sharex=True)
  several = len(history) > 1
  panels = (
    (axes[0, 0], "Loss", ("loss",), 1),
    (
      axes[0, 1],
      "Loss terms",
      ("loss_universal", "loss_bridge", "loss_specific", "regularizer"),
      1,
    ),
    (axes[1, 0], "Training top-1 (%)", tuple(f"accuracy_{name}" for name in PREDICTIONS), 100),
    (
      axes[1, 1],
      "Validation top-1 (%)",
      tuple(f"validation_{n}" for n in (*PREDICTIONS, "merged")),
      1,
    ),
  )
  for axis, title, names, factor in panels:
    axis.set_title(title)
    for line, (run, scalars) in zip(_cycle(LINES), history.items(), strict=False):
      for color, name in zip(_cycle(COLORS), names, strict=False):
        parts = [scalars[tag] for stage in STAGES if (tag := f"{stage}/{name}") in scalars]
        if not parts:
          continue
        steps, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        label = name.rpartition("_")[2]
        axis.plot(
          steps,
          factor * values,
          line,
          color=color,
          marker="." if len(steps) < 60 else None,
          label=f"{run}: {label}" if several else label,
        )
    for line, scalars in zip(_cycle(LINES), history.values(), strict=False):
      for start in stage_starts(scalars):
        axis.axvline(start, color="grey", linewidth=0.7, linestyle=line)
    if axis.get_legend_handles_labels()[0]:
      axis.legend(fontsize=7)
  for axis in axes[1]:
    axis.set_xlabel("step; vertical lines: a stage begins")
  return figure


def stage_starts(scalars: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[int]:
  """The steps at which the second and the third stage began: the last ones of those before."""
  ends = [
    max(int(steps[-1]) for tag, (steps, _) in scalars.items() if tag.startswith(f"{stage}/"))
    for stage in STAGES
    if any(tag.startswith(f"{stage}/") for tag in scalars)
  ]
  return ends[:-1]


@_styled
def confusion(counts: Integer[np.ndarray, "m m"], names: Sequence[str]) -> Figure:
  """Share of each class's clips, a row, that are taken for each class, a column."""
  figure = Figure(figsize=_matrix_size(names), layout="constrained")
  axis = figure.subplots()
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  image = axis.imshow(shares, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
  _class_axes(axis, names, both=True)
  axis.set_xlabel("taken for")
  axis.set_ylabel("class")
  figure.colorbar(image, label="share of the class's clips", shrink=0.7)
  return figure


@_styled
def class_accuracy(rows: Sequence[Mapping], limit: int = 40) -> Figure:
  """Accuracy of each class, one-pass and U2S, from the largest gain to the largest loss.

  Args:
    rows: of `results.per_class`; classes without a clip are left out.
    limit: of more classes the first and last of that order.
  """
  rows = sorted((row for row in rows if row["clips"]), key=lambda row: -row["gain"])
  if len(rows) > limit:
    rows = rows[: limit // 2] + rows[-(limit // 2) :]
  figure = Figure(figsize=(6.5, 1.2 + 0.2 * len(rows)), layout="constrained")
  axis = figure.subplots()
  places = np.arange(len(rows))[::-1]
  before, after = (np.array([row[key] for row in rows]) for key in ("one_pass", "merged"))
  axis.hlines(places, before, after, color="grey", linewidth=1)
  axis.plot(before, places, "^", color=KINDS["one-pass"][1], label="one-pass")
  axis.plot(after, places, "P", color=KINDS["U2S"][1], label="U2S")
  axis.set_yticks(places, [_short(row["class"]) for row in rows], fontsize=7)
  axis.set_xlabel("top-1 accuracy (%)")
  axis.set_xlim(-2, 102)
  axis.margins(y=0.02)
  figure.legend(loc="outside upper right", ncols=2)
  return figure


@_styled
def accuracy_against_size(sizes: Sequence[int], rows: Sequence[Mapping]) -> Figure:
  """Accuracy of each class against its training clips.

  Args:
    sizes: training clips of each class.
    rows: of `results.per_class`; classes without a clip are left out.
  """
  known = [(size, row["merged"]) for size, row in zip(sizes, rows, strict=True) if row["clips"]]
  figure = Figure(figsize=(5, 3.2), layout="constrained")
  axis = figure.subplots()
  axis.plot(*zip(*known, strict=True), "P", color=KINDS["U2S"][1])
  axis.set_xscale("log")
  axis.xaxis.set_major_formatter("{x:g}")
  axis.xaxis.set_minor_formatter("{x:g}" if max(sizes) < 10 * min(sizes) else "")
  axis.set_xlabel("training clips of the class")
  axis.set_ylabel("top-1 accuracy (%)")
  axis.set_ylim(-2, 102)
  return figure


@_styled
def similarity_and_accuracy(
  similarity: Float[np.ndarray, "m m"], accuracy: Float[np.ndarray, " m"], names: Sequence[str]
) -> Figure:
  """Fig. 1: similarity of all pairs of classes, and of each class with all others by accuracy.

  Args:
    similarity: Eq. 2, of the one-pass features.
    accuracy: top-1 of the one-pass model, percent.
    names: of the classes.
  """
  width, height = _matrix_size(names)
  figure = Figure(figsize=(2 * width, height), layout="constrained")
  left, right = figure.subplots(1, 2)
  _matrix(figure, left, similarity, names, "similarity")
  x = csm_lib.mean_similarity(similarity)
  marker, color = KINDS["one-pass"]
  right.plot(x, accuracy, marker, color=color)
  _regression(right, x, accuracy, color)
  right.set_xlabel("mean similarity with the other classes (Eq. 7)")
  right.set_ylabel("top-1 accuracy (%)")
  return figure


@_styled
def similarity_by_features(
  similarities: Mapping[str, Float[np.ndarray, "m m"]],
  accuracies: Mapping[str, Float[np.ndarray, " m"]],
) -> Figure:
  """Fig. 4: similarity of each class with all others, by accuracy, and how many lie where.

  As in the paper Eq. 7's norm is ONE for all kinds of features, so that they compare.

  Args:
    similarities: Eq. 2 by kind of features: 'one-pass', 'universal', 'specific', 'U2S'.
    accuracies: top-1 by kind, percent.
  """
  figure = Figure(figsize=(10, 4), layout="constrained")
  left, right = figure.subplots(1, 2)
  means = common_mean_similarity(similarities)
  for kind, x in means.items():
    marker, color = KINDS[kind]
    left.plot(x, accuracies[kind], marker, color=color, label=kind)
  left.set_xlabel("mean similarity with the other classes (Eq. 7)")
  left.set_ylabel("top-1 accuracy (%)")
  left.legend()
  colors = [KINDS[kind][1] for kind in means]
  right.hist(list(means.values()), BINS, label=list(means), color=colors)
  right.set_xlabel("mean similarity with the other classes (Eq. 7)")
  right.set_ylabel("classes")
  right.legend()
  return figure


def common_mean_similarity(
  similarities: Mapping[str, Float[np.ndarray, "m m"]],
) -> dict[str, Float[np.ndarray, " m"]]:
  """Eq. 7 with one min-max norm over all kinds of features; all 0 where nothing differs."""
  sums = {}
  for kind, similarity in similarities.items():
    off_diagonal = np.array(similarity, np.float64)
    np.fill_diagonal(off_diagonal, 0)
    sums[kind] = off_diagonal.sum(1)
  low = min(values.min() for values in sums.values())
  span = max(values.max() for values in sums.values()) - low
  return {kind: (values - low) / (span or 1) for kind, values in sums.items()}


@_styled
def top_n(curve: Float[np.ndarray, " m"], n: int) -> Figure:
  """Top-N accuracy of the one-pass model, and the N that the CSM was made for."""
  figure = Figure(figsize=(5, 3), layout="constrained")
  axis = figure.subplots()
  shown = min(len(curve), max(2 * n, 10))
  axis.plot(np.arange(1, shown + 1), 100 * curve[:shown], ".-", color=COLORS[0])
  axis.axvline(n, color=COLORS[1], linestyle="--", label=f"N = {n}")
  axis.set_xlabel("N")
  axis.set_ylabel("top-N accuracy (%)")
  axis.legend()
  return figure


@_styled
def embeddings(
  features: Mapping[str, Float[np.ndarray, "n _"]],
  labels: Integer[np.ndarray, " n"],
  names: Mapping[int, str],
) -> Figure:
  """Fig. 6 f and g: t-SNE of the clips of two confusing classes, a panel for each kind of features.

  Args:
    features: averaged over frames and pixels, by title.
    labels: of the clips.
    names: of the classes, by label.
  """
  figure = Figure(figsize=(4.5 * len(features), 4), layout="constrained")
  for axis, (title, values) in zip(
    figure.subplots(1, len(features), squeeze=False)[0], features.items(), strict=True
  ):
    # Its default of 30 neighbours needs more clips than that.
    perplexity = min(30.0, (len(labels) - 1) / 3)
    points = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(values)
    for color, marker, (label, name) in zip(COLORS, "o^", names.items(), strict=False):
      chosen = labels == label
      axis.plot(*points[chosen].T, marker, color=color, label=_short(name), alpha=0.8)
    axis.set_title(title)
    axis.set_xticks([])
    axis.set_yticks([])
  # Set afterwards: matplotlib leaves out labels that begin with an underscore.
  legend = figure.legend(axis.lines, [""] * len(names), loc="outside lower center", ncols=2)
  for text, name in zip(legend.get_texts(), names.values(), strict=True):
    text.set_text(_short(name))
  return figure


@_styled
def weight_similarities(
  similarities: Mapping[str, Float[np.ndarray, "m m"]], names: Sequence[str]
) -> Figure:
  """Fig. 7: weight similarity (Eq. 4) of the mask network, and how many pairs of classes lie where.

  Args:
    similarities: by run; classes are sorted by name, as the paper does.
    names: of the classes.
  """
  order = np.argsort(names, kind="stable")
  names = [names[i] for i in order]
  width, height = _matrix_size(names, 0.8)
  figure = Figure(figsize=(width * len(similarities) + 4.5, height), layout="constrained")
  *panels, last = figure.subplots(1, len(similarities) + 1)
  for axis, (run, similarity) in zip(panels, similarities.items(), strict=True):
    _matrix(figure, axis, similarity[np.ix_(order, order)], names, "weight similarity")
    axis.set_title(run)
  pairs = [s[np.triu_indices(len(s), 1)] for s in similarities.values()]
  last.hist(pairs, np.linspace(0, 1, 21), label=list(similarities), color=COLORS[: len(pairs)])
  last.set_xlabel("weight similarity (Eq. 4)")
  last.set_ylabel("pairs of classes")
  last.legend()
  return figure


@_styled
def accuracy_against_n(
  n: Sequence[int], accuracies: Mapping[str, Sequence[float]], one_pass: Mapping[str, float]
) -> Figure:
  """Fig. 8: accuracy against the average number of confusing classes N, over several runs.

  Args:
    n: of each run.
    accuracies: percent, of each run: 'top-1', 'top-5'.
    one_pass: of the one-pass model, percent, as a line.
  """
  order = np.argsort(n, kind="stable")
  figure = Figure(figsize=(4.5 * len(accuracies), 3.2), layout="constrained")
  axes = figure.subplots(1, len(accuracies), squeeze=False)[0]
  for axis, (name, values) in zip(axes, accuracies.items(), strict=True):
    axis.plot(np.array(n)[order], np.array(values)[order], "o-", color=KINDS["U2S"][1], label="U2S")
    axis.axhline(one_pass[name], color=KINDS["one-pass"][1], linestyle="--", label="one-pass")
    axis.set_xlabel("average number of confusing classes N")
    axis.set_ylabel(f"{name} accuracy (%)")
    axis.legend()
  return figure


def _cycle(values: Sequence) -> list:
  return list(values) * 10


def _short(name: str, width: int = 46) -> str:
  """Start and end: names of similar classes often begin alike, or end alike."""
  tail = width // 2
  return name if len(name) <= width else f"{name[: width - tail - 1].rstrip()}…{name[-tail:]}"


def _matrix_size(names: Sequence[str], factor: float = 1.0) -> tuple[float, float]:
  """Width and height in inches, so that names are legible where they are shown."""
  edge = 1 + 0.12 * len(names) if len(names) <= NAMED else 4.5
  return factor * (edge + 2.7), factor * (edge + 0.8)


def _class_axes(axis, names: Sequence[str], both: bool) -> None:
  if len(names) > NAMED:
    return
  places = np.arange(len(names))
  axis.set_yticks(places, [_short(name, 32) for name in names], fontsize=6)
  if both:
    axis.set_xticks(places, [_short(name, 32) for name in names], fontsize=6, rotation=90)


def _matrix(figure, axis, similarity: Num[np.ndarray, "m m"], names, label: str) -> None:
  """A heat map whose scale leaves the diagonal out, which is 1 whatever the classes are."""
  off_diagonal = similarity[~np.eye(len(similarity), dtype=bool)]
  image = axis.imshow(
    similarity,
    cmap="cividis",
    vmin=off_diagonal.min(),
    vmax=off_diagonal.max(),
    interpolation="nearest",
  )
  _class_axes(axis, names, both=False)
  axis.set_xticks([])
  figure.colorbar(image, label=label, shrink=0.7)


def _regression(axis, x: np.ndarray, y: np.ndarray, color: str) -> None:
  """The least-squares line, with the correlation in the legend."""
  if len(x) > 2 and np.ptp(x) and np.ptp(y):
    slope, offset = np.polyfit(x, y, 1)
    ends = np.array([x.min(), x.max()])
    label = f"r = {np.corrcoef(x, y)[0, 1]:+.2f}"
    axis.plot(ends, offset + slope * ends, "--", color=color, label=label)
    axis.legend()
