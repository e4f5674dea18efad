"""ResNets for video: groups 0-1 (trunk) are 2D, groups 2-3 (branch) can be 3D.

The paper (Section III-A) uses the pre-activation ResNet. A 2D convolution is a 3D convolution of
temporal extent 1.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from u2s_jax.models.conv import max_pool
from u2s_jax.models.layers import Layers
from u2s_jax.runtime.errors import UserError

EXPANSION = 4  # ratio of a bottleneck's output channels to its width
# By depth: whether the blocks are bottlenecks, and their numbers in groups 0 to 3.
DEPTHS = {
  14: (True, (1, 1, 1, 1)),
  18: (False, (2, 2, 2, 2)),
  26: (True, (2, 2, 2, 2)),
  34: (False, (3, 4, 6, 3)),
  50: (True, (3, 4, 6, 3)),
  101: (True, (3, 4, 23, 3)),
  152: (True, (3, 8, 36, 3)),
}
HEAD_DEVIATION = 0.01  # standard deviation of the initial kernel of classifiers
STRIDED = ("3x3", "1x1")


class PreactBottleneck(nn.Module):
  """BN-ReLU-conv three times (1x1, 3x3, 1x1), added to the input or to its projection.

  Attributes:
    width: channels of the two inner convolutions; the output has `EXPANSION * width`.
    stride: spatial stride of the 3x3 convolution and of the projection.
    temporal: temporal extents of the three convolutions and of the projection shortcut.
  """

  width: int
  stride: int
  temporal: tuple[int, int, int, int]
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    conv, norm = self.layers.conv, self.layers.norm
    first, second, third, projection = self.temporal
    features = EXPANSION * self.width
    y = nn.relu(norm(name="norm1")(x, train=train))
    if x.shape[-1] != features or self.stride != 1:
      x = conv(features, (projection, 1, 1), self.stride, name="projection")(y)
    y = conv(self.width, (first, 1, 1), name="conv1")(y)
    y = nn.relu(norm(name="norm2")(y, train=train))
    y = conv(self.width, (second, 3, 3), self.stride, name="conv2")(y)
    y = nn.relu(norm(name="norm3")(y, train=train))
    return x + conv(features, (third, 1, 1), name="conv3")(y)


class PreactBasic(nn.Module):
  """BN-ReLU-conv twice (3x3), added to the input or to its projection: ResNet-18 and 34.

  Attributes:
    width: output channels.
    stride: spatial stride of the first convolution and of the projection.
    temporal: temporal extents of the two convolutions and of the projection shortcut.
    temporal_stride: of the first convolution and of the projection.
    projection_extent: rows and columns of the projection's kernel.
  """

  width: int
  stride: int
  temporal: tuple[int, int, int]
  temporal_stride: int = 1
  projection_extent: int = 1
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t2 h2 w2 d"]:
    conv, norm = functools.partial(self.layers.conv, self.width), self.layers.norm
    first, second, projection = self.temporal
    strides = self.stride, self.temporal_stride
    y = nn.relu(norm(name="norm1")(x, train=train))
    if x.shape[-1] != self.width or strides != (1, 1):
      extent = (projection, self.projection_extent, self.projection_extent)
      x = conv(extent, *strides, name="projection")(y)
    y = conv((first, 3, 3), *strides, name="conv1")(y)
    y = nn.relu(norm(name="norm2")(y, train=train))
    return x + conv((second, 3, 3), name="conv2")(y)


def temporal_shift(video: Float[Array, "n t h w c"], divisor: int = 8) -> Float[Array, "n t h w c"]:
  """Shifts channels by one frame, with zeros at the ends (TSM, Lin et al. 2019, the paper's [69]).

  The first c // divisor channels become those of the next frame, the following c // divisor those
  of the previous frame; the others are unchanged.
  """
  fold = video.shape[-1] // divisor
  padded = jnp.pad(video[..., : 2 * fold], ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
  following, previous = padded[:, 2:, ..., :fold], padded[:, :-2, ..., fold:]
  return jnp.concatenate([following, previous, video[..., 2 * fold :]], axis=-1)


class Bottleneck(nn.Module):
  """Post-activation bottleneck (v1): conv-BN-ReLU, the last ReLU after the sum.

  Attributes, next to those of `PreactBottleneck`:
    strided: the convolution that has the stride, '3x3' (torchvision) or '1x1', the first one (He et
      al.'s original, Keras).
    shift: divisor of the `temporal_shift` before the first convolution; 0 for no shift.
  """

  width: int
  stride: int
  temporal: tuple[int, int, int, int]
  strided: str = "3x3"
  shift: int = 0
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    conv, norm = self.layers.conv, self.layers.norm
    first, second, third, projection = self.temporal
    features = EXPANSION * self.width
    stride1, stride2 = (self.stride, 1) if self.strided == "1x1" else (1, self.stride)
    y = temporal_shift(x, self.shift) if self.shift else x
    y = conv(self.width, (first, 1, 1), stride1, name="conv1")(y)
    y = nn.relu(norm(name="norm1")(y, train=train))
    y = conv(self.width, (second, 3, 3), stride2, name="conv2")(y)
    y = nn.relu(norm(name="norm2")(y, train=train))
    y = norm(name="norm3")(conv(features, (third, 1, 1), name="conv3")(y), train=train)
    if x.shape[-1] != features or self.stride != 1:
      x = conv(features, (projection, 1, 1), self.stride, name="projection")(x)
      x = norm(name="projection_norm")(x, train=train)
    return nn.relu(x + y)


class Basic(nn.Module):
  """Post-activation block of two 3x3 convolutions (v1): ResNet-18 and 34.

  Attributes are those of `PreactBasic`, and `shift` of `Bottleneck`.
  """

  width: int
  stride: int
  temporal: tuple[int, int, int]
  shift: int = 0
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    conv, norm = functools.partial(self.layers.conv, self.width), self.layers.norm
    first, second, projection = self.temporal
    y = temporal_shift(x, self.shift) if self.shift else x
    y = conv((first, 3, 3), self.stride, name="conv1")(y)
    y = nn.relu(norm(name="norm1")(y, train=train))
    y = norm(name="norm2")(conv((second, 3, 3), name="conv2")(y), train=train)
    if x.shape[-1] != self.width or self.stride != 1:
      x = conv((projection, 1, 1), self.stride, name="projection")(x)
      x = norm(name="projection_norm")(x, train=train)
    return nn.relu(x + y)


class Group(nn.Module):
  """A group of blocks of the same width.

  Attributes:
    block: builds a block from a stride and a name.
    stride: stride of the first block.
    shift_every: the temporal shift is applied in one of so many blocks, starting with the first.
  """

  block: Callable[..., nn.Module]
  blocks: int
  stride: int
  shift_every: int = 1
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t2 h2 w2 d"]:
    for i in range(self.blocks):
      no_shift = {"shift": 0} if i % self.shift_every else {}
      block = self.block(stride=self.stride if i == 0 else 1, name=f"block{i}", **no_shift)
      x = self.layers.block(block, x, train=train)
    return x


class Trunk(nn.Module):
  """Res2D of the paper's Fig. 2: stem, group 0 and group 1, without temporal convolutions.

  Attributes:
    stem_norm: whether BN and ReLU follow the stem (v1).
    stem_pool: whether a 3x3/2 max pool follows the 7x7/2 stem convolution; off for small frames.
  """

  groups: tuple[Callable[..., nn.Module], Callable[..., nn.Module]]
  width: int
  stem_norm: bool
  stem_pool: bool = True
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 d"]:
    x = self.layers.conv(self.width, (1, 7, 7), stride=2, name="stem")(video)
    if self.stem_norm:
      x = nn.relu(self.layers.norm(name="stem_norm")(x, train=train))
    if self.stem_pool:
      x = max_pool(x)
    for i, group in enumerate(self.groups):
      x = group(name=f"group{i}")(x, train=train)
    return x


class Branch(nn.Module):
  """Res3D of the paper's Fig. 2 with its classifier; UN and CSN have one each.

  Attributes:
    last_norm: whether BN and ReLU follow group 3 (pre-activation).
  """

  num_classes: int
  groups: tuple[Callable[..., nn.Module], Callable[..., nn.Module]]
  last_norm: bool
  layers: Layers = Layers()

  def setup(self) -> None:
    self.group2: nn.Module = self.groups[0]()
    self.group3: nn.Module = self.groups[1]()
    if self.last_norm:
      self.norm: nn.Module = self.layers.norm()
    self.head: nn.Dense = make_head(self.num_classes)

  def features(
    self, trunk: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 d"]:
    """Returns group 3's output after its last ReLU, non-negative, the input of CSM and masks."""
    x = self.group3(self.group2(trunk, train=train), train=train)
    return nn.relu(self.norm(x, train=train)) if self.last_norm else x

  def classify(self, features: Float[Array, "n t h w c"]) -> Float[Array, "n m"]:
    """Returns the logits of the features averaged over frames and pixels, in float32."""
    return self.head(jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32))


def make_head(num_classes: int) -> nn.Dense:
  """Builds the classifier of every backbone."""
  return nn.Dense(num_classes, kernel_init=nn.initializers.normal(HEAD_DEVIATION))


@dataclasses.dataclass(frozen=True)
class ResNet:
  """ResNet v1 for video: conv-BN-ReLU.

  Attributes:
    temporal: for groups 2 and 3, the temporal extents of a block's convolutions, three in a
      bottleneck or two in a basic block, and of its projection; odd.
    depth: 18, 34 (basic blocks), 50, 101, 152, or the small 14, 26 (bottlenecks).
    width: channels of the stem.
    strides: spatial strides of groups 0 to 3.
    stem_pool: see `Trunk`.
    strided: see `Bottleneck`.

  Raises:
    UserError: if the depth is unknown, or another value is invalid for its blocks.
  """

  temporal: tuple[tuple[int, ...], tuple[int, ...]]
  depth: int = 50
  width: int = 64
  strides: tuple[int, int, int, int] = (1, 2, 2, 2)
  stem_pool: bool = True
  strided: str = "3x3"
  layers: Layers = Layers()

  preactivation: ClassVar[bool] = False
  shift: ClassVar[int] = 0  # divisor of the temporal shift in every block; 0 for no shift

  def __post_init__(self) -> None:
    if self.depth not in DEPTHS:
      known = ", ".join(map(str, DEPTHS))
      raise UserError(f"model.backbone.depth: {self.depth} is not one of {known}")
    if len(self.strides) != 4 or min(self.strides) < 1:
      raise UserError(f"model.backbone.strides: {self.strides} must be four numbers >= 1")
    if self.width < 1:
      raise UserError(f"model.backbone.width: {self.width} must be >= 1")
    if self.strided not in STRIDED:
      raise UserError(f"model.backbone.strided: {self.strided!r} is not one of {STRIDED}")
    has_bottlenecks, _ = DEPTHS[self.depth]
    if self.strided != "3x3" and (self.preactivation or not has_bottlenecks):
      raise UserError(
        f"model.backbone.strided: {self.strided!r} requires bottlenecks of 'resnet' or 'tsm_resnet'"
      )
    extents, temporal = 4 if has_bottlenecks else 3, self.temporal
    lengths = [len(group) for group in temporal if isinstance(group, tuple | list)]
    if lengths != [extents] * 2 or any(e < 1 or e % 2 == 0 for group in temporal for e in group):
      raise UserError(
        f"model.backbone.temporal: {temporal} must be {extents} odd numbers for each of groups 2"
        f" and 3: with depth {self.depth} a block has {extents - 1} convolutions and a projection"
      )

  def trunk(self) -> Trunk:
    """Builds the stem and groups 0 and 1."""
    flat = (1,) * len(self.temporal[0])
    return Trunk(
      groups=(self._group(0, flat), self._group(1, flat)),
      width=self.width,
      stem_norm=not self.preactivation,
      stem_pool=self.stem_pool,
      layers=self.layers,
    )

  def branch(self, num_classes: int) -> Branch:
    """Builds groups 2 and 3 with their classifier."""
    return Branch(
      num_classes,
      groups=(self._group(2, self.temporal[0]), self._group(3, self.temporal[1])),
      last_norm=self.preactivation,
      layers=self.layers,
    )

  def _group(self, index: int, temporal: Sequence[int]) -> Callable[..., Group]:
    has_bottlenecks, blocks = DEPTHS[self.depth]
    if self.preactivation:
      block = PreactBottleneck if has_bottlenecks else PreactBasic
    elif has_bottlenecks:
      block = functools.partial(Bottleneck, strided=self.strided, shift=self.shift)
    else:
      block = functools.partial(Basic, shift=self.shift)
    return functools.partial(
      Group,
      functools.partial(
        block, width=self.width * 2**index, temporal=tuple(temporal), layers=self.layers
      ),
      blocks[index],
      self.strides[index],
      # As in the TSM authors' code, which shifts in every other block of ResNet-101 and deeper.
      shift_every=2 if self.shift and blocks[2] >= 23 else 1,
      layers=self.layers,
    )


class PreactResNet(ResNet):
  """Pre-activation ResNet (v2), the paper's: BN-ReLU-conv."""

  preactivation = True


class TSMResNet(ResNet):
  """ResNet v1 with a temporal shift of 1/8 of the channels in each direction (TSM)."""

  shift = 8
