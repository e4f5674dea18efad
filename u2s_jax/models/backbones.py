"""Backbones by name.

To add a backbone, add a file to this folder and a line to `BACKBONES`. A backbone is a frozen
dataclass with a field `layers` and the fields of `config.model.backbone`. `trunk()` builds the
module that both networks share: (video, train) -> features. `branch(num_classes)` builds the module
that UN and CSN each have an instance of, with `features(trunk, train)`, non-negative, and
`classify(features)`. The first convolution must be named `stem` and the classifier `head`.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn

from u2s_jax.models.eco_lite import ECOLite
from u2s_jax.models.inception_i3d import InceptionI3D
from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import PreactResNet, ResNet, TSMResNet
from u2s_jax.runtime.errors import UserError

BACKBONES = {
  "preact_resnet": PreactResNet,  # the paper's
  "resnet": ResNet,
  "tsm_resnet": TSMResNet,
  "eco_lite": ECOLite,
  "inception_i3d": InceptionI3D,
}


@runtime_checkable
class Backbone(Protocol):
  """Builds the modules of a backbone."""

  def trunk(self) -> nn.Module: ...

  def branch(self, num_classes: int) -> nn.Module: ...


def build_backbone(name: str, layers: Layers = Layers(), **fields: Any) -> Backbone:  # noqa: B008
  """Builds a backbone from its name and the fields of its dataclass.

  Raises:
    UserError: if the name or a field is unknown, or a field is missing or invalid.
  """
  if name not in BACKBONES:
    raise UserError(f"model.backbone.name: {name!r} is not one of {', '.join(BACKBONES)}")
  known = {f.name: f for f in dataclasses.fields(BACKBONES[name]) if f.name != "layers"}
  if unknown := sorted(fields.keys() - known.keys()):
    accepted = ", ".join(known) or "no fields"
    raise UserError(f"model.backbone.{unknown[0]}: unknown field; {name} has {accepted}")
  for key, field in known.items():
    if field.default is dataclasses.MISSING and key not in fields:
      raise UserError(f"model.backbone.{key}: not set; {name} requires it")
  return BACKBONES[name](**fields, layers=layers)
