"""Evaluation on the devices: steps, which are pure functions, and the pass over a split."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from u2s_jax import csm as csm_lib
from u2s_jax.evaluation.scores import Scores
from u2s_jax.models.mask import class_masks
from u2s_jax.models.network import Network, softmax_scores
from u2s_jax.models.network import mirror as mirror_video
from u2s_jax.run.state import TrainState
from u2s_jax.runtime import devices, distributed, signals
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import PREDICTIONS
from u2s_jax.video.listing import MAX_ID_BYTES

Batch = dict[str, Array]
Step = Callable[[TrainState, Batch], dict[str, Array]]
AnalysisStep = Callable[[TrainState, Batch], tuple[dict[str, Array], dict[str, Array]]]
T = TypeVar("T")


def make_score_step(network: Network, mirrors: Sequence[tuple[int, ...] | None]) -> Step:
  """Returns a function that computes the scores of a batch.

  Args:
    mirrors: one entry per view: None, or for a mirrored view the class that each class turns into,
      by which its scores are mapped back. The k-th mirrored view is the k-th crop, mirrored on the
      device.

  Returns:
    (state, batch with `video` (n, crops, t, h, w, c) and `label` (n,)) -> for each prediction the
    softmax scores (n, m), averaged over the views. Labels are read only if they guide the masks; in
    a mirrored view they are mirrored as well. Raises ValueError if the number of crops is not the
    one that `mirrors` implies.
  """
  columns = [None if mirror is None else np.array(mirror) for mirror in mirrors]
  is_mirrored = np.array([mirror is not None for mirror in mirrors])
  crop_of_view = np.where(is_mirrored, np.cumsum(is_mirrored), np.cumsum(~is_mirrored)) - 1
  num_crops = crop_of_view.max() + 1

  def step(state, batch):
    crops, label = jnp.moveaxis(batch["video"], 1, 0), batch["label"]
    if len(crops) != num_crops:
      raise ValueError(f"video: {len(crops)} crops of a clip; must be {num_crops}")

    def one_view(view):
      crop, is_mirrored_view, labels = view
      video = crops[crop]
      if is_mirrored.any():
        video = jnp.where(is_mirrored_view, mirror_video(video), video)
      outputs, _ = network(state.params, state.batch_stats, state.csm, video, labels)
      return softmax_scores(outputs, PREDICTIONS)

    # One view at a time: ten at once would take ten times the memory.
    labels = [label if mirror is None else jnp.asarray(mirror)[label] for mirror in columns]
    views = jnp.asarray(crop_of_view), jnp.asarray(is_mirrored), jnp.stack(labels)
    by_view = jax.lax.map(one_view, views)

    def average(scores):
      mapped = [
        scores[i] if mirror is None else scores[i][:, mirror] for i, mirror in enumerate(columns)
      ]
      return jnp.mean(jnp.stack(mapped), axis=0)

    return {name: average(scores) for name, scores in by_view.items()}

  return step


def make_analysis_step(network: Network) -> AnalysisStep:
  """Returns a function that computes features and masks for the report's figures.

  Returns:
    (state, batch with centre views (n, 1, t, h, w, c)) -> two dicts. The first is read for every
    clip: `predicted` (n,), the universal network's class; for each network 'universal' and, after
    stage 1, 'specific': `pooled_*` (n, c), the features that its classifier reads, `zeros_*` (n, c)
    and `responses_*` (n,) as in `make_sparsity_step`. The second is read for a few clips, with
    `devices.read_row` and `read_row_masks`: `video` (n, t, h, w, c); with a mask network `mask`
    (n, t', h', w'), which multiplies the specific features, and `features` (n, t', h', w', c), the
    input of the mask network.
  """

  def step(state, batch):
    video = batch["video"][:, 0]
    outputs, _ = network(state.params, state.batch_stats, state.csm, video, batch["label"])
    results, clips = {"predicted": jnp.argmax(outputs["universal"], axis=-1)}, {"video": video}
    for name in ("universal", "specific"):
      if f"{name}_features" in outputs:
        counts = _zero_responses(outputs[f"{name}_features"])
        results |= {f"{key}_{name}": values for key, values in counts.items()}
    results |= {f"pooled_{name}": values for name, values in _pooled(outputs).items()}
    if "mask" in outputs:
      clips["mask"] = outputs["mask"][..., 0].astype(jnp.float32)
      clips["features"] = outputs["universal_features"]
    return results, clips

  return step


def make_feature_step(network: Network) -> Callable[[TrainState, Array], dict[str, Array]]:
  """Returns a function that computes the pooled features that the classifiers read.

  Returns:
    (state, video (n, t, h, w, c) uint8) -> 'universal' (n, c) and, after stage 1, 'specific', the
    latter masked. The masks must be guided by the universal network's prediction.
  """

  def step(state, video):
    outputs, _ = network(state.params, state.batch_stats, state.csm, video)
    return _pooled(outputs)

  return step


def make_sparsity_step(network: Network) -> Step:
  """Returns a function that computes the counts of Eq. 1, in inference mode.

  Returns:
    (state after stage 1, batch with centre views (n, 1, t, h, w, c)) -> `zeros` (n, c), the number
    of zero responses of each clip and channel, and `responses` (n,), the number of all responses of
    a channel: int32, for `csm.add_by_class`. The quotient of a class's sums is its sparsity.
  """

  def step(state, batch):
    outputs, _ = network(state.params, state.batch_stats, state.csm, batch["video"][:, 0])
    return _zero_responses(outputs["universal_features"])

  return step


def make_predict_step(network: Network) -> Callable[[TrainState, Array], dict[str, Array]]:
  """Returns a function that computes scores and masks of clips.

  Returns:
    (state, video (n, t, h, w, c) uint8) -> softmax scores (n, m) for each prediction and, with a
    mask network, `mask` (n, t', h', w'). The masks must be guided by the universal network's
    prediction.
  """

  def step(state, video):
    outputs, _ = network(state.params, state.batch_stats, state.csm, video)
    results = softmax_scores(outputs, PREDICTIONS)
    if "mask" in outputs:
      results["mask"] = outputs["mask"][..., 0].astype(jnp.float32)
    return results

  return step


def _pooled(outputs: dict[str, Array]) -> dict[str, Float[Array, "n c"]]:
  """Returns each network's pooled features, as its classifier reads them."""
  pooled = {}
  for name in ("universal", "specific"):
    features = outputs.get(f"{name}_features")
    if features is not None:
      if name == "specific" and "mask" in outputs:
        features = features * outputs["mask"]
      pooled[name] = jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32)
  return pooled


