"""VideoPrism's video encoder (Zhao et al. 2024): a ViT over each frame, then one over time.

The trunk is the spatial encoder; each branch has a temporal encoder of its own. BN and ReLU follow,
so that the features are non-negative, as the CSM (Eq. 1) and the masks require.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import make_head
from u2s_jax.runtime.errors import UserError

PATCH = 18  # pixels
GRID = 16  # rows and columns of the spatial position embeddings: 288 pixels
LOGIT_CAP = 50.0  # attention logits are in (-LOGIT_CAP, LOGIT_CAP)
TEMPORAL = ("separate", "shared")


class Block(nn.Module):
  """Pre-norm transformer block: self-attention with capped logits, then an MLP."""

  heads: int
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"], _: None) -> tuple[Float[Array, "b n d"], None]:
    width, dtype = x.shape[-1], self.layers.dtype
    y = make_norm(self.layers, "norm1")(x)
    query, key, value = (
      nn.Dense(width, dtype=dtype, name=name)(y).reshape(*y.shape[:2], self.heads, -1)
      for name in ("query", "key", "value")
    )
    logits = jnp.einsum("bqhd,bkhd->bhqk", query * (width // self.heads) ** -0.5, key)
    logits = LOGIT_CAP * jnp.tanh(logits.astype(jnp.float32) / LOGIT_CAP)
    weights = jax.nn.softmax(logits).astype(dtype)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(y.shape)
    x = x + nn.Dense(width, dtype=dtype, name="output")(y)
    y = nn.Dense(4 * width, dtype=dtype, name="mlp1")(make_norm(self.layers, "norm2")(x))
    return x + nn.Dense(width, dtype=dtype, name="mlp2")(nn.gelu(y, approximate=False)), None


def make_norm(layers: Layers, name: str) -> nn.LayerNorm:
  """Builds a layer normalization."""
  return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=layers.dtype, name=name)


class Encoder(nn.Module):
  """Blocks followed by a norm.

  The parameters of all blocks are stacked along a leading axis, because a scan over them compiles
  once instead of once a block.
  """

  blocks: int
  heads: int
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
    block = nn.remat(Block, prevent_cse=False) if self.layers.remat else Block
    scan = nn.scan(
      block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.blocks
    )
    x, _ = scan(self.heads, self.layers, name="blocks")(x, None)
    return make_norm(self.layers, "norm")(x)


class TemporalEncoder(nn.Module):
  """Time embeddings and an encoder over the frames of each patch.

  Attributes:
    frames: length of the time embeddings, interpolated for clips of another length.
  """

  blocks: int
  heads: int
  frames: int
  layers: Layers = Layers()

  @nn.compact
  def __call__(self, x: Float[Array, "n t h w d"]) -> Float[Array, "n t h w d"]:
    n, t, h, w, d = x.shape
    embedding = self.param("embedding", nn.initializers.lecun_normal(), (self.frames, d))
    x = jnp.moveaxis(x, 1, 3).reshape(n * h * w, t, d)
    x = x + jax.image.resize(embedding, (t, d), "bilinear").astype(x.dtype)
    x = Encoder(self.blocks, self.heads, self.layers, name="encoder")(x)
    return jnp.moveaxis(x.reshape(n, h, w, t, d), 3, 1)


class Trunk(nn.Module):
  """Patches with position embeddings and the spatial encoder: tokens of every frame.

  Attributes:
    width: channels d of the tokens.
    temporal: the temporal encoder if both networks share it, else None.

  Raises:
    UserError: if a frame is smaller than a patch.
  """

  width: int
  blocks: int
  heads: int
  temporal: TemporalEncoder | None = None
  layers: Layers = Layers()

  @nn.compact
  def __call__(
    self, video: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t h2 w2 d"]:
    del train  # as in the published training of frozen encoders, nothing is dropped
    if min(video.shape[2:4]) < PATCH:
      raise UserError(f"data.crop_size: videoprism requires frames of at least {PATCH} pixels")
    patch = (1, PATCH, PATCH)
    stem = nn.Conv(self.width, patch, patch, "VALID", dtype=self.layers.dtype, name="stem")
    x = stem(video)
    n, t, h, w, d = x.shape
    initializer = nn.initializers.lecun_normal()
    embedding = self.param("embedding", initializer, (GRID * GRID, d)).reshape(GRID, GRID, d)
    x = x + jax.image.resize(embedding, (h, w, d), "bilinear").astype(x.dtype)
    encoder = Encoder(self.blocks, self.heads, self.layers, name="encoder")
    x = encoder(x.reshape(n * t, h * w, d)).reshape(n, t, h, w, d)
    return self.temporal(x) if self.temporal else x


class Branch(nn.Module):
  """The temporal encoder or, after a shared one, a projection; BN, ReLU and the classifier."""

  num_classes: int
  width: int
  temporal: TemporalEncoder | None = None
  layers: Layers = Layers()

  def setup(self) -> None:
    if not self.temporal:
      self.projection: nn.Dense = nn.Dense(self.width, dtype=self.layers.dtype)
    self.norm: nn.Module = self.layers.norm()
    self.head: nn.Dense = make_head(self.num_classes)

  def features(self, trunk: Float[Array, "n t h w d"], *, train: bool) -> Float[Array, "n t h w d"]:
    """Returns the tokens after BN and ReLU, non-negative."""
    x = self.temporal(trunk) if self.temporal else self.projection(trunk)
    return nn.relu(self.norm(x, train=train))

  def classify(self, features: Float[Array, "n t h w d"]) -> Float[Array, "n m"]:
    """Returns the logits of the features averaged over frames and patches, in float32."""
    return self.head(jnp.mean(features, axis=(1, 2, 3), dtype=jnp.float32))


@dataclasses.dataclass(frozen=True)
class VideoPrism:
  """VideoPrism; the defaults are those of its base model.

  Attributes:
    width: channels of the tokens; the large model has 1024.
    heads: attention heads; the large model has 16.
    spatial_blocks: blocks of the spatial encoder; the large model has 24.
    temporal_blocks: blocks of the temporal encoder.
    frames: length of the time embeddings; the large model has 8.
    temporal: 'separate', a temporal encoder in each branch; 'shared', one in the trunk, and each
      branch is a projection.

  Raises:
    UserError: if a value is invalid.
  """

  width: int = 768
  heads: int = 12
  spatial_blocks: int = 12
  temporal_blocks: int = 4
  frames: int = 16
  temporal: str = "separate"
  layers: Layers = Layers()

  def __post_init__(self) -> None:
    for field in ("width", "heads", "spatial_blocks", "temporal_blocks", "frames"):
      value = getattr(self, field)
      if not isinstance(value, int) or value < 1:
        raise UserError(f"model.backbone.{field}: {value!r} must be an integer >= 1")
    if self.width % self.heads:
      raise UserError(f"model.backbone.heads: {self.heads} must divide width = {self.width}")
    if self.temporal not in TEMPORAL:
      raise UserError(f"model.backbone.temporal: {self.temporal!r} is not one of {TEMPORAL}")

  def trunk(self) -> Trunk:
    """Builds the spatial encoder, with a shared temporal encoder after it."""
    temporal = self._temporal_encoder() if self.temporal == "shared" else None
    return Trunk(self.width, self.spatial_blocks, self.heads, temporal, self.layers)

  def branch(self, num_classes: int) -> Branch:
    """Builds a branch with its classifier."""
    temporal = self._temporal_encoder() if self.temporal == "separate" else None
    return Branch(num_classes, self.width, temporal, self.layers)

  def _temporal_encoder(self):
    # Without a parent: the module that it is passed to adopts it, under the name of its attribute.
    return TemporalEncoder(self.temporal_blocks, self.heads, self.frames, self.layers, parent=None)
