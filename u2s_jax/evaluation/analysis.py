"""Collects features and masks of a trained run for the report's figures.

They are written to `<workdir>/analysis/<split>.npz`; the report reads this file, never the model.
"""

import collections
import types
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Float, Integer

from u2s_jax import csm as csm_lib
from u2s_jax.csm import CategorySimilarity
from u2s_jax.evaluation import inference, overlay
from u2s_jax.evaluation.scores import Scores
from u2s_jax.run.state import TrainState
from u2s_jax.runtime import devices

MAX_CLIPS = 200  # clips of a class whose pooled features are kept for t-SNE
MAX_MISTAKES = 40  # misclassified clips whose frames are kept, see `results.likely_mislabelled`
LOOP_FRAMES, LOOP_HEIGHT = 8, 112  # of these clips
NUM_OTHERS = 3  # classes outside the pair whose masks of an example are kept, as in Fig. 6


def collect(
  step: inference.AnalysisStep,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  *,
  classes: Sequence[int],
  examples: Mapping[str, Integer[np.ndarray, " k"]] = types.MappingProxyType({}),
  mistakes: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """Collects class sparsity, pooled features and clips to show in one pass over a split.

  Args:
    step: the step of `inference.jit_analysis_step`.
    batches: this host's batches of the centre view, see `run.Source`.
    classes: classes whose pooled features are kept, of the first 200 clips each.
    examples: for the id of each clip whose frames and masks are kept, the classes of these masks;
      equally many for each clip, see `select_mask_classes`.
    mistakes: ids of clips of which a few small frames are kept.

  Returns:
    For each network, 'universal' and after stage 1 'specific', the class sparsity of Eq. 1
    `sparsity_*` (m, c), NaN for a class without a clip, and `pooled_*` (k, c) of the kept clips,
    whose `label` is (k,). If examples were found: `example_id`, `example_label`, `predicted` (e,),
    `video` (e, t, h, w, c) uint8, and with a mask network `mask` (e, t', h', w'), `mask_classes`
    (e, k) and `class_masks` (e, t', h', w', k). If mistakes were found: `mistake_id`,
    `mistake_clip` (s, f, h, w, 3) uint8.
  """
  num_classes = len(state.csm.matrix)
  sums, parts, remaining = {}, collections.defaultdict(list), dict.fromkeys(classes, MAX_CLIPS)
  for results, clips in inference.iterate_outputs(step, state, batches):
    results = jax.device_get(results)
    ids = inference.decode_ids(results["id"])
    labels, valid = results["label"], results["valid"].astype(bool)
    for name in [name for name in results if name.startswith(("zeros_", "responses_"))]:
      sums[name] = csm_lib.add_by_class(sums.get(name), results[name], labels, valid, num_classes)
    rows = []
    for i in np.flatnonzero(valid):
      if remaining.get(int(labels[i]), 0):
        remaining[int(labels[i])] -= 1
        rows.append(i)
    for name in [name for name in results if name == "label" or name.startswith("pooled_")]:
      parts[name].append(results[name][rows])
    # All hosts see the same rows, and read them together: the clips are sharded over the devices.
    for i in np.flatnonzero(valid & np.isin(ids, [*examples])).tolist():
      parts["example_id"].append(ids[i : i + 1])
      parts["example_label"].append(labels[i : i + 1])
      parts["predicted"].append(results["predicted"][i : i + 1])
      for name in [name for name in ("video", "mask") if name in clips]:
        parts[name].append(devices.read_row(clips[name], i)[None])
      if "mask" in clips:
        kernel, shown = state.params["mask"]["kernel"], examples[ids[i]]
        parts["mask_classes"].append(shown[None])
        masks = inference.read_row_masks(clips["features"], i, kernel, shown)
        parts["class_masks"].append(masks[None])
    for i in np.flatnonzero(valid & np.isin(ids, mistakes)).tolist():
      clip = overlay.to_rgb(devices.read_row(clips["video"], i))
      parts["mistake_id"].append(ids[i : i + 1])
      parts["mistake_clip"].append(overlay.shrink(clip, LOOP_FRAMES, LOOP_HEIGHT)[None])
  arrays = {}
  for name in ("universal", "specific"):
    if f"zeros_{name}" in sums:
      responses = sums[f"responses_{name}"][:, None]
      counts = np.where(responses, responses, np.nan)
      arrays[f"sparsity_{name}"] = (sums[f"zeros_{name}"] / counts).astype(np.float32)
  return arrays | {name: np.concatenate(values) for name, values in parts.items()}


def class_similarity(csm: CategorySimilarity, one_pass: Scores) -> Float[np.ndarray, "m m"]:
  """Returns the similarity of all pairs of classes.

  Eq. 2 if the run computed a CSM; otherwise, from the scores of the one-pass model, the mean score
  that the clips of either class give to the other.
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
  """Returns the `count` most similar pairs among the classes that occur in `labels`."""
  present = np.unique(labels)
  similarity = similarity[np.ix_(present, present)]
  pairs = [present[[i, j]] for i, j, _ in csm_lib.find_most_similar(similarity, count)]
  return np.array(pairs, np.int32).reshape(-1, 2)


def choose_examples(
  pairs: Integer[np.ndarray, "p 2"],
  one_pass: Scores,
  final: Scores,
) -> dict[str, int]:
  """Chooses one clip to show for each class of the pairs.

  The first clip of the class that U2S classifies correctly and the one-pass model does not; if
  there is none, the first that U2S classifies correctly; otherwise the first. Both scores are of
  the same clips in the same order.

  Returns:
    The chosen clips' labels by their ids.
  """
  is_correct = final.merged.argmax(1) == final.labels
  was_wrong = one_pass.predictions["universal"].argmax(1) != one_pass.labels
  rank = is_correct.astype(int) + (is_correct & was_wrong)
  labels = {}
  for label in dict.fromkeys(pairs.ravel().tolist()):
    clips = np.flatnonzero(final.labels == label)
    labels[str(final.ids[clips[rank[clips].argmax()]])] = label
  return labels


def select_mask_classes(
  label: int, pairs: Integer[np.ndarray, "p 2"], similarity: Float[np.ndarray, "m m"]
) -> Integer[np.ndarray, " k"]:
  """Returns the classes whose masks are shown for an example: its own, its partner, three others.

  The others are, outside the pair, the most similar class, the median one and the least similar.
  """
  partner = next(int(pair[pair != label][0]) for pair in pairs if label in pair)
  order = [
    int(j) for j in np.argsort(-similarity[label], kind="stable") if j not in (label, partner)
  ]
  others = [order[0], order[len(order) // 2], order[-1]] if len(order) >= NUM_OTHERS else order
  return np.array([label, partner, *others], np.int32)
