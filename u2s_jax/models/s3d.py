"""S3D (Xie et al. 2018, the paper's [25]): I3D with convolutions factorized into space and time.

Layers, strides and padding are torchvision's, whose Kinetics-400 weights fit. Modules are named and
split into trunk and branch as in `inception_i3d`, whose modules and channels they have.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from u2s_jax.models.conv import max_pool
from u2s_jax.models.inception_i3d import BOTTOM, TOP, ConvUnit, Mixed
from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import make_head


class Trunk(nn.Module):
  """The network up to `Mixed_3c`: 480 channels at 1/2 of the frames and 1/8 of the size."""

  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 480"]:
    def unit(name, y, features, extent, temporal_stride=1):
      block = ConvUnit(features, extent, temporal_stride, True, self.layers, name=name)
      return block(y, train=train)

    x = self.layers.conv(64, (1, 7, 7), stride=2, name="stem")(video)
    x = nn.relu(self.layers.norm(name="stem_norm")(x, train=train))
    x = max_pool(unit("Conv3d_1a", x, 64, (7, 1, 1), temporal_stride=2))
    x = unit("Conv3d_2b", x, 64, (1, 1, 1))
    x = unit("Conv3d_2c_spatial", x, 192, (1, 3, 3))
    x = max_pool(unit("Conv3d_2c", x, 192, (3, 1, 1)))
    for name, channels in BOTTOM.items():
      x = self.layers.block(Mixed(channels, True, self.layers, name=name), x, train=train)
    return x


class Branch(nn.Module):
  """`Mixed_4b` to `Mixed_5c` and the classifier."""

  num_classes: int
  layers: Layers = Layers()

  def setup(self) -> None:
    for name, channels in TOP.items():
      setattr(self, name, Mixed(channels, True, self.layers))
    self.head: nn.Dense = make_head(self.num_classes)

  def features(
    self, trunk: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 1024"]:
    """Returns the output of `Mixed_5c`, non-negative, at 1/8 of the frames and 1/32 of the size."""
    x = nn.max_pool(trunk, (3, 3, 3), strides=(2, 2, 2), padding=((1, 1),) * 3)
    for name in TOP:
      if name == "Mixed_5b":
        # As in torchvision, odd sizes lose their last row; a single frame or row stays.
        x = nn.max_pool(x, tuple(min(2, size) for size in x.shape[1:4]), strides=(2, 2, 2))
      x = self.layers.block(getattr(self, name), x, train=train)
    return x

  def classify(self, features: Float[Array, "n t h w c"]) -> Float[Array, "n m"]:
    """Returns the logits of averages over windows of 2 frames and 7x7 pixels, averaged."""
    window = tuple(min(*sizes) for sizes in zip((2, 7, 7), features.shape[1:4], strict=True))
    pooled = nn.avg_pool(features.astype(jnp.float32), window)
    return self.head(jnp.mean(pooled, axis=(1, 2, 3)))


@dataclasses.dataclass(frozen=True)
class S3D:
  """S3D."""

  layers: Layers = Layers()

  def trunk(self) -> Trunk:
    """Builds the trunk."""
    return Trunk(self.layers)

  def branch(self, num_classes: int) -> Branch:
    """Builds a branch with its classifier."""
    return Branch(num_classes, self.layers)
