"""Scores of a split: the record, its file, and merging predictions or runs, in NumPy."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer, Real, Shaped

from u2s_jax import metrics, workdir
from u2s_jax.errors import UserError
from u2s_jax.files import Path
from u2s_jax.stages import PREDICTIONS

# Table I's rows, in its order. Results are named by the parts joined with '+'.
FUSIONS = (
  ("universal",),
  ("bridge",),
  ("specific",),
  ("universal", "bridge"),
  ("bridge", "specific"),
  ("universal", "specific"),
  ("universal", "bridge", "specific"),
)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of the clips of a split.

  Attributes:
    ids: (n,) str.
    labels: (n,) int32 in [0, m), -1 where unknown.
    class_names: (m,) str, in the order of the labels.
    predictions: by name, of `stages.PREDICTIONS`, softmax scores (n, m) averaged over the views.
    data_digest: of the data set, see `run.Source`; empty where unknown.
  """

  ids: Shaped[np.ndarray, " n"]
  labels: Integer[np.ndarray, " n"]
  class_names: Shaped[np.ndarray, " m"]
  predictions: dict[str, Float[np.ndarray, "n m"]]
  data_digest: str = ""

  @property
  def merged(self) -> Float[np.ndarray, "n m"]:
    """Mean of all predictions: the paper's final score."""
    return fuse(self.predictions, tuple(self.predictions))

  @property
  def num_unknown(self) -> int:
    """Clips without a label."""
    return int(np.sum(self.labels < 0))


def write(path: Path, scores: Scores) -> None:
  """Writes the fields and an array for each prediction, atomically."""
  arrays = {name: getattr(scores, name) for name in ("ids", "labels", "class_names")}
  arrays["data_digest"] = np.array(scores.data_digest)
  workdir.write_npz(path, arrays | scores.predictions)


def read(path: Path) -> Scores:
  """Reads what `write` wrote.

  Raises:
    UserError: the file is no such one, or damaged.
    OSError: it cannot be read.
  """
  arrays = workdir.read_npz(path)
  for name in ("ids", "labels", "class_names"):
    if name not in arrays:
      raise UserError(f"{path}: no scores that an evaluation wrote: it has no {name!r}")
  return Scores(
    ids=arrays["ids"],
    labels=arrays["labels"],
    class_names=arrays["class_names"],
    predictions={name: arrays[name] for name in PREDICTIONS if name in arrays},
    data_digest=str(arrays.get("data_digest", "")),
  )


def fuse(
  predictions: Mapping[str, Real[np.ndarray, "n m"]],
  names: Sequence[str],
  weights: Sequence[float | int] | None = None,
) -> Float[np.ndarray, "n m"]:
  """Returns the weighted mean of the named predictions; the paper's results weigh them equally.

  Args:
    predictions: scores (n, m) by name, softmax scores as a rule; it may hold other names too.
    names: predictions to fuse, at least one.
    weights: one number >= 0 for each name, of any sum > 0; None weighs all alike.

  Returns:
    (n, m) float64.

  Raises:
    UserError: no name, a name that `predictions` lacks, shapes that differ, or unfit weights.
  """
  if not names:
    raise UserError("no prediction named to fuse")
  missing = [name for name in names if name not in predictions]
  if missing:
    raise UserError(f"no scores of {', '.join(missing)}; there are: {', '.join(predictions)}")
  weights = np.ones(len(names)) if weights is None else np.asarray(weights, np.float64)
  if len(weights) != len(names) or not (np.all(weights >= 0) and 0 < weights.sum() < np.inf):
    raise UserError(
      f"weights must be {len(names)} numbers >= 0 with a sum > 0, one for each of "
      f"{', '.join(names)}, not {weights.tolist()}"
    )
  arrays = [np.asarray(predictions[name], np.float64) for name in names]
  if len({array.shape for array in arrays}) > 1:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(names, arrays, strict=True))
    raise UserError(f"scores to fuse differ in shape: {shapes}")
  return sum(w * array for w, array in zip(weights, arrays, strict=True)) / weights.sum()


def fusions(scores: Scores) -> dict[str, dict[str, float]]:
  """Returns the accuracies of every fusion of Table I whose predictions there are.

  Args:
    scores: with a label for every clip.

  Returns:
    `metrics.summarize` (percent) by fusion, such as `"universal+specific"`, in Table I's order.

  Raises:
    ValueError: as `metrics.summarize`.
  """
  return {name: metrics.summarize(values, scores.labels) for name, values in fused(scores).items()}


def fused(scores: Scores) -> dict[str, Float[np.ndarray, "n m"]]:
  """Returns the scores of every fusion of Table I whose predictions there are, in its order."""
  return {
    "+".join(names): fuse(scores.predictions, names)
    for names in FUSIONS
    if all(name in scores.predictions for name in names)
  }


def join(streams: Mapping[str, Scores], weights: Sequence[float | int] | None = None) -> Scores:
  """Fuses the scores of several runs on the same videos, prediction by prediction.

  Args:
    streams: scores of each run, by a name for errors. The order of their clips may differ.
    weights: as of `fuse`, one for each run.

  Returns:
    The clips of the first run, in its order, with the weighted mean of the runs' scores for every
    prediction that all of them have.

  Raises:
    UserError: an id that occurs twice or not in every run, a label or a class that differs, no
      common prediction, or unfit weights.
  """
  first, reference = next(iter(streams.items()))
  orders = {name: _order(name, scores, first, reference) for name, scores in streams.items()}
  shared = [
    name
    for name in reference.predictions
    if all(name in scores.predictions for scores in streams.values())
  ]
  if not shared:
    raise UserError(f"{', '.join(streams)}: they have no prediction in common")
  fused = {}
  for name in shared:
    aligned = {key: scores.predictions[name][orders[key]] for key, scores in streams.items()}
    fused[name] = fuse(aligned, [*streams], weights)
  return dataclasses.replace(reference, predictions=fused)


def _order(stream: str, scores: Scores, first: str, reference: Scores) -> Integer[np.ndarray, " n"]:
  """Returns the rows of `scores` in the reference's order; UserError where clips differ."""
  ids, counts = np.unique(scores.ids, return_counts=True)
  if (counts > 1).any():
    raise UserError(f"{stream}: the id {ids[counts > 1][0]} occurs twice")
  pairs = (((first, reference), (stream, scores)), ((stream, scores), (first, reference)))
  for (one, ours), (other, theirs) in pairs:
    missing = np.setdiff1d(ours.ids, theirs.ids)
    if missing.size:
      raise UserError(
        f"{other}: no scores of {missing[0]}, which {one} has ({missing.size} such ids)"
      )
  if list(scores.class_names) != list(reference.class_names):
    raise UserError(f"{stream}: its classes are not those of {first}")
  order = np.argsort(scores.ids)[np.argsort(np.argsort(reference.ids))]
  different = np.flatnonzero(scores.labels[order] != reference.labels)
  if different.size:
    i = different[0]
    raise UserError(
      f"{stream}: {reference.ids[i]} has the label {scores.labels[order][i]}, but"
      f" {reference.labels[i]} in {first}"
    )
  return order
