"""ResNets over video: groups 0-1 see each frame alone (trunk), groups 2-3 may see several (branch).

Section III-A of the paper has the pre-activation one. A 2D convolution is a 3D one of temporal
extent 1.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from u2s_jax.errors import UserError
from u2s_jax.models.conv import max_pool
from u2s_jax.models.layers import Layers
from u2s_jax.models.temporal_shift import temporal_shift

EXPANSION = 4  # a bottleneck's output channels over its width
# By depth: whether blocks are bottlenecks, and how many there are in groups 0 to 3.
DEPTHS = {
  14: (True, (1, 1, 1, 1)),
  18: (False, (2, 2, 2, 2)),
  26: (True, (2, 2, 2, 2)),
  34: (False, (3, 4, 6, 3)),
  50: (True, (3, 4, 6, 3)),
  101: (True, (3, 4, 23, 3)),
  152: (True, (3, 8, 36, 3)),
}
HEAD_DEVIATION = 0.01  # of the initial kernel of classifiers
STRIDED = ("3x3", "1x1")


class PreactBottleneck(nn.Module):
  """BN-ReLU-conv three times (1x1, 3x3, 1x1), added to the input or to its projection.

  Attributes:
    width: channels of the two inner convolutions; the output has `EXPANSION * width`.
    stride: spatial stride of the 3x3 convolution and of the projection.
    temporal: frames seen by the three convolutions and by the projection shortcut.
    layers: how it computes.
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
    temporal: frames seen by the two convolutions and by the projection shortcut.
    temporal_stride: of the first convolution and of the projection.
    projection_extent: rows and columns seen by the projection.
    layers: how it computes.
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


class Bottleneck(nn.Module):
  """Post-activation bottleneck (v1): conv-BN-ReLU, the last ReLU behind the sum.

  Attributes:
    width: channels of the two inner convolutions; the output has `EXPANSION * width`.
    stride: spatial stride, of the projection as well.
    temporal: frames seen by the three convolutions and by the projection shortcut.
    strided: which convolution has the stride, '3x3' (torchvision) or '1x1', the first (He et al.'s
      original, Keras).
    shift: `temporal_shift`'s divisor, of what goes into the first convolution; 0: no shift.
    layers: how it computes.
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

  Attributes:
    width: output channels.
    stride: spatial stride of the first convolution and of the projection.
    temporal: frames seen by the two convolutions and by the projection shortcut.
    shift: as in `Bottleneck`.
    layers: how it computes.
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
  """Blocks of one width; the first one strides.

  Attributes:
    block: makes a block of a stride and a name.
    blocks: how many.
    stride: of the first.
    shift_every: 2: only every other block, from the first on, keeps its shift.
    layers: how it computes.
  """

  block: Callable[..., nn.Module]
  blocks: int
  stride: int
  shift_every: int = 1
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    for i in range(self.blocks):
      still = {"shift": 0} if i % self.shift_every else {}
      block = self.block(stride=self.stride if i == 0 else 1, name=f"block{i}", **still)
      x = self.layers.block(block, x, train=train)
    return x


class Trunk(nn.Module):
  """Res2D of the paper's Fig. 2: stem, group 0 and group 1, each frame alone but for a shift.

  Attributes:
    groups: make groups 0 and 1.
    width: channels of the stem.
    stem_norm: BN and ReLU behind the stem (v1).
    stem_pool: 3x3/2 max pool after the 7x7/2 stem convolution; off for small frames.
    layers: how it computes.
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
  """Res3D of the paper's Fig. 2 with its classifier: what UN and CSN each have of their own.

  Attributes:
    num_classes: M.
    groups: make groups 2 and 3.
    last_norm: BN and ReLU behind group 3 (pre-activation).
    layers: how it computes.
  """

  num_classes: int
  groups: tuple[Callable[..., nn.Module], Callable[..., nn.Module]]
  last_norm: bool
  layers: Layers = Layers()

  def setup(self):
    self.group2, self.group3 = (group() for group in self.groups)
    if self.last_norm:
      self.norm = self.layers.norm()
    self.head = head(self.num_classes)

  def features(
    self, trunk: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 d"]:
    """Group 3's output behind its last ReLU: non-negative, what CSM and masks are made of."""
    x = self.group3(self.group2(trunk, train=train), train=train)
    return nn.relu(self.norm(x, train=train)) if self.last_norm else x

  def classify(self, features: Float[Array, "n t h w c"]) -> Float[Array, "n m"]:
    """Logits of features averaged over frames and pixels, in float32."""
    return self.head(jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32))


