"""What the report's figures of features and masks are made of, collected from a trained run.

Written beside the scores as `<workdir>/analysis/<split>.npz`; the report reads it, never the model.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Integer

from u2s_jax import csm as csm_lib
from u2s_jax.csm import CategorySimilarity
from u2s_jax.evaluation import inference
from u2s_jax.evaluation.scores import Scores
from u2s_jax.state import TrainState

CLIPS = 200  # of a class of a pair: pooled features that are kept for t-SNE
MISTAKES = 40  # most confident ones whose stills are kept
OTHERS = 3  # classes outside the pair whose masks of an example are kept, as in Fig. 6


def collect(
  step: inference.Step,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  *,
  classes: Sequence[int],
  examples: Sequence[str] = (),
  stills: Sequence[str] = (),
) -> dict[str, np.ndarray]:
  """Passes once over a split.

  Args:
    step: of `inference.analysis_step`.
    state: the networks.
    batches: of this host, the centre view alone: see `run.Source`.
    classes: whose clips' pooled features are kept, of the first 200 clips each.
    examples: ids of clips whose frames and masks are kept.
    stills: ids of clips whose middle frame is kept.

  Returns:
    For each network, 'universal' and behind stage 1 'specific', the class sparsity of Eq. 1
    `sparsity_*` (m, c), NaN for a class without a clip, and `pooled_*` (k, c) of the kept clips,
    whose `label` is (k,). Of the examples, where there are any: `example_id`, `example_label`,
    `predicted` (e,), `video` (e, t, h, w, c) uint8, and with a mask network `mask` (e, t', h', w')
    and `masks` (e, t', h', w', m). Of the stills, where there are any: `mistake_id`,
    `mistake_still` (s, h, w, c) uint8.
  """
  sums, kept, shown, frames, room = {}, [], [], [], dict.fromkeys(classes, CLIPS)
  for results in inference.pass_over(step, state, batches):
    ids = inference.read_id_codes(np.asarray(results["id"]))
    labels, valid = (np.asarray(results[name]) for name in ("label", "valid"))
    for name in [name for name in results if name.startswith(("zeros_", "responses_"))]:
      sums[name] = sums.get(name, 0) + np.asarray(results[name], np.int64)
    rows = []
    for i in np.flatnonzero(valid):
      if room.get(int(labels[i]), 0):
        room[int(labels[i])] -= 1
        rows.append(i)
    pooled = {key: np.asarray(results[key])[rows] for key in results if key.startswith("pooled_")}
    kept.append({"label": labels[rows], **pooled})
    rows = np.flatnonzero(valid & np.isin(ids, examples))
    if rows.size:
      names = [name for name in ("predicted", "mask", "masks", "video") if name in results]
      fields = {name: np.asarray(results[name])[rows] for name in names}
      shown.append({"example_id": ids[rows], "example_label": labels[rows], **fields})
    rows = np.flatnonzero(valid & np.isin(ids, stills))
    if rows.size:
      video = np.asarray(results["video"])[rows]
      frames.append({"mistake_id": ids[rows], "mistake_still": video[:, video.shape[1] // 2]})
  arrays = {}
  for name in ("universal", "specific"):
    if f"zeros_{name}" in sums:
      responses = sums[f"responses_{name}"][:, None]
      counts = np.where(responses, responses, np.nan)
      arrays[f"sparsity_{name}"] = (sums[f"zeros_{name}"] / counts).astype(np.float32)
  for parts in (kept, shown, frames):
    for key in parts[0] if parts else ():
      arrays[key] = np.concatenate([part[key] for part in parts])
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
) -> list[str]:
  """Chooses for each class of the pairs a clip to show, and returns the ids.

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
  ids = []
  for label in dict.fromkeys(pairs.ravel().tolist()):
    clips = np.flatnonzero(final.labels == label)
    ids.append(str(final.ids[clips[rank[clips].argmax()]]))
  return ids


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
  similarity: Float[np.ndarray, "m m"],
  state: TrainState,
  class_names: Sequence[str],
) -> dict[str, np.ndarray]:
  """Returns what the file holds, from what `collect` returned for the one-pass and the final model.

  Of each example only the masks of its `shown_classes`, `mask_classes` (e, k), are kept, as
  `class_masks` (e, t, h, w, k).

  Args:
    one_pass_arrays: of the one-pass model.
    final_arrays: of `state`.
    pairs: from `confusing_pairs`.
    similarity: from `class_similarity`.
    state: at the end.
    class_names: in the order of the labels.
  """
  arrays = {"class_names": np.array(class_names, str), "pairs": pairs}
  arrays |= {
    f"{key.removesuffix('universal')}one_pass": value
    for key, value in one_pass_arrays.items()
    if key in ("sparsity_universal", "pooled_universal")
  }
  arrays |= {key: value for key, value in final_arrays.items() if key != "masks"}
  if int(state.csm.n):
    arrays |= {
      "csm": np.asarray(state.csm.matrix),
      "similarity": np.asarray(state.csm.similarity),
      "topn_accuracy": np.asarray(state.csm.topn_accuracy),
    }
  if "mask" in state.params:
    arrays["mask_kernel"] = np.asarray(state.params["mask"]["kernel"])
  if "masks" in final_arrays:
    chosen = [
      shown_classes(int(label), pairs, similarity) for label in final_arrays["example_label"]
    ]
    arrays["mask_classes"] = np.stack(chosen)
    arrays["class_masks"] = np.stack(
      [masks[..., classes] for masks, classes in zip(final_arrays["masks"], chosen, strict=True)]
    )
  return arrays
