"""What the report's figures of features and masks are made of, collected from a trained run.

Written beside the scores as `<workdir>/analysis/<split>.npz`; the report reads it, never the model.
"""

from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Integer

from u2s_jax import compiling, evaluate, sharding
from u2s_jax import csm as csm_lib
from u2s_jax.state import CategorySimilarity, TrainState

CLIPS = 200  # of a class of a pair: pooled features that are kept for t-SNE
OTHERS = 3  # classes outside the pair whose masks of an example are kept, as in Fig. 6


def compile_step(step: Callable[..., dict[str, jax.Array]], mesh: Mesh) -> Callable:
  """Jits a step of `steps.make_analysis_step`; every host gets the whole batch's figures."""

  def run(state, batch):
    return step(state, batch), batch

  return jax.jit(run, out_shardings=sharding.replicated(mesh), compiler_options=compiling.options())


def collect(
  run: Callable,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  mesh: Mesh,
  *,
  classes: Sequence[int],
  examples: Sequence[str],
) -> dict[str, np.ndarray]:
  """One pass over a split.

  Args:
    run: from `compile_step`.
    state: the networks.
    batches: of this host, the centre view alone: see `train.Data`.
    mesh: all devices.
    classes: whose clips' pooled features are kept, of the first 200 clips each.
    examples: ids of clips whose frames and masks are kept.

  Returns:
    For each network, 'universal' and behind stage 1 'specific', the class sparsity of Eq. 1
    `sparsity_*` (m, c), NaN for a class without a clip, and `pooled_*` (k, c) of the kept clips,
    whose `label` is (k,). Of the examples, where there are any: `example_id`, `example_label`,
    `predicted` (e,), `video` (e, t, h, w, c) uint8, and with a mask network `mask` (e, t', h', w')
    and `masks` (e, t', h', w', m).
  """
  sums, kept, shown, room = {}, [], [], dict.fromkeys(classes, CLIPS)
  for batch in batches:
    batch = {**batch, "id": evaluate.id_codes(batch["id"])}
    found, batch = run(state, sharding.global_batch(batch, mesh))
    ids, labels = evaluate.read_id_codes(np.asarray(batch["id"])), np.asarray(batch["label"])
    real = np.asarray(batch["mask"]).astype(bool)
    for name in [name for name in found if name.startswith(("zeros_", "responses_"))]:
      sums[name] = sums.get(name, 0) + np.asarray(found[name], np.int64)
    rows = []
    for i in np.flatnonzero(real):
      if room.get(int(labels[i]), 0):
        room[int(labels[i])] -= 1
        rows.append(i)
    pooled = {key: np.asarray(found[key])[rows] for key in found if key.startswith("pooled_")}
    kept.append({"label": labels[rows], **pooled})
    rows = np.flatnonzero(real & np.isin(ids, examples))
    if rows.size:
      fields = {key: found[key] for key in ("predicted", "mask", "masks") if key in found}
      fields |= {"example_label": labels, "video": batch["video"][:, 0]}
      shown.append({"example_id": ids[rows]} | {k: np.asarray(v)[rows] for k, v in fields.items()})
  arrays = {}
  for name in ("universal", "specific"):
    if f"zeros_{name}" in sums:
      responses = sums[f"responses_{name}"][:, None]
      counts = np.where(responses, responses, np.nan)
      arrays[f"sparsity_{name}"] = (sums[f"zeros_{name}"] / counts).astype(np.float32)
  for parts in (kept, shown):
    for key in parts[0] if parts else ():
      arrays[key] = np.concatenate([part[key] for part in parts])
  return arrays


def class_similarity(
  csm: CategorySimilarity, one_pass: dict[str, np.ndarray]
) -> Float[np.ndarray, "m m"]:
  """Eq. 2 as the run found it; of a run without a CSM how much the one-pass model confuses them.

  That is the mean score that the clips of either class give to the other.

  Args:
    csm: of the state at the end.
    one_pass: scores of the one-pass model, as of `evaluate.score`.
  """
  if int(csm.n):
    return np.asarray(csm.similarity)
  scores, labels = one_pass["universal"], one_pass["label"]
  sums = np.zeros((scores.shape[1],) * 2)
  np.add.at(sums, labels, scores)
  means = sums / np.maximum(np.bincount(labels, minlength=len(sums)), 1)[:, None]
  return ((means + means.T) / 2).astype(np.float32)


def confusing_pairs(
  similarity: Float[np.ndarray, "m m"], labels: Integer[np.ndarray, " n"], count: int
) -> Integer[np.ndarray, "p 2"]:
  """The most similar pairs of classes, of those with clips: what the figures are about.

  Args:
    similarity: from `class_similarity`.
    labels: of the split.
    count: how many.
  """
  there = np.unique(labels)
  within = similarity[np.ix_(there, there)]
  pairs = [there[[i, j]] for i, j, _ in csm_lib.most_similar(within, count)]
  return np.array(pairs, np.int32).reshape(-1, 2)


def choose_examples(
  pairs: Integer[np.ndarray, "p 2"],
  one_pass: dict[str, np.ndarray],
  final: dict[str, np.ndarray],
) -> list[str]:
  """For each class of the pairs the id of a clip to show.

  A clip that U2S gets right and the one-pass model does not; failing that one that U2S gets right;
  failing that any.

  Args:
    pairs: from `confusing_pairs`.
    one_pass: scores of the one-pass model, as of `evaluate.score`.
    final: scores of the model at the end, of the same clips in the same order.
  """
  right = evaluate.merged(final).argmax(1) == final["label"]
  wrong_before = one_pass["universal"].argmax(1) != one_pass["label"]
  rank = right.astype(int) + (right & wrong_before)
  ids = []
  for label in dict.fromkeys(pairs.ravel().tolist()):
    clips = np.flatnonzero(final["label"] == label)
    ids.append(str(final["id"][clips[rank[clips].argmax()]]))
  return ids


def shown_classes(
  label: int, pairs: Integer[np.ndarray, "p 2"], similarity: Float[np.ndarray, "m m"]
) -> Integer[np.ndarray, " k"]:
  """Classes whose masks of one example are shown: its own, its partner, and up to three others.

  The others are the least similar, the middle one, and the most similar outside the pair.
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
  """What the file holds, from what `collect` returned for the one-pass and the final model.

  Of each example only the masks of its `shown_classes`, `mask_classes` (e, k), are kept, as
  `class_masks` (e, t, h, w, k).
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
