"""Studies and their records: the runs of `benchmarks.evidence`, and what is kept of them."""

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

from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.files import atomic_open

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "evidence"
STUDIES = ROOT / "benchmarks" / "studies"
ONE_PASS, MERGED = "one-pass", "merged"
SIMILAR = ("one_pass", "universal", "specific")  # kinds of features, Fig. 4


@dataclasses.dataclass(frozen=True)
class Study:
  """A study file.

  Attributes:
    name: stem of its files.
    config: path of the config.
    seeds: every variant is trained once per seed.
    overrides: config fields by dotted name, for all runs. '{workdir}' and '{seed}' in them stand
      for the study's directory and the seed.
    variants: further overrides, by the variant's name. `from` names the variant whose stage 1 it
      starts from: '' for none, the study's first variant by default.
    comparisons: each has a `name`, `of` and `over` ('variant/prediction'), `measure` ('top1' or
      'top5'), and `paper`, the paper's effect in points, if the paper has one.
  """

  name: str
  config: str
  seeds: tuple[int, ...]
  overrides: dict[str, Any]
  variants: dict[str, dict[str, Any]]
  comparisons: list[dict[str, Any]]

  def fields(self, variant: str) -> dict[str, Any]:
    """Returns all overrides of a variant."""
    fields = self.overrides | self.variants[variant]
    fields.pop("from", None)
    return fields

  def start(self, variant: str) -> str:
    """Returns the variant whose stage 1 a variant starts from, '' if it trains its own."""
    first = next(iter(self.variants))
    return self.variants[variant].get("from", "" if variant == first else first)


def read_study(path: pathlib.Path) -> Study:
  """Reads a study file.

  `comparisons_of` names another study in the same directory; its comparisons are added if both
  sides are variants of this study.
  """
  content = {"comparisons": []} | tomllib.loads(path.read_text())
  content["seeds"] = tuple(content["seeds"])
  if other := content.pop("comparisons_of", None):
    shared = read_study(path.with_name(f"{other}.toml")).comparisons
    content["comparisons"] = [
      comparison
      for comparison in shared
      if {comparison[side].split("/")[0] for side in ("of", "over")} <= content["variants"].keys()
    ] + content["comparisons"]
  return Study(name=path.stem, **content)


def pack_bits(bits: Bool[np.ndarray, " n"]) -> str:
  """Encodes bits as base64 text."""
  return base64.b64encode(np.packbits(bits).tobytes()).decode()


def unpack_bits(text: str, count: int) -> Bool[np.ndarray, " n"]:
  """Decodes `count` bits that `pack_bits` encoded."""
  return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


def compute_accuracy(entry: dict[str, Any], prediction: str, measure: str = "top1") -> float:
  """Returns the accuracy of a prediction in percent, from a run's record."""
  return 100 * float(unpack_bits(entry[measure][prediction], entry["clips"]).mean())


class Records:
  """The records of a study's runs, one line of JSON each, by variant and seed.

  Raises:
    UserError: the overrides of a record differ from the study's.
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
          f"{self.path}: overrides of {variant} differ; rename the variant or delete its lines"
        )
      self._by_run[variant, line["seed"]] = line

  def get(self, variant: str, seed: int) -> dict[str, Any] | None:
    """Returns the record of a run, None if it is not finished."""
    return self._by_run.get((variant, seed))

  def list_runs(self, variant: str, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Returns the records of a variant's finished runs."""
    return [entry for seed in seeds if (entry := self.get(variant, seed))]

  def add(self, entry: dict[str, Any]) -> None:
    """Adds a record and writes the file."""
    with self._lock:
      self._by_run[entry["variant"], entry["seed"]] = entry
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with atomic_open(self.path) as file:
        for key in sorted(self._by_run):
          file.write(json.dumps(self._by_run[key]) + "\n")
