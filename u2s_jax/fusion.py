"""Merging two streams of two runs, as RGB and optical flow in the paper's Tables V and VI.

  python -m u2s_jax.fusion --scores RGB/scores/validation.npz FLOW/scores/validation.npz

`--weights 1 1.5` weighs them, `--out` keeps the fused scores.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from u2s_jax import files, metrics
from u2s_jax.errors import UserError, check_repeated, one_line
from u2s_jax.evaluation import results
from u2s_jax.evaluation import scores as scores_lib
from u2s_jax.evaluation.scores import Scores


def main(arguments: Sequence[str] | None = None) -> None:
  """Reads the command line, prints the accuracies of every stream and of their fusion."""
  parser = argparse.ArgumentParser(
    prog="python -m u2s_jax.fusion",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--scores", type=str, nargs="+", required=True, metavar="NPZ")
  parser.add_argument("--weights", type=float, nargs="+", help="one for each file; all alike")
  parser.add_argument("--out", type=str, metavar="NPZ", help="file for the fused scores")
  given = parser.parse_args(arguments)
  try:
    check_repeated(sys.argv if arguments is None else ["", *arguments])
    paths = [files.named(path) for path in given.scores]
    out = files.local_path(given.out) if given.out else None
    streams, fused = fuse_files(paths, given.weights, out)
  except (OSError, UserError) as error:
    line = one_line(error)
    if line is None:
      raise
    sys.exit(f"error: {line}")
  if out:
    print(f"written: {out}")
  if fused.num_unknown:
    print("there are clips without a label: no accuracies")
    return
  print_accuracies(streams, fused, given.weights or [1.0] * len(streams))


def fuse_files(
  paths: Sequence[files.Path], weights: Sequence[float] | None, out: pathlib.Path | None
) -> tuple[dict[str, Scores], Scores]:
  """Reads scores of several runs and fuses them.

  Args:
    paths: of the files.
    weights: one number >= 0 for each; None weighs all alike.
    out: file for the fused scores, not there yet; None keeps none.

  Returns:
    The scores by path, and the fused ones.

  Raises:
    UserError: files or weights that do not go together.
    OSError: a file that cannot be read or written.
  """
  if out and out.exists():
    raise UserError(f"{out}: it is there already; name another --out")
  if weights and len(weights) != len(paths):
    raise UserError(f"--weights: {len(weights)} for {len(paths)} files of --scores")
  streams = {str(path): scores_lib.read(path) for path in paths}
  if len(streams) < len(paths):
    raise UserError("--scores: a file is there twice")
  fused = scores_lib.join(streams, weights)
  if out:
    scores_lib.write(out, fused)
  return streams, fused


def print_accuracies(streams: dict[str, Scores], fused: Scores, weights: Sequence[float]) -> None:
  """Prints the accuracies of every stream and of their fusion.

  Args:
    streams: scores by path.
    fused: of all of them.
    weights: one for each stream.
  """
  all_names = {name for scores in streams.values() for name in scores.predictions}
  left_out = sorted(all_names - fused.predictions.keys())
  if left_out:
    print(f"not fused, because not every file has them: {', '.join(left_out)}")

  def row(name, weight, scores):
    accuracies = metrics.summarize(scores.merged, scores.labels)
    return [name, weight, *results.accuracy_cells(accuracies)]

  rows = [
    row(stream, f"{weight:g}", scores)
    for (stream, scores), weight in zip(streams.items(), weights, strict=True)
  ]
  rows.append(row("fused", "", fused))
  header = ["All predictions merged", "Weight", "Top-1 (%)", "Top-5 (%)", "Mean class (%)"]
  print(results.aligned(header, rows, [str.ljust] + [str.rjust] * 4))
  print(f"\nFused, {len(fused.ids)} clips:\n")
  print(results.fusions_table(None, scores_lib.fusions(fused)))


if __name__ == "__main__":
  main()
