"""Compares the CSM of the study `letters` with letters whose names share a vowel.

  python -m benchmarks.evidence.visemes /runs/letters/u2s_?

Reads finished runs with `eval.pairs` > 0, prints tables and draws docs/evidence/letters_csm.svg.
Chance is the mean over random permutations of the letters, with the central 95 %. A permutation
relabels the classes of the CSM and keeps its structure.
"""

import pathlib
import string
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Integer, Shaped
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from scipy import stats

from benchmarks.evidence import study
from benchmarks.timing import make_parser
from u2s_jax.evaluation import results
from u2s_jax.evaluation import scores as scores_lib
from u2s_jax.report import figures
from u2s_jax.run.workdir import Workdir, read_npz
from u2s_jax.runtime.errors import UserError, one_line_errors
from u2s_jax.runtime.files import atomic_open

# By the vowel of their British names ("zed"), which shapes the lips for longest: /iː/, /eɪ/, /e/,
# /uː/, /aɪ/, /əʊ/, /ɑː/.
VOWEL_GROUPS = ("BCDEGPTV", "AHJK", "FLMNSXZ", "QUW", "IY", "O", "R")
LETTERS = string.ascii_uppercase
PERMUTATIONS = 2000
NUM_PAIRS = 12  # most similar pairs in the second table


def find_group_pairs() -> Bool[np.ndarray, "m m"]:
  """Returns which pairs of different letters are in the same group of `VOWEL_GROUPS`."""
  group = np.array([next(i for i, g in enumerate(VOWEL_GROUPS) if c in g) for c in LETTERS])
  return (group[:, None] == group) & ~np.eye(len(LETTERS), dtype=bool)


def count_confusions(scores: scores_lib.Scores) -> Integer[np.ndarray, "m m"]:
  """Returns `results.confusion_matrix` without the correct predictions."""
  counts = results.confusion_matrix(scores)
  np.fill_diagonal(counts, 0)
  return counts


def estimate_chance(
  share: Callable[[Integer[np.ndarray, " m"]], float], num_classes: int
) -> tuple[float, float, float]:
  """Returns mean, 2.5th and 97.5th percentile of `share` over permutations of the classes."""
  rng = np.random.default_rng(0)
  values = [share(rng.permutation(num_classes)) for _ in range(PERMUTATIONS)]
  return float(np.mean(values)), *map(float, np.percentile(values, (2.5, 97.5)))


def compute_share_inside(
  weights: Sequence[Shaped[np.ndarray, "m m"]], sets: Sequence[Bool[np.ndarray, "m m"]]
) -> tuple[float, tuple[float, float, float]]:
  """Returns the fraction of all runs' weights inside their sets, and `estimate_chance` of it."""
  total = sum(w.sum() for w in weights)

  def share(order):
    return sum(w[s[np.ix_(order, order)]].sum() for w, s in zip(weights, sets, strict=True)) / total

  return share(np.arange(len(sets[0]))), estimate_chance(share, len(sets[0]))


def draw_matrices(
  frequency: Integer[np.ndarray, "m m"], confusions: Integer[np.ndarray, "m m"]
) -> Figure:
  """Draws how many runs' CSMs have a pair, and the errors, with `VOWEL_GROUPS` framed."""
  letters = "".join(VOWEL_GROUPS)
  order = [LETTERS.index(letter) for letter in letters]
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
    for group in VOWEL_GROUPS:
      corner, edge = (start - 0.5,) * 2, len(group)
      axis.add_patch(Rectangle(corner, edge, edge, fill=False, edgecolor="C1", linewidth=1.5))
      start += edge
  return figure


def read_run(
  run: Workdir,
) -> tuple[Bool[np.ndarray, "m m"], Integer[np.ndarray, "m m"], Integer[np.ndarray, " pairs"]]:
  """Returns a run's CSM without its diagonal, its `count_confusions` and the ranks of all pairs.

  The ranks are those of the similarities above the diagonal; the most similar pair has rank 1.

  Raises:
    UserError: if the run has no CSM of the letters.
  """
  path = run.analysis("validation")
  arrays = read_npz(path) if path.exists() else {}
  if "csm" not in arrays:
    raise UserError(f"{path}: has no CSM; choose a U2S run, evaluated with eval.pairs > 0")
  one_pass = scores_lib.read(run.one_pass_scores("validation"))
  if list(one_pass.class_names) != list(LETTERS):
    raise UserError(f"{path}: the classes {', '.join(one_pass.class_names)} are not A to Z")
  similarity = arrays["similarity"][np.triu_indices(len(LETTERS), 1)]
  matrix = arrays["csm"].astype(bool) & ~np.eye(len(LETTERS), dtype=bool)
  return matrix, count_confusions(one_pass), stats.rankdata(-similarity, "min").astype(int)


@one_line_errors()
def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("runs", type=pathlib.Path, nargs="+", help="workdirs of finished runs")
  read = [read_run(Workdir(path)) for path in parser.parse_args().runs]
  matrices, confusions, ranks = zip(*read, strict=True)
  print(f"{len(read)} runs, {np.mean(matrices) * len(LETTERS):.1f} confusing classes per class\n")
  print("| share, in percent | | by chance |\n|---|---|---|")
  groups = [find_group_pairs()] * len(read)
  for title, weights, sets in (
    ("pairs of the CSM inside a group", matrices, groups),
    ("errors of the one-pass model inside a group", confusions, groups),
    ("errors of the one-pass model inside the CSM's sets", confusions, matrices),
  ):
    found, chance = compute_share_inside(weights, sets)
    mean, low, high = (100 * value for value in chance)
    print(f"| {title} | {100 * found:.1f} | {mean:.1f} ({low:.1f} to {high:.1f}) |")
  print(f"\n| pair | rank of {len(ranks[0])} | runs with it in the CSM |\n|---|---|---|")
  for k in np.argsort(np.mean(ranks, axis=0))[:NUM_PAIRS]:
    i, j = (indices[k] for indices in np.triu_indices(len(LETTERS), 1))
    lowest, highest = min(r[k] for r in ranks), max(r[k] for r in ranks)
    in_csm = sum(int(matrix[i, j]) for matrix in matrices)
    print(f"| {LETTERS[i]} / {LETTERS[j]} | {lowest} to {highest} | {in_csm} |")
  figure = draw_matrices(np.sum(matrices, axis=0), np.sum(confusions, axis=0))
  with atomic_open(study.DOCS / "letters_csm.svg") as file:
    file.write(figures.render_svg(figure, "letters_csm.svg", transparent=False))


if __name__ == "__main__":
  main()
