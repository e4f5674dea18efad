"""Merging predictions by their scores, and Table I of the paper, in NumPy on the host."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float, Integer

from u2s_jax import metrics

# Table I's rows, in its order. Results are named by the parts joined with '+'.
FUSIONS = (
  ("universal",),
  ("bridge",),
  ("specific",),
  ("universal", "bridge"),
  ("bridge", "specific"),
  ("universal", "specific"),
  ("universal", "bridge", "specific"),
)


def fuse(
  scores: Mapping[str, ArrayLike],
  names: Sequence[str],
  weights: Sequence[float | int] | None = None,
) -> Float[np.ndarray, "n m"]:
  """Weighted mean of the named predictions; the paper's merged results weigh them equally.

  Args:
    scores: Scores `(N, M)` by name, softmax scores as a rule; it may hold other names too.
    names: Predictions to fuse, at least one.
    weights: One number >= 0 for each name, of any sum > 0; None weighs all alike.

  Returns:
    `(N, M)` float64.

  Raises:
    ValueError: No name, a name that `scores` lacks, shapes that differ, or unfit weights.
  """
  if not names:
    raise ValueError("no prediction named to fuse")
  missing = [name for name in names if name not in scores]
  if missing:
    raise ValueError(f"no scores of {', '.join(missing)}; there are: {', '.join(scores)}")
  weights = np.ones(len(names)) if weights is None else np.asarray(weights, np.float64)
  if len(weights) != len(names) or not (np.all(weights >= 0) and 0 < weights.sum() < np.inf):
    raise ValueError(
      f"weights must be {len(names)} numbers >= 0 with a sum > 0, one for each of "
      f"{', '.join(names)}, not {weights.tolist()}"
    )
  arrays = [np.asarray(scores[name], np.float64) for name in names]
  if len({array.shape for array in arrays}) > 1:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(names, arrays, strict=True))
    raise ValueError(f"scores to fuse differ in shape: {shapes}")
  return sum(w * array for w, array in zip(weights, arrays, strict=True)) / weights.sum()


def fusions(
  scores: Mapping[str, ArrayLike], labels: Integer[ArrayLike, " n"]
) -> dict[str, dict[str, float]]:
  """Accuracies of every fusion of Table I whose predictions are all there.

  Args:
    scores: Scores `(N, M)` by prediction; other names, as in a scores file, are left alone.
    labels: `(N,)` in [0, M).

  Returns:
    `metrics.summarize` (percent) by fusion, such as `"universal+specific"`, in Table I's order.

  Raises:
    ValueError: As `fuse` and `metrics.summarize`.
  """
  return {
    "+".join(names): metrics.summarize(fuse(scores, names), labels)
    for names in FUSIONS
    if all(name in scores for name in names)
  }


def table(one_pass: Mapping[str, float] | None, fused: Mapping[str, Mapping[str, float]]) -> str:
  """Table I as text for a terminal: a mark for each prediction in a fusion, and its accuracies.

  Args:
    one_pass: Accuracies of the one-pass model as of `metrics.summarize`; None leaves its row out.
    fused: What `fusions` returned. Rows follow Table I; keys that it does not have are left out.

  Returns:
    Lines of equal width, ASCII, without a newline at the end.
  """
  predictions = FUSIONS[-1]
  header = [name.capitalize() for name in predictions]
  header += ["Top-1 (%)", "Top-5 (%)", "Mean class (%)"]
  label = "One-pass".ljust(len(header[0]))
  rows = [] if one_pass is None else [[label, "", ""] + _figures(one_pass)]
  for names in FUSIONS:
    if (key := "+".join(names)) in fused:
      rows.append(["x" if name in names else "" for name in predictions] + _figures(fused[key]))
  return aligned(header, rows, [str.center] * len(predictions) + [str.rjust] * 3)


def aligned(
  header: Sequence[str],
  rows: Sequence[Sequence[str]],
  align: Sequence[Callable[[str, int], str]],
) -> str:
  """A table as text for a terminal.

  Args:
    header: Names of the columns.
    rows: A cell for each column.
    align: `str.ljust`, `str.center` or `str.rjust` for each column.

  Returns:
    Lines of equal width: header, rule, rows; without a newline at the end.
  """
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  rule = ["-" * width for width in widths]
  return "\n".join(
    "  ".join(put(cell, width) for put, cell, width in zip(align, row, widths, strict=True))
    for row in [header, rule, *rows]
  )


def _figures(summary):
  return [f"{summary[name]:.2f}" for name in ("top1", "top5", "mean_class")]
