"""The training state, its initialization for each stage, and functions of parameter trees."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Bool, UInt

from u2s_jax.csm import make_identity_similarity
from u2s_jax.models.resnet import HEAD_DEVIATION
from u2s_jax.models.u2s import U2S
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import Stage

CLASSIFIER = "head"  # name of the classifier in a network, see `models.backbones`


class TrainState(flax.struct.PyTreeNode):
  """The state that a training step reads and updates.

  Fields are annotated as trees, because JAX also fills them with shapes and shardings.

  Attributes:
    step: number of steps taken in this stage, a scalar.
    params: parameters by subnetwork.
    batch_stats: running averages of batch normalization by subnetwork.
    momentum: optimizer state, only of the parameters that the stage trains.
    csm: the `CategorySimilarity` whose matrix selects the masks.
  """

  step: Any
  params: Any
  batch_stats: Any
  momentum: Any
  csm: Any


@jax.jit
def is_finite(state: TrainState) -> Bool[Array, ""]:
  """Returns whether all parameters, BN statistics and momenta are finite."""
  leaves = jax.tree.leaves((state.params, state.batch_stats, state.momentum))
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


@jax.jit
def compute_checksum(state: Any) -> UInt[Array, ""]:
  """Returns the sum of all array elements, read as unsigned integers, modulo 2**32.

  Flipping any single bit changes the checksum.
  """

  def to_uint(leaf):
    if leaf.dtype == jnp.bool_:
      return leaf
    return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))

  sums = [jnp.sum(to_uint(leaf), dtype=jnp.uint32) for leaf in jax.tree.leaves(state)]
  return jnp.sum(jnp.stack(sums), dtype=jnp.uint32)


def select_trainable(params: Any, parts: Sequence[str]) -> Any:
  """Returns the subtree of `params` that contains the parts, see `stages.Stage.trainable`.

  Raises:
    UserError: if a part does not exist.
  """
  flat = traverse_util.flatten_dict(params)
  selected = {}
  for part in parts:
    keys = tuple(part.split("/"))
    matches = {path: leaf for path, leaf in flat.items() if path[: len(keys)] == keys}
    if not matches:
      names = sorted({"/".join(path[:2]) for path in flat if path[0] == keys[0]})
      raise UserError(f"trainable: {part!r} does not exist; {keys[0]} has {', '.join(names)}")
    selected |= matches
  return traverse_util.unflatten_dict(selected)


def merge_params(params: Any, trained: Any) -> Any:
  """Returns `params` updated with the values of a subtree of `select_trainable`."""
  flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(trained)
  return traverse_util.unflatten_dict(flat)


def scale_classifiers(tree: Any, rates: tuple[float, float]) -> Any:
  """Returns `tree` with kernels and biases of all classifiers multiplied by `rates`."""
  if tuple(rates) == (1.0, 1.0):
    return tree
  factors = dict(zip(("kernel", "bias"), rates, strict=True))
  flat = traverse_util.flatten_dict(tree)
  return traverse_util.unflatten_dict(
    {
      path: leaf * factors[path[-1]] if path[1] == CLASSIFIER else leaf
      for path, leaf in flat.items()
    }
  )


def init_stage(
  model: U2S,
  stage: Stage,
  tx: optax.GradientTransformation,
  key: jax.Array,
  video_shape: tuple[int, int, int, int, int],
  previous: TrainState | None = None,
) -> TrainState:
  """Returns the initial state of a stage, with step 0 and zero momentum; can be jitted.

  Args:
    stage: determines which subnetworks exist and which parameters have optimizer state.
    video_shape: (n, t, h, w, c) of a batch; parameters do not depend on n, t, h, w.
    previous: final state of the stage before, whose subnetworks are kept unchanged.

  Raises:
    UserError: if the stage trains a part that does not exist.
  """
  video = jnp.zeros(video_shape, jnp.float32)
  csm = make_identity_similarity(model.num_classes) if previous is None else previous.csm
  if stage.one_pass:
    fresh = model.init(key, video, method=U2S.one_pass)
  else:
    fresh = model.init(key, video, csm.matrix)
  deviation = stage.classifier_deviation / HEAD_DEVIATION
  fresh = {**fresh, "params": scale_classifiers(fresh["params"], (deviation, 1.0))}
  variables = {}
  for collection in ("params", "batch_stats"):
    new = fresh.get(collection, {})  # a network without BN has no statistics
    trees = {name: new[name] for name in stage.networks if name in new}
    known = {} if previous is None else getattr(previous, collection)
    if "specific" in trees and stage.init == "universal":
      trees["specific"] = known["universal"]
    variables[collection] = trees | {name: known[name] for name in trees if name in known}
  trained = select_trainable(variables["params"], stage.trainable)
  return TrainState(step=jnp.zeros((), jnp.int32), momentum=tx.init(trained), csm=csm, **variables)


def init_stages(
  model: U2S,
  stages: Sequence[Stage],
  tx: optax.GradientTransformation,
  video_shape: tuple[int, int, int, int, int],
  key: jax.Array | None = None,
) -> list[TrainState]:
  """Returns the initial state of every stage, derived from the untrained stage before it.

  Args:
    key: initialization key; if None, only shapes and dtypes are returned.
  """
  states, previous = [], None
  for stage in stages:
    any_key = jax.random.key(0) if key is None else key
    make = functools.partial(init_stage, model, stage, tx, any_key, video_shape)
    previous = jax.eval_shape(make, previous) if key is None else jax.jit(make)(previous)
    states.append(previous)
  return states
