"""Fuses the scores of several runs, such as RGB and optical flow in the paper's Tables V and VI.

  python -m u2s_jax.fusion --scores RGB/scores/validation.npz FLOW/scores/validation.npz

`--weights 1 1.5` weighs the runs, `--out` writes the fused scores.
"""

import argparse
import sys
from collections.abc import Sequence

from u2s_jax.evaluation import metrics, results
from u2s_jax.evaluation import scores as scores_lib
from u2s_jax.evaluation.scores import Scores
from u2s_jax.runtime import files
from u2s_jax.runtime.errors import UserError, check_repeated, one_line_errors


@one_line_errors()
def main(arguments: Sequence[str] | None = None) -> None:
  """Parses the command line and prints the accuracies of every stream and of their fusion."""
  parser = argparse.ArgumentParser(
    prog="python -m u2s_jax.fusion",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--scores", type=str, nargs="+", required=True, metavar="NPZ")
  parser.add_argument("--weights", type=float, nargs="+", help="one for each file; default: equal")
  parser.add_argument("--out", type=str, metavar="NPZ", help="file for the fused scores")
  args = parser.parse_args(arguments)
  check_repeated(sys.argv if arguments is None else ["", *arguments])
  paths = [files.parse_path(path) for path in args.scores]
  out = files.parse_local_path(args.out) if args.out else None
  if out and out.exists():
    raise UserError(f"{out}: already exists; choose another file")
  if args.weights and len(args.weights) != len(paths):
    raise UserError(
      f"weights: {len(args.weights)} for {len(paths)} files of scores; give one for each file"
    )
  streams = {str(path): scores_lib.read(path) for path in paths}
  if len(streams) < len(paths):
    raise UserError("scores: a file is given twice; give it once")
  fused = scores_lib.fuse_runs(streams, args.weights)
  if out:
    scores_lib.write(out, fused)
    print(f"written: {out}")
  if fused.num_unknown:
    print("some clips have no label: no accuracies")
    return
  print_accuracies(streams, fused, args.weights or [1.0] * len(streams))


def print_accuracies(streams: dict[str, Scores], fused: Scores, weights: Sequence[float]) -> None:
  """Prints the accuracies of every stream and of their fusion."""
  all_names = {name for scores in streams.values() for name in scores.predictions}
  omitted = sorted(all_names - fused.predictions.keys())
  if omitted:
    print(f"not fused, because not every file has them: {', '.join(omitted)}")

  def make_row(name, weight, scores):
    accuracies = metrics.summarize(scores.merged, scores.labels)
    return [name, weight, *results.format_accuracies(accuracies)]

  rows = [
    make_row(stream, f"{weight:g}", scores)
    for (stream, scores), weight in zip(streams.items(), weights, strict=True)
  ]
  rows.append(make_row("fused", "", fused))
  header = ["All predictions merged", "Weight", "Top-1 (%)", "Top-5 (%)", "Mean class (%)"]
  print(results.format_table(header, rows, [str.ljust] + [str.rjust] * 4))
  print(f"\nFused, {len(fused.ids)} clips:\n")
  print(results.format_fusions(None, scores_lib.fusions(fused)))