def _zero_responses(features: Float[Array, "n t h w c"]) -> dict[str, Integer[Array, "n ..."]]:
  """Returns the number of zero responses of each clip and channel, and of all of a channel."""
  responses = jnp.full(len(features), math.prod(features.shape[1:4]), jnp.int32)
  return {"zeros": csm_lib.count_zeros(features), "responses": responses}


@functools.lru_cache(maxsize=8)
def jit_score_step(network: Network, mirrors: tuple[tuple[int, ...] | None, ...]) -> Step:
  """Returns the step of `make_score_step`, jitted for all devices; cached."""
  return _jit_replicated(make_score_step(network, mirrors))


@functools.lru_cache(maxsize=8)
def jit_analysis_step(network: Network) -> AnalysisStep:
  """Returns the step of `make_analysis_step`, jitted for all devices; cached.

  Every host gets the first dict for the whole batch. The second stays sharded over the devices: it
  is large, and only a few of its rows are read.
  """
  step, mesh = make_analysis_step(network), devices.data_mesh()

  def run(state, batch):
    results, clips = step(state, batch)
    return results | _identity(batch), clips

  return _jit(run, (devices.replicated_sharding(mesh), devices.batch_sharding(mesh)))


@functools.lru_cache(maxsize=8)
def jit_sparsity_step(network: Network) -> Step:
  """Returns the step of `make_sparsity_step`, jitted for all devices; cached."""
  return _jit_replicated(make_sparsity_step(network))


def _jit_replicated(step: Step) -> Step:
  """Jits a step so that every host gets results, ids, labels and padding of the whole batch."""

  def run(state, batch):
    return step(state, batch) | _identity(batch)

  return _jit(run, devices.replicated_sharding(devices.data_mesh()))


