"""What a run left in its workdir, read for the report."""

import dataclasses
import json
import re
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from u2s_jax import csm as csm_lib
from u2s_jax import metrics, regularizer, saved_config, workdir
from u2s_jax.errors import printable_line
from u2s_jax.evaluation import results, scores
from u2s_jax.evaluation.scores import Scores
from u2s_jax.files import Path, on_disk
from u2s_jax.run import VALIDATION_SPLIT
from u2s_jax.workdir import Workdir

KINDS = ("one-pass", "universal", "specific", "U2S")  # of features, Fig. 4


@dataclasses.dataclass(frozen=True)
class RunFiles:
  """A finished run.

  Attributes:
    name: of its folder.
    config: as in its `config.json`.
    summary: as in its `summary.json`.
    one_pass: scores of the one-pass model.
    final: scores of the model at the end.
    analysis: of `analysis.gather`; None where there is none.
    history: scalars by tag: steps and values.
  """

  name: str
  config: dict[str, Any]
  summary: dict[str, Any]
  one_pass: Scores
  final: Scores
  analysis: dict[str, np.ndarray] | None
  history: dict[str, tuple[np.ndarray, np.ndarray]]

  @property
  def class_names(self) -> list[str]:
    """In the order of the labels."""
    return [printable_line(str(name)) for name in self.final.class_names]

  def distance(self) -> str:
    """Returns f_dist of Eq. 2, the CSM's."""
    return self.config["csm"]["distance"]

  def rows(self) -> list[dict[str, Any]]:
    """Returns a row for each class, see `results.per_class`."""
    csm = (self.analysis or {}).get("csm", np.eye(len(self.class_names)))
    rows = results.per_class(self.one_pass, self.final, csm)
    return [
      {key: printable_line(cell) if isinstance(cell, str) else cell for key, cell in row.items()}
      for row in rows
    ]

  def known_classes(self) -> np.ndarray:
    """Returns classes with clips in the split: the others have neither accuracy nor similarity."""
    return np.unique(self.final.labels)

  def similarities(self) -> dict[str, np.ndarray]:
    """Returns Eq. 2 by kind of features, on the split, of the classes with clips (`KINDS`)."""
    arrays, known = self.analysis or {}, self.known_classes()
    sparsity = {
      "one-pass": arrays.get("sparsity_one_pass"),
      "universal": arrays.get("sparsity_universal"),
      "specific": arrays.get("sparsity_specific"),
    }
    sparsity = {kind: values[known] for kind, values in sparsity.items() if values is not None}
    if "specific" in sparsity:
      sparsity["U2S"] = np.concatenate([sparsity["universal"], sparsity["specific"]], axis=1)
    return {
      kind: csm_lib.similarity_matrix(values, self.distance()) for kind, values in sparsity.items()
    }

  def accuracies(self) -> dict[str, np.ndarray]:
    """Returns top-1 in percent of the classes with clips, by kind of features (`KINDS`)."""
    by_kind = {"one-pass": self.one_pass.predictions["universal"], **self.final.predictions}
    by_kind["U2S"] = self.final.merged
    return {
      kind: 100 * metrics.per_class_accuracy(values, self.final.labels)[0][self.known_classes()]
      for kind, values in by_kind.items()
      if kind in KINDS
    }

  def weight_similarity(self) -> np.ndarray | None:
    """Returns Eq. 4 of the mask network, None where there is none."""
    kernel = (self.analysis or {}).get("mask_kernel")
    return None if kernel is None else np.asarray(regularizer.weight_similarity(kernel))

  def fusions(self) -> dict[str, dict[str, float]]:
    """Returns Table I."""
    return scores.fusions(self.final)


def read(folder: Path) -> RunFiles:
  """Reads a finished run's files.

  Args:
    folder: the run's.

  Raises:
    FileNotFoundError: a file is missing, with what makes it.
  """
  run, split = Workdir(folder), VALIDATION_SPLIT
  for path in (run.config, run.summary, run.one_pass_scores(split), run.scores(split)):
    if not path.exists():
      raise FileNotFoundError(f"{path}: no such file; the report is of a run that came to its end")
  analysis = run.analysis(split)
  return RunFiles(
    name=folder.resolve().name,
    config=saved_config.read(run).to_dict(),
    summary=json.loads(run.summary.read_text()),
    one_pass=scores.read(run.one_pass_scores(split)),
    final=scores.read(run.scores(split)),
    analysis=workdir.read_npz(analysis) if analysis.exists() else None,
    history=read_history(folder),
  )


def read_history(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Reads the scalars of TensorBoard's files; a step done twice, after a crash, counts once.

  Args:
    folder: the run's.

  Returns:
    Steps and values by tag.
  """
  with on_disk(folder) as local:
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
    steps = sorted(latest)
    history[tag] = np.array(steps), np.array([latest[step] for step in steps])
  return history


def differences(runs: list[RunFiles]) -> dict[str, list[Any]]:
  """Returns config fields that are not the same in all runs: the values by dotted name."""
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
