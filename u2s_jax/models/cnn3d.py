"""The VGG-style 3D-CNN of 11 layers, baseline of Something-Something V2 (the paper's [6])."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import make_head
from u2s_jax.runtime.errors import UserError

# Output channels of each layer as multiples of `width`. All kernels are 3x3x3 but the first, 3x5x5;
# the first layer and the last of each other group have a spatial stride of 2.
BOTTOM = ((1,), (2, 4), (4, 4, 8))
TOP = ((8, 8, 16), (16, 16))


class Group(nn.Module):
  """Convolutions with BN and ReLU, the last one with a spatial stride of 2."""

  channels: tuple[int, ...]
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    for i, channels in enumerate(self.channels):
      stride = 2 if i == len(self.channels) - 1 else 1
      x = self.layers.conv(channels, (3, 3, 3), stride, name=f"conv{i}")(x)
      x = nn.relu(self.layers.norm(name=f"norm{i}")(x, train=train))
    return x


class Trunk(nn.Module):
  """The first six layers: `8 * width` channels at 1/8 of the size, all frames."""

  width: int
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 d"]:
    x = self.layers.conv(self.width, (3, 5, 5), stride=2, name="stem")(video)
    x = nn.relu(self.layers.norm(name="stem_norm")(x, train=train))
    for i, group in enumerate(BOTTOM[1:]):
      channels = tuple(self.width * factor for factor in group)
      x = self.layers.block(Group(channels, self.layers, name=f"group{i}"), x, train=train)
    return x


class Branch(nn.Module):
  """The last five layers and the classifier."""

  num_classes: int
  width: int
  layers: Layers = Layers()

  def setup(self) -> None:
    group2, group3 = (tuple(self.width * factor for factor in group) for group in TOP)
    self.group2: nn.Module = Group(group2, self.layers)
    self.group3: nn.Module = Group(group3, self.layers)
    self.head: nn.Dense = make_head(self.num_classes)

  def features(
    self, trunk: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 d"]:
    """Returns the last ReLU's output, non-negative, `16 * width` channels at 1/32 of the size."""
    x = self.layers.block(self.group2, trunk, train=train)
    return self.layers.block(self.group3, x, train=train)

  def classify(self, features: Float[Array, "n t h w c"]) -> Float[Array, "n m"]:
    """Returns the logits of the features averaged over frames and pixels, in float32."""
    return self.head(jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32))


@dataclasses.dataclass(frozen=True)
class CNN3D:
  """The VGG-style 3D-CNN.

  Attributes:
    width: channels of the first layer, 32 in the baseline.

  Raises:
    UserError: if the width is not positive.
  """

  width: int = 32
  layers: Layers = Layers()

  def __post_init__(self) -> None:
    if self.width < 1:
      raise UserError(f"model.backbone.width: {self.width} must be >= 1")

  def trunk(self) -> Trunk:
    """Builds the first six layers."""
    return Trunk(self.width, self.layers)

  def branch(self, num_classes: int) -> Branch:
    """Builds the last five layers with their classifier."""
    return Branch(num_classes, self.width, self.layers)