def _jit(function: Callable, out_shardings: Any) -> Callable:
  options = devices.get_compiler_options()
  return jax.jit(function, out_shardings=out_shardings, compiler_options=options)


def _identity(batch: Batch) -> Batch:
  """Returns what identifies the clips of a batch."""
  return {key: batch[key] for key in ("id", "label", "valid")}


@functools.cache
def _row_masks_program() -> Callable[..., Float[Array, "t h w k"]]:
  def masks(features, row, kernel, classes):
    clip = devices.take_row(features, row)[None]
    return class_masks(clip, kernel[:, classes])[0].astype(jnp.float32)

  return _jit(masks, devices.replicated_sharding(devices.data_mesh()))


def read_row_masks(
  features: Float[Array, "n t h w c"],
  row: int,
  kernel: Float[Array, "c m"],
  classes: Integer[np.ndarray, " k"],
) -> Float[np.ndarray, "t h w k"]:
  """Returns the masks of some classes for one clip of a batch; to be called on all hosts.

  Args:
    features: output of `jit_analysis_step`, sharded over the devices.
    row: index of the clip in the batch.
    kernel: the mask network's.
  """
  # How XLA's matrix product on CPUs rounds depends on the width modulo 16. Padded to the M classes'
  # width modulo 16, the masks have the very bits that a product with all M classes would give.
  padded = np.resize(classes, len(classes) + (kernel.shape[1] - len(classes)) % 16)
  masks = _row_masks_program()(features, np.int32(row), kernel, padded)
  return np.asarray(masks)[..., : len(classes)]


def iterate_outputs(
  step: Callable[[TrainState, Batch], T],
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
) -> Iterator[T]:
  """Applies a jitted step of this module to this host's batches of a split.

  Yields:
    For each batch the step's results, on the device, with `label`, `valid` and the encoded `id`.

  Raises:
    UserError: if an id is longer than 256 bytes.
    Interrupted: if the process was asked to stop.
  """
  # The device gets the next batch before the results of the previous one are read, so it is never
  # idle. There are never three: each batch in flight keeps its clips in the device's memory.
  mesh, previous = devices.data_mesh(), None
  for batch in batches:
    if distributed.should_stop():
      raise signals.Interrupted("during an evaluation")
    batch = {**batch, "id": encode_ids(batch["id"])}
    results = step(state, devices.make_global_batch(batch, mesh))
    if previous is not None:
      yield jax.block_until_ready(previous)
    previous = results
  if previous is not None:
    yield previous


def score(
  step: Step,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  class_names: Sequence[str],
) -> Scores:
  """Returns the scores of all clips of a split; raises like `iterate_outputs`.

  Args:
    step: the step of `jit_score_step`.
    batches: this host's batches: `video` (b, crops, t, h, w, c) uint8, `label`, `valid`, `id`.
  """
  parts = []
  for results in iterate_outputs(step, state, batches):
    results = jax.device_get(results)
    valid = results.pop("valid").astype(bool)
    parts.append({key: value[valid] for key, value in results.items()})
  arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  return Scores(
    ids=decode_ids(arrays.pop("id")),
    labels=arrays.pop("label"),
    class_names=np.array(class_names, str),
    predictions={name: arrays[name] for name in PREDICTIONS if name in arrays},
  )


def encode_ids(ids: Sequence[bytes] | np.ndarray) -> UInt8[np.ndarray, "n b"]:
  """Returns ids as bytes in an integer array, which devices can hold.

  Raises:
    UserError: if an id is longer than 256 bytes.
  """
  ids = np.asarray(ids).astype("S")
  if ids.dtype.itemsize > MAX_ID_BYTES:
    raise UserError(
      f"id {max(ids, key=len).decode()}: longer than {MAX_ID_BYTES} bytes; rename the clip"
    )
  return ids.astype(f"S{MAX_ID_BYTES}").view(np.uint8).reshape(-1, MAX_ID_BYTES)


def decode_ids(codes: UInt8[np.ndarray, "n b"]) -> np.ndarray:
  """Returns the ids (n,), str, that `encode_ids` encoded."""
  return np.char.decode(np.ascontiguousarray(codes).view(f"S{MAX_ID_BYTES}")[:, 0], "utf-8")
