"""The networks of a config, and their forward pass from the bytes of clips to outputs.

Training, evaluation, the CSM's statistics, prediction and export all call it.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Integer, UInt8

from u2s_jax import csm as csm_lib
from u2s_jax.models.backbones import BACKBONES, build_backbone
from u2s_jax.models.layers import Layers
from u2s_jax.models.u2s import U2S
from u2s_jax.runtime.errors import UserError

DTYPES = ("float32", "bfloat16")
# Fields of the config section `model` that determine parameters and outputs.
U2S_FIELDS = (
  "attention",
  "mask_activation",
  "mask_limit",
  "detached",
  "dropout",
  "non_local_width",
)
Variables = Mapping[str, Any]  # one collection, by subnetwork


def normalize(
  video: UInt8[Array, "*b h w c"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*b h w c"]:
  """Normalises pixels: (byte / 255 - mean) / std, in float32.

  Args:
    mean: mean of byte / 255, one value or one per channel; likewise the deviation `std`.
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
    video: UInt8[Array, "n t h w c"] | Float[Array, "n t h w c"],
    labels: Integer[Array, " n"] | None = None,
    *,
    train: Collection[str] = (),
    key: jax.Array | None = None,
  ) -> tuple[dict[str, Array], Variables]:
    """Runs the full model, or the one-pass model if `params` has no category-specific network.

    Args:
      batch_stats: BN running averages by subnetwork.
      video: bytes of the frames, or features from `compute_trunk`.
      labels: required if `guide` is 'label', else ignored.
      train: trainable parts, see `U2S.one_pass`.
      key: PRNG key of dropout; required if channels are dropped.

    Returns:
      The outputs of `U2S.one_pass` or `U2S.__call__`, and the updated BN running averages.
    """
    from_trunk = video.dtype != jnp.uint8
    inputs = (video if from_trunk else normalize(video, self.pixel_mean, self.pixel_std),)
    is_full_model = "specific" in params
    if is_full_model:
      inputs += (csm_lib.compute_selection(csm.matrix, csm.similarity, self.selection),)
      inputs += (labels if self.guide == "label" else None,)
    outputs, updates = self.model.apply(
      {"params": params, "batch_stats": batch_stats},
      *inputs,
      train=train,
      from_trunk=from_trunk,
      mutable=["batch_stats"],
      rngs=None if key is None else {"dropout": key},
      method=None if is_full_model else U2S.one_pass,
    )
    # Flax returns the averages of frozen subnetworks, which ran in inference mode, unchanged.
    return outputs, updates.get("batch_stats", {})

  def compute_trunk(
    self, params: Variables, batch_stats: Variables, video: UInt8[Array, "n t h w c"]
  ) -> Float[Array, "n t2 h2 w2 d"]:
    """Returns the features of the trunk, in inference mode and in the model's dtype."""
    variables = {"params": params, "batch_stats": batch_stats}
    inputs = normalize(video, self.pixel_mean, self.pixel_std)
    return self.model.apply(variables, inputs, method=U2S.run_trunk)


def softmax_scores(
  outputs: Mapping[str, Array], predictions: Collection[str]
) -> dict[str, Float[Array, "n m"]]:
  """Returns the softmax scores of the predictions that have logits in `outputs`.

  Args:
    predictions: names from `stages.PREDICTIONS`.
  """
  return {name: jax.nn.softmax(outputs[name]) for name in predictions if name in outputs}


def build_network(config: ml_collections.ConfigDict, num_classes: int) -> Network:
  """Builds the networks from the config sections `model` and `csm`.

  Raises:
    UserError: if a value is invalid; the message contains the field.
  """
  model, csm = config.model, config.csm
  if model.dtype not in DTYPES:
    raise UserError(f"model.dtype: {model.dtype!r} is not one of {', '.join(DTYPES)}")
  if "name" not in model.backbone:
    raise UserError(f"model.backbone.name: not set; choose one of {', '.join(BACKBONES)}")
  dtype = jnp.dtype(model.dtype)
  layers = Layers(dtype=dtype, convolution=model.convolution, remat=model.remat)
  backbone = build_backbone(layers=layers, **_hashable(model.backbone.to_dict()))
  fields = {name: model[name] for name in U2S_FIELDS}
  return Network(
    model=U2S(num_classes, backbone, **fields, dtype=dtype),
    pixel_mean=tuple(model.pixel_mean),
    pixel_std=tuple(model.pixel_std),
    selection=csm.selection,
    guide=csm.guide,
  )


def describe_architecture(model: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the fields of a section `model` that determine parameters and outputs."""
  backbone = {f"backbone.{name}": value for name, value in model.backbone.items()}
  return {name: model[name] for name in U2S_FIELDS} | backbone


def _hashable(value: Any) -> Any:
  """Converts lists to tuples, because networks are arguments of cached functions."""
  if isinstance(value, dict):
    return {key: _hashable(item) for key, item in value.items()}
  return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
