"""What training carries from step to step, and how a stage's state begins."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from u2s_jax.models.u2s import U2S
from u2s_jax.stages import Stage


class CategorySimilarity(flax.struct.PyTreeNode):
  """The category similarity matrix and what it was made from.

  The fields of both classes here are trees, because JAX also fills them with shapes and shardings.

  Attributes:
    matrix: the CSM (m, m), {0, 1} with diagonal 1: the 1s of column i are what class i is confused
      with.
    similarity: Eq. 2 (m, m), in [0, 1].
    topn_accuracy: of the one-pass model (m,), fractions for N = 1..m.
    alpha: the threshold, a scalar.
    n: the number of confusing classes aimed at, a scalar.
  """

  matrix: PyTree
  similarity: PyTree
  topn_accuracy: PyTree
  alpha: PyTree
  n: PyTree


def no_similarity(num_classes: int) -> CategorySimilarity:
  """What stands in the state before the CSM is known: no class is confused with another."""
  return CategorySimilarity(
    matrix=jnp.eye(num_classes),
    similarity=jnp.eye(num_classes),
    topn_accuracy=jnp.zeros(num_classes),
    alpha=jnp.ones(()),
    n=jnp.zeros((), jnp.int32),
  )


class TrainState(flax.struct.PyTreeNode):
  """Everything a step reads and writes.

  Attributes:
    step: steps done in this stage, a scalar.
    params: by subnetwork.
    batch_stats: BN running averages, by subnetwork.
    momentum: optimizer state of the stage's trainable subnetworks alone.
    csm: the `CategorySimilarity` whose matrix selects masks.
  """

  step: PyTree
  params: PyTree
  batch_stats: PyTree
  momentum: PyTree
  csm: PyTree


@jax.jit
def all_finite(state: TrainState) -> Bool[Array, ""]:
  """Whether no parameter, BN statistic or momentum is infinite or NaN."""
  leaves = jax.tree.leaves((state.params, state.batch_stats, state.momentum))
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def begin(
  model: U2S,
  stage: Stage,
  tx: optax.GradientTransformation,
  key: jax.Array,
  video_shape: tuple[int, int, int, int, int],
  previous: TrainState | None = None,
) -> TrainState:
  """A stage's first state; jit-able.

  Args:
    model: the networks.
    stage: decides which subnetworks exist and which of them have optimizer state.
    tx: the optimizer.
    key: of the random initialisation.
    video_shape: (n, t, h, w, c) of a batch; parameters do not depend on n, t, h, w.
    previous: the state before; its subnetworks are kept as they are.

  Returns:
    The state, with step 0 and fresh momentum.
  """
  video = jnp.zeros(video_shape, jnp.float32)
  csm = no_similarity(model.num_classes) if previous is None else previous.csm
  if stage.one_pass:
    fresh = model.init(key, video, method=U2S.one_pass)
  else:
    fresh = model.init(key, video, csm.matrix)
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
  trained = {name: variables["params"][name] for name in stage.trainable}
  return TrainState(step=jnp.zeros((), jnp.int32), momentum=tx.init(trained), csm=csm, **variables)
