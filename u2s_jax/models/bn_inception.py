"""BN-Inception (Ioffe and Szegedy 2015) of each frame, the 2D network of ECO-Lite and TRN."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from u2s_jax.models.layers import Layers


class ConvUnit(nn.Module):
  """Convolution of each frame, BN and ReLU."""

  features: int
  extent: int
  stride: int = 1
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    extent = (1, self.extent, self.extent)
    x = self.layers.conv(self.features, extent, self.stride, name="conv")(x)
    return nn.relu(self.layers.norm(name="norm")(x, train=train))


class Inception(nn.Module):
  """An inception module: concatenated branches of a 1x1, a 3x3, two 3x3 convolutions and a pool.

  Attributes:
    single: channels of the 1x1 convolution; 0 for a module of stride 2, which lacks it.
    middle: channels of the 3x3 convolution and of the 1x1 convolution before it.
    double: channels of the two 3x3 convolutions and of the 1x1 convolution before them.
    projection: channels of the 1x1 convolution after the pool; 0 for a module of stride 2, whose
      pool is concatenated as it is.
    pool: 'avg' or 'max'.
  """

  single: int
  middle: tuple[int, int]
  double: tuple[int, int]
  projection: int
  pool: str = "avg"
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    def unit(name, y, features, extent, stride=1):
      return ConvUnit(features, extent, stride, layers=self.layers, name=name)(y, train=train)

    stride = 1 if self.single else 2
    branches = [unit("single", x, self.single, 1)] if self.single else []
    y = unit("middle_reduce", x, self.middle[0], 1)
    branches.append(unit("middle", y, self.middle[1], 3, stride))
    y = unit("double_reduce", x, self.double[0], 1)
    y = unit("double1", y, self.double[1], 3)
    branches.append(unit("double2", y, self.double[1], 3, stride))
    pool = nn.avg_pool if self.pool == "avg" else nn.max_pool
    y = pool(x, (1, 3, 3), strides=(1, stride, stride), padding="SAME")
    branches.append(unit("projection", y, self.projection, 1) if self.projection else y)
    return jnp.concatenate(branches, axis=-1)


def apply_bottom(layers: Layers, video: Float[Array, "n t h w c"], *, train: bool) -> Array:
  """Computes the layers up to `inception_3b`, 320 channels at 1/8 of the size.

  To be called in a compact method, whose module gets the parameters.
  """
  unit = functools.partial(ConvUnit, layers=layers)
  pool = functools.partial(nn.max_pool, window_shape=(1, 3, 3), strides=(1, 2, 2), padding="SAME")
  x = layers.conv(64, (1, 7, 7), stride=2, name="stem")(video)
  x = pool(nn.relu(layers.norm(name="stem_norm")(x, train=train)))
  x = unit(64, 1, name="conv2_reduce")(x, train=train)
  x = pool(unit(192, 3, name="conv2")(x, train=train))
  block = Inception(64, (64, 64), (64, 96), 32, layers=layers, name="inception_3a")
  x = layers.block(block, x, train=train)
  block = Inception(64, (64, 96), (64, 96), 64, layers=layers, name="inception_3b")
  return layers.block(block, x, train=train)
