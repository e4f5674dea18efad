"""Builds the networks from the config sections `model` and `csm`."""

from typing import Any

import jax.numpy as jnp
import ml_collections

from u2s_jax.models import backbones
from u2s_jax.models.layers import Layers
from u2s_jax.models.network import Network
from u2s_jax.models.u2s import U2S
from u2s_jax.runtime.errors import UserError

DTYPES = ("float32", "bfloat16")


def build_network(config: ml_collections.ConfigDict, num_classes: int) -> Network:
  """Builds the networks of a config.

  Args:
    config: see `u2s_jax/run/default_config.py`.
    num_classes: M.

  Raises:
    UserError: if a value is invalid; the message contains the field.
  """
  model, csm = config.model, config.csm
  if model.dtype not in DTYPES:
    raise UserError(f"model.dtype: {model.dtype!r} is not one of {', '.join(DTYPES)}")
  if "name" not in model.backbone:
    known = ", ".join(backbones.BACKBONES)
    raise UserError(f"model.backbone.name: not set; choose one of {known}")
  dtype = jnp.dtype(model.dtype)
  layers = Layers(dtype=dtype, convolution=model.convolution, remat=model.remat)
  u2s = U2S(
    num_classes=num_classes,
    backbone=backbones.build_backbone(layers=layers, **_hashable(model.backbone.to_dict())),
    attention=model.attention,
    mask_activation=model.mask_activation,
    mask_limit=model.mask_limit,
    detached=model.detached,
    dropout=model.dropout,
    non_local_width=model.non_local_width,
    dtype=dtype,
  )
  return Network(
    model=u2s,
    pixel_mean=tuple(model.pixel_mean),
    pixel_std=tuple(model.pixel_std),
    selection=csm.selection,
    guide=csm.guide,
  )


def describe_architecture(model: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the fields that determine parameters and outputs, for a checkpoint's metadata.

  Args:
    model: the config section; the names of its fields become dotted names.
  """
  architecture = {
    "attention": model.attention,
    "mask_activation": model.mask_activation,
    "mask_limit": model.mask_limit,
    "detached": model.detached,
    "dropout": model.dropout,
    "non_local_width": model.non_local_width,
  }
  return architecture | {f"backbone.{key}": value for key, value in model.backbone.items()}


def _hashable(value: Any) -> Any:
  """Converts lists to tuples, because networks are arguments of cached functions."""
  if isinstance(value, dict):
    return {key: _hashable(item) for key, item in value.items()}
  return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
