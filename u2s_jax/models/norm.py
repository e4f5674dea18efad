"""Batch normalisation of all backbones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

EPSILON = 1e-5  # added to the variance
MOMENTUM = 0.9  # decay of the running statistics; 1 - 0.1, PyTorch's momentum


class BatchNorm(nn.Module):
  """Batch normalisation with float32 statistics over batch, frames and pixels.

  Under `jit` with a batch sharded over devices, the statistics are those of the global batch.

  Attributes:
    scale: whether each channel has a learned factor in addition to the learned offset.
  """

  scale: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h w c"]:
    shape = x.shape[-1:]
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    running_var = self.variable("batch_stats", "var", jnp.ones, shape)
    scale = self.param("scale", nn.initializers.ones, shape) if self.scale else jnp.ones(shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    if train:
      y, mean, var = _normalize(x, scale, bias)
      if not self.is_initializing():
        running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
        running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * var
    else:
      inverse = jax.lax.rsqrt(running_var.value + EPSILON)
      y = (x - running_mean.value) * (inverse * scale) + bias
    return y.astype(self.dtype)


@jax.custom_vjp
def _normalize(
  x: Float[Array, "n t h w c"], scale: Float[Array, " c"], bias: Float[Array, " c"]
) -> tuple[Float[Array, "n t h w c"], Float[Array, " c"], Float[Array, " c"]]:
  """Returns `x` normalised by its batch statistics, and its mean and (biased) variance, in float32.

  The gradients of the returned mean and variance are ignored.
  """
  # A custom gradient, because two sums over the batch suffice, while automatic differentiation of
  # the forward pass makes three: each is a pass over memory and a communication between devices.
  return _normalize_forward(x, scale, bias)[0]


def _normalize_forward(x, scale, bias):
  axes = tuple(range(x.ndim - 1))
  mean = jnp.mean(x, axes, jnp.float32)
  # In two passes, because E[x^2] - E[x]^2 can become negative by rounding.
  var = jnp.mean(jnp.square(x - mean), axes)
  inverse = jax.lax.rsqrt(var + EPSILON)
  return ((x - mean) * (inverse * scale) + bias, mean, var), (x, scale, mean, inverse)


def _normalize_backward(operands, gradients):
  x, scale, mean, inverse = operands
  dy, _, _ = gradients
  axes = tuple(range(x.ndim - 1))
  count = x.size // x.shape[-1]
  centred = x - mean
  dbias = jnp.sum(dy, axes)
  dscale = jnp.sum(dy * centred, axes) * inverse
  dx = (dy - dbias / count - centred * (inverse * dscale / count)) * (inverse * scale)
  return dx.astype(x.dtype), dscale, dbias


_normalize.defvjp(_normalize_forward, _normalize_backward)
