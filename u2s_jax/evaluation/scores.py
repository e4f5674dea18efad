"""Scores of a split: the record, its file, and the fusion of predictions or runs, in NumPy."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer, Real, Shaped

from u2s_jax.evaluation import metrics
from u2s_jax.run import workdir
from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.files import Path
from u2s_jax.stages import PREDICTIONS

# Rows of Table I, in its order. A fusion's name is its predictions' names joined with '+'.
FUSIONS = (
  ("universal",),
  ("bridge",),
  ("specific",),
  ("universal", "bridge"),
  ("bridge", "specific"),
  ("universal", "specific"),
  ("universal", "bridge", "specific"),
)
_REQUIRED = ("ids", "labels", "class_names")  # arrays of a file of scores


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of the clips of a split.

  Attributes:
    ids: (n,) str.
    labels: (n,) int32 in [0, m), -1 if unknown.
    class_names: (m,) str, in the order of the labels.
    predictions: softmax scores (n, m), averaged over the views, by names of `stages.PREDICTIONS`.
    data_digest: digest of the data set, see `run.Source`; empty if unknown.
  """

  ids: Shaped[np.ndarray, " n"]
  labels: Integer[np.ndarray, " n"]
  class_names: Shaped[np.ndarray, " m"]
  predictions: dict[str, Float[np.ndarray, "n m"]]
  data_digest: str = ""

  @property
  def merged(self) -> Float[np.ndarray, "n m"]:
    """Mean of all predictions, the paper's final score."""
    return fuse(self.predictions, tuple(self.predictions))

  @property
  def num_unknown(self) -> int:
    """Number of clips without a label."""
    return int(np.sum(self.labels < 0))


def write(path: Path, scores: Scores) -> None:
  """Writes scores as an .npz file, atomically: the fields and one array per prediction."""
  arrays = {name: getattr(scores, name) for name in _REQUIRED}
  arrays["data_digest"] = np.array(scores.data_digest)
  workdir.write_npz(path, arrays | scores.predictions)


def read(path: Path) -> Scores:
  """Reads scores that `write` wrote.

  Raises:
    UserError: if the file is damaged or lacks a field.
    OSError: if the file cannot be read.
  """
  arrays = workdir.read_npz(path)
  for name in _REQUIRED:
    if name not in arrays:
      raise UserError(
        f"{path}: not a file of scores, {name!r} is missing; name one that an evaluation wrote"
      )
  return Scores(
    **{name: arrays[name] for name in _REQUIRED},
    predictions={name: arrays[name] for name in PREDICTIONS if name in arrays},
    data_digest=str(arrays.get("data_digest", "")),
  )


def fuse(
  predictions: Mapping[str, Real[np.ndarray, "n m"]],
  names: Sequence[str],
  weights: Sequence[float | int] | None = None,
) -> Float[np.ndarray, "n m"]:
  """Returns the weighted mean of predictions in float64; the paper weighs them equally.

  Args:
    predictions: normally softmax scores; may hold further names.
    names: names of the predictions to fuse, at least one.
    weights: one number >= 0 for each name, with a sum > 0; None weighs all equally.

  Raises:
    UserError: if `names` is empty or unknown, shapes differ, or weights are invalid.
  """
  if not names:
    raise UserError("predictions to fuse: none given; name at least one")
  missing = [name for name in names if name not in predictions]
  if missing:
    raise UserError(f"no scores of {', '.join(missing)}; available: {', '.join(predictions)}")
  weights = np.ones(len(names)) if weights is None else np.asarray(weights, np.float64)
  if len(weights) != len(names) or not (np.all(weights >= 0) and 0 < weights.sum() < np.inf):
    raise UserError(
      f"weights: {weights.tolist()} must be {len(names)} numbers >= 0 with a sum > 0, one for each"
      f" of {', '.join(names)}"
    )
  arrays = [np.asarray(predictions[name], np.float64) for name in names]
  if len({array.shape for array in arrays}) > 1:
    shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(names, arrays, strict=True))
    raise UserError(f"scores to fuse: shapes differ: {shapes}")
  return sum(w * array for w, array in zip(weights, arrays, strict=True)) / weights.sum()


def fusions(scores: Scores) -> dict[str, dict[str, float]]:
  """Returns `metrics.summarize` of every fusion of `fuse_all`; every clip must have a label."""
  return {
    name: metrics.summarize(values, scores.labels) for name, values in fuse_all(scores).items()
  }


def fuse_all(scores: Scores) -> dict[str, Float[np.ndarray, "n m"]]:
  """Returns the scores of the fusions of Table I that the available predictions allow.

  Keys are such as `"universal+specific"`, in Table I's order.
  """
  return {
    "+".join(names): fuse(scores.predictions, names)
    for names in FUSIONS
    if all(name in scores.predictions for name in names)
  }


def fuse_runs(
  streams: Mapping[str, Scores], weights: Sequence[float | int] | None = None
) -> Scores:
  """Fuses the scores of several runs on the same videos, prediction by prediction.

  Args:
    streams: scores of each run, by a name for errors. The order of the clips may differ.
    weights: one for each run, see `fuse`.

  Returns:
    The first run's clips with the weighted mean of the runs' scores for every prediction that all
    runs have.

  Raises:
    UserError: if an id is repeated or not in every run, labels or classes differ, the runs have no
      prediction in common, or weights are invalid.
  """
  first, reference = next(iter(streams.items()))
  orders = {name: _order(name, scores, first, reference) for name, scores in streams.items()}
  fused = {}
  for name in reference.predictions:
    if all(name in scores.predictions for scores in streams.values()):
      ordered = {key: scores.predictions[name][orders[key]] for key, scores in streams.items()}
      fused[name] = fuse(ordered, [*streams], weights)
  if not fused:
    raise UserError(f"{', '.join(streams)}: no prediction in common")
  return dataclasses.replace(reference, predictions=fused)


def _order(stream: str, scores: Scores, first: str, reference: Scores) -> Integer[np.ndarray, " n"]:
  """Returns the rows of `scores` in the reference's order; raises UserError if clips differ."""
  ids, counts = np.unique(scores.ids, return_counts=True)
  if (counts > 1).any():
    raise UserError(f"{stream}: the id {ids[counts > 1][0]} occurs twice; ids must be unique")
  both = ((first, reference), (stream, scores))
  for (name, present), (other_name, other) in (both, both[::-1]):
    missing = np.setdiff1d(present.ids, other.ids)
    if missing.size:
      raise UserError(
        f"{other_name}: no scores of {missing[0]}, which {name} has ({missing.size} such ids)"
      )
  if list(scores.class_names) != list(reference.class_names):
    raise UserError(f"{stream}: classes differ from those of {first}; fuse runs on one data set")
  # The argsort of an argsort gives ranks: row i of the reference is the clip of the same rank here.
  order = np.argsort(scores.ids)[np.argsort(np.argsort(reference.ids))]
  different = np.flatnonzero(scores.labels[order] != reference.labels)
  if different.size:
    i = different[0]
    raise UserError(
      f"{stream}: {reference.ids[i]} has the label {scores.labels[order][i]}, but"
      f" {reference.labels[i]} in {first}"
    )
  return order
