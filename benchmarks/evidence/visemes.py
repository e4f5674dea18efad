"""Compares the CSM of the study `letters` with the letters that look alike on the lips.

  python -m benchmarks.evidence.visemes /runs/letters/u2s_*

Reads finished runs with `eval.pairs` > 0, prints a table and draws docs/evidence/letters_csm.svg.
"Chance" is the mean over random permutations of the letters, with its central 95 %: the structure
of the CSM stays, only the names of its classes change.
"""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Integer, Shaped
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from benchmarks.evidence import study
from benchmarks.timing import make_parser
from u2s_jax.evaluation import scores as scores_lib
from u2s_jax.report import figures
from u2s_jax.run.workdir import Workdir, read_npz
from u2s_jax.runtime.errors import UserError, one_line_errors

# The names of British letters ("zed") by their vowel, which shapes the mouth for longer than the
# consonants do: B C D E ... (/iː/), A H J K (/eɪ/), F L M ... (/e/), Q U W (/uː/), I Y (/aɪ/).
VISEMES = ("BCDEGPTV", "AHJK", "FLMNSXZ", "QUW", "IY", "O", "R")
PERMUTATIONS = 2000


def group_members(names: Sequence[str]) -> Bool[np.ndarray, "m m"]:
  """Returns whether two different classes are of one group of `VISEMES`.

  Raises:
    UserError: if the classes are not the letters.
  """
  if sorted(names) != sorted("".join(VISEMES)):
    raise UserError(f"the classes {', '.join(names)} are not the letters A to Z")
  group = np.array([next(i for i, g in enumerate(VISEMES) if name in g) for name in names])
  return (group[:, None] == group) & ~np.eye(len(names), dtype=bool)


def count_confusions(scores: scores_lib.Scores) -> Integer[np.ndarray, "m m"]:
  """Returns the errors of the universal network: label in rows, prediction in columns."""
  counts = np.zeros((len(scores.class_names),) * 2, int)
  np.add.at(counts, (scores.labels, scores.predictions["universal"].argmax(axis=1)), 1)
  np.fill_diagonal(counts, 0)
  return counts


def permute(
  share: Callable[[Integer[np.ndarray, " m"]], float], num_classes: int
) -> tuple[float, float, float]:
  """Returns mean, 2.5th and 97.5th percentile of `share` over permutations of the classes."""
  rng = np.random.default_rng(0)
  values = [share(rng.permutation(num_classes)) for _ in range(PERMUTATIONS)]
  return float(np.mean(values)), *map(float, np.percentile(values, (2.5, 97.5)))


def share_inside(
  weights: Sequence[Shaped[np.ndarray, "m m"]], sets: Sequence[Bool[np.ndarray, "m m"]]
) -> tuple[float, tuple[float, float, float]]:
  """Returns the share of the weights of all runs inside their sets, and its chance (`permute`)."""
  total = sum(w.sum() for w in weights)

  def share(order):
    return sum(w[s[np.ix_(order, order)]].sum() for w, s in zip(weights, sets, strict=True)) / total

  return share(np.arange(len(sets[0]))), permute(share, len(sets[0]))


def draw(
  frequency: Integer[np.ndarray, "m m"],
  confusions: Integer[np.ndarray, "m m"],
  names: Sequence[str],
) -> Figure:
  """Draws how many runs' CSMs have a pair, and the errors, with the groups of `VISEMES` framed."""
  letters = "".join(VISEMES)
  order = [list(names).index(letter) for letter in letters]
  figure = Figure(figsize=(9, 4.4), layout="constrained")
  panels = (
    (frequency, "runs whose CSM has the pair"),
    (confusions, "errors of the one-pass model (rows: labels)"),
  )
  for axis, (matrix, title) in zip(figure.subplots(1, 2), panels, strict=True):
    image = axis.imshow(matrix[np.ix_(order, order)], cmap="cividis", interpolation="nearest")
    axis.set_xticks(range(len(letters)), letters, fontsize=7)
    axis.set_yticks(range(len(letters)), letters, fontsize=7)
    axis.set_title(title, fontsize=9)
    figure.colorbar(image, shrink=0.7, ticks=MaxNLocator(integer=True))
    start = 0
    for group in VISEMES:
      corner, edge = (start - 0.5,) * 2, len(group)
      axis.add_patch(Rectangle(corner, edge, edge, fill=False, edgecolor="C1", linewidth=1.5))
      start += edge
  return figure


@one_line_errors()
def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of finished runs")
  matrices, confusions = [], []
  for run in map(Workdir, parser.parse_args().runs):
    path = run.analysis("validation")
    if not path.exists():
      raise UserError(f"{path}: missing; evaluate the run with eval.pairs > 0")
    one_pass = scores_lib.read(run.one_pass_scores("validation"))
    names = list(one_pass.class_names)
    matrices.append(read_npz(path)["csm"].astype(bool) & ~np.eye(len(names), dtype=bool))
    confusions.append(count_confusions(one_pass))
  groups = [group_members(names)] * len(matrices)
  print(f"{len(matrices)} runs, {np.mean(matrices) * len(names):.1f} confusing classes per class")
  print("| share, in percent | | by chance |\n|---|---|---|")
  for title, weights, sets in (
    ("pairs of the CSM inside a group", matrices, groups),
    ("errors of the one-pass model inside a group", confusions, groups),
    ("errors of the one-pass model inside the CSM's sets", confusions, matrices),
  ):
    found, chance = share_inside(weights, sets)
    mean, low, high = (100 * value for value in chance)
    print(f"| {title} | {100 * found:.1f} | {mean:.1f} ({low:.1f} to {high:.1f}) |")
  figure = draw(np.sum(matrices, axis=0), np.sum(confusions, axis=0), names)
  path = study.DOCS / "letters_csm.svg"
  path.write_text(figures.render_svg(figure, path.name, transparent=False), encoding="utf-8")


if __name__ == "__main__":
  main()
