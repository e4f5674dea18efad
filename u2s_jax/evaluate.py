"""Scores of a split on disk, and what is said of a run from them alone."""

import csv
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Integer, Num, UInt8

from u2s_jax import compiling, fusion, metrics, sharding
from u2s_jax.state import TrainState
from u2s_jax.steps import PREDICTIONS

ID_BYTES = 256  # ids travel through the devices so that all hosts learn them in one order
MAX_TABLE, EXTREMES = 30, 10  # classes that a table shows; beyond that, at each end of the gains
NAME_WIDTH = 40  # of class names in a table
MIRRORED = {
  "center": (False,),
  "3crop": (False,) * 3,
  "5crop": (False,) * 5,
  "10crop": (False,) * 5 + (True,) * 5,
}


def mirror_columns(
  views: str, num_classes: int, flip_label_map: tuple[tuple[int, int], ...]
) -> tuple[Integer[np.ndarray, " m"] | None, ...]:
  """For each view None, or for a mirrored one the class each class turns into.

  Args:
    views: 'center', '3crop', '5crop' or '10crop'.
    num_classes: M.
    flip_label_map: pairs of classes that mirror into each other.

  Raises:
    ValueError: a pair that names no class, where there is a mirrored view.
  """
  columns = np.arange(num_classes)
  for pair in flip_label_map if any(MIRRORED[views]) else ():
    if not all(0 <= label < num_classes for label in pair):
      raise ValueError(f"data.flip_label_map: {pair} is no pair of the {num_classes} classes")
    columns[list(pair)] = pair[::-1]
  return tuple(columns if mirrored else None for mirrored in MIRRORED[views])


def compile_eval(step: Callable[..., dict[str, jax.Array]], mesh: Mesh) -> Callable:
  """Jits a step of `steps.make_eval_step`; every host gets the scores of the whole batch."""

  def run(state, batch):
    return step(state, batch["video"], batch["label"]) | {
      key: batch[key] for key in ("label", "mask", "id")
    }

  return jax.jit(run, out_shardings=sharding.replicated(mesh), compiler_options=compiling.options())


def score(
  run: Callable,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  class_names: Sequence[str],
) -> dict[str, np.ndarray]:
  """Scores of all real examples.

  Args:
    run: from `compile_eval`.
    state: the networks.
    batches: of this host; `video` (b, v, t, h, w, c) uint8, `label`, `mask`, `id`.
    mesh: all devices.
    class_names: in the order of the labels; whatever is made of the scores takes them from there.

  Returns:
    `id` (n,) str, `label` (n,) int32, -1 where unknown, `class_names` (m,) str and for each
    prediction softmax scores (n, m) float32.

  Raises:
    ValueError: an id of more than 256 bytes.
  """
  parts = []
  for batch in batches:
    batch = {**batch, "id": id_codes(batch["id"])}
    out = jax.device_get(run(state, sharding.global_batch(batch, mesh)))
    real = out.pop("mask").astype(bool)
    parts.append({key: value[real] for key, value in out.items()})
  scores = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  scores["id"] = read_id_codes(scores["id"])
  scores["class_names"] = np.array(class_names, str)
  return scores


def id_codes(ids: Sequence[bytes] | np.ndarray) -> UInt8[np.ndarray, "n b"]:
  """Ids as numbers that may be placed on devices; ValueError for one of more than 256 bytes."""
  ids = np.asarray(ids).astype("S")
  if ids.dtype.itemsize > ID_BYTES:
    raise ValueError(f"id {max(ids, key=len).decode()}: longer than {ID_BYTES} bytes")
  return ids.astype(f"S{ID_BYTES}").view(np.uint8).reshape(-1, ID_BYTES)


def read_id_codes(codes: UInt8[np.ndarray, "n b"]) -> np.ndarray:
  """The ids (n,), str, that `id_codes` was given."""
  return np.char.decode(np.ascontiguousarray(codes).view(f"S{ID_BYTES}")[:, 0], "utf-8")


