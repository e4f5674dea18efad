"""The first state of a stage: random or pretrained weights, the previous stage, and the CSM."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from u2s_jax import csm as csm_lib
from u2s_jax.csm import CategorySimilarity
from u2s_jax.evaluation import evaluate, inference, metrics, results
from u2s_jax.pretrained import adapt, read
from u2s_jax.pretrained.names import Pixels
from u2s_jax.run import saved_config, settings
from u2s_jax.run.run import TRAIN_SPLIT, VALIDATION_SPLIT, Run
from u2s_jax.run.state import TrainState
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices, files
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import STAGES, Plateau, Stage

NUM_SIMILAR = 5  # pairs of most similar classes to log


def begin_stage(
  run: Run,
  stage: Stage,
  previous: TrainState | None,
  previous_metadata: Mapping[str, Any] | None,
) -> tuple[TrainState, dict[str, Any]]:
  """Creates and saves the first state of a stage and its metadata.

  Args:
    previous: the last state of the previous stage, None for stage 1.

  Raises:
    UserError: if weights do not fit, a class has no clip, or a trainable part of any stage does not
      exist.
  """
  is_first = previous is None
  if is_first:
    # Raises for parts that do not exist in stages 2 and 3 now, not after hours of stage 1.
    run.eval_shapes(STAGES[-1])
  similarity = None
  if stage.name == "specific" and stage.regularized:
    similarity = compute_similarity(run, previous)
  replicated = devices.replicated_sharding(devices.data_mesh())
  state = jax.jit(run.make_init(stage), out_shardings=replicated)(previous)
  checksum = (previous_metadata or {}).get("start")
  if is_first and run.config.init_from:
    state, checksum = load_pretrained(run, stage, state)
  elif is_first and "render" not in run.config.data:  # no weights suit a rendered data set
    log(
      "training from scratch; set init_from to start from pretrained weights, see docs/weights.md"
    )
  if stage.init == "pretrained":
    state = set_weights(run, state, "specific", read_start(run, checksum))
  if similarity is not None:
    state = state.replace(csm=similarity)
  if is_first and jax.process_index() == 0:
    # After `init_from` is accepted, so that a wrong one can be corrected in the same workdir, and
    # before the first checkpoint, because a run with checkpoints but no config cannot be resumed.
    saved_config.write(run.workdir, run.config)
  metadata = make_metadata(run, stage, Plateau()) | {"start": checksum}
  # Saved at step 0, so that a resumed run never computes the CSM or reads `init_from` again.
  run.checkpoints.save(stage.name, 0, state, metadata)
  return state, metadata


def make_metadata(
  run: Run, stage: Stage, plateau: Plateau, best: float | None = None, *, validated: bool = True
) -> dict[str, Any]:
  """Returns the metadata saved with a state, JSON serializable.

  Args:
    best: top-1 accuracy of the stage's best checkpoint in percent, None if none is kept.
    validated: False if a validation is due before the next step.
  """
  return {
    "validated": validated,
    "plateau": dataclasses.asdict(plateau),
    "best": best,
    "total_steps": run.count_steps(stage),
    "stored": dict(run.source.stored),
    "data_digest": run.source.digest,
    "pixels": [run.network.pixel_mean, run.network.pixel_std],
  }


def load_pretrained(run: Run, stage: Stage, state: TrainState) -> tuple[TrainState, str | None]:
  """Returns stage 1's first state with the weights of `init_from`, and the checksum of the start.

  The start, `Workdir.start`, is a copy of the weights for the category-specific network. These are
  those of `init_from`, unless `init_from` is another run whose stage 1 is reused (0 epochs): then
  they are the weights that the other run started from.

  The checksum is None if the run needs no start.

  Raises:
    UserError: if the weights do not fit.
  """
  reuses_stage1 = stage.epochs == 0
  weights = read.read(files.resolve_weights(run.config.init_from), one_pass=reuses_stage1)
  target = make_target(run, needs_classifier=reuses_stage1)
  adapt.check(weights, state.params, target, log)
  loaded = set_weights(run, state, "universal", weights)
  if reuses_stage1 and run.stages[1].init != "pretrained":
    return loaded, None
  if reuses_stage1:
    weights = _read_origin(run, state)
  # The checksum is that of host 0, because the file contains the path of the weights, which may
  # differ between hosts. The other hosts broadcast a placeholder of the same size.
  digest = bytes(32)
  if jax.process_index() == 0:
    digest = bytes.fromhex(read.write(run.workdir.start, weights))
  checksum = devices.broadcast_from_host0(np.frombuffer(digest, np.uint8)).tobytes().hex()
  log(f"  copied to {run.workdir.start}, sha256 {checksum[:16]}")
  return loaded, checksum


def _read_origin(run: Run, state: TrainState) -> read.Weights:
  """Returns the weights that the run of `init_from` started from, checked against `state`."""
  origin = Workdir.from_checkpoint_path(files.resolve_weights(run.config.init_from)).start
  # Runs of earlier versions have no such file. Host 0 decides, so that all read the same file.
  if not devices.broadcast_from_host0(origin.exists()):
    origin = files.resolve_weights(settings.find_pretrained_weights(run.config))
  weights = read.read(origin)
  adapt.check(weights, state.params, make_target(run), log)
  # The result is used in stage 2 only; weights that do not fit raise here, before the CSM.
  adapt.fit(weights, *select_one_pass(state), make_target(run), log=lambda line: None)
  return weights


def read_start(run: Run, checksum: str | None) -> read.Weights:
  """Returns the weights that the category-specific network starts from, `Workdir.start`.

  Args:
    checksum: None for runs of earlier versions, which have no such file: `init_from` is read again.

  Raises:
    UserError: if the file is missing or differs from the one that the run wrote.
  """
  path = run.workdir.start
  if checksum is None:
    return read.read(files.resolve_weights(settings.find_pretrained_weights(run.config)))
  if not path.exists() or read.checksum(path) != checksum:
    raise UserError(
      f"{path}: missing or changed since the run began (sha256 {checksum[:16]}); restore the file"
      " or start again in another workdir"
    )
  return read.read(path)


def select_one_pass(
  state: TrainState, network: str = "universal"
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns parameters and statistics of trunk and `network`, named as in the one-pass model."""
  names = {"trunk": "trunk", "universal": network}  # a subnetwork may lack statistics
  return tuple(
    {name: tree[source] for name, source in names.items() if source in tree}
    for tree in (state.params, state.batch_stats)
  )


