"""What training carries from step to step, its optimizer, and how a stage's state begins."""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jaxtyping import Array, Bool, PyTree, UInt

from u2s_jax.csm import no_similarity
from u2s_jax.errors import UserError
from u2s_jax.models.resnet import HEAD_DEVIATION
from u2s_jax.models.u2s import U2S
from u2s_jax.stages import Stage

CLASSIFIER = "head"  # the classifier's name in a branch, see `models.backbones`


class TrainState(flax.struct.PyTreeNode):
  """Everything a step reads and writes.

  The fields are trees, because JAX also fills them with shapes and shardings.

  Attributes:
    step: steps done in this stage, a scalar.
    params: by subnetwork.
    batch_stats: BN running averages, by subnetwork.
    momentum: optimizer state of the stage's trainable parts alone.
    csm: the `CategorySimilarity` whose matrix selects masks.
  """

  step: PyTree
  params: PyTree
  batch_stats: PyTree
  momentum: PyTree
  csm: PyTree


@functools.cache
def sgd(
  momentum: float, weight_decay: float, clip_norm: float = 0.0
) -> optax.GradientTransformation:
  """Returns the direction of a step: momentum over (gradient + weight_decay * parameter).

  The same for the same arguments, so that programs made with it are found again.

  The caller multiplies by minus the learning rate, which stays outside the momentum as in PyTorch.
  Like PyTorch's SGD it decays every parameter, BN's too.

  Args:
    momentum: in [0, 1) (paper: 0.9).
    weight_decay: at least 0 (paper: 1e-4).
    clip_norm: largest norm of the gradient, over all that is trained; 0: no limit (paper).
  """
  limit = (optax.clip_by_global_norm(clip_norm),) if clip_norm else ()
  return optax.chain(*limit, optax.add_decayed_weights(weight_decay), optax.trace(momentum))


@jax.jit
def all_finite(state: TrainState) -> Bool[Array, ""]:
  """Tells whether no parameter, BN statistic or momentum is infinite or NaN."""
  leaves = jax.tree.leaves((state.params, state.batch_stats, state.momentum))
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


@jax.jit
def checksum(state: PyTree) -> UInt[Array, ""]:
  """Returns the sum of the words of all arrays, modulo 2**32: with any single bit it changes."""

  def words(leaf):
    if leaf.dtype == jnp.bool_:
      return leaf
    return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))

  sums = [jnp.sum(words(leaf), dtype=jnp.uint32) for leaf in jax.tree.leaves(state)]
  return jnp.sum(jnp.stack(sums), dtype=jnp.uint32)


def learning(params: PyTree, parts: Sequence[str]) -> PyTree:
  """Returns what learns: `params` without all that is outside the named parts.

  Args:
    params: by subnetwork.
    parts: see `stages.Stage.trainable`.

  Raises:
    UserError: a part that is not there.
  """
  flat = traverse_util.flatten_dict(params)
  kept = {}
  for part in parts:
    keys = tuple(part.split("/"))
    below = {path: leaf for path, leaf in flat.items() if path[: len(keys)] == keys}
    if not below:
      names = sorted({"/".join(path[:2]) for path in flat if path[0] == keys[0]})
      raise UserError(f"trainable: {part!r} is not there; {keys[0]} has {', '.join(names)}")
    kept |= below
  return traverse_util.unflatten_dict(kept)


def with_learned(params: PyTree, learned: PyTree) -> PyTree:
  """Returns `params` with what `learning` took from them in its new values."""
  flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(learned)
  return traverse_util.unflatten_dict(flat)


def scale_classifiers(tree: PyTree, rates: tuple[float, float]) -> PyTree:
  """Returns `tree`, by subnetwork, with the networks' classifiers multiplied.

  Args:
    tree: parts of parameters, or of a step's direction.
    rates: factors of kernel and bias.
  """
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


def begin(
  model: U2S,
  stage: Stage,
  tx: optax.GradientTransformation,
  key: jax.Array,
  video_shape: tuple[int, int, int, int, int],
  previous: TrainState | None = None,
) -> TrainState:
  """Returns a stage's first state, with step 0 and fresh momentum; jit-able.

  Args:
    model: the networks.
    stage: decides which subnetworks exist and what of them has optimizer state.
    tx: the optimizer.
    key: of the random initialisation.
    video_shape: (n, t, h, w, c) of a batch; parameters do not depend on n, t, h, w.
    previous: the state before; its subnetworks are kept as they are.

  Raises:
    UserError: the stage trains a part that is not there.
  """
  video = jnp.zeros(video_shape, jnp.float32)
  csm = no_similarity(model.num_classes) if previous is None else previous.csm
  if stage.one_pass:
    fresh = model.init(key, video, method=U2S.one_pass)
  else:
    fresh = model.init(key, video, csm.matrix)
  deviation = stage.classifier_deviation / HEAD_DEVIATION
  fresh = {**fresh, "params": scale_classifiers(fresh["params"], (deviation, 1.0))}
  variables = {}
  for collection in ("params", "batch_stats"):
    trees = {name: fresh[collection][name] for name in stage.networks if name in fresh[collection]}
    known = {} if previous is None else getattr(previous, collection)
    for name in trees:
      if name in known:
        trees[name] = known[name]
      elif name == "specific" and stage.init == "universal":
        trees[name] = known["universal"]
    variables[collection] = trees
  trained = learning(variables["params"], stage.trainable)
  return TrainState(step=jnp.zeros((), jnp.int32), momentum=tx.init(trained), csm=csm, **variables)


def chain(
  model: U2S,
  stages: Sequence[Stage],
  tx: optax.GradientTransformation,
  video_shape: tuple[int, int, int, int, int],
  key: jax.Array | None = None,
) -> list[TrainState]:
  """Returns the first state of each of `stages`, made from the one before, untrained.

  Args:
    model: the networks.
    stages: from the first stage on.
    tx: the optimizer.
    video_shape: see `begin`.
    key: of the random initialisation; None: shapes and types alone.
  """
  states, previous = [], None
  for stage in stages:
    make = functools.partial(begin, model, stage, tx, video_shape=video_shape)
    if key is None:
      previous = jax.eval_shape(
        lambda state, make=make: make(jax.random.key(0), previous=state), previous
      )
    else:
      previous = jax.jit(lambda state, make=make: make(key, previous=state))(previous)
    states.append(previous)
  return states
