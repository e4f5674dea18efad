"""What the report's figures of features and masks are made of, collected from a trained run.

Written beside the scores as `<workdir>/analysis/<split>.npz`; the report reads it, never the model.
"""

import collections
import types
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Integer

from u2s_jax import csm as csm_lib
from u2s_jax import devices
from u2s_jax.csm import CategorySimilarity
from u2s_jax.evaluation import inference
from u2s_jax.evaluation.scores import Scores
from u2s_jax.state import TrainState

CLIPS = 200  # of a class of a pair: pooled features that are kept for t-SNE
MISTAKES = 40  # most confident ones whose stills are kept
OTHERS = 3  # classes outside the pair whose masks of an example are kept, as in Fig. 6


def collect(
  step: inference.AnalysisStep,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  *,
  classes: Sequence[int],
  examples: Mapping[str, Integer[np.ndarray, " k"]] = types.MappingProxyType({}),
  stills: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """Passes once over a split.

  Args:
    step: of `inference.analysis_step`.
    state: the networks.
    batches: of this host, the centre view alone: see `run.Source`.
    classes: whose clips' pooled features are kept, of the first 200 clips each.
    examples: by ids of clips whose frames and masks are kept, the classes of these masks, equally
      many for each clip: see `shown_classes`.
    stills: ids of clips whose middle frame is kept.

  Returns:
    For each network, 'universal' and behind stage 1 'specific', the class sparsity of Eq. 1
    `sparsity_*` (m, c), NaN for a class without a clip, and `pooled_*` (k, c) of the kept clips,
    whose `label` is (k,). Of the examples, where there are any: `example_id`, `example_label`,
    `predicted` (e,), `video` (e, t, h, w, c) uint8, and with a mask network `mask` (e, t', h', w'),
    `mask_classes` (e, k) and `class_masks` (e, t', h', w', k). Of the stills, where there are any:
    `mistake_id`, `mistake_still` (s, h, w, c) uint8.
  """
  num_classes = len(state.csm.matrix)
  sums, parts, room = {}, collections.defaultdict(list), dict.fromkeys(classes, CLIPS)
  for results, clips in inference.pass_over(step, state, batches):
    results = jax.device_get(results)
    ids = inference.read_id_codes(results["id"])
    labels, valid = results["label"], results["valid"].astype(bool)
    for name in [name for name in results if name.startswith(("zeros_", "responses_"))]:
      sums[name] = csm_lib.add_by_class(sums.get(name), results[name], labels, valid, num_classes)
    rows = []
    for i in np.flatnonzero(valid):
      if room.get(int(labels[i]), 0):
        room[int(labels[i])] -= 1
        rows.append(i)
    for name in [name for name in results if name == "label" or name.startswith("pooled_")]:
      parts[name].append(results[name][rows])
    for i in np.flatnonzero(valid & np.isin(ids, [*examples])).tolist():
      parts["example_id"].append(ids[i : i + 1])
      parts["example_label"].append(labels[i : i + 1])
      parts["predicted"].append(results["predicted"][i : i + 1])
      for name, value in _example(clips, i, state, examples[ids[i]]).items():
        parts[name].append(value[None])
    for i in np.flatnonzero(valid & np.isin(ids, stills)).tolist():
      frames = clips["video"]
      parts["mistake_id"].append(ids[i : i + 1])
      parts["mistake_still"].append(devices.read_row(frames[:, frames.shape[1] // 2], i)[None])
  arrays = {}
  for name in ("universal", "specific"):
    if f"zeros_{name}" in sums:
      responses = sums[f"responses_{name}"][:, None]
      counts = np.where(responses, responses, np.nan)
      arrays[f"sparsity_{name}"] = (sums[f"zeros_{name}"] / counts).astype(np.float32)
  return arrays | {name: np.concatenate(values) for name, values in parts.items()}


def _example(
  clips: Mapping[str, Array], row: int, state: TrainState, classes: Integer[np.ndarray, " k"]
) -> dict[str, np.ndarray]:
  """Returns the frames of one clip of a batch and, with a mask network, its masks."""
  arrays = {"video": devices.read_row(clips["video"], row)}
  if "mask" in clips:
    kernel = state.params["mask"]["kernel"]
    arrays["mask"] = devices.read_row(clips["mask"], row)
    arrays["mask_classes"] = classes
    arrays["class_masks"] = inference.row_masks(clips["features"], row, kernel, classes)
  return arrays


def class_similarity(csm: CategorySimilarity, one_pass: Scores) -> Float[np.ndarray, "m m"]:
  """Returns Eq. 2 as the run found it; of a run without a CSM how the one-pass model confuses.

  That is the mean score that the clips of either class give to the other.

  Args:
    csm: of the state at the end.
    one_pass: scores of the one-pass model.
  """
  if int(csm.n):
    return np.asarray(csm.similarity)
  scores, labels = one_pass.predictions["universal"], one_pass.labels
  sums = np.zeros((scores.shape[1],) * 2)
  np.add.at(sums, labels, scores)
  means = sums / np.maximum(np.bincount(labels, minlength=len(sums)), 1)[:, None]
  return ((means + means.T) / 2).astype(np.float32)


def confusing_pairs(
  similarity: Float[np.ndarray, "m m"], labels: Integer[np.ndarray, " n"], count: int
) -> Integer[np.ndarray, "p 2"]:
  """Returns the most similar pairs of classes, of those with clips: what the figures are about.

  Args:
    similarity: from `class_similarity`.
    labels: of the split.
    count: how many.
  """
  present = np.unique(labels)
  within = similarity[np.ix_(present, present)]
  pairs = [present[[i, j]] for i, j, _ in csm_lib.most_similar(within, count)]
  return np.array(pairs, np.int32).reshape(-1, 2)


def choose_examples(
  pairs: Integer[np.ndarray, "p 2"],
  one_pass: Scores,
  final: Scores,
) -> dict[str, int]:
  """Chooses for each class of the pairs a clip to show, and returns their labels by their ids.

  A clip that U2S gets right and the one-pass model does not; failing that one that U2S gets right;
  failing that any.

  Args:
    pairs: from `confusing_pairs`.
    one_pass: scores of the one-pass model.
    final: scores of the model at the end, of the same clips in the same order.
  """
  right = final.merged.argmax(1) == final.labels
  wrong_before = one_pass.predictions["universal"].argmax(1) != one_pass.labels
  rank = right.astype(int) + (right & wrong_before)
  labels = {}
  for label in dict.fromkeys(pairs.ravel().tolist()):
    clips = np.flatnonzero(final.labels == label)
    labels[str(final.ids[clips[rank[clips].argmax()]])] = label
  return labels


def shown_classes(
  label: int, pairs: Integer[np.ndarray, "p 2"], similarity: Float[np.ndarray, "m m"]
) -> Integer[np.ndarray, " k"]:
  """Returns the classes whose masks of an example are shown: its own, its partner, three others.

  The others are the least similar, the middle one, and the most similar outside the pair.

  Args:
    label: the example's class.
    pairs: from `confusing_pairs`.
    similarity: from `class_similarity`.
  """
  partner = next(int(pair[pair != label][0]) for pair in pairs if label in pair)
  order = [
    int(j) for j in np.argsort(-similarity[label], kind="stable") if j not in (label, partner)
  ]
  picks = [order[0], order[len(order) // 2], order[-1]] if len(order) >= OTHERS else order
  return np.array([label, partner, *picks], np.int32)


def gather(
  one_pass_arrays: dict[str, np.ndarray],
  final_arrays: dict[str, np.ndarray],
  pairs: Integer[np.ndarray, "p 2"],
  state: TrainState,
  class_names: Sequence[str],
) -> dict[str, np.ndarray]:
  """Returns what the file holds, from what `collect` returned for the one-pass and the final model.

  Args:
    one_pass_arrays: of the one-pass model.
    final_arrays: of `state`.
    pairs: from `confusing_pairs`.
    state: at the end.
    class_names: in the order of the labels.
  """
  arrays = {"class_names": np.array(class_names, str), "pairs": pairs}
  arrays |= {
    f"{key.removesuffix('universal')}one_pass": value
    for key, value in one_pass_arrays.items()
    if key in ("sparsity_universal", "pooled_universal")
  }
  arrays |= final_arrays
  if int(state.csm.n):
    arrays |= {
      "csm": np.asarray(state.csm.matrix),
      "similarity": np.asarray(state.csm.similarity),
      "topn_accuracy": np.asarray(state.csm.topn_accuracy),
    }
  if "mask" in state.params:
    arrays["mask_kernel"] = np.asarray(state.params["mask"]["kernel"])
  return arrays
