"""Folds of a folder of classes, as CSV files that `data.prepare --source=` takes.

  python -m benchmarks.folds --source=/data/fights --folds=5 --out=/data/fight_folds

`<out>/fold_<k>.csv` holds a k-th of each class's files out. A fold's files are neighbours by name,
because neighbours are often of one scene.
"""

import argparse
import csv
import pathlib
import re
import sys

from data.sources.folders import find_files
from u2s_jax.errors import UserError
from u2s_jax.files import whole_file


def fold_of(index: int, count: int, folds: int) -> int:
  """Returns the fold that holds out the file of this index among a class's count."""
  return index * folds // count


def rows(source: pathlib.Path, classes: str, folds: int, fold: int) -> list[tuple[str, str, str]]:
  """Returns path, label and split of each file below the class folders.

  Args:
    source: holds a folder for each class.
    classes: regular expression that the names of the classes taken contain.
    folds: number of folds, at least 2.
    fold: that is held out.

  Raises:
    UserError: no such class, or a class of fewer files than folds.
  """
  found = []
  names = sorted(path.name for path in source.iterdir() if path.is_dir())
  for name in filter(re.compile(classes).search, names):
    files = find_files(str(source / name))
    if len(files) < folds:
      raise UserError(f"{source / name}: {len(files)} files cannot make {folds} folds")
    for k, file in enumerate(files):
      held_out = fold_of(k, len(files), folds) == fold
      found.append((str(pathlib.Path(file).absolute()), name, "val" if held_out else "train"))
  if not found:
    raise UserError(f"{source}: no folder of a class whose name contains {classes!r}")
  return found


def main() -> None:
  """Writes the folds that the command line asks for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--source", type=pathlib.Path, required=True)
  parser.add_argument("--classes", default="", help="regular expression; default: all classes")
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  known = parser.parse_args()
  known.out.mkdir(parents=True, exist_ok=True)
  try:
    for fold in range(known.folds):
      with whole_file(known.out / f"fold_{fold}.csv") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows(rows(known.source, known.classes, known.folds, fold))
  except UserError as error:
    sys.exit(str(error))


if __name__ == "__main__":
  main()
