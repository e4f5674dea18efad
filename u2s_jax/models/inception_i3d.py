"""Inception-I3D (Carreira and Zisserman 2017, the paper's [8]).

The trunk ends with `Mixed_3c`; the branch is `Mixed_4b` to `Mixed_5c`.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import make_head

# Channels of the four branches of a module: 1x1x1; 1x1x1, 3x3x3; 1x1x1, 3x3x3; pool, 1x1x1.
BOTTOM = {
  "Mixed_3b": (64, (96, 128), (16, 32), 32),
  "Mixed_3c": (128, (128, 192), (32, 96), 64),
}
TOP = {
  "Mixed_4b": (192, (96, 208), (16, 48), 64),
  "Mixed_4c": (160, (112, 224), (24, 64), 64),
  "Mixed_4d": (128, (128, 256), (24, 64), 64),
  "Mixed_4e": (112, (144, 288), (32, 64), 64),
  "Mixed_4f": (256, (160, 320), (32, 128), 128),
  "Mixed_5b": (256, (160, 320), (32, 128), 128),
  "Mixed_5c": (384, (192, 384), (48, 128), 128),
}


class ConvUnit(nn.Module):
  """Convolution over frames and pixels, BN and ReLU; I3D's BN has no scale, S3D's has."""

  features: int
  extent: tuple[int, int, int]
  temporal_stride: int = 1
  scale: bool = False
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t2 h w d"]:
    conv = self.layers.conv(
      self.features, self.extent, temporal_stride=self.temporal_stride, name="conv"
    )
    return nn.relu(self.layers.norm(scale=self.scale, name="norm")(conv(x), train=train))


class Mixed(nn.Module):
  """An inception module: four concatenated branches.

  Attributes:
    channels: see `BOTTOM`.
    is_separable: whether a 3x3x3 convolution is a 1x3x3 and a 3x1x1 one, with scales in BN (S3D).
  """

  channels: tuple[int, tuple[int, int], tuple[int, int], int]
  is_separable: bool = False
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h w d"]:
    def unit(name, y, features, extent=(1, 1, 1)):
      block = ConvUnit(features, extent, scale=self.is_separable, layers=self.layers, name=name)
      return block(y, train=train)

    single, second, third, pooled = self.channels
    branches = [unit("Branch_0_0a", x, single)]
    for i, (reduced, features) in enumerate((second, third), start=1):
      y = unit(f"Branch_{i}_0a", x, reduced)
      if self.is_separable:
        y = unit(f"Branch_{i}_0b_spatial", y, features, (1, 3, 3))
      extent = (3, 1, 1) if self.is_separable else (3, 3, 3)
      branches.append(unit(f"Branch_{i}_0b", y, features, extent))
    y = nn.max_pool(x, (3, 3, 3), padding="SAME")
    branches.append(unit("Branch_3_0b", y, pooled))
    return jnp.concatenate(branches, axis=-1)


class Trunk(nn.Module):
  """The network up to `Mixed_3c`: 480 channels at 1/2 of the frames and 1/8 of the size."""

  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 480"]:
    pool = functools.partial(nn.max_pool, window_shape=(1, 3, 3), strides=(1, 2, 2), padding="SAME")
    stem = self.layers.conv(64, (7, 7, 7), stride=2, temporal_stride=2, padding="same", name="stem")
    norm = self.layers.norm(scale=False, name="stem_norm")
    x = pool(nn.relu(norm(stem(video), train=train)))
    x = ConvUnit(64, (1, 1, 1), layers=self.layers, name="Conv3d_2b")(x, train=train)
    x = pool(ConvUnit(192, (3, 3, 3), layers=self.layers, name="Conv3d_2c")(x, train=train))
    for name, channels in BOTTOM.items():
      x = self.layers.block(Mixed(channels, layers=self.layers, name=name), x, train=train)
    return x


class Branch(nn.Module):
  """`Mixed_4b` to `Mixed_5c` and the classifier."""

  num_classes: int
  layers: Layers = Layers()

  def setup(self) -> None:
    for name, channels in TOP.items():
      setattr(self, name, Mixed(channels, layers=self.layers))
    self.head: nn.Dense = make_head(self.num_classes)

  def features(
    self, trunk: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 1024"]:
    """Returns the output of `Mixed_5c`, non-negative, at 1/8 of the frames and 1/32 of the size."""
    x = trunk
    for name in TOP:
      if name == "Mixed_4b":
        x = nn.max_pool(x, (3, 3, 3), strides=(2, 2, 2), padding="SAME")
      if name == "Mixed_5b":
        x = nn.max_pool(x, (2, 2, 2), strides=(2, 2, 2), padding="SAME")
      x = self.layers.block(getattr(self, name), x, train=train)
    return x

  def classify(self, features: Float[Array, "n t h w c"]) -> Float[Array, "n m"]:
    """Returns the logits of the features averaged over frames and pixels, in float32."""
    return self.head(jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32))


@dataclasses.dataclass(frozen=True)
class InceptionI3D:
  """Inception-I3D."""

  layers: Layers = Layers()

  def trunk(self) -> Trunk:
    return Trunk(self.layers)

  def branch(self, num_classes: int) -> Branch:
    return Branch(num_classes, self.layers)
