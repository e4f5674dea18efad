"""The U2S model (Fig. 2 and 3 of the paper), which contains the one-pass model."""

import math
from collections.abc import Callable, Collection

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Integer

from u2s_jax.models import mask as mask_lib
from u2s_jax.models.backbones import Backbone
from u2s_jax.models.non_local import NonLocal
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import get_subnetwork

MASK_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "none": lambda x: x,
  "sigmoid": jax.nn.sigmoid,
}
ATTENTIONS = ("mask", "non_local", "none")


class U2S(nn.Module):
  """Trunk, universal network, mask network and category-specific network.

  The subnetworks are the top-level entries of the parameters: `trunk`, `universal`, `specific`, and
  `mask` or `non_local`.

  Attributes:
    attention: what guides the specific network: 'mask' (the paper), 'non_local' (Table III e),
      'none' (Table III d).
    mask_activation: applied to the combined mask: 'none' (the paper) or 'sigmoid'.
    mask_limit: maximum root mean square of a mask without activation, see `mask.limit_rms`; 0 for
      no limit.
    detached: whether the gradients of L_C and L_M stop before trunk and universal network, which
      are then trained like the one-pass model (the paper: False).
    dropout: fraction of channels, in [0, 1), dropped before each classifier in training (the paper:
      0).
    dtype: of the computation; parameters, BN statistics and logits are float32.

  Raises:
    UserError: if a value is unknown or out of range.
  """

  num_classes: int
  backbone: Backbone
  attention: str = "mask"
  mask_activation: str = "none"
  mask_limit: float = 1.0
  detached: bool = False
  dropout: float = 0.0
  non_local_width: int = 96
  dtype: DTypeLike = jnp.float32

  def __post_init__(self) -> None:
    if self.attention not in ATTENTIONS:
      raise UserError(f"model.attention: {self.attention!r} is not one of {ATTENTIONS}")
    if self.mask_activation not in MASK_ACTIVATIONS:
      raise UserError(
        f"model.mask_activation: {self.mask_activation!r} is not one of {tuple(MASK_ACTIVATIONS)}"
      )
    if not 0 <= self.mask_limit < math.inf:
      raise UserError(f"model.mask_limit: {self.mask_limit} must be >= 0 and finite")
    if not 0 <= self.dropout < 1:
      raise UserError(f"model.dropout: {self.dropout} must be in [0, 1)")
    super().__post_init__()

  def setup(self) -> None:
    self.trunk: nn.Module = self.backbone.trunk()
    self.universal: nn.Module = self.backbone.branch(self.num_classes)
    self.specific: nn.Module = self.backbone.branch(self.num_classes)
    # One decision per channel of a clip: the classifier reads the mean over frames and pixels.
    self.drop: nn.Dropout = nn.Dropout(self.dropout, broadcast_dims=(1, 2, 3))
    if self.attention == "mask":
      self.mask: mask_lib.MaskNetwork = mask_lib.MaskNetwork(self.num_classes, dtype=self.dtype)
    if self.attention == "non_local":
      self.non_local: NonLocal = NonLocal(self.non_local_width, self.dtype)

  def run_trunk(self, video: Float[Array, "n t h w c"]) -> Float[Array, "n t2 h2 w2 d"]:
    """Returns the trunk's features, in inference mode."""
    return self.trunk(video, train=False)

  def one_pass(
    self,
    video: Float[Array, "n t h w c"],
    *,
    train: Collection[str] = (),
    from_trunk: bool = False,
  ) -> dict[str, Array]:
    """Runs the one-pass model, trunk and universal network, which stage 1 trains.

    Args:
      video: normalised frames; c is 3 for RGB, 2 per flow field for optical flow.
      train: trainable parts, see `stages.Stage.trainable`. BN uses and updates batch statistics in
        subnetworks that are trainable as a whole, and uses running averages in all others. Channels
        are dropped in networks with a trainable part.
      from_trunk: whether `video` holds features of `run_trunk` instead.

    Returns:
      `universal` logits (n, m) and `universal_features` (n, t, h, w, c), non-negative.
    """
    _, outputs = self._one_pass(video, train, from_trunk)
    return outputs

  def __call__(
    self,
    video: Float[Array, "n t h w c"],
    csm: Float[Array, "m m"],
    guide: Integer[Array, " n"] | None = None,
    *,
    train: Collection[str] = (),
    from_trunk: bool = False,
  ) -> dict[str, Array]:
    """Runs the full model.

    Args:
      csm: category similarity matrix, binary (the paper) or soft (Table III c).
      guide: the class whose confusion set selects the masks; by default the universal network's
        prediction without dropout. A label only for the oracle of Table III f.

    Returns:
      Logits (n, m) `universal`, `specific` and, with a mask network, `bridge`; features
      (n, t, h, w, c) `universal_features` and `specific_features` (before the mask); with a mask
      network the combined, activated `mask` (n, t, h, w, 1).
    """
    trunk, outputs = self._one_pass(video, train, from_trunk)
    mask_input = outputs["universal_features"]
    if self.detached:
      trunk, mask_input = jax.lax.stop_gradient((trunk, mask_input))
    features = self.specific.features(trunk, train="specific" in train)
    outputs["specific_features"] = features
    if self.attention == "mask":
      if guide is None:
        logits = outputs["universal"]
        if self.dropout:
          # The logits of the loss are with dropout, but masks are selected as in inference.
          logits = self.universal.classify(outputs["universal_features"])
        guide = jnp.argmax(logits, axis=-1)
      weights = mask_lib.select(csm, guide)
      outputs["bridge"], combined = self.mask(mask_input, weights)
      if self.mask_activation == "none" and self.mask_limit:
        combined = mask_lib.limit_rms(combined, self.mask_limit)
      outputs["mask"] = MASK_ACTIVATIONS[self.mask_activation](combined)
      features = features * outputs["mask"]
    elif self.attention == "non_local":
      features = self.non_local(features)
    features = self.drop(features, deterministic=not _is_trained("specific", train))
    outputs["specific"] = self.specific.classify(features)
    return outputs

  def _one_pass(self, video, train, from_trunk):
    trunk = video if from_trunk else self.trunk(video, train="trunk" in train)
    features = self.universal.features(trunk, train="universal" in train)
    dropped = self.drop(features, deterministic=not _is_trained("universal", train))
    return trunk, {"universal": self.universal.classify(dropped), "universal_features": features}


def _is_trained(name, train):
  return any(get_subnetwork(part) == name for part in train)
