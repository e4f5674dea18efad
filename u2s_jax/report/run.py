"""What a run left in its workdir, read for the report."""

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np

from u2s_jax import csm as csm_lib
from u2s_jax import evaluate, fusion, metrics, regularizer

KINDS = ("one-pass", "universal", "specific", "U2S")  # of features, Fig. 4


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """A finished run.

  Attributes:
    name: of its folder.
    config: as in its `config.json`.
    summary: as in its `summary.json`.
    one_pass: scores of the one-pass model, as of `evaluate.read_scores`.
    final: scores of the model at the end.
    analysis: of `analysis.gather`; None where there is none.
    history: scalars by tag: steps and values.
  """

  name: str
  config: dict[str, Any]
  summary: dict[str, Any]
  one_pass: dict[str, np.ndarray]
  final: dict[str, np.ndarray]
  analysis: dict[str, np.ndarray] | None
  history: dict[str, tuple[np.ndarray, np.ndarray]]

  @property
  def class_names(self) -> list[str]:
    """In the order of the labels."""
    return [str(name) for name in self.final["class_names"]]

  def distance(self) -> str:
    """Of the CSM, Eq. 2."""
    return self.config["csm"]["distance"]

  def rows(self) -> list[dict[str, Any]]:
    """A row for each class, see `evaluate.per_class`."""
    csm = (self.analysis or {}).get("csm", np.eye(len(self.class_names)))
    return evaluate.per_class(self.one_pass, self.final, self.class_names, csm)

  def confusion(self) -> np.ndarray:
    """How many clips of a class (row) the merged prediction takes for a class (column)."""
    counts = np.zeros((len(self.class_names),) * 2, int)
    taken = evaluate.merged(self.final).argmax(1)
    np.add.at(counts, (self.final["label"], taken), 1)
    return counts

  def known_classes(self) -> np.ndarray:
    """Classes with clips in the split: the others have neither accuracy nor similarity."""
    return np.unique(self.final["label"])

  def similarities(self) -> dict[str, np.ndarray]:
    """Eq. 2 by kind of features, on the split, of the classes with clips (`KINDS`)."""
    arrays, there = self.analysis or {}, self.known_classes()
    sparsity = {
      "one-pass": arrays.get("sparsity_one_pass"),
      "universal": arrays.get("sparsity_universal"),
      "specific": arrays.get("sparsity_specific"),
    }
    found = {kind: values[there] for kind, values in sparsity.items() if values is not None}
    if "specific" in found:
      found["U2S"] = np.concatenate([found["universal"], found["specific"]], axis=1)
    return {
      kind: csm_lib.similarity_matrix(values, self.distance()) for kind, values in found.items()
    }

  def accuracies(self) -> dict[str, np.ndarray]:
    """Top-1 in percent of the classes with clips, by kind of features (`KINDS`)."""
    scores = {"one-pass": self.one_pass["universal"], **evaluate.predictions(self.final)}
    scores["U2S"] = evaluate.merged(self.final)
    return {
      kind: 100 * metrics.per_class_accuracy(values, self.final["label"])[0][self.known_classes()]
      for kind, values in scores.items()
      if kind in KINDS
    }

  def weight_similarity(self) -> np.ndarray | None:
    """Eq. 4 of the mask network, None where there is none."""
    kernel = (self.analysis or {}).get("mask_kernel")
    return None if kernel is None else np.asarray(regularizer.weight_similarity(kernel))

  def fusions(self) -> dict[str, dict[str, float]]:
    """Table I."""
    return fusion.fusions(evaluate.predictions(self.final), self.final["label"])


def read(workdir: pathlib.Path) -> RunFiles:
  """Reads a finished run's files.

  Raises:
    FileNotFoundError: a file is missing, with what makes it.
  """
  paths = {
    "config": workdir / "config.json",
    "summary": workdir / "summary.json",
    "one_pass": workdir / "scores" / "validation_one_pass.npz",
    "final": workdir / "scores" / "validation.npz",
  }
  for path in paths.values():
    if not path.exists():
      raise FileNotFoundError(f"{path}: no such file; the report is of a run that came to its end")
  analysis = workdir / "analysis" / "validation.npz"
  return RunFiles(
    name=workdir.resolve().name,
    config=json.loads(paths["config"].read_text()),
    summary=json.loads(paths["summary"].read_text()),
    one_pass=evaluate.read_scores(paths["one_pass"]),
    final=evaluate.read_scores(paths["final"]),
    analysis=dict(np.load(analysis)) if analysis.exists() else None,
    history=read_history(workdir),
  )


def read_history(workdir: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Scalars of all TensorBoard files by tag; a step done twice, after a crash, counts once."""
  # Here, because TensorBoard imports TensorFlow where there is one.
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  from tensorboard.util import tensor_util

  events = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
  events.Reload()
  history = {}
  for tag in events.Tags()["tensors"]:
    if events.SummaryMetadata(tag).plugin_data.plugin_name != "scalars":
      continue
    latest = {
      event.step: float(tensor_util.make_ndarray(event.tensor_proto))
      for event in events.Tensors(tag)
    }
    steps = sorted(latest)
    history[tag] = np.array(steps), np.array([latest[step] for step in steps])
  return history


def differences(runs: list[RunFiles]) -> dict[str, list[Any]]:
  """Config fields that are not the same in all runs: the values by dotted name."""
  flat = [dict(_flat(run.config)) for run in runs]
  skipped = re.compile(r"data\.(dir|render|num_threads)|eval\.(pairs|classes)|.*_every_steps|seed$")
  names = sorted({name for fields in flat for name in fields if not skipped.match(name)})
  values = {name: [fields.get(name) for fields in flat] for name in names}
  return {name: v for name, v in values.items() if any(x != v[0] for x in v)}


def _flat(tree: dict[str, Any], prefix: str = ""):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value
