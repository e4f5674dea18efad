"""Studies and their records: what `benchmarks.evidence` runs, and what it keeps of a run."""

import base64
import dataclasses
import json
import pathlib
import threading
import tomllib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool

from u2s_jax.errors import UserError
from u2s_jax.files import whole_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "evidence"
STUDIES = ROOT / "benchmarks" / "studies"
ONE_PASS, MERGED = "one-pass", "merged"
SIMILAR = ("one_pass", "universal", "specific")  # kinds of features, Fig. 4


@dataclasses.dataclass(frozen=True)
class Study:
  """A study file.

  Attributes:
    name: of its files.
    config: file of the config.
    seeds: of the runs; each gives every variant once.
    overrides: of the config's fields, by dotted name, for all runs. '{workdir}' and '{seed}' in
      them stand for the study's folder and the run's seed.
    variants: further overrides by the variant's name. Beside them `from` names the variant whose
      stage 1 it goes on from, '' for none; without, the study's first.
    comparisons: what is compared: `name`, `of` and `over`, each 'variant/prediction', `measure`
      ('top1' or 'top5') and, where the paper has it, `paper`, its effect in points.
  """

  name: str
  config: str
  seeds: tuple[int, ...]
  overrides: dict[str, Any]
  variants: dict[str, dict[str, Any]]
  comparisons: list[dict[str, Any]]

  def fields(self, variant: str) -> dict[str, Any]:
    """Returns what a variant overrides."""
    own = {name: value for name, value in self.variants[variant].items() if name != "from"}
    return self.overrides | own

  def start(self, variant: str) -> str:
    """Returns the variant whose stage 1 a variant goes on from, '' where it trains its own."""
    first = next(iter(self.variants))
    return self.variants[variant].get("from", "" if variant == first else first)


def read_study(path: pathlib.Path) -> Study:
  """Reads a study file.

  Its `comparisons_of` names another one beside it, whose comparisons are made here too, where both
  sides are variants here.
  """
  content = {"comparisons": []} | tomllib.loads(path.read_text())
  content["seeds"] = tuple(content["seeds"])
  if other := content.pop("comparisons_of", None):
    shared = read_study(path.with_name(f"{other}.toml")).comparisons
    sides = ("of", "over")
    content["comparisons"] = [
      comparison
      for comparison in shared
      if all(comparison[side].split("/")[0] in content["variants"] for side in sides)
    ] + content["comparisons"]
  return Study(name=path.stem, **content)


def packed(bits: Bool[np.ndarray, " n"]) -> str:
  """Returns bits as text; `unpacked` reads it."""
  return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpacked(text: str, count: int) -> Bool[np.ndarray, " n"]:
  """Returns the bits that `packed` was given."""
  return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


def accuracy(entry: dict[str, Any], prediction: str, measure: str = "top1") -> float:
  """Returns the accuracy of a prediction in percent, of a run's record."""
  return 100 * float(unpacked(entry[measure][prediction], entry["clips"]).mean())


class Records:
  """The records of a study's runs, one line of JSON each, by variant and seed.

  Args:
    study: whose they are.

  Raises:
    UserError: a record of a run with other overrides.
  """

  def __init__(self, study: Study):
    self.path = DOCS / f"{study.name}.jsonl"
    self._lock = threading.Lock()
    lines = self.path.read_text().splitlines() if self.path.exists() else []
    self._by_run = {}
    for line in map(json.loads, lines):
      variant = line["variant"]
      if variant in study.variants and line["overrides"] != study.fields(variant):
        raise UserError(
          f"{self.path}: {variant} ran with other overrides; rename the variant or delete its lines"
        )
      self._by_run[variant, line["seed"]] = line

  def get(self, variant: str, seed: int) -> dict[str, Any] | None:
    """Returns the record of a run, None where it has not come to its end."""
    return self._by_run.get((variant, seed))

  def of(self, variant: str, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Returns the records of a variant's runs that have come to their end."""
    return [entry for seed in seeds if (entry := self.get(variant, seed))]

  def add(self, entry: dict[str, Any]) -> None:
    """Adds a record, and writes all."""
    with self._lock:
      self._by_run[entry["variant"], entry["seed"]] = entry
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with whole_file(self.path) as file:
        for key in sorted(self._by_run):
          file.write(json.dumps(self._by_run[key]) + "\n")
