"""The command of the report: `python -m u2s_jax.report --workdir=/runs/mine`."""

from collections.abc import Sequence

from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import command_line, files
from u2s_jax.runtime.errors import one_line_errors

MODES: command_line.Modes = {
  "report": {
    "--compare": dict(
      action="append", default=[], help="workdir of a run to show next to this one; repeatable"
    ),
    "--fold": dict(
      action="append",
      default=[],
      help="workdir of another fold of the run's data (data.prepare --fold), whose mistakes to list"
      " with those of the run; repeatable",
    ),
    "--control": dict(help="workdir of the run's control: the same config with control=True"),
  }
}


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
  """Parses the command line and writes the report of a finished run."""
  args = command_line.parse("python -m u2s_jax.report", __doc__, argv, MODES)
  workdir = Workdir.open(args.workdir)
  from u2s_jax.report import page  # imports Matplotlib, which takes seconds

  control = files.parse_path(args.control) if args.control else None
  others = [files.parse_path(other) for other in args.compare]
  folds = [files.parse_path(fold) for fold in args.fold]
  print(f"written: {page.write_report(workdir.root, others, control, folds)}")
