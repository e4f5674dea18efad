"""Pre-activation bottleneck ResNet over video: 2D groups 0-1 (trunk), 3D groups 2-3 (branch).

Section III-A of the paper. A 2D group is a 3D one of temporal extent 1.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from u2s_jax.models.conv import Conv, max_pool

EXPANSION = 4  # a bottleneck's output channels over its width, as in ResNet-50


class BatchNorm(nn.Module):
  """Batch normalisation; statistics over batch, frames and pixels.

  Under `jit` with a batch sharded over devices these are the statistics of the GLOBAL batch.
  """

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h w c"]:
    return nn.BatchNorm(
      use_running_average=not train,
      momentum=0.9,  # Flax's 0.9 is PyTorch's 0.1
      epsilon=1e-5,
      dtype=self.dtype,
      use_fast_variance=False,  # the fast formula can go negative
      name="norm",
    )(x)


class Bottleneck(nn.Module):
  """BN-ReLU-conv three times (1x1, 3x3, 1x1), added to the input or to its projection.

  Attributes:
    width: channels of the two inner convolutions; the output has `EXPANSION * width`.
    stride: spatial stride of the 3x3 convolution and of the projection.
    temporal: frames seen by the three convolutions and by the projection shortcut.
    dtype: of the computation.
  """

  width: int
  stride: int
  temporal: tuple[int, int, int, int]
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    conv = functools.partial(Conv, dtype=self.dtype)
    norm = functools.partial(BatchNorm, dtype=self.dtype)
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


class Group(nn.Module):
  """`blocks` bottlenecks of one width; the first one strides."""

  blocks: int
  width: int
  stride: int
  temporal: tuple[int, int, int, int] = (1, 1, 1, 1)
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w c"], *, train: bool) -> Float[Array, "n t h2 w2 d"]:
    for i in range(self.blocks):
      block = Bottleneck(
        self.width, self.stride if i == 0 else 1, self.temporal, self.dtype, name=f"block{i}"
      )
      x = block(x, train=train)
    return x


class Trunk(nn.Module):
  """Res2D of the paper's Fig. 2: stem, group 0 and group 1, each frame alone.

  Attributes:
    blocks: bottlenecks in groups 0 and 1.
    width: channels of the stem and of group 0's bottlenecks; doubled in group 1.
    strides: spatial strides of groups 0 and 1.
    stem_pool: 3x3/2 max pool after the 7x7/2 stem convolution; off for small frames.
    dtype: of the computation.
  """

  blocks: tuple[int, int]
  width: int
  strides: tuple[int, int] = (1, 2)
  stem_pool: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 d"]:
    x = Conv(self.width, (1, 7, 7), stride=2, dtype=self.dtype, name="stem")(video)
    if self.stem_pool:
      x = max_pool(x)
    group = functools.partial(Group, dtype=self.dtype)
    x = group(self.blocks[0], self.width, self.strides[0], name="group0")(x, train=train)
    return group(self.blocks[1], 2 * self.width, self.strides[1], name="group1")(x, train=train)


class Branch(nn.Module):
  """Res3D of the paper's Fig. 2 with its classifier: what UN and CSN each have of their own.

  Attributes:
    num_classes: M.
    blocks: bottlenecks in groups 2 and 3.
    width: the trunk's width; groups 2 and 3 have 4 and 8 times it.
    temporal: for group 2 and group 3, the frames seen by the three convolutions of a bottleneck and
      by its projection.
    strides: spatial strides of groups 2 and 3.
    dtype: of the computation.
  """

  num_classes: int
  blocks: tuple[int, int]
  width: int
  temporal: tuple[tuple[int, int, int, int], tuple[int, int, int, int]]
  strides: tuple[int, int] = (2, 2)
  dtype: DTypeLike = jnp.float32

  def setup(self):
    group = functools.partial(Group, dtype=self.dtype)
    self.group2 = group(self.blocks[0], 4 * self.width, self.strides[0], self.temporal[0])
    self.group3 = group(self.blocks[1], 8 * self.width, self.strides[1], self.temporal[1])
    self.norm = BatchNorm(self.dtype)
    self.head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))

  def features(
    self, trunk: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 d"]:
    """Group 3's output after the last BN + ReLU: non-negative, what CSM and masks are made of."""
    x = self.group3(self.group2(trunk, train=train), train=train)
    return nn.relu(self.norm(x, train=train))

  def classify(self, features: Float[Array, "n t h w c"]) -> Float[Array, "n m"]:
    """Logits of features averaged over frames and pixels, in float32."""
    return self.head(jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32))
