"""The training step of a stage: the loss of Eq. 3, its gradients, and SGD as in PyTorch."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Integer

from u2s_jax import regularizer
from u2s_jax.models.network import Network
from u2s_jax.run.state import TrainState, merge_params, scale_classifiers, select_trainable
from u2s_jax.runtime import devices
from u2s_jax.stages import STAGES, Stage

Batch = dict[str, Array]
Pairs = Integer[ArrayLike, "m k"]
TrainStep = Callable[
  [TrainState, Batch, Float[Array, ""], Pairs | None], tuple[TrainState, dict[str, Array]]
]


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """Options of a training step, the same in all stages.

  Attributes:
    regularizer_weight: lambda of Eq. 3, >= 0 (paper: 0.5).
    label_smoothing: see `cross_entropy`.
    seed: determines, together with stage and step, which channels are dropped.
    accumulate_steps: number of parts of a batch whose gradients are computed one after the other
      and added up. For BN each part is a batch; its averages are updated once per part.
  """

  regularizer_weight: float
  label_smoothing: float = 0.0
  seed: int = 0
  accumulate_steps: int = 1


@functools.cache
def sgd(
  momentum: float, weight_decay: float, clip_norm: float = 0.0
) -> optax.GradientTransformation:
  """Returns the update direction of SGD: the momentum of gradient + weight_decay * parameter.

  The caller multiplies it by minus the learning rate, which is outside the momentum, as in PyTorch.
  Weight decay applies to all parameters, including those of BN, as in PyTorch.

  Cached: equal arguments return the same object, so that cached jitted functions are found by it.

  Args:
    momentum: in [0, 1) (paper: 0.9).
    weight_decay: >= 0 (paper: 1e-4).
    clip_norm: maximum norm of the gradient of all trained parameters; 0 for no limit (paper).
  """
  limit = (optax.clip_by_global_norm(clip_norm),) if clip_norm else ()
  return optax.chain(*limit, optax.add_decayed_weights(weight_decay), optax.trace(momentum))


def cross_entropy(
  logits: Float[Array, "n m"],
  labels: Integer[Array, " n"],
  valid: Bool[Array, " n"],
  smoothing: float = 0.0,
) -> Float[Array, ""]:
  """Returns the mean softmax cross-entropy of the examples that are `valid`; 0 if there are none.

  Args:
    labels: class indices in [0, m); ignored where `valid` is False.
    valid: False for padding.
    smoothing: label smoothing in [0, 1), see `optax.smooth_labels` (paper: 0).
  """
  # Padding may have the label -1, for which the loss would not be finite, nor its gradient.
  labels = jnp.where(valid, labels, 0)
  if smoothing:
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    losses = optax.softmax_cross_entropy(logits, smooth)
  else:
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.sum(jnp.where(valid, losses, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def make_train_step(
  network: Network, stage: Stage, tx: optax.GradientTransformation, options: StepOptions
) -> TrainStep:
  """Returns the training step of a stage, a pure function to be jitted.

  Only the stage's trainable parts are differentiated and updated. BN statistics are updated in
  subnetworks that are trainable as a whole. `tx` is the update direction, see `sgd`.

  Returns:
    (state, batch, learning rate, pairs) -> (state, metrics). The batch has `video` (n, t, h, w, c)
    uint8, `label` (n,) and `valid` (n,), False for padding. The pairs are `csm.confusing_classes`
    of the binary CSM, for the regularizer; None if the stage has none. The metrics are scalars:
    `loss` (Eq. 3 with the stage's terms), `loss_*` by prediction, `regularizer`, `accuracy_*`
    (fractions, of the batch, in training mode), `grad_norm` and `parameter_norm` of what is
    trained.
  """

  def loss_fn(trained, state, batch, pairs, key):
    params = merge_params(state.params, trained)
    outputs, batch_stats = network(
      params,
      state.batch_stats,
      state.csm,
      batch["video"],
      batch["label"],
      train=stage.trainable,
      key=key,
    )
    metrics, loss = {}, 0.0
    for name in stage.losses:
      term = cross_entropy(outputs[name], batch["label"], batch["valid"], options.label_smoothing)
      loss += term
      metrics[f"loss_{name}"] = term
      hits = (jnp.argmax(outputs[name], axis=-1) == batch["label"]) & batch["valid"]
      metrics[f"accuracy_{name}"] = jnp.sum(hits) / jnp.maximum(jnp.sum(batch["valid"]), 1)
    if stage.regularized:
      metrics["regularizer"] = regularizer.pairs_regularizer(params["mask"]["kernel"], pairs)
      loss += options.regularizer_weight * metrics["regularizer"]
    metrics["loss"] = loss
    return loss, (batch_stats, metrics)

  gradients = jax.grad(loss_fn, has_aux=True)
  if options.accumulate_steps > 1:
    gradients = _accumulate(gradients, options.accumulate_steps)

  def step(state, batch, learning_rate, pairs=None):
    trained = select_trainable(state.params, stage.trainable)
    key = None
    if network.model.dropout:
      # A function of seed, stage and step, so that a resumed run drops the same channels.
      key = jax.random.fold_in(jax.random.key(options.seed), STAGES.index(stage.name))
      key = jax.random.fold_in(key, state.step)
    grads, (batch_stats, metrics) = gradients(trained, state, batch, pairs, key)
    direction, momentum = tx.update(grads, state.momentum, trained)
    direction = scale_classifiers(direction, stage.classifier_rates)
    trained = jax.tree.map(lambda p, d: p - learning_rate * d, trained, direction)
    metrics["grad_norm"] = optax.tree.norm(grads)
    # The meter checks it before each save.
    metrics["parameter_norm"] = optax.tree.norm(trained)
    state = state.replace(
      step=state.step + 1,
      params=merge_params(state.params, trained),
      batch_stats=batch_stats,
      momentum=momentum,
    )
    return state, metrics

  return step


@functools.lru_cache(maxsize=8)
def jit_train_step(
  network: Network, stage: Stage, tx: optax.GradientTransformation, options: StepOptions
) -> TrainStep:
  """Returns the jitted `make_train_step` for all devices; it donates the state.

  Cached, so that a second run with the same arguments in one process does not compile again.
  """
  replicated = devices.replicated_sharding(devices.data_mesh())
  return jax.jit(
    make_train_step(network, stage, tx, options),
    donate_argnums=0,
    out_shardings=(replicated, replicated),
    compiler_options=devices.get_compiler_options(),
  )


def _accumulate(gradients: Callable, parts: int) -> Callable:
  """Wraps `gradients` to compute them in parts of a batch and to add up the results."""

  def accumulate(trained, state, batch, pairs, key):
    # Part k contains the clips k, k + parts, ...: some of each device, so that none has to move.
    split = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)
    count = jnp.maximum(jnp.sum(batch["valid"]), 1)
    keys = None if key is None else jax.random.split(key, parts)

    def add(carry, part_and_key):
      batch_stats, sums = carry
      part, key = part_and_key
      grads, (batch_stats, metrics) = gradients(
        trained, state.replace(batch_stats=batch_stats), part, pairs, key
      )
      # The loss of a part is a mean over its valid clips. Weighted by their share, the parts add up
      # to the mean over the batch.
      share = jnp.sum(part["valid"]) / count
      sums = jax.tree.map(lambda total, x: total + share * x, sums, (grads, metrics))
      return (batch_stats, sums), None

    # A scan: the program has the size, and the activations have the memory, of a single part.
    part = jax.tree.map(lambda x: x[0], split)
    grads, (_, metrics) = jax.eval_shape(gradients, trained, state, part, pairs, key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics))
    (batch_stats, (grads, metrics)), _ = jax.lax.scan(
      add, (state.batch_stats, zeros), (split, keys)
    )
    return grads, (batch_stats, metrics)

  return accumulate
