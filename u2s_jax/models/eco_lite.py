"""ECO-Lite (Zolfaghari et al. 2018, the paper's [10]): BN-Inception per frame, then 3D ResNet-18.

The trunk is BN-Inception up to the first 3x3 convolution of `inception_3c`'s double branch; the
branch is a pre-activation ResNet-18 from `res3a_2` on, with strides in time as well.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from u2s_jax.models import resnet
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
  """`inception_3a` or `inception_3b` of BN-Inception: four concatenated branches.

  Attributes:
    reduce: channels of the 1x1 convolution before the 3x3 one.
    middle: channels of the 3x3 one.
    projection: channels of the 1x1 convolution after the average pool.
  """

  reduce: int
  middle: int
  projection: int
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h w d"]:
    def unit(name, y, features, extent):
      return ConvUnit(features, extent, layers=self.layers, name=name)(y, train=train)

    single = unit("single", x, 64, 1)
    middle = unit("middle", unit("middle_reduce", x, self.reduce, 1), self.middle, 3)
    double = unit("double1", unit("double_reduce", x, 64, 1), 96, 3)
    double = unit("double2", double, 96, 3)
    pooled = nn.avg_pool(x, (1, 3, 3), padding="SAME")
    pooled = unit("projection", pooled, self.projection, 1)
    return jnp.concatenate([single, middle, double, pooled], axis=-1)


class Trunk(nn.Module):
  """BN-Inception of each frame: 96 channels at 1/8 of the size."""

  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 96"]:
    unit = functools.partial(ConvUnit, layers=self.layers)
    pool = functools.partial(nn.max_pool, window_shape=(1, 3, 3), strides=(1, 2, 2), padding="SAME")
    x = self.layers.conv(64, (1, 7, 7), stride=2, name="stem")(video)
    x = pool(nn.relu(self.layers.norm(name="stem_norm")(x, train=train)))
    x = unit(64, 1, name="conv2_reduce")(x, train=train)
    x = pool(unit(192, 3, name="conv2")(x, train=train))
    x = self.layers.block(Inception(64, 64, 32, self.layers, name="inception_3a"), x, train=train)
    x = self.layers.block(Inception(64, 96, 64, self.layers, name="inception_3b"), x, train=train)
    x = unit(64, 1, name="inception_3c_reduce")(x, train=train)
    return unit(96, 3, name="inception_3c")(x, train=train)


class Branch(nn.Module):
  """3D ResNet-18 from `res3a_2` to `res5b`, with classifier: 128, 256, 512 channels.

  The groups of 256 and 512 channels begin with a stride of 2 in space and time.
  """

  num_classes: int
  layers: Layers = Layers()

  def setup(self):
    block = functools.partial(
      resnet.PreactBasic, temporal=(3, 3, 3), projection_extent=3, layers=self.layers
    )
    self.res3a = self.layers.conv(128, (3, 3, 3))
    self.res3b = block(128, 1)
    self.res4a = block(256, 2, temporal_stride=2)
    self.res4b = block(256, 1)
    self.res5a = block(512, 2, temporal_stride=2)
    self.res5b = block(512, 1)
    self.norm = self.layers.norm()
    self.head = resnet.make_head(self.num_classes)

  def features(
    self, trunk: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 512"]:
    """Returns the feature map after the last ReLU, non-negative, at 1/4 of the frames."""
    x = self.res3a(trunk)
    for block in (self.res3b, self.res4a, self.res4b, self.res5a, self.res5b):
      x = self.layers.block(block, x, train=train)
    return nn.relu(self.norm(x, train=train))

  def classify(self, features: Float[Array, "n t h w c"]) -> Float[Array, "n m"]:
    """Returns the logits of the features averaged over frames and pixels, in float32."""
    return self.head(jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32))


@dataclasses.dataclass(frozen=True)
class ECOLite:
  """ECO-Lite."""

  layers: Layers = Layers()

  def trunk(self) -> Trunk:
    return Trunk(self.layers)

  def branch(self, num_classes: int) -> Branch:
    return Branch(num_classes, self.layers)
