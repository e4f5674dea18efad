"""Non-local block (Wang et al. 2018, the paper's [26]), for the comparison e) of Table III."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class NonLocal(nn.Module):
  """Embedded-Gaussian self-attention over all positions of all frames, with a residual connection.

  Attributes:
    inner: channels of the embeddings.
  """

  inner: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"]) -> Float[Array, "n t h w c"]:
    n, *positions, channels = x.shape
    dense = functools.partial(nn.Dense, use_bias=False, dtype=self.dtype)
    flat = x.reshape(n, -1, channels)
    query = dense(self.inner, name="theta")(flat)
    key = dense(self.inner, name="phi")(flat)
    value = dense(self.inner, name="g")(flat)
    # Scaled by the square root of the width, as in the authors' code.
    scores = jnp.einsum("nqc,nkc->nqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * self.inner**-0.5)
    y = jnp.einsum("nqk,nkc->nqc", weights.astype(self.dtype), value)
    # Initialised to zero: the block starts as the identity, which preserves pretrained features.
    y = dense(channels, kernel_init=nn.initializers.zeros, name="output")(y)
    return x + y.reshape(n, *positions, channels)
