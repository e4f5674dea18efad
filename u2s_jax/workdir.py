"""The folder of a run: every path in it, and what is written and read there."""

import csv
import dataclasses
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from u2s_jax.errors import UserError, spreadsheet_cell
from u2s_jax.files import Path, whole_file


@dataclasses.dataclass(frozen=True)
class Workdir:
  """Where the files of a run lie, or those of one of its further evaluations.

  Attributes:
    root: the folder, of `files.named`.
  """

  root: Path

  @classmethod
  def holding(cls, path: Path) -> "Workdir":
    """Returns the run that a path names: its folder, or `checkpoints/<stage>` in it."""
    return cls(path.parent.parent if path.parent.name == "checkpoints" else path)

  @property
  def checkpoints(self) -> Path:
    """Orbax checkpoints, `<stage>/<step>` below it."""
    return self.root / "checkpoints"

  @property
  def config(self) -> Path:
    """The config that the run began with."""
    return self.root / "config.json"

  @property
  def lock(self) -> Path:
    """Held while the run trains, on a disk."""
    return self.root / ".lock"

  @property
  def lease(self) -> Path:
    """Folder of what is held while the run trains, in a bucket."""
    return self.root / ".lease"

  @property
  def start(self) -> Path:
    """The pretrained weights that the run started from, for networks that begin later."""
    return self.root / "start.safetensors"

  @property
  def summary(self) -> Path:
    """The accuracies; the last file of a run, so its end."""
    return self.root / "summary.json"

  @property
  def per_class(self) -> Path:
    """The table of all classes."""
    return self.root / "per_class.csv"

  @property
  def report(self) -> Path:
    """Folder of the figures and the page."""
    return self.root / "report"

  @property
  def export(self) -> Path:
    """Folder of the networks for other programs."""
    return self.root / "export"

  @property
  def compiled(self) -> Path:
    """Folder of compiled programs."""
    return self.root / "compiled"

  @property
  def profile(self) -> Path:
    """Folder of the profile of a few training steps."""
    return self.root / "profile"

  @property
  def prepared(self) -> Path:
    """Folder of the prepared data set, where the config names none."""
    return self.root / "prepared"

  @property
  def videos(self) -> Path:
    """Folder of rendered videos, where the config names none."""
    return self.root / "tiny_something"

  def scores(self, split: str) -> Path:
    """Scores of a split by the whole networks."""
    return self.root / "scores" / f"{split}.npz"

  def one_pass_scores(self, split: str) -> Path:
    """Scores of a split by the model after stage 1."""
    return self.root / "scores" / f"{split}_one_pass.npz"

  def analysis(self, split: str) -> Path:
    """Features and masks of a split, for the report."""
    return self.root / "analysis" / f"{split}.npz"

  def evaluation(self, name: str) -> "Workdir":
    """A folder for an evaluation in other ways than the run's own, laid out alike."""
    return Workdir(self.root / "eval" / name)

  def read_config(self) -> dict[str, Any] | None:
    """Reads the fields of the config that the run began with; None where there is none.

    Raises:
      UserError: the file is damaged.
    """
    if not self.config.exists():
      return None
    try:
      return json.loads(self.config.read_text())
    except ValueError as error:
      raise UserError(
        f"{self.config}: damaged ({error}); restore it or choose another workdir"
      ) from error

  def write_config(self, fields: dict[str, Any]) -> None:
    """Writes the fields of the config that the run begins with."""
    write_json(self.config, fields)


def write_json(path: Path, value: Any) -> None:
  """Writes indented JSON."""
  with whole_file(path) as file:
    file.write(json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes a table whose columns are the keys of its first row."""
  with whole_file(path) as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows({key: spreadsheet_cell(value) for key, value in row.items()} for row in rows)


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes compressed arrays by name."""
  with whole_file(path, "wb") as file:
    np.savez_compressed(file, **arrays)


def read_npz(path: Path) -> dict[str, np.ndarray]:
  """Reads arrays by name.

  Raises:
    UserError: no such file of arrays, or a damaged one.
    OSError: it cannot be read.
  """
  try:
    with np.load(io.BytesIO(path.read_bytes())) as file:
      return dict(file)
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f"{path}: damaged, or no .npz file of arrays; an evaluation of the run regenerates its files"
    ) from error