def predictions(scores: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The entries of `scores` that are predictions."""
  return {name: scores[name] for name in PREDICTIONS if name in scores}


def merged(scores: dict[str, np.ndarray]) -> np.ndarray:
  """Mean of all predictions: the paper's final score."""
  found = predictions(scores)
  return fusion.fuse(found, tuple(found))


def write_scores(path: pathlib.Path, scores: dict[str, np.ndarray]) -> None:
  """Writes `ids`, `labels`, `class_names`, predictions; the file appears complete or not at all."""
  arrays = {"ids": scores["id"], "labels": scores["label"], "class_names": scores["class_names"]}
  write_arrays(path, arrays | predictions(scores))


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
  """Writes a compressed `.npz`; the file appears complete or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".partial")
  with open(partial, "wb") as file:
    np.savez_compressed(file, **arrays)
  os.replace(partial, path)


def read_scores(path: pathlib.Path) -> dict[str, np.ndarray]:
  """What `write_scores` wrote, under the keys of `score`.

  Raises:
    ValueError: the file is no such one.
  """
  try:
    with np.load(path) as file:
      arrays = dict(file)
  except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path}: damaged, or no .npz file of scores") from error
  for name in ("ids", "labels", "class_names"):
    if name not in arrays:
      raise ValueError(f"{path}: no scores that an evaluation wrote: it has no {name!r}")
  return {"id": arrays.pop("ids"), "label": arrays.pop("labels"), **arrays}


def parameter_count(state: TrainState, subnetworks: Iterable[str] | None = None) -> int:
  """Number of parameters, of some subnetworks or of all."""
  trees = [tree for name, tree in state.params.items() if not subnetworks or name in subnetworks]
  return sum(leaf.size for leaf in jax.tree.leaves(trees))


def summarize(
  one_pass: dict[str, np.ndarray], final: dict[str, np.ndarray], state: TrainState, config: str
) -> dict[str, Any]:
  """What `summary.json` holds; accuracies in percent.

  Args:
    one_pass: scores of the model after stage 1.
    final: scores of the model at the end.
    state: at the end.
    config: name of the run's config file.
  """
  csm = jax.device_get(state.csm)
  return {
    "one_pass": metrics.summarize(one_pass["universal"], one_pass["label"]),
    "predictions": fusion.fusions(predictions(final), final["label"]),
    "csm": {
      "alpha": float(csm.alpha),
      "n": int(csm.n),
      "average_confusing": float((csm.matrix.sum() - len(csm.matrix)) / len(csm.matrix)),
    },
    "parameters": {
      "one_pass": parameter_count(state, ("trunk", "universal")),
      "u2s": parameter_count(state),
    },
    "config": config,
  }


def per_class(
  one_pass: dict[str, np.ndarray],
  final: dict[str, np.ndarray],
  class_names: Sequence[str],
  csm: Num[np.ndarray, "m m"],
) -> list[dict[str, Any]]:
  """How well each class is recognised, a row for each.

  Args:
    one_pass: scores of the model after stage 1.
    final: scores of the model at the end, of the same clips.
    class_names: in the order of the labels.
    csm: the 1s of column i are what class i is confused with.

  Returns:
    For each class `class` (its name), `clips`, top-1 in percent of `one_pass`, of each prediction
    and of `merged`, their difference `gain`, `confused_with` ('name (clips)' of the class that
    the merged prediction most often takes it for) and `csm` (names of its confusing classes,
    joined by ' | '). Accuracies are None for a class without a clip.
  """
  labels, merged_scores = final["label"], merged(final)
  columns = {"one_pass": one_pass["universal"], **predictions(final), "merged": merged_scores}
  accuracies = {
    name: metrics.per_class_accuracy(scores, labels)[0] for name, scores in columns.items()
  }
  confusion = np.zeros((len(class_names), len(class_names)), int)
  np.add.at(confusion, (labels, merged_scores.argmax(1)), 1)
  rows = []
  for i, name in enumerate(class_names):
    clips = int(confusion[i].sum())
    row = {"class": str(name), "clips": clips}
    row |= {key: 100 * float(values[i]) if clips else None for key, values in accuracies.items()}
    row["gain"] = row["merged"] - row["one_pass"] if clips else None
    wrong = np.where(np.arange(len(class_names)) == i, 0, confusion[i])
    other = wrong.argmax()
    row["confused_with"] = f"{class_names[other]} ({wrong[other]})" if wrong[other] else ""
    row["csm"] = " | ".join(str(class_names[j]) for j in np.flatnonzero(csm[:, i]) if j != i)
    rows.append(row)
  return rows


def write_per_class(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Writes what `per_class` returned as CSV; the file appears complete or not at all."""
  partial = path.with_suffix(".partial")
  with open(partial, "w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    for row in rows:
      writer.writerow(
        {key: f"{value:.2f}" if isinstance(value, float) else value for key, value in row.items()}
      )
  os.replace(partial, path)


def per_class_table(rows: list[dict[str, Any]]) -> str:
  """What `per_class` returned as text for a terminal.

  Up to 30 classes are all there; of more the 10 that gain most and the 10 that lose most, from the
  largest gain to the largest loss.
  """
  if len(rows) > MAX_TABLE:
    moved = sorted((row for row in rows if row["gain"]), key=lambda row: -row["gain"])
    gains = [row for row in moved if row["gain"] > 0]
    rows = gains[:EXTREMES] + moved[len(gains) :][-EXTREMES:]
  header = ["Class", "Clips", "One-pass (%)", "Merged (%)", "Gain", "Most confused with"]
  cells = []
  for row in rows:
    other, _, count = row["confused_with"].rpartition(" ")
    cells.append(
      [
        _cut(row["class"]),
        str(row["clips"]),
        *(f"{row[key]:.2f}" if row["clips"] else "-" for key in ("one_pass", "merged")),
        f"{row['gain']:+.2f}" if row["clips"] else "-",
        f"{_cut(other)} {count}".strip(),
      ]
    )
  return fusion.aligned(header, cells, [str.ljust] + [str.rjust] * 4 + [str.ljust])


def gains_table(rows: list[dict[str, Any]], class_names: Sequence[str]) -> str:
  """Table IV of the paper as text for a terminal: chosen classes, one-pass, U2S and the gain.

  Args:
    rows: what `per_class` returned.
    class_names: of the classes to show, in this order.
  """
  by_name = {row["class"]: row for row in rows}
  cells = []
  for name in class_names:
    row = by_name[name]
    figures = [row["one_pass"], row["merged"], row["gain"]]
    forms = ("{:.2f}", "{:.2f}", "{:+.2f}")
    cells.append(
      [name]
      + ["-" if x is None else form.format(x) for form, x in zip(forms, figures, strict=True)]
    )
  header = ["Action", "One-pass", "U2S", "Improved"]
  return fusion.aligned(header, cells, [str.ljust] + [str.rjust] * 3)


def _cut(name):
  return name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 3] + "..."


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON; the file appears complete or not at all."""
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(value, indent=2) + "\n")
  os.replace(partial, path)
