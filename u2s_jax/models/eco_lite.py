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
from u2s_jax.models.bn_inception import ConvUnit, apply_bottom
from u2s_jax.models.layers import Layers


class Trunk(nn.Module):
  """BN-Inception of each frame: 96 channels at 1/8 of the size."""

  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 96"]:
    unit = functools.partial(ConvUnit, layers=self.layers)
    x = apply_bottom(self.layers, video, train=train)
    x = unit(64, 1, name="inception_3c_reduce")(x, train=train)
    return unit(96, 3, name="inception_3c")(x, train=train)


class Branch(nn.Module):
  """3D ResNet-18 from `res3a_2` to `res5b`, with classifier: 128, 256, 512 channels.

  The groups of 256 and 512 channels begin with a stride of 2 in space and time.
  """

  num_classes: int
  layers: Layers = Layers()

  def setup(self) -> None:
    block = functools.partial(
      resnet.PreactBasic, temporal=(3, 3, 3), projection_extent=3, layers=self.layers
    )
    self.res3a: nn.Module = self.layers.conv(128, (3, 3, 3))
    self.res3b: nn.Module = block(128, 1)
    self.res4a: nn.Module = block(256, 2, temporal_stride=2)
    self.res4b: nn.Module = block(256, 1)
    self.res5a: nn.Module = block(512, 2, temporal_stride=2)
    self.res5b: nn.Module = block(512, 1)
    self.norm: nn.Module = self.layers.norm()
    self.head: nn.Dense = resnet.make_head(self.num_classes)

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
