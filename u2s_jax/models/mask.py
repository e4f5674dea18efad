"""The mask network (MN): class masks and their combination over a confusion set.

Section III.A, "Mask Generation", and Fig. 3 of the paper.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Integer, Num


def select(csm: Num[ArrayLike, "m m"], predicted: Integer[Array, " n"]) -> Float[Array, "n m"]:
  """Returns the weights that average the masks of the classes confused with the predicted class.

  Row n is the CSM's column `predicted[n]` divided by its sum, in float32. With a binary CSM that is
  1/k for each of k confusing classes, including the predicted class.

  Example:
    >>> csm = jnp.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]])
    >>> select(csm, jnp.array([0, 2])).tolist()
    [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
  """
  columns = jnp.take(jnp.asarray(csm, jnp.float32), predicted, axis=1).T
  return columns / jnp.sum(columns, axis=1, keepdims=True)


def combine(
  masks: Float[Array, "n t h w m"], weights: Float[Array, "n m"]
) -> Float[Array, "n t h w 1"]:
  """Computes the final mask before its activation: the sum of class masks weighted by `select`.

  Example:
    >>> masks = jnp.array([2.0, 4.0, 9.0]).reshape(1, 1, 1, 1, 3)
    >>> combine(masks, jnp.array([[0.5, 0.5, 0.0]])).item()
    3.0
  """
  return jnp.einsum("nthwm,nm->nthw", masks, weights.astype(masks.dtype))[..., None]


def limit_rms(mask: Float[Array, "n t h w 1"], limit: float) -> Float[Array, "n t h w 1"]:
  """Scales each clip's mask so that its root mean square over T, H, W is at most `limit`.

  Masks below the limit, which is positive, are not scaled.

  Example:
    >>> limit_rms(jnp.array([3.0, -4.0, 0.0, 0.0]).reshape(1, 1, 1, 4, 1), 1.0).ravel().tolist()
    [1.2000000476837158, -1.600000023841858, 0.0, 0.0]
  """
  square = jnp.mean(jnp.square(mask.astype(jnp.float32)), axis=(1, 2, 3, 4), keepdims=True)
  # The maximum is taken before the root, because the gradient of the root at 0 is infinite.
  scale = limit / jnp.sqrt(jnp.maximum(square, limit**2))
  return (mask * scale).astype(mask.dtype)


def class_masks(
  features: Float[Array, "n t h w c"], kernel: Float[Array, "c m"]
) -> Float[Array, "n t h w m"]:
  """Computes the mask of every class, for figures only; `MaskNetwork` does not need them.

  Example:
    >>> features = jnp.array([1.0, 2.0]).reshape(1, 1, 1, 1, 2)
    >>> class_masks(features, jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])).ravel().tolist()
    [1.0, 2.0, -1.0]
  """
  return jnp.dot(features, kernel.astype(features.dtype))


class MaskNetwork(nn.Module):
  """A 1x1x1 convolution C -> M without bias, whose M outputs are the class masks.

  Its parameter `kernel`, `(C, M)` float32, is the matrix W that Eq. 4 regularizes. Because the
  convolution is linear, the class masks are never computed: their mean over T, H, W is the mean of
  the features times W; their weighted sum is the features times the weighted sum of W's columns.

  Attributes:
    num_classes: M.
    dtype: dtype of the mask; None for the dtype of the features.
  """

  num_classes: int
  dtype: DTypeLike | None = None

  @nn.compact
  def __call__(
    self, features: Float[Array, "n t h w c"], weights: Float[Array, "n m"]
  ) -> tuple[Float[Array, "n m"], Float[Array, "n t h w 1"]]:
    """Returns the bridge logits and the combined mask.

    Args:
      features: of the universal network's group 3.
      weights: from `select`.

    Returns:
      `class_masks` averaged over T, H, W, in float32; `combine` of `class_masks` and the weights.
    """
    shape = features.shape[-1], self.num_classes
    kernel = self.param("kernel", nn.initializers.normal(0.01), shape, jnp.float32)
    dtype = features.dtype if self.dtype is None else self.dtype
    bridge = jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32) @ kernel
    directions = jnp.einsum("nm,cm->nc", weights, kernel).astype(dtype)
    return bridge, jnp.einsum("nthwc,nc->nthw", features.astype(dtype), directions)[..., None]
