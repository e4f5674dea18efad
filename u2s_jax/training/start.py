"""A stage's first state: random or loaded weights, the stage before, and the CSM."""

from typing import Any

import jax
import numpy as np

from u2s_jax import csm as csm_lib
from u2s_jax import devices, files, metrics, saved_config, settings
from u2s_jax.console import log
from u2s_jax.csm import CategorySimilarity
from u2s_jax.errors import UserError
from u2s_jax.evaluation import evaluate, inference, results
from u2s_jax.pretrained import adapt
from u2s_jax.run import TRAIN_SPLIT, VALIDATION_SPLIT, Run
from u2s_jax.stages import STAGES, Stage
from u2s_jax.state import TrainState
from u2s_jax.training.rate import Plateau, record

NUM_SIMILAR = 5  # most similar pairs of classes to show


def begin_stage(
  run: Run, stage: Stage, previous: TrainState | None
) -> tuple[TrainState, dict[str, Any]]:
  """Makes a stage's first state and record, and saves them at once.

  So the CSM is computed, and `init_from` read, once for a stage and never again.

  Args:
    run: the run.
    stage: that begins.
    previous: the last state of the stage before, None for the first stage.

  Raises:
    UserError: weights that do not fit, a class without a clip, or a part to train, of this stage or
      a later one, that is not there.
  """
  if previous is None:
    run.shapes(STAGES[-1])  # says now, not behind stage 1, what a later stage would not find
  similarity = None
  if stage.name == "specific" and stage.regularized:
    similarity = category_similarity(run, previous)
  begin = jax.jit(run.begin(stage), out_shardings=devices.replicated(devices.data_mesh()))
  state = begin(previous)
  if previous is None and not run.config.init_from and "render" not in run.config.data:
    log("from random weights; --config.init_from takes others, docs/weights.md says which")
  if previous is None and run.config.init_from:
    state = start_from(run, stage, state, "universal", run.config.init_from)
  if stage.init == "pretrained":
    path = settings.pretrained_weights(run.config)
    state = start_from(run, stage, state, "specific", path)
  if similarity is not None:
    state = state.replace(csm=similarity)
  if previous is None and jax.process_index() == 0:
    # Not before: whoever corrects a wrong `init_from` may do so in the same folder.
    saved_config.write(run.workdir, run.config)
  first = record(run, stage, Plateau())
  run.checkpoints.save(stage.name, 0, state, first)
  return state, first


def start_from(run: Run, stage: Stage, state: TrainState, network: str, path: str) -> TrainState:
  """Returns the state with weights from elsewhere in one of the networks.

  Args:
    run: the run.
    stage: that begins.
    state: its first state.
    network: 'universal', with the trunk, or 'specific', which takes the UN's weights.
    path: as `init_from`.

  Raises:
    UserError: weights that do not fit.
  """
  trees = {
    key: {"trunk": getattr(state, key)["trunk"], "universal": getattr(state, key)[network]}
    for key in ("params", "batch_stats")
  }
  params, batch_stats = adapt.load(
    files.weights(path),
    **trees,
    target=adapt.Target(
      backbone=run.config.model.backbone.to_dict(),
      class_names=run.source.class_names,
      needs_classifier=stage.epochs == 0,
    ),
    log=log,
  )
  weights = {"params": params, "batch_stats": batch_stats}
  weights = jax.device_put(weights, devices.replicated(devices.data_mesh()))
  new = {key: {network: tree["universal"]} for key, tree in weights.items()}
  if network == "universal":
    new = weights
  return state.replace(**{key: {**getattr(state, key), **new[key]} for key in new})


def category_similarity(run: Run, state: TrainState) -> CategorySimilarity:
  """Computes the CSM of the one-pass model (Section III-A).

  Sparsity is measured over the training set; N is read off the validation split, centre view: the
  paper does not say, and on the training set the accuracy is that of what was learned by heart.

  Args:
    run: the run.
    state: after stage 1.

  Returns:
    The CSM, replicated over the devices.

  Raises:
    UserError: a class without a training clip.
  """
  log("category similarity matrix: one pass over the training set")
  names, zeros, responses = run.source.class_names, None, None
  step = inference.sparsity_step(run.network)
  batches = run.source.eval_batches(TRAIN_SPLIT, "center")
  for counted in inference.pass_over(step, state, batches):
    counted = jax.device_get(counted)
    clips = counted["label"], counted["valid"].astype(bool), len(names)
    zeros = csm_lib.add_by_class(zeros, counted["zeros"], *clips)
    responses = csm_lib.add_by_class(responses, counted["responses"], *clips)
  missing = [name for name, count in zip(names, responses, strict=True) if not count]
  if missing:
    raise UserError(f"split {TRAIN_SPLIT}: no clip of class {missing[0]!r}; the CSM needs all")
  scores = evaluate.score(run, state, "center", VALIDATION_SPLIT)
  curve = metrics.top_n_curve(scores.predictions["universal"], scores.labels)
  n = run.config.csm.n or csm_lib.confusing_count(curve, run.config.csm.target_accuracy)
  sparsity = csm_lib.class_sparsity(zeros, responses)
  similarity = csm_lib.similarity_matrix(sparsity, run.config.csm.distance)
  alpha = csm_lib.threshold(similarity, n)
  matrix = csm_lib.binarize(similarity, alpha)
  log(
    f"  N = {n} (top-{n} accuracy {100 * curve[n - 1]:.1f} %), alpha = {alpha:.4f},"
    f" {results.average_confusing(matrix):.2f} confusing classes a class; most similar:"
  )
  for i, j, value in csm_lib.most_similar(similarity, NUM_SIMILAR):
    log(f"    {value:.4f}  {names[i]} / {names[j]}")
  csm = CategorySimilarity(
    matrix=matrix,
    similarity=similarity.astype(np.float32),
    topn_accuracy=curve.astype(np.float32),
    alpha=np.float32(alpha),
    n=np.int32(n),
  )
  return jax.device_put(csm, devices.replicated(devices.data_mesh()))
