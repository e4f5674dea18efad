"""One update of a training stage."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Integer

from u2s_jax import devices, losses, regularizer
from u2s_jax.models.network import Network
from u2s_jax.stages import STAGES, Stage
from u2s_jax.state import TrainState, learning, scale_classifiers, with_learned

Batch = dict[str, Array]
Neighbours = Integer[ArrayLike, "m k"]
TrainStep = Callable[
  [TrainState, Batch, Float[Array, ""], Neighbours | None], tuple[TrainState, dict[str, Array]]
]


def make_train_step(
  network: Network,
  stage: Stage,
  tx: optax.GradientTransformation,
  *,
  regularizer_weight: float,
  label_smoothing: float = 0.0,
  seed: int = 0,
  accumulate_steps: int = 1,
) -> TrainStep:
  """Returns a stage's update: (state, batch, learning rate, neighbours) -> (state, metrics), pure.

  Only the stage's trainable parts are differentiated and updated; BN statistics move in those
  subnetworks that are trainable as a whole.

  Args:
    network: the networks and their masks.
    stage: what is trained on which loss.
    tx: direction of the step, see `state.sgd`.
    regularizer_weight: lambda of Eq. 3, at least 0 (paper: 0.5).
    label_smoothing: see `losses.cross_entropy`.
    seed: with stage and step, decides which channels are dropped.
    accumulate_steps: parts of the batch that are computed one after the other, their gradients
      added up. BN sees each part as a batch, and moves its averages once a part.

  Returns:
    A function to be jitted. Its batch has `video` (n, t, h, w, c) uint8, `label` (n,) and `valid`
    (n,), False for padding; its neighbours are `csm.neighbours` of the binary CSM, which the
    regularizer keeps to, None where the stage has none. Its metrics are scalars: `loss` (Eq. 3 with
    the stage's terms), `loss_*` by prediction, `regularizer`, `accuracy_*` (fractions, of the
    batch, with the network in training mode), `grad_norm` and `parameter_norm`, of what is trained.
  """

  drops = network.model.dropout > 0

  def loss_fn(trained, state, batch, neighbours, key):
    params = with_learned(state.params, trained)
    outputs, batch_stats = network(
      params,
      state.batch_stats,
      state.csm,
      batch["video"],
      batch["label"],
      train=stage.trainable,
      key=key,
    )
    metrics = {}
    loss = 0.0
    for name in stage.losses:
      term = losses.cross_entropy(outputs[name], batch["label"], batch["valid"], label_smoothing)
      loss += term
      metrics[f"loss_{name}"] = term
      hits = (jnp.argmax(outputs[name], axis=-1) == batch["label"]) & batch["valid"]
      metrics[f"accuracy_{name}"] = jnp.sum(hits) / jnp.maximum(jnp.sum(batch["valid"]), 1)
    if stage.regularized:
      metrics["regularizer"] = regularizer.pairs_regularizer(params["mask"]["kernel"], neighbours)
      loss += regularizer_weight * metrics["regularizer"]
    metrics["loss"] = loss
    return loss, (batch_stats, metrics)

  gradients = jax.grad(loss_fn, has_aux=True)
  if accumulate_steps > 1:
    gradients = _accumulated(gradients, accumulate_steps)

  def step(state, batch, learning_rate, neighbours=None):
    trained = learning(state.params, stage.trainable)
    key = None
    if drops:
      key = jax.random.fold_in(jax.random.key(seed), STAGES.index(stage.name))
      key = jax.random.fold_in(key, state.step)
    grads, (batch_stats, metrics) = gradients(trained, state, batch, neighbours, key)
    direction, momentum = tx.update(grads, state.momentum, trained)
    direction = scale_classifiers(direction, stage.classifier_rates)
    trained = jax.tree.map(lambda p, d: p - learning_rate * d, trained, direction)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["parameter_norm"] = optax.tree.norm(trained)  # the meter reads it before a save
    state = state.replace(
      step=state.step + 1,
      params=with_learned(state.params, trained),
      batch_stats=batch_stats,
      momentum=momentum,
    )
    return state, metrics

  return step


@functools.lru_cache(maxsize=8)
def train_step(
  network: Network,
  stage: Stage,
  tx: optax.GradientTransformation,
  regularizer_weight: float,
  label_smoothing: float,
  seed: int,
  accumulate_steps: int,
) -> TrainStep:
  """Returns `make_train_step`'s, compiled for all devices, the same for the same call.

  The state that it is given is used up.
  """
  step = make_train_step(
    network,
    stage,
    tx,
    regularizer_weight=regularizer_weight,
    label_smoothing=label_smoothing,
    seed=seed,
    accumulate_steps=accumulate_steps,
  )
  replicated = devices.replicated(devices.data_mesh())
  return jax.jit(
    step,
    donate_argnums=0,
    out_shardings=(replicated, replicated),
    compiler_options=devices.compiler_options(),
  )


def _accumulated(gradients: Callable, parts: int) -> Callable:
  """Returns `gradients`, computed part by part of the batch and added up."""

  def accumulate(trained, state, batch, neighbours, key):
    # Every device keeps its own clips: a part takes some of each device's.
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)
    count = jnp.maximum(jnp.sum(batch["valid"]), 1)

    keys = None if key is None else jax.random.split(key, parts)

    def add(carry, part_and_key):
      batch_stats, sums = carry
      part, key = part_and_key
      grads, (batch_stats, metrics) = gradients(
        trained, state.replace(batch_stats=batch_stats), part, neighbours, key
      )
      share = jnp.sum(part["valid"]) / count
      sums = jax.tree.map(lambda total, x: total + share * x, sums, (grads, metrics))
      return (batch_stats, sums), None

    part = jax.tree.map(lambda x: x[0], split)
    grads, (_, metrics) = jax.eval_shape(gradients, trained, state, part, neighbours, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics))
    (batch_stats, (grads, metrics)), _ = jax.lax.scan(
      add, (state.batch_stats, zeros), (split, keys)
    )
    return grads, (batch_stats, metrics)

  return accumulate
