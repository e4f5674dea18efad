"""Merging predictions by their scores, and Table I of the paper, in NumPy on the host.

Two streams of two runs, as RGB and optical flow in the paper's Tables V and VI:

  python -m u2s_jax.fusion --scores RGB/scores/validation.npz FLOW/scores/validation.npz

`--weights 1 1.5` weighs them, `--out` keeps the fused scores.
"""

import argparse
import pathlib
import sys
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


def join(
  streams: Mapping[str, Mapping[str, np.ndarray]], weights: Sequence[float | int] | None = None
) -> dict[str, np.ndarray]:
  """Fuses the scores of several runs on the same videos, prediction by prediction.

  Args:
    streams: Of each run, by a name for errors, the entries of a scores file: `id` (n,), `label`
      (n,), `class_names` (m,) and scores (n, m) of predictions. Their order may differ.
    weights: As of `fuse`, one for each run.

  Returns:
    Those entries of the first run, in its order, with the weighted mean of the runs' scores for
    every prediction that all of them have.

  Raises:
    ValueError: An id that occurs twice or not in every run, a label or a class that differs, no
      common prediction, or unfit weights.
  """
  (first, reference), *others = streams.items()
  known = ("id", "label", "class_names")
  shared = [name for name in reference if name not in known]
  aligned_streams = {}
  for stream, scores in streams.items():
    ids, counts = np.unique(scores["id"], return_counts=True)
    if (counts > 1).any():
      raise ValueError(f"{stream}: the id {ids[counts > 1][0]} occurs twice")
    for one, other in ((first, stream), (stream, first)):
      missing = np.setdiff1d(streams[one]["id"], streams[other]["id"])
      if missing.size:
        raise ValueError(
          f"{other}: no scores of {missing[0]}, which {one} has ({missing.size} such ids)"
        )
    if list(scores["class_names"]) != list(reference["class_names"]):
      raise ValueError(f"{stream}: its classes are not those of {first}")
    order = np.argsort(scores["id"])[np.argsort(np.argsort(reference["id"]))]
    different = np.flatnonzero(scores["label"][order] != reference["label"])
    if different.size:
      i = different[0]
      raise ValueError(
        f"{stream}: {reference['id'][i]} has the label {scores['label'][order][i]}, but"
        f" {reference['label'][i]} in {first}"
      )
    aligned_streams[stream] = {name: scores[name][order] for name in shared if name in scores}
  shared = [name for name in shared if all(name in scores for scores in aligned_streams.values())]
  if not shared:
    raise ValueError(f"{', '.join(streams)}: they have no prediction in common")
  fused = {
    name: fuse({key: scores[name] for key, scores in aligned_streams.items()}, [*streams], weights)
    for name in shared
  }
  return {**{key: reference[key] for key in known}, **fused}


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


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads the command line, prints the accuracies of every stream and of their fusion."""
  from u2s_jax import evaluate  # it imports this module

  parser = argparse.ArgumentParser(
    prog="python -m u2s_jax.fusion",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--scores", type=pathlib.Path, nargs="+", required=True, metavar="NPZ")
  parser.add_argument("--weights", type=float, nargs="+", help="one for each file; all alike")
  parser.add_argument("--out", type=pathlib.Path, metavar="NPZ", help="file for the fused scores")
  given = parser.parse_args(arguments)
  try:
    if given.out and given.out.exists():
      raise ValueError(f"{given.out}: it is there already; name another --out")
    if given.weights and len(given.weights) != len(given.scores):
      raise ValueError(f"--weights: {len(given.weights)} for {len(given.scores)} files of --scores")
    streams = {str(path): evaluate.read_scores(path) for path in given.scores}
    if len(streams) < len(given.scores):
      raise ValueError("--scores: a file is there twice")
    fused = join(streams, given.weights)
    if given.out:
      evaluate.write_scores(given.out, fused)
      print(f"written: {given.out}")
  except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
  if fused["label"].min() < 0:
    print("there are clips without a label: no accuracies")
    return
  own = {name for scores in streams.values() for name in evaluate.predictions(scores)}
  left_out = sorted(own - evaluate.predictions(fused).keys())
  if left_out:
    print(f"not fused, because not every file has them: {', '.join(left_out)}")
  weights = given.weights or [1.0] * len(streams)
  rows = [
    [stream, f"{weight:g}"] + _figures(metrics.summarize(evaluate.merged(scores), scores["label"]))
    for (stream, scores), weight in zip(streams.items(), weights, strict=True)
  ]
  rows.append(["fused", ""] + _figures(metrics.summarize(evaluate.merged(fused), fused["label"])))
  header = ["All predictions merged", "Weight", "Top-1 (%)", "Top-5 (%)", "Mean class (%)"]
  print(aligned(header, rows, [str.ljust] + [str.rjust] * 4))
  print(f"\nFused, {len(fused['id'])} clips:\n")
  print(table(None, fusions(evaluate.predictions(fused), fused["label"])))


if __name__ == "__main__":
  main()
