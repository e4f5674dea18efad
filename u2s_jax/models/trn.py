"""Multi-scale Temporal Relation Network (Zhou et al. 2018, the paper's [68]).

BN-Inception computes the features of each frame; relations over ordered tuples of 2, 3, ... frames
classify them. The trunk ends with `inception_3b`.
"""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from u2s_jax.models.bn_inception import Inception, apply_bottom
from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import make_head
from u2s_jax.runtime.errors import UserError

WIDTH = 256  # channels of a frame in a relation, and of the relation
TUPLES = 3  # relations per number of frames
# See `bn_inception.Inception`.
TOP = {
  "inception_3c": (0, (128, 160), (64, 96), 0, "max"),
  "inception_4a": (224, (64, 96), (96, 128), 128, "avg"),
  "inception_4b": (192, (96, 128), (96, 128), 128, "avg"),
  "inception_4c": (160, (128, 160), (128, 160), 128, "avg"),
  "inception_4d": (96, (128, 192), (160, 192), 128, "avg"),
  "inception_4e": (0, (128, 192), (192, 256), 0, "max"),
  "inception_5a": (352, (192, 320), (160, 224), 128, "avg"),
  "inception_5b": (352, (192, 320), (192, 224), 128, "max"),
}


def choose_tuples(frames: int, length: int) -> list[tuple[int, ...]]:
  """Returns ordered tuples of frames, at most `TUPLES`, always the same.

  The authors' code draws other tuples in every step, also in inference; fixed ones make training
  resumable and predictions repeatable.

  Args:
    frames: number of frames of a clip.
    length: frames of a tuple, between 2 and `frames`.

  Example:
    >>> choose_tuples(3, 3)
    [(0, 1, 2)]
  """
  rng, tuples = np.random.RandomState(length), set()  # whose stream never changes
  while len(tuples) < min(TUPLES, math.comb(frames, length)):
    tuples.add(tuple(sorted(rng.choice(frames, length, replace=False).tolist())))
  return sorted(tuples)


class Trunk(nn.Module):
  """BN-Inception up to `inception_3b`: 320 channels at 1/8 of the size, all frames."""

  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 320"]:
    return apply_bottom(self.layers, video, train=train)


class Branch(nn.Module):
  """BN-Inception from `inception_3c` on, and the relations.

  Raises:
    UserError: if a clip has a single frame.
  """

  num_classes: int
  layers: Layers = Layers()

  def setup(self) -> None:
    for name, channels in TOP.items():
      setattr(self, name, Inception(*channels, layers=self.layers))
    self.frame: nn.Dense = nn.Dense(WIDTH)
    self.relations: Relations = Relations()
    # The authors' classifiers of 2, 3, ... frames, whose logits are added, as one.
    self.head: nn.Dense = make_head(self.num_classes)

  def features(
    self, trunk: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 1024"]:
    """Returns the output of `inception_5b`, non-negative, at 1/32 of the size."""
    x = trunk
    for name in TOP:
      x = self.layers.block(getattr(self, name), x, train=train)
    return x

  def classify(self, features: Float[Array, "n t h w c"]) -> Float[Array, "n m"]:
    """Returns the logits of the relations between the frames' average features, in float32."""
    frames = self.frame(jnp.mean(features, axis=(2, 3), dtype=jnp.float32))
    return self.head(self.relations(frames))


class Relations(nn.Module):
  """An MLP for each number of frames, applied to tuples of frames and summed over them."""

  @nn.compact
  def __call__(self, frames: Float[Array, "n t c"]) -> Float[Array, "n d"]:
    count, sums = frames.shape[1], []
    if count < 2:
      raise UserError("data.num_frames: trn requires at least 2 frames")
    for length in range(2, count + 1):
      indices = np.array(choose_tuples(count, length))
      tuples = nn.relu(frames[:, indices]).reshape(len(frames), len(indices), -1)
      sums.append(jnp.sum(nn.relu(nn.Dense(WIDTH, name=f"frames{length}")(tuples)), axis=1))
    return jnp.concatenate(sums, axis=-1)


@dataclasses.dataclass(frozen=True)
class TRN:
  """Multi-scale TRN."""

  layers: Layers = Layers()

  def trunk(self) -> Trunk:
    """Builds the trunk."""
    return Trunk(self.layers)

  def branch(self, num_classes: int) -> Branch:
    """Builds a branch with its classifier."""
    return Branch(num_classes, self.layers)
