"""Paths in the workdir of a run, and functions that read and write its files."""

import csv
import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from u2s_jax.runtime.errors import UserError, escape_cell
from u2s_jax.runtime.files import Path, atomic_open, parse_path


@dataclasses.dataclass(frozen=True)
class Workdir:
  """The working directory of a run, or of one of its additional evaluations.

  Attributes:
    root: its path, see `files.parse_path`.
  """

  root: Path

  @classmethod
  def open(cls, path: str | os.PathLike[str]) -> "Workdir":
    """Returns the existing workdir of a path given by the user, see `files.parse_path`.

    Raises:
      UserError: if the directory does not exist.
    """
    workdir = cls(parse_path(path))
    if not workdir.root.is_dir():
      raise UserError(f"{workdir.root}: no such directory; train first")
    return workdir

  @classmethod
  def from_checkpoint_path(cls, path: Path) -> "Workdir":
    """Returns the workdir of a path that is either the workdir or its `checkpoints/<stage>`."""
    return cls(path.parent.parent if path.parent.name == "checkpoints" else path)

  @property
  def checkpoints(self) -> Path:
    """Directory of the Orbax checkpoints, `<stage>/<step>`."""
    return self.root / "checkpoints"

  @property
  def config(self) -> Path:
    """The config that the run started with."""
    return self.root / "config.json"

  @property
  def lock(self) -> Path:
    """Lock file, held during training on a disk."""
    return self.root / ".lock"

  @property
  def lease(self) -> Path:
    """Directory of the lease, held during training in a bucket."""
    return self.root / ".lease"

  @property
  def start(self) -> Path:
    """Copy of the pretrained weights, for networks that are initialized in later stages."""
    return self.root / "start.safetensors"

  @property
  def summary(self) -> Path:
    """The accuracies; written last, so its existence means that the run is finished."""
    return self.root / "summary.json"

  @property
  def per_class(self) -> Path:
    """Table of the accuracy of each class."""
    return self.root / "per_class.csv"

  @property
  def report(self) -> Path:
    """Directory of the report: figures and page."""
    return self.root / "report"

  @property
  def export(self) -> Path:
    """Directory of the exported networks."""
    return self.root / "export"

  @property
  def compiled(self) -> Path:
    """Directory of the compilation cache."""
    return self.root / "compiled"

  @property
  def profile(self) -> Path:
    """Directory of the profile of a few training steps."""
    return self.root / "profile"

  @property
  def prepared(self) -> Path:
    """Directory of the prepared data set, if the config names none."""
    return self.root / "prepared"

  @property
  def videos(self) -> Path:
    """Directory of the rendered videos, if the config names none."""
    return self.root / "tiny_something"

  def scores(self, split: str) -> Path:
    """Scores of a split by the full model."""
    return self.root / "scores" / f"{split}.npz"

  def one_pass_scores(self, split: str) -> Path:
    """Scores of a split by the one-pass model, after stage 1."""
    return self.root / "scores" / f"{split}_one_pass.npz"

  def analysis(self, split: str) -> Path:
    """Features and masks of a split, for the report."""
    return self.root / "analysis" / f"{split}.npz"

  def evaluation(self, name: str) -> "Workdir":
    """Directory of an additional evaluation, with the same layout."""
    return Workdir(self.root / "eval" / name)


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON."""
  with atomic_open(path) as file:
    file.write(json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes a table whose columns are the keys of its first row."""
  with atomic_open(path) as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows({key: escape_cell(value) for key, value in row.items()} for row in rows)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes compressed arrays by name."""
  with atomic_open(path, "wb") as file:
    np.savez_compressed(file, **arrays)


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """Reads arrays by name.

  Raises:
    UserError: if the file is damaged or not an NPZ file.
    OSError: if the file cannot be read.
  """
  try:
    with np.load(io.BytesIO(path.read_bytes())) as file:
      return dict(file)
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f"{path}: damaged, or not an .npz file; an evaluation of the run regenerates its files"
    ) from error