def head(num_classes: int) -> nn.Dense:
  """The classifier of every backbone."""
  return nn.Dense(num_classes, kernel_init=nn.initializers.normal(HEAD_DEVIATION))


def resnet(
  *,
  preactivation: bool,
  shift: int = 0,
  temporal: tuple[tuple[int, ...], tuple[int, ...]],
  depth: int = 50,
  width: int = 64,
  strides: tuple[int, int, int, int] = (1, 2, 2, 2),
  stem_pool: bool = True,
  strided: str = "3x3",
  layers: Layers,
) -> tuple[Callable[[], Trunk], Callable[[int], Branch]]:
  """Trunk and branch of a ResNet.

  Args:
    preactivation: BN-ReLU-conv (v2, the paper's) or conv-BN-ReLU (v1).
    shift: divisor of the temporal shift in the blocks of v1, in every other one from depth 101 on,
      as TSM's authors do; 0: none.
    temporal: for group 2 and group 3, the frames seen by a block's convolutions, three of a
      bottleneck or two, and by its projection: odd.
    depth: 18, 34 (two 3x3 convolutions a block), 50, 101, 152, or small 14, 26 (bottlenecks).
    width: channels of the stem.
    strides: spatial strides of groups 0 to 3.
    stem_pool: see `Trunk`.
    strided: see `Bottleneck`, of v1.
    layers: how they compute.

  Returns:
    What makes the trunk, and a branch for a number of classes.

  Raises:
    UserError: an unknown depth, or extents that do not fit its blocks.
  """
  if depth not in DEPTHS:
    raise UserError(f"model.backbone.depth: {depth} is not one of {', '.join(map(str, DEPTHS))}")
  if len(strides) != 4 or min(strides) < 1:
    raise UserError(f"model.backbone.strides: {strides} is not four numbers of at least 1")
  if width < 1:
    raise UserError(f"model.backbone.width: {width} is not at least 1")
  if strided not in STRIDED:
    raise UserError(f"model.backbone.strided: {strided!r} is not one of {STRIDED}")
  bottlenecks, blocks = DEPTHS[depth]
  if strided != "3x3" and (preactivation or not bottlenecks):
    raise UserError(
      f"model.backbone.strided: {strided!r} is for bottlenecks of 'resnet' and 'tsm_resnet' only"
    )
  extents = 4 if bottlenecks else 3
  if [len(group) for group in temporal if isinstance(group, tuple | list)] != [extents] * 2 or any(
    extent < 1 or extent % 2 == 0 for group in temporal for extent in group
  ):
    raise UserError(
      f"model.backbone.temporal: {temporal} is not {extents} odd numbers for each of groups 2 and"
      f" 3: with depth {depth} a block has {extents - 1} convolutions and a projection"
    )
  if preactivation:
    block = PreactBottleneck if bottlenecks else PreactBasic
  elif bottlenecks:
    block = functools.partial(Bottleneck, strided=strided, shift=shift)
  else:
    block = functools.partial(Basic, shift=shift)
  shift_every = 2 if shift and blocks[2] >= 23 else 1
  flat = (1,) * extents
  groups = [
    functools.partial(
      Group,
      functools.partial(block, width=width * 2**i, temporal=tuple(frames), layers=layers),
      blocks[i],
      strides[i],
      shift_every,
      layers,
    )
    for i, frames in enumerate((flat, flat, *temporal))
  ]
  trunk = functools.partial(
    Trunk,
    tuple(groups[:2]),
    width,
    stem_norm=not preactivation,
    stem_pool=stem_pool,
    layers=layers,
  )
  branch = functools.partial(
    Branch, groups=tuple(groups[2:]), last_norm=preactivation, layers=layers
  )
  return trunk, branch
