"""What a step is: one update, one evaluation batch, one batch of the CSM's statistics."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer, UInt8

from u2s_jax import csm as csm_lib
from u2s_jax import losses, regularizer
from u2s_jax.models.u2s import U2S
from u2s_jax.stages import Stage
from u2s_jax.state import TrainState

Batch = dict[str, Array]
PREDICTIONS = ("universal", "bridge", "specific")


def normalize(
  video: UInt8[Array, "*b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*b h w c"]:
  """Pixels in 0..255 to (pixel / 255 - mean) / std in float32; one mean for all channels, or c."""
  return (video.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def make_train_step(
  model: U2S,
  stage: Stage,
  tx: optax.GradientTransformation,
  *,
  regularizer_weight: float,
  pixel_mean: tuple[float, ...],
  pixel_std: tuple[float, ...],
  selection: str = "confusing",
  guide: str = "prediction",
  accumulate_steps: int = 1,
) -> Callable[[TrainState, Batch, Float[Array, ""]], tuple[TrainState, dict[str, Array]]]:
  """The update of `stage` as a pure function (state, batch, learning rate) -> (state, metrics).

  Only the stage's trainable subnetworks are differentiated, updated, and move their BN statistics.

  Args:
    model: the networks.
    stage: what is trained on which loss.
    tx: direction of the step, see `optimizer.sgd`.
    regularizer_weight: lambda of Eq. 3.
    pixel_mean: see `normalize`.
    pixel_std: see `normalize`.
    selection: masks to combine, see `csm.selection`; the regularizer keeps to the binary CSM.
    guide: class that selects them: the universal network's 'prediction', or the 'label'.
    accumulate_steps: parts of the batch that are computed one after the other, their gradients
      added up. BN sees each part as a batch, and moves its averages once a part.

  Returns:
    A function to be jitted. Its metrics are scalars: `loss` (Eq. 3 with the stage's terms),
    `loss_*` by prediction, `regularizer`, `accuracy_*` (fractions, of the batch, with the network
    in training mode), `grad_norm` and `parameter_norm`, of what is trained.
  """

  def loss_fn(trained, state, batch):
    video = normalize(batch["video"], pixel_mean, pixel_std)
    variables = {"params": {**state.params, **trained}, "batch_stats": state.batch_stats}
    args = (video,)
    if not stage.one_pass:
      args += _masks(state, selection, guide, batch["label"])
    outputs, updates = model.apply(
      variables,
      *args,
      train=stage.trainable,
      mutable=["batch_stats"],
      method=U2S.one_pass if stage.one_pass else None,
    )
    metrics = {}
    loss = 0.0
    for name in stage.losses:
      term = losses.cross_entropy(outputs[name], batch["label"], batch["mask"])
      loss += term
      metrics[f"loss_{name}"] = term
      hits = (jnp.argmax(outputs[name], axis=-1) == batch["label"]) & batch["mask"]
      metrics[f"accuracy_{name}"] = jnp.sum(hits) / jnp.maximum(jnp.sum(batch["mask"]), 1)
    if stage.regularized:
      metrics["regularizer"] = regularizer.category_regularizer(
        trained["mask"]["kernel"], state.csm.matrix
      )
      loss += regularizer_weight * metrics["regularizer"]
    metrics["loss"] = loss
    # Frozen subnetworks ran with their averages; Flax hands those back unchanged.
    return loss, (updates["batch_stats"], metrics)

  gradients = jax.grad(loss_fn, has_aux=True)

  def accumulate(trained, state, batch):
    """`gradients`, part by part."""
    # Every device keeps its own clips: a part takes some of each device's.
    parts = jax.tree.map(
      lambda x: jnp.swapaxes(x.reshape(-1, accumulate_steps, *x.shape[1:]), 0, 1), batch
    )
    count = jnp.maximum(jnp.sum(batch["mask"]), 1)

    def add(carry, part):
      batch_stats, sums = carry
      grads, (batch_stats, metrics) = gradients(
        trained, state.replace(batch_stats=batch_stats), part
      )
      share = jnp.sum(part["mask"]) / count
      sums = jax.tree.map(lambda total, x: total + share * x, sums, (grads, metrics))
      return (batch_stats, sums), None

    part = jax.tree.map(lambda x: x[0], parts)
    grads, (_, metrics) = jax.eval_shape(gradients, trained, state, part)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics))
    (batch_stats, (grads, metrics)), _ = jax.lax.scan(add, (state.batch_stats, zeros), parts)
    return grads, (batch_stats, metrics)

  def step(state, batch, learning_rate):
    trained = {name: state.params[name] for name in stage.trainable}
    compute = gradients if accumulate_steps == 1 else accumulate
    grads, (batch_stats, metrics) = compute(trained, state, batch)
    direction, momentum = tx.update(grads, state.momentum, trained)
    trained = jax.tree.map(lambda p, d: p - learning_rate * d, trained, direction)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["parameter_norm"] = optax.tree.norm(trained)  # not finite: never to be saved
    state = state.replace(
      step=state.step + 1,
      params={**state.params, **trained},
      batch_stats=batch_stats,
      momentum=momentum,
    )
    return state, metrics

  return step


def make_eval_step(
  model: U2S,
  stage: Stage,
  *,
  pixel_mean: tuple[float, ...],
  pixel_std: tuple[float, ...],
  mirror_columns: tuple[Integer[np.ndarray, " m"] | None, ...],
  selection: str = "confusing",
  guide: str = "prediction",
) -> Callable[
  [TrainState, UInt8[Array, "n v t h w c"], Integer[Array, " n"]], dict[str, Float[Array, "n m"]]
]:
  """Scores of a batch, as a pure function to be jitted.

  Args:
    model: the networks.
    stage: of the state: whether there is more than the universal network.
    pixel_mean: see `normalize`.
    pixel_std: see `normalize`.
    mirror_columns: one entry a view: None, or for a mirrored view the class that each class turns
      into, so that its scores are booked on the class that is meant.
    selection: as in `make_train_step`.
    guide: as in `make_train_step`.

  Returns:
    (state, video, label) -> for each prediction the softmax scores, averaged over the v views; a
    label is read only where it guides, in a mirrored view as the class that it turns into. It
    raises ValueError where there are not as many views as entries in `mirror_columns`.
  """

  def step(state, video, label):
    if video.shape[1] != len(mirror_columns):
      raise ValueError(f"{video.shape[1]} views of a clip, but {len(mirror_columns)} are asked for")
    variables = {"params": state.params, "batch_stats": state.batch_stats}

    def one_view(view):
      pixels, label = view
      clips = normalize(pixels, pixel_mean, pixel_std)
      if stage.one_pass:
        outputs = model.apply(variables, clips, method=U2S.one_pass)
      else:
        outputs = model.apply(variables, clips, *_masks(state, selection, guide, label))
      return {name: jax.nn.softmax(outputs[name]) for name in PREDICTIONS if name in outputs}

    # One view after the other: ten at once would take ten times the memory.
    labels = [
      label if columns is None else jnp.asarray(columns)[label] for columns in mirror_columns
    ]
    by_view = jax.lax.map(one_view, (jnp.moveaxis(video, 1, 0), jnp.stack(labels)))
    return {
      name: jnp.mean(
        jnp.stack(
          [
            scores[i] if columns is None else scores[i][:, columns]
            for i, columns in enumerate(mirror_columns)
          ]
        ),
        axis=0,
      )
      for name, scores in by_view.items()
    }

  return step


def _masks(state, selection, guide, label):
  """The networks' arguments that say which masks are combined: a matrix, and whose column."""
  matrix = csm_lib.selection(state.csm.matrix, state.csm.similarity, selection)
  return matrix, label if guide == "label" else None


def make_analysis_step(
  model: U2S,
  stage: Stage,
  *,
  pixel_mean: tuple[float, ...],
  pixel_std: tuple[float, ...],
  selection: str = "confusing",
  guide: str = "prediction",
) -> Callable[[TrainState, Batch], dict[str, Array]]:
  """What the figures of the features and masks are made of, as a pure function to be jitted.

  Args:
    model: the networks.
    stage: of the state: whether there is more than the universal network.
    pixel_mean: see `normalize`.
    pixel_std: see `normalize`.
    selection: as in `make_train_step`.
    guide: as in `make_train_step`.

  Returns:
    (state, batch with centre views (n, 1, t, h, w, c)) -> `predicted` (n,), the universal
    network's class; for each network 'universal' and, behind stage 1, 'specific': `pooled_*`
    (n, c), the features that its classifier reads, `zeros_*` (m, c), zero responses by class as in
    `make_sparsity_step`, and `responses_*` (m,); with a mask network `mask` (n, t, h, w), what the
    specific features are multiplied by, and `masks` (n, t, h, w, m).
  """

  def step(state, batch):
    video = normalize(batch["video"][:, 0], pixel_mean, pixel_std)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if stage.one_pass:
      outputs = model.apply(variables, video, method=U2S.one_pass)
    else:
      outputs = model.apply(variables, video, *_masks(state, selection, guide, batch["label"]))
    found = {"predicted": jnp.argmax(outputs["universal"], axis=-1)}
    for name in ("universal", "specific"):
      features = outputs.get(f"{name}_features")
      if features is None:
        continue
      zeros, examples = csm_lib.zero_counts(
        features, batch["label"], batch["mask"], model.num_classes
      )
      found[f"zeros_{name}"] = zeros
      found[f"responses_{name}"] = examples * math.prod(features.shape[1:4])
      if name == "specific" and "mask" in outputs:
        features = features * outputs["mask"]
      found[f"pooled_{name}"] = jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32)
    if "mask" in outputs:
      found["mask"] = outputs["mask"][..., 0].astype(jnp.float32)
      found["masks"] = outputs["masks"].astype(jnp.float32)
    return found

  return step


def make_sparsity_step(
  model: U2S, *, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
) -> Callable[[TrainState, Batch], tuple[Integer[Array, "m c"], Integer[Array, " m"]]]:
  """What Eq. 1 counts, by class, in inference mode, as a pure function to be jitted.

  Returns:
    (state, batch with centre views (n, 1, t, h, w, c)) -> zero responses by class and channel
    (m, c) and responses of a channel by class (m,): integers, so that their sums over batches,
    devices and hosts are exact. Their quotient is the class sparsity.
  """

  def step(state, batch):
    video = normalize(batch["video"][:, 0], pixel_mean, pixel_std)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    features = model.apply(variables, video, method=U2S.one_pass)["universal_features"]
    zeros, examples = csm_lib.zero_counts(
      features, batch["label"], batch["mask"], model.num_classes
    )
    return zeros, examples * math.prod(features.shape[1:4])

  return step
