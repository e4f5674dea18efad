"""Splits a folder of classes into folds: CSV files for `data.prepare --source=`.

  python -m benchmarks.evidence.folds --source=/data/fights --folds=5 --out=/data/fight_folds

`<out>/fold_<k>.csv` holds out the k-th part of each class's files. The files of a fold are
neighbours by name, because neighbours often show the same scene. `--ratio=10` makes the training
sets imbalanced: class sizes fall geometrically to a tenth, in a random order of the classes.
"""

import csv
import pathlib
import re

import numpy as np

from benchmarks.timing import make_parser
from u2s_jax.runtime.errors import UserError, one_line_errors
from u2s_jax.runtime.files import atomic_open
from u2s_jax.video.folders import find_files


def list_rows(
  source: pathlib.Path, classes: str, folds: int, fold: int
) -> list[tuple[str, str, str]]:
  """Lists path, label and split of each file in the class folders whose names match `classes`.

  Raises:
    UserError: no such class, or a class with fewer files than folds.
  """
  found = []
  names = sorted(path.name for path in source.iterdir() if path.is_dir())
  for name in filter(re.compile(classes).search, names):
    files = find_files(str(source / name))
    if len(files) < folds:
      raise UserError(f"{source / name}: {len(files)} files are too few for {folds} folds")
    for k, file in enumerate(files):
      held_out = k * folds // len(files) == fold
      found.append((str(pathlib.Path(file).absolute()), name, "val" if held_out else "train"))
  if not found:
    raise UserError(f"{source}: no class folder matches {classes!r}")
  return found


def make_long_tail(
  found: list[tuple[str, str, str]], ratio: float, fold: int
) -> list[tuple[str, str, str]]:
  """Returns rows with a long tail of training files, and equally many held-out files per class.

  The number of training files per class falls from that of the smallest class to 1/ratio of it, in
  geometric steps, in a random order of the classes. With equally many held-out files per class,
  top-1 accuracy is mean class accuracy. `fold` is the random seed.
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
      class_rows = files[name, split]
      kept |= {class_rows[k] for k in rng.permutation(len(class_rows))[:size]}
  return [row for row in found if row in kept]


@one_line_errors()
def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("--source", type=pathlib.Path, required=True)
  parser.add_argument("--classes", default="", help="regular expression; default: all classes")
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument("--ratio", type=float, default=1.0, help="largest class over smallest")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  args = parser.parse_args()
  if args.ratio < 1:
    raise UserError(f"--ratio: {args.ratio:g} must be >= 1")
  args.out.mkdir(parents=True, exist_ok=True)
  for fold in range(args.folds):
    with atomic_open(args.out / f"fold_{fold}.csv") as file:
      writer = csv.writer(file)
      writer.writerow(("path", "label", "split"))
      found = list_rows(args.source, args.classes, args.folds, fold)
      writer.writerows(make_long_tail(found, args.ratio, fold) if args.ratio > 1 else found)


if __name__ == "__main__":
  main()
