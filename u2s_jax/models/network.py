"""The forward pass from the bytes of clips to the networks' outputs.

Training, evaluation, the CSM's statistics, prediction and export all call it.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, UInt8

from u2s_jax import csm as csm_lib
from u2s_jax.models.u2s import U2S

Outputs = dict[str, Array]
Variables = Mapping[str, Any]  # one collection, by subnetwork


def normalize(
  video: UInt8[Array, "*b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*b h w c"]:
  """Normalises pixels: (byte / 255 - mean) / std, in float32.

  Args:
    video: bytes in 0..255.
    mean: mean of byte / 255, one value or one per channel.
    std: standard deviation, likewise; positive.
  """
  return (video.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def mirror(video: UInt8[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
  """Mirrors frames left to right, like `mirror` of the training input pipeline.

  Args:
    video: RGB, c = 3; or optical flow with channels x, y, x, y, ..., c even, whose x components are
      also inverted; the bytes v and 256 - v encode opposite motions.
  """
  video, channels = jnp.flip(video, axis=-2), video.shape[-1]
  if channels == 3:
    return video
  # JPEG may have changed a 1 to a 0, which has no opposite. Negation of uint8 is modulo 256.
  inverted = -jnp.maximum(video, 1)
  return jnp.where(jnp.arange(channels) % 2 == 0, inverted, video)


@dataclasses.dataclass(frozen=True)
class Network:
  """The networks with their input normalisation and mask selection.

  Attributes:
    pixel_mean: see `normalize`.
    pixel_std: see `normalize`.
    selection: how masks are weighted, one of `csm.SELECTIONS`.
    guide: the class whose confusion set is selected, one of `csm.GUIDES`: the universal network's
      'prediction' or the 'label' (an upper bound, Table III f).
  """

  model: U2S
  pixel_mean: tuple[float, ...]
  pixel_std: tuple[float, ...]
  selection: str = "confusing"
  guide: str = "prediction"

  def __call__(
    self,
    params: Variables,
    batch_stats: Variables,
    csm: csm_lib.CategorySimilarity,
    video: UInt8[Array, "n t h w c"],
    labels: Integer[Array, " n"] | None = None,
    *,
    train: Collection[str] = (),
    key: jax.Array | None = None,
  ) -> tuple[Outputs, Variables]:
    """Runs the full model, or the one-pass model if `params` has no category-specific network.

    Args:
      params: parameters by subnetwork.
      batch_stats: BN running averages by subnetwork.
      csm: selects the masks.
      labels: required if `guide` is 'label', else ignored.
      train: trainable parts, see `U2S.one_pass`.
      key: PRNG key of dropout; required if channels are dropped.

    Returns:
      The outputs of `U2S.one_pass` or `U2S.__call__`, and the updated BN running averages.
    """
    inputs = (normalize(video, self.pixel_mean, self.pixel_std),)
    is_full_model = "specific" in params
    if is_full_model:
      inputs += (csm_lib.compute_selection(csm.matrix, csm.similarity, self.selection),)
      inputs += (labels if self.guide == "label" else None,)
    outputs, updates = self.model.apply(
      {"params": params, "batch_stats": batch_stats},
      *inputs,
      train=train,
      mutable=["batch_stats"],
      rngs=None if key is None else {"dropout": key},
      method=None if is_full_model else U2S.one_pass,
    )
    # Flax returns the averages of frozen subnetworks, which ran in inference mode, unchanged.
    return outputs, updates["batch_stats"]


def softmax_scores(
  outputs: Mapping[str, Array], predictions: Collection[str]
) -> dict[str, Float[Array, "n m"]]:
  """Returns the softmax scores of the predictions that have logits in `outputs`.

  Args:
    outputs: outputs of a `Network`.
    predictions: names from `stages.PREDICTIONS`.
  """
  return {name: jax.nn.softmax(outputs[name]) for name in predictions if name in outputs}
