"""Backbones by name. A new one is a file beside this one and a line in `BACKBONES`.

A backbone is two modules: a trunk, (video, train) -> features, that both networks share, and a
branch, of which UN and CSN have one each: `features(trunk, train)`, non-negative, and
`classify(features)`. Its first convolution is `trunk/stem`, its classifier `head` of the branch.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from u2s_jax.errors import UserError
from u2s_jax.models.conv import METHODS, Conv
from u2s_jax.models.eco_lite import eco_lite
from u2s_jax.models.inception_i3d import inception_i3d
from u2s_jax.models.layers import Layers
from u2s_jax.models.norm import BatchNorm
from u2s_jax.models.resnet import resnet

BACKBONES = {
  "preact_resnet": functools.partial(resnet, preactivation=True, shift=0),  # the paper's
  "resnet": functools.partial(resnet, preactivation=False, shift=0),
  "tsm_resnet": functools.partial(resnet, preactivation=False, shift=8),
  "eco_lite": eco_lite,
  "inception_i3d": inception_i3d,
}


class Backbone(NamedTuple):
  """What makes a backbone's modules.

  Attributes:
    trunk: makes the trunk.
    branch: makes a branch for a number of classes.
  """

  trunk: Callable[[], nn.Module]
  branch: Callable[[int], nn.Module]


@functools.cache
def build(
  name: str,
  dtype: DTypeLike = jnp.float32,
  convolution: str = "auto",
  remat: bool = False,
  **fields: Any,
) -> Backbone:
  """Returns the backbone of a name; the same for the same arguments, so that networks compare.

  Args:
    name: a key of `BACKBONES`.
    dtype: of the computation; parameters and BN's statistics are float32.
    convolution: how convolutions over several frames are computed, see `conv.conv3d`.
    remat: see `Layers`.
    **fields: the other arguments of its constructor.

  Raises:
    UserError: no such name, a field too many or missing, or one with a wrong value.
  """
  if name not in BACKBONES:
    raise UserError(f"model.backbone.name: {name!r} is not one of {', '.join(BACKBONES)}")
  constructor = BACKBONES[name]
  # What the table fixes is no field.
  taken = {"layers", *getattr(constructor, "keywords", ())}
  parameters = inspect.signature(constructor).parameters.values()
  known = {p.name: p for p in parameters if p.name not in taken}
  unknown = sorted(fields.keys() - known.keys())
  if unknown:
    takes = ", ".join(known) or "none"
    raise UserError(f"model.backbone.{unknown[0]}: {name} has no such field; it has {takes}")
  missing = [key for key, p in known.items() if p.default is p.empty and key not in fields]
  if missing:
    raise UserError(f"model.backbone.{missing[0]}: not set, and {name} needs it")
  if convolution not in METHODS:
    raise UserError(f"model.convolution: {convolution!r} is not one of {', '.join(METHODS)}")
  layers = Layers(
    conv=functools.partial(Conv, method=convolution, dtype=dtype),
    norm=functools.partial(BatchNorm, dtype=dtype),
    remat=remat,
  )
  return Backbone(*constructor(layers=layers, **fields))
