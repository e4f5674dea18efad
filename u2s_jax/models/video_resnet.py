"""The 18-layer ResNets R3D, MC3 and R(2+1)D (Tran et al. 2018, the paper's [24]).

Layers, strides and padding are torchvision's, whose Kinetics-400 weights fit. The trunk ends with
the second group, as the paper's does.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import Branch, Group
from u2s_jax.runtime.errors import UserError


class Block(nn.Module):
  """Post-activation block of two 3x3x3 convolutions.

  Attributes:
    width: output channels.
    stride: of the first convolution and of the projection, in space and, unless `kind` is '2d', in
      time.
    kind: '3d'; '2d', without the extent in time; or '2+1d', a 1x3x3 convolution, BN and ReLU, and a
      3x1x1 convolution, with as many parameters as '3d'.
  """

  width: int
  stride: int
  kind: str
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t2 h2 w2 d"]:
    conv, norm, channels = self.layers.conv, self.layers.norm, x.shape[-1]
    middle = 27 * channels * self.width // (9 * channels + 3 * self.width)

    def convolve(y, stride, name):
      if self.kind == "2d":
        return conv(self.width, (1, 3, 3), stride, name=name)(y)
      if self.kind == "3d":
        return conv(self.width, (3, 3, 3), stride, stride, name=name)(y)
      y = conv(middle, (1, 3, 3), stride, name=f"{name}_spatial")(y)
      y = nn.relu(norm(name=f"{name}_spatial_norm")(y, train=train))
      return conv(self.width, (3, 1, 1), temporal_stride=stride, name=name)(y)

    y = nn.relu(norm(name="norm1")(convolve(x, self.stride, "conv1"), train=train))
    y = norm(name="norm2")(convolve(y, 1, "conv2"), train=train)
    if channels != self.width or self.stride != 1:
      temporal_stride = 1 if self.kind == "2d" else self.stride
      x = conv(self.width, (1, 1, 1), self.stride, temporal_stride, name="projection")(x)
      x = norm(name="projection_norm")(x, train=train)
    return nn.relu(x + y)


class Trunk(nn.Module):
  """Stem and groups 0 and 1: `2 * width` channels at 1/4 of the size.

  Attributes:
    groups: builders of groups 0 and 1.
    width: channels of the stem.
    is_factorized: whether the stem is a 1x7x7 and a 3x1x1 convolution instead of a 3x7x7 one.
  """

  groups: tuple[functools.partial[nn.Module], ...]
  width: int
  is_factorized: bool
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 d"]:
    conv, norm = self.layers.conv, self.layers.norm
    if self.is_factorized:
      x = conv(45 * self.width // 64, (1, 7, 7), 2, name="stem")(video)
      x = nn.relu(norm(name="stem_norm")(x, train=train))
      x = conv(self.width, (3, 1, 1), name="stem_temporal")(x)
      x = nn.relu(norm(name="stem_temporal_norm")(x, train=train))
    else:
      x = conv(self.width, (3, 7, 7), 2, name="stem")(video)
      x = nn.relu(norm(name="stem_norm")(x, train=train))
    for i, group in enumerate(self.groups):
      x = group(name=f"group{i}")(x, train=train)
    return x


@dataclasses.dataclass(frozen=True)
class R3D:
  """R3D-18: all convolutions are 3x3x3.

  Attributes:
    width: channels of the stem, 64 in the published networks.

  Raises:
    UserError: if the width is less than 2.
  """

  width: int = 64
  layers: Layers = Layers()

  kinds: ClassVar[tuple[str, ...]] = ("3d",) * 4  # of groups 0 to 3, see `Block`

  def __post_init__(self) -> None:
    if self.width < 2:
      raise UserError(f"model.backbone.width: {self.width} must be >= 2")

  def trunk(self) -> Trunk:
    """Builds the stem and groups 0 and 1."""
    groups = (self._group(0), self._group(1))
    return Trunk(groups, self.width, self.kinds[0] == "2+1d", self.layers)

  def branch(self, num_classes: int) -> Branch:
    """Builds groups 2 and 3 with their classifier."""
    groups = (self._group(2), self._group(3))
    return Branch(num_classes, groups, last_norm=False, layers=self.layers)

  def _group(self, index):
    width, stride = self.width * 2**index, 1 if index == 0 else 2
    block = functools.partial(Block, width, kind=self.kinds[index], layers=self.layers)
    return functools.partial(Group, block, blocks=2, stride=stride, layers=self.layers)


class MC3(R3D):
  """MC3-18: 3x3x3 convolutions in group 0, 1x3x3 convolutions in the others."""

  kinds: tuple[str, ...] = ("3d", "2d", "2d", "2d")


class R2Plus1D(R3D):
  """R(2+1)D-18: all convolutions are factorized into space and time."""

  kinds: tuple[str, ...] = ("2+1d",) * 4
