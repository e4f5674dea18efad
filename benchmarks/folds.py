"""Folds of a folder of classes, as CSV files that `data.prepare --source=` takes.

  python -m benchmarks.folds --source=/data/fights --folds=5 --out=/data/fight_folds

`<out>/fold_<k>.csv` holds a k-th of each class's files out. A fold's files are neighbours by name,
because neighbours are often of one scene. `--ratio=10` makes the training sets imbalanced: from one
class to the next, in an order of the fold's own, they thin out to a tenth.
"""

import argparse
import csv
import pathlib
import re
import sys

import numpy as np

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


def thinned(
  found: list[tuple[str, str, str]], ratio: float, fold: int
) -> list[tuple[str, str, str]]:
  """Returns rows with a long tail of training files, and as many of every class held out.

  The classes, in an order that the fold decides, keep from all training files (as many as the
  class with the fewest has) down to 1/ratio of them, in geometric steps. Of equally large classes
  top-1 accuracy is mean class accuracy.

  Args:
    found: of `rows`.
    ratio: at least 1.
    fold: seed of the order of the classes, and of which files are kept.
  """
  rng = np.random.default_rng(fold)
  names = sorted({label for _, label, _ in found})
  files = {(name, split): [] for name in names for split in ("train", "val")}
  for row in found:
    files[row[1:]].append(row)
  most, held_out = (min(len(files[name, split]) for name in names) for split in ("train", "val"))
  counts = np.rint(most * ratio ** -np.linspace(0, 1, len(names))).astype(int)
  kept = set()
  for name, count in zip(rng.permutation(names), counts, strict=True):
    for split, size in (("train", max(1, count)), ("val", held_out)):
      of_class = files[name, split]
      kept |= {of_class[k] for k in rng.permutation(len(of_class))[:size]}
  return [row for row in found if row in kept]


def main() -> None:
  """Writes the folds that the command line asks for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--source", type=pathlib.Path, required=True)
  parser.add_argument("--classes", default="", help="regular expression; default: all classes")
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument("--ratio", type=float, default=1.0, help="largest class over smallest")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  known = parser.parse_args()
  try:
    if known.ratio < 1:
      raise UserError(f"--ratio {known.ratio:g}: is not at least 1")
    known.out.mkdir(parents=True, exist_ok=True)
    for fold in range(known.folds):
      with whole_file(known.out / f"fold_{fold}.csv") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        found = rows(known.source, known.classes, known.folds, fold)
        writer.writerows(thinned(found, known.ratio, fold) if known.ratio > 1 else found)
  except UserError as error:
    sys.exit(str(error))


if __name__ == "__main__":
  main()
