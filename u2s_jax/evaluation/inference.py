"""What the device does at an evaluation: the steps, and the one pass over a split."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from u2s_jax import csm as csm_lib
from u2s_jax import devices
from u2s_jax.errors import UserError
from u2s_jax.evaluation.scores import Scores
from u2s_jax.models.mask import class_masks
from u2s_jax.models.network import Network, softmax_scores
from u2s_jax.models.network import mirror as mirror_video
from u2s_jax.stages import PREDICTIONS
from u2s_jax.state import TrainState

ID_BYTES = 256  # ids travel through the devices so that all hosts learn them in one order

Batch = dict[str, Array]
Step = Callable[[TrainState, Batch], dict[str, Array]]
AnalysisStep = Callable[[TrainState, Batch], tuple[dict[str, Array], dict[str, Array]]]
T = TypeVar("T")


def make_score_step(network: Network, mirrors: Sequence[tuple[int, ...] | None]) -> Step:
  """Returns the scores of a batch, a pure function of state and batch.

  Args:
    network: the networks and their masks.
    mirrors: one entry a view: None, or for a mirrored view the class that each class turns into,
      so that its scores are booked on the class that is meant. The k-th mirrored view is the k-th
      crop, mirrored here.

  Returns:
    (state, batch with `video` (n, crops, t, h, w, c) and `label` (n,)) -> for each prediction the
    softmax scores (n, m), averaged over the views; a label is read only where it guides, in a
    mirrored view as the class that it turns into. It raises ValueError where there are not as many
    crops as `mirrors` asks for.
  """
  columns = [None if mirror is None else np.array(mirror) for mirror in mirrors]
  is_mirrored = np.array([mirror is not None for mirror in mirrors])
  crop_of_view = np.where(is_mirrored, np.cumsum(is_mirrored), np.cumsum(~is_mirrored)) - 1
  num_crops = crop_of_view.max() + 1

  def step(state, batch):
    crops, label = jnp.moveaxis(batch["video"], 1, 0), batch["label"]
    if len(crops) != num_crops:
      raise ValueError(f"{len(crops)} crops of a clip, but {num_crops} are asked for")

    def one_view(view):
      crop, is_mirrored_view, labels = view
      video = crops[crop]
      if is_mirrored.any():
        video = jnp.where(is_mirrored_view, mirror_video(video), video)
      outputs, _ = network(state.params, state.batch_stats, state.csm, video, labels)
      return softmax_scores(outputs, PREDICTIONS)

    # One view after the other: ten at once would take ten times the memory.
    labels = [label if mirror is None else jnp.asarray(mirror)[label] for mirror in columns]
    views = jnp.asarray(crop_of_view), jnp.asarray(is_mirrored), jnp.stack(labels)
    by_view = jax.lax.map(one_view, views)
    return {
      name: jnp.mean(
        jnp.stack(
          [
            scores[i] if mirror is None else scores[i][:, mirror]
            for i, mirror in enumerate(columns)
          ]
        ),
        axis=0,
      )
      for name, scores in by_view.items()
    }

  return step


def make_analysis_step(network: Network) -> AnalysisStep:
  """Returns what the figures of features and masks are made of, a pure function.

  Args:
    network: the networks and their masks.

  Returns:
    (state, batch with centre views (n, 1, t, h, w, c)) -> two dicts. The first holds what is read
    of every clip: `predicted` (n,), the universal network's class; for each network 'universal'
    and, after stage 1, 'specific': `pooled_*` (n, c), the features that its classifier reads,
    `zeros_*` (n, c) and `responses_*` (n,) as in `make_sparsity_step`. The second holds what is
    read of a few clips, by `devices.read_row` and `row_masks`: `video` (n, t, h, w, c); with a mask
    network `mask` (n, t', h', w'), by which the specific features are multiplied, and `features`
    (n, t', h', w', c), the input of the mask network.
  """

  def step(state, batch):
    video = batch["video"][:, 0]
    outputs, _ = network(state.params, state.batch_stats, state.csm, video, batch["label"])
    results, clips = {"predicted": jnp.argmax(outputs["universal"], axis=-1)}, {"video": video}
    for name in ("universal", "specific"):
      if f"{name}_features" in outputs:
        zeros, responses = _zero_responses(outputs[f"{name}_features"])
        results |= {f"zeros_{name}": zeros, f"responses_{name}": responses}
    results |= {f"pooled_{name}": values for name, values in _pooled(outputs).items()}
    if "mask" in outputs:
      clips["mask"] = outputs["mask"][..., 0].astype(jnp.float32)
      clips["features"] = outputs["universal_features"]
    return results, clips

  return step


def make_feature_step(network: Network) -> Callable[[TrainState, Array], dict[str, Array]]:
  """Returns the features of clips that the classifiers read, a pure function.

  Args:
    network: the networks and their masks; guided by the universal network's prediction.

  Returns:
    (state, video (n, t, h, w, c) uint8) -> 'universal' (n, c) and, behind stage 1, 'specific', of
    which the masked part is meant.
  """

  def step(state, video):
    outputs, _ = network(state.params, state.batch_stats, state.csm, video)
    return _pooled(outputs)

  return step


def make_sparsity_step(network: Network) -> Step:
  """Returns what Eq. 1 counts, in inference mode, a pure function.

  Args:
    network: the one-pass model's.

  Returns:
    (state after stage 1, batch with centre views (n, 1, t, h, w, c)) -> `zeros` (n, c), zero
    responses of each clip and channel, and `responses` (n,), all responses of a channel: int32, for
    `csm.add_by_class`. The quotient of a class's sums is its sparsity.
  """

  def step(state, batch):
    outputs, _ = network(state.params, state.batch_stats, state.csm, batch["video"][:, 0])
    zeros, responses = _zero_responses(outputs["universal_features"])
    return {"zeros": zeros, "responses": responses}

  return step


def make_predict_step(network: Network) -> Callable[[TrainState, Array], dict[str, Array]]:
  """Returns what a prediction for a clip is made of, a pure function.

  Args:
    network: the networks and their masks; guided by the universal network's prediction.

  Returns:
    (state, video (n, t, h, w, c) uint8) -> softmax scores (n, m) for each prediction and, with a
    mask network, `mask` (n, t', h', w').
  """

  def step(state, video):
    outputs, _ = network(state.params, state.batch_stats, state.csm, video)
    answer = softmax_scores(outputs, PREDICTIONS)
    if "mask" in outputs:
      answer["mask"] = outputs["mask"][..., 0].astype(jnp.float32)
    return answer

  return step


def _pooled(outputs: dict[str, Array]) -> dict[str, Float[Array, "n c"]]:
  """Returns each network's features as its classifier reads them."""
  pooled = {}
  for name in ("universal", "specific"):
    features = outputs.get(f"{name}_features")
    if features is not None:
      if name == "specific" and "mask" in outputs:
        features = features * outputs["mask"]
      pooled[name] = jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32)
  return pooled


def _zero_responses(
  features: Float[Array, "n t h w c"],
) -> tuple[Integer[Array, "n c"], Integer[Array, " n"]]:
  """Returns each clip's zero responses by channel, and the number of responses of a channel."""
  responses = jnp.full(len(features), math.prod(features.shape[1:4]), jnp.int32)
  return csm_lib.zero_counts(features), responses


@functools.lru_cache(maxsize=8)
def score_step(network: Network, mirrors: tuple[tuple[int, ...] | None, ...]) -> Step:
  """Returns `make_score_step`'s, compiled for all devices, the same for the same call."""
  return _compiled(make_score_step(network, mirrors))


@functools.lru_cache(maxsize=8)
def analysis_step(network: Network) -> AnalysisStep:
  """Returns `make_analysis_step`'s, compiled for all devices, the same for the same call.

  Every host gets its first dict of the whole batch; the second stays where its clips are.
  """
  step, mesh = make_analysis_step(network), devices.data_mesh()

  def run(state, batch):
    results, clips = step(state, batch)
    return results | _identity(batch), clips

  return jax.jit(
    run,
    out_shardings=(devices.replicated(mesh), devices.batched(mesh)),
    compiler_options=devices.compiler_options(),
  )


@functools.lru_cache(maxsize=8)
def sparsity_step(network: Network) -> Step:
  """Returns `make_sparsity_step`'s, compiled for all devices, the same for the same call."""
  return _compiled(make_sparsity_step(network))


def _compiled(step: Step) -> Step:
  """Jits a step; every host gets the whole batch's results, with its ids, labels and padding."""

  def run(state, batch):
    return step(state, batch) | _identity(batch)

  return jax.jit(
    run,
    out_shardings=devices.replicated(devices.data_mesh()),
    compiler_options=devices.compiler_options(),
  )


def _identity(batch: Batch) -> Batch:
  """Returns which clips a batch holds."""
  return {key: batch[key] for key in ("id", "label", "valid")}


@functools.cache
def _row_masks_program() -> Callable[..., Float[Array, "t h w k"]]:
  def masks(features, row, kernel, classes):
    clip = devices.take_row(features, row)[None]
    return class_masks(clip, kernel[:, classes])[0].astype(jnp.float32)

  return jax.jit(
    masks,
    out_shardings=devices.replicated(devices.data_mesh()),
    compiler_options=devices.compiler_options(),
  )


def row_masks(
  features: Float[Array, "n t h w c"],
  row: int,
  kernel: Float[Array, "c m"],
  classes: Integer[np.ndarray, " k"],
) -> Float[np.ndarray, "t h w k"]:
  """Returns the masks of some classes for one clip of a batch; on all hosts.

  Args:
    features: of `analysis_step`, split over the devices.
    row: of the batch.
    kernel: of the mask network.
    classes: whose masks to compute.
  """
  # XLA's matrix products on CPUs round by the width modulo 16: as wide, these have all M's bits.
  padded = np.resize(classes, len(classes) + (kernel.shape[1] - len(classes)) % 16)
  masks = _row_masks_program()(features, np.int32(row), kernel, padded)
  return np.asarray(masks)[..., : len(classes)]


def pass_over(
  step: Callable[[TrainState, Batch], T],
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
) -> Iterator[T]:
  """Passes once over a split; the device has its next batch before the last one is read.

  It never has a third one, each of which would keep its clips in the device's memory.

  Args:
    step: compiled, of this module.
    state: the networks.
    batches: of this host, see `run.Source`.

  Yields:
    For each batch the step's results, on the device, with `label`, `valid` and the codes of `id`.

  Raises:
    UserError: an id of more than 256 bytes.
  """
  mesh, last = devices.data_mesh(), None
  for batch in batches:
    batch = {**batch, "id": id_codes(batch["id"])}
    results = step(state, devices.global_batch(batch, mesh))
    if last is not None:
      yield jax.block_until_ready(last)
    last = results
  if last is not None:
    yield last


def score(
  step: Step,
  state: TrainState,
  batches: Iterable[dict[str, np.ndarray]],
  class_names: Sequence[str],
) -> Scores:
  """Returns the scores of all clips of a split.

  Args:
    step: of `score_step`.
    state: the networks.
    batches: of this host: `video` (b, crops, t, h, w, c) uint8, `label`, `valid`, `id`.
    class_names: in the order of the labels.

  Raises:
    UserError: an id of more than 256 bytes.
  """
  parts = []
  for results in pass_over(step, state, batches):
    results = jax.device_get(results)
    valid = results.pop("valid").astype(bool)
    parts.append({key: value[valid] for key, value in results.items()})
  arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  return Scores(
    ids=read_id_codes(arrays.pop("id")),
    labels=arrays.pop("label"),
    class_names=np.array(class_names, str),
    predictions={name: arrays[name] for name in PREDICTIONS if name in arrays},
  )


def id_codes(ids: Sequence[bytes] | np.ndarray) -> UInt8[np.ndarray, "n b"]:
  """Returns ids as numbers that may be placed on devices.

  Raises:
    UserError: an id of more than 256 bytes.
  """
  ids = np.asarray(ids).astype("S")
  if ids.dtype.itemsize > ID_BYTES:
    raise UserError(f"id {max(ids, key=len).decode()}: longer than {ID_BYTES} bytes; rename it")
  return ids.astype(f"S{ID_BYTES}").view(np.uint8).reshape(-1, ID_BYTES)


def read_id_codes(codes: UInt8[np.ndarray, "n b"]) -> np.ndarray:
  """Returns the ids (n,), str, that `id_codes` was given."""
  return np.char.decode(np.ascontiguousarray(codes).view(f"S{ID_BYTES}")[:, 0], "utf-8")
