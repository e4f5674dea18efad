"""A stage's first state: random or loaded weights, the stage before, and the CSM."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from u2s_jax import csm as csm_lib
from u2s_jax import devices, files, metrics, saved_config, settings
from u2s_jax.console import log
from u2s_jax.csm import CategorySimilarity
from u2s_jax.errors import UserError
from u2s_jax.evaluation import evaluate, inference, results
from u2s_jax.pretrained import adapt, read
from u2s_jax.pretrained.names import Pixels
from u2s_jax.run import TRAIN_SPLIT, VALIDATION_SPLIT, Run
from u2s_jax.stages import STAGES, Stage
from u2s_jax.state import TrainState
from u2s_jax.training.rate import Plateau, record
from u2s_jax.workdir import Workdir

NUM_SIMILAR = 5  # most similar pairs of classes to show


def begin_stage(
  run: Run, stage: Stage, previous: TrainState | None, before: Mapping[str, Any] | None
) -> tuple[TrainState, dict[str, Any]]:
  """Makes a stage's first state and record, and saves them at once.

  So the CSM is computed once, and `init_from` is read once: `<workdir>/start.safetensors` keeps it
  for the stage that initialises the category-specific network.

  Args:
    run: the run.
    stage: that begins.
    previous: the last state of the stage before, None for the first stage.
    before: the record saved with it.

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
  state, pinned = begin(previous), (before or {}).get("start")
  if previous is None and not run.config.init_from and "render" not in run.config.data:
    log("from random weights; init_from takes others, docs/weights.md says which")
  if previous is None and run.config.init_from:
    state, pinned = start_from(run, stage, state)
  if stage.init == "pretrained":
    state = with_weights(run, state, "specific", read_start(run, pinned))
  if similarity is not None:
    state = state.replace(csm=similarity)
  if previous is None and jax.process_index() == 0:
    # Not before: whoever corrects a wrong `init_from` may do so in the same folder.
    saved_config.write(run.workdir, run.config)
  first = record(run, stage, Plateau()) | {"start": pinned}
  run.checkpoints.save(stage.name, 0, state, first)
  return state, first


def start_from(run: Run, stage: Stage, state: TrainState) -> tuple[TrainState, str | None]:
  """Returns stage 1's first state with `init_from`'s weights, and the checksum of the run's start.

  The start, `Workdir.start`, is a copy of the weights that the category-specific network takes:
  `init_from`'s or, where stage 1 is another run's as it is, those that this run started from.

  Args:
    run: the run.
    stage: stage 1.
    state: its first state, random.

  Returns:
    The state, and the checksum that `read_start` takes; None where no start is kept.

  Raises:
    UserError: weights that do not fit.
  """
  as_it_is = stage.epochs == 0
  weights = read.read(files.weights(run.config.init_from), one_pass=as_it_is)
  target = target_of(run, needs_classifier=as_it_is)
  adapt.check(weights, state.params, target, log)
  started = with_weights(run, state, "universal", weights)
  if as_it_is and run.stages[1].init == "pretrained":
    origin = Workdir.holding(files.weights(run.config.init_from)).start
    if not devices.broadcast_from_host0(origin.exists()):  # an earlier version's run
      origin = files.weights(settings.pretrained_weights(run.config))
    weights = read.read(origin)
    adapt.check(weights, state.params, target_of(run), log)
    adapt.fit(weights, *one_pass(state), target_of(run), log=lambda line: None)
  elif as_it_is:
    return started, None
  written = bytes(32)  # on the other hosts the path in the copy may be another one
  if jax.process_index() == 0:
    written = bytes.fromhex(read.write(run.workdir.start, weights))
  pinned = devices.broadcast_from_host0(np.frombuffer(written, np.uint8)).tobytes().hex()
  log(f"  copied to {run.workdir.start}, sha256 {pinned[:16]}")
  return started, pinned


def read_start(run: Run, pinned: str | None) -> read.Weights:
  """Returns the weights that the category-specific network starts from.

  Args:
    run: the run.
    pinned: checksum of `Workdir.start`; None for a run that began before there was such a file:
      `init_from` is read again.

  Raises:
    UserError: the file is gone, or not the one that the run wrote.
  """
  path = run.workdir.start
  if pinned is None:
    return read.read(files.weights(settings.pretrained_weights(run.config)))
  if not path.exists() or read.checksum(path) != pinned:
    raise UserError(
      f"{path}: missing or changed since the run began (sha256 {pinned[:16]}); restore the file or"
      " start again in another workdir"
    )
  return read.read(path)


def one_pass(state: TrainState, network: str = "universal") -> tuple[dict, dict]:
  """Returns parameters and statistics of the trunk and of one network, under the UN's name."""
  return tuple(
    {"trunk": tree["trunk"], "universal": tree[network]}
    for tree in (state.params, state.batch_stats)
  )


def target_of(run: Run, *, needs_classifier: bool = False) -> adapt.Target:
  """Returns what weights are read for."""
  return adapt.Target(
    backbone=run.config.model.backbone.to_dict(),
    class_names=run.source.class_names,
    needs_classifier=needs_classifier,
    pixels=Pixels(run.network.pixel_mean, run.network.pixel_std),
  )


def with_weights(run: Run, state: TrainState, network: str, weights: read.Weights) -> TrainState:
  """Returns the state with weights from elsewhere in one of the networks.

  Args:
    run: the run.
    state: a stage's first state.
    network: 'universal', with the trunk, or 'specific', which takes the UN's weights.
    weights: of the one-pass model.

  Raises:
    UserError: weights that do not fit.
  """
  fitted = adapt.fit(weights, *one_pass(state, network), target_of(run), log)
  fitted = jax.device_put(fitted, devices.replicated(devices.data_mesh()))
  params, batch_stats = (
    tree if network == "universal" else {network: tree["universal"]} for tree in fitted
  )
  return state.replace(
    params={**state.params, **params}, batch_stats={**state.batch_stats, **batch_stats}
  )


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
