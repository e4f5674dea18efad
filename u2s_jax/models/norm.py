"""Batch normalisation as all backbones use it."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

EPSILON = 1e-5  # added to the variance


class BatchNorm(nn.Module):
  """Batch normalisation; statistics over batch, frames and pixels.

  Under `jit` with a batch sharded over devices these are the statistics of the GLOBAL batch.

  Attributes:
    scale: whether there is a learned factor for each channel beside the learned offset.
    dtype: of the computation.
  """

  scale: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h w c"]:
    return nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,  # Flax's 0.9 is PyTorch's 0.1
      epsilon=EPSILON,
      dtype=self.dtype,
      use_scale=self.scale,
      use_fast_variance=False,  # the fast formula can go negative
      name="norm",
    )(x)