def make_target(run: Run, *, needs_classifier: bool = False) -> adapt.Target:
  """Returns what `adapt` needs to know about the run that loads weights."""
  return adapt.Target(
    backbone=run.config.model.backbone.to_dict(),
    class_names=run.source.class_names,
    needs_classifier=needs_classifier,
    pixels=Pixels(run.network.pixel_mean, run.network.pixel_std),
  )


def set_weights(run: Run, state: TrainState, network: str, weights: read.Weights) -> TrainState:
  """Returns the state with the weights of a one-pass model in one of the networks.

  Args:
    network: 'universal', including the trunk, or 'specific', which takes the weights of the
      universal network.

  Raises:
    UserError: if the weights do not fit.
  """
  fitted = adapt.fit(weights, *select_one_pass(state, network), make_target(run), log)
  fitted = jax.device_put(fitted, devices.replicated_sharding(devices.data_mesh()))
  if network == "specific":
    fitted = ({network: tree["universal"]} if "universal" in tree else {} for tree in fitted)
  params, batch_stats = fitted
  return state.replace(params=state.params | params, batch_stats=state.batch_stats | batch_stats)


def compute_similarity(run: Run, state: TrainState) -> CategorySimilarity:
  """Computes the CSM of the one-pass model (Section III-A), replicated over the devices.

  Sparsity is measured on the training set, and N on the centre views of the validation split. The
  paper does not specify the split for N; training accuracy would reflect memorization.

  Raises:
    UserError: if a class has no training clip.
  """
  log("category similarity matrix: one pass over the training set")
  sparsity = _measure_sparsity(run, state)
  scores = evaluate.score(run, state, "center", VALIDATION_SPLIT)
  curve = metrics.top_n_curve(scores.predictions["universal"], scores.labels)
  n = run.config.csm.n or csm_lib.confusing_count(curve, run.config.csm.target_accuracy)
  similarity = csm_lib.similarity_matrix(sparsity, run.config.csm.distance)
  alpha = csm_lib.threshold(similarity, n)
  matrix = csm_lib.binarize(similarity, alpha)
  log(
    f"  N = {n} (top-{n} accuracy {100 * curve[n - 1]:.1f} %), alpha = {alpha:.4f},"
    f" {results.count_average_confusing(matrix):.2f} confusing classes per class; most similar:"
  )
  names = run.source.class_names
  for i, j, value in csm_lib.find_most_similar(similarity, NUM_SIMILAR):
    log(f"    {value:.4f}  {names[i]} / {names[j]}")
  csm = CategorySimilarity(
    matrix=matrix,
    similarity=similarity.astype(np.float32),
    topn_accuracy=curve.astype(np.float32),
    alpha=np.float32(alpha),
    n=np.int32(n),
  )
  return jax.device_put(csm, devices.replicated_sharding(devices.data_mesh()))


def _measure_sparsity(run: Run, state: TrainState) -> np.ndarray:
  """Returns the channel sparsity of each class (m, c) over the training set."""
  names, zeros, responses = run.source.class_names, None, None
  step = inference.jit_sparsity_step(run.network)
  batches = run.source.scoring_batches(TRAIN_SPLIT, "center")
  for counts in inference.iterate_outputs(step, state, batches):
    counts = jax.device_get(counts)
    clips = counts["label"], counts["valid"].astype(bool), len(names)
    zeros = csm_lib.add_by_class(zeros, counts["zeros"], *clips)
    responses = csm_lib.add_by_class(responses, counts["responses"], *clips)
  missing = [name for name, count in zip(names, responses, strict=True) if not count]
  if missing:
    raise UserError(
      f"split {TRAIN_SPLIT}: no clip of class {missing[0]!r}; the CSM requires at least one clip of"
      " every class"
    )
  return csm_lib.class_sparsity(zeros, responses)
