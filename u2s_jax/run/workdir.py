"""Paths in the workdir of a run, and functions that read and write its files."""

import contextlib
import csv
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from u2s_jax.runtime.errors import UserError, escape_cell
from u2s_jax.runtime.files import Path, atomic_open, parse_path


class Workdir:
  """The working directory of a run, or of one of its additional evaluations.

  Attributes:
    root: its path, see `files.parse_path`.
    checkpoints: directory of the Orbax checkpoints, `<stage>/<step>`.
    config: the config that the run started with.
    lock: lock file, held during training on a disk.
    lease: directory of the lease, held during training in a bucket.
    start: copy of the pretrained weights, for networks that are initialized in later stages.
    summary: the accuracies; written last, so its existence means that the run is finished.
    metrics: all scalars of the training as JSON lines, one a step.
    per_class: table of the accuracy of each class.
    report: directory of the report: figures and page.
    export: directory of the exported networks.
    compiled: directory of the compilation cache.
    profile: directory of the profile of a few training steps.
    prepared: directory of the prepared data set, if the config names none.
    videos: directory of the rendered videos, if the config names none.
  """

  def __init__(self, root: Path):
    self.root = root
    self.checkpoints: Path = root / "checkpoints"
    self.config: Path = root / "config.json"
    self.lock: Path = root / ".lock"
    self.lease: Path = root / ".lease"
    self.start: Path = root / "start.safetensors"
    self.summary: Path = root / "summary.json"
    self.metrics: Path = root / "metrics.jsonl"
    self.per_class: Path = root / "per_class.csv"
    self.report: Path = root / "report"
    self.export: Path = root / "export"
    self.compiled: Path = root / "compiled"
    self.profile: Path = root / "profile"
    self.prepared: Path = root / "prepared"
    self.videos: Path = root / "tiny_something"

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


def read_json_lines(path: Path) -> list[dict[str, Any]]:
  """Reads a file with one JSON object per line; skips invalid lines, such as a truncated one."""
  lines = []
  for text in path.read_text().splitlines() if path.exists() else ():
    with contextlib.suppress(ValueError):
      lines.append(json.loads(text))
  return lines


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes compressed arrays by name."""
  with atomic_open(path, "wb") as file:
    np.savez_compressed(file, **arrays)


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """Reads arrays by name; raises UserError if the file is damaged or not an NPZ file."""
  try:
    with np.load(io.BytesIO(path.read_bytes())) as file:
      return dict(file)
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f"{path}: damaged, or not an .npz file; an evaluation of the run regenerates its files"
    ) from error
