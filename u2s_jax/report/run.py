"""Reads the files of a finished run for the report."""

import collections
import dataclasses
import json
import re
from typing import Any

import numpy as np

from u2s_jax import csm as csm_lib
from u2s_jax import regularizer
from u2s_jax.evaluation import metrics, results, scores
from u2s_jax.evaluation.scores import Scores
from u2s_jax.run import saved_config, workdir
from u2s_jax.run.run import VALIDATION_SPLIT
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import escape_line
from u2s_jax.runtime.files import Path, local_copy


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """Contents of a finished run's files.

  Attributes:
    name: name of the workdir.
    one_pass: scores of the one-pass model.
    final: scores of the final model.
    analysis: arrays of `evaluate.write_analysis`; empty if the run has none.
    history: logged scalars by tag: steps and values.
  """

  name: str
  config: dict[str, Any]
  summary: dict[str, Any]
  one_pass: Scores
  final: Scores
  analysis: dict[str, np.ndarray]
  history: dict[str, tuple[np.ndarray, np.ndarray]]

  @property
  def class_names(self) -> list[str]:
    """Names of the classes, in the order of the labels."""
    return [escape_line(str(name)) for name in self.final.class_names]

  def rows(self) -> list[dict[str, Any]]:
    """Returns one row per class, see `results.per_class`."""
    csm = self.analysis.get("csm", np.eye(len(self.final.class_names)))
    rows = results.per_class(self.one_pass, self.final, csm)
    return [
      {key: escape_line(cell) if isinstance(cell, str) else cell for key, cell in row.items()}
      for row in rows
    ]

  def known_classes(self) -> np.ndarray:
    """Returns the classes with clips in the split; others have no accuracy or similarity."""
    return np.unique(self.final.labels)

  def similarities(self) -> dict[str, np.ndarray]:
    """Returns Eq. 2 by kind of features (Fig. 4), over the classes with clips."""
    sparsity = {
      kind: self.analysis[key][self.known_classes()]
      for kind in ("one-pass", "universal", "specific")
      if (key := f"sparsity_{kind.replace('-', '_')}") in self.analysis
    }
    if "specific" in sparsity:
      sparsity["U2S"] = np.concatenate([sparsity["universal"], sparsity["specific"]], axis=1)
    distance = self.config["csm"]["distance"]
    return {kind: csm_lib.similarity_matrix(values, distance) for kind, values in sparsity.items()}

  def accuracies(self) -> dict[str, np.ndarray]:
    """Returns top-1 accuracy in percent by kind of features, over the classes with clips."""
    by_kind = {"one-pass": self.one_pass.predictions["universal"], **self.final.predictions}
    by_kind["U2S"] = self.final.merged
    return {
      kind: 100 * metrics.per_class_accuracy(values, self.final.labels)[0][self.known_classes()]
      for kind, values in by_kind.items()
      if kind != "bridge"  # has no features of its own
    }

  def weight_similarity(self) -> np.ndarray | None:
    """Returns Eq. 4 of the mask network, None if there is no mask network."""
    kernel = self.analysis.get("mask_kernel")
    return None if kernel is None else np.asarray(regularizer.weight_similarity(kernel))


def read(folder: Path) -> RunFiles:
  """Reads the files of a finished run from its workdir.

  Raises:
    FileNotFoundError: if a file is missing.
  """
  run, split = Workdir(folder), VALIDATION_SPLIT
  for path in (run.config, run.summary, run.one_pass_scores(split), run.scores(split)):
    if not path.exists():
      raise FileNotFoundError(f"{path}: no such file; a report requires a finished run")
  analysis, config = run.analysis(split), saved_config.read(run)
  return RunFiles(
    name=folder.resolve().name,
    config=config.to_dict(),
    summary=json.loads(run.summary.read_text()),
    one_pass=scores.read(run.one_pass_scores(split)),
    final=scores.read(run.scores(split)),
    analysis=workdir.read_npz(analysis) if analysis.exists() else {},
    history=read_metrics(run.metrics, config.log_every_steps) or read_history(folder),
  )


def read_metrics(path: Path, log_every_steps: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads `metrics.jsonl`: steps and values by tag, the last value of each step.

  Returns nothing if it is missing, or lacks the first steps: an earlier version began the run.
  """
  lines = workdir.read_json_lines(path)
  if not lines or lines[0]["step"] > log_every_steps:
    return {}
  latest = collections.defaultdict(dict)
  for line in lines:
    step = line.pop("step")
    for tag, value in line.items():
      latest[tag][step] = value
  return {tag: _sort_by_step(values) for tag, values in latest.items()}


def read_history(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads the scalars in a workdir's TensorBoard files: steps and values by tag.

  After a crash steps may have been logged twice; the last value of each step counts.
  """
  # Imports TensorFlow, if it is installed, which takes four seconds.
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
  from tensorboard.util import tensor_util

  with local_copy(folder) as local:
    events = EventAccumulator(str(local), size_guidance={"tensors": 0})
    events.Reload()
  history = {}
  for tag in events.Tags()["tensors"]:
    if events.SummaryMetadata(tag).plugin_data.plugin_name != "scalars":
      continue
    latest = {
      event.step: float(tensor_util.make_ndarray(event.tensor_proto))
      for event in events.Tensors(tag)
    }
    history[tag] = _sort_by_step(latest)
  return history


def _sort_by_step(values: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
  steps = sorted(values)
  return np.array(steps), np.array([values[step] for step in steps])


def differences(runs: list[RunFiles]) -> dict[str, list[Any]]:
  """Returns the config fields that differ between runs: their values by dotted name."""
  configs = [saved_config.flatten(run.config) for run in runs]
  ignored = re.compile(r"data\.(dir|render|num_threads)|eval\.(pairs|classes)|.*_every_steps|seed$")
  names = sorted({name for fields in configs for name in fields if not ignored.match(name)})
  values = {name: [fields.get(name) for fields in configs] for name in names}
  return {name: v for name, v in values.items() if any(x != v[0] for x in v)}
