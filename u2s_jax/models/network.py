"""From the bytes of a clip to the networks' outputs: the one forward pass.

Training, tests, the CSM's statistics, predictions and exports all call it.
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
Variables = Mapping[str, Any]  # by subnetwork


def normalize(
  video: UInt8[Array, "*b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*b h w c"]:
  """Normalises pixels: (byte / 255 - mean) / std, in float32.

  Args:
    video: bytes in 0..255.
    mean: of byte / 255, one for all channels or c of them.
    std: likewise, positive.
  """
  return (video.astype(jnp.float32) / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def mirror(video: UInt8[Array, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
  """Mirrors frames left to right, as `data.image_ops.mirror` does in training.

  Args:
    video: RGB, c = 3; or x, y, x, y, ... of optical flow, c even, in which the bytes v and 256 - v
      code opposite motions: what moved to the right then moves to the left.
  """
  video, channels = jnp.flip(video, axis=-2), video.shape[-1]
  if channels == 3:
    return video
  # JPEG may have turned a 1 into a 0, which codes nothing.
  inverted = -jnp.maximum(video, 1)  # modulo 256
  return jnp.where(jnp.arange(channels) % 2 == 0, inverted, video)


@dataclasses.dataclass(frozen=True)
class Network:
  """The networks of a run with what turns bytes into their input and a guess into masks.

  Attributes:
    model: the networks.
    pixel_mean: see `normalize`.
    pixel_std: see `normalize`.
    selection: masks that are combined, one of `csm.SELECTIONS`.
    guide: class whose confusing classes they are of: the universal network's 'prediction', or the
      'label'.
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
    """Runs trunk and universal network and, where there are parameters of it, all the rest.

    Args:
      params: by subnetwork.
      batch_stats: BN's running averages by subnetwork.
      csm: selects the masks.
      video: bytes.
      labels: of the clips; read only where they guide.
      train: what learns, as in `U2S.one_pass`.
      key: of what is dropped; read only where something is.

    Returns:
      The outputs of `U2S.one_pass` or `U2S.__call__`, and BN's running averages afterwards.
    """
    inputs = (normalize(video, self.pixel_mean, self.pixel_std),)
    whole = "specific" in params
    if whole:
      inputs += (csm_lib.selection(csm.matrix, csm.similarity, self.selection),)
      inputs += (labels if self.guide == "label" else None,)
    outputs, updates = self.model.apply(
      {"params": params, "batch_stats": batch_stats},
      *inputs,
      train=train,
      mutable=["batch_stats"],
      rngs=None if key is None else {"dropout": key},
      method=None if whole else U2S.one_pass,
    )
    # Subnetworks that are not trained ran with their averages; Flax hands those back unchanged.
    return outputs, updates["batch_stats"]


def softmax_scores(
  outputs: Mapping[str, Array], predictions: Collection[str]
) -> dict[str, Float[Array, "n m"]]:
  """Returns the softmax scores of those predictions that there are logits of.

  Args:
    outputs: of a `Network`.
    predictions: names, `stages.PREDICTIONS`.
  """
  return {name: jax.nn.softmax(outputs[name]) for name in predictions if name in outputs}
