"""Backbones by name.

A backbone is a frozen dataclass with a field `layers` and the fields of `config.model.backbone`.
`trunk()` builds the module that both networks share: (video, train) -> features.
`branch(num_classes)` builds the module that UN and CSN each have an instance of, with
`features(trunk, train)`, non-negative, and `classify(features)`. The first convolution must be
named `stem` and the classifier `head`.

To add a backbone here, add a file to this folder and a line to `BACKBONES`. One of another package
is named `package.module:Class`; `python -m u2s_jax.models.check` checks it, and docs/backbones.md
has an example.
"""

import dataclasses
import importlib
import shlex
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn

from u2s_jax.models.cnn3d import CNN3D
from u2s_jax.models.eco_lite import ECOLite
from u2s_jax.models.inception_i3d import InceptionI3D
from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import PreactResNet, ResNet, TSMResNet
from u2s_jax.models.s3d import S3D
from u2s_jax.models.trn import TRN
from u2s_jax.models.video_resnet import MC3, R3D, R2Plus1D
from u2s_jax.models.videoprism import VideoPrism
from u2s_jax.runtime.errors import UserError

BACKBONES: dict[str, type] = {
  "preact_resnet": PreactResNet,  # the paper's
  "resnet": ResNet,
  "tsm_resnet": TSMResNet,
  "eco_lite": ECOLite,
  "inception_i3d": InceptionI3D,
  "r3d_18": R3D,
  "mc3_18": MC3,
  "r2plus1d_18": R2Plus1D,
  "s3d": S3D,
  "trn": TRN,
  "cnn3d": CNN3D,
  "videoprism": VideoPrism,
}


@runtime_checkable
class Backbone(Protocol):
  """Builds the modules of a backbone."""

  def trunk(self) -> nn.Module: ...

  def branch(self, num_classes: int) -> nn.Module: ...


def build_backbone(name: str, layers: Layers = Layers(), **fields: Any) -> Backbone:  # noqa: B008
  """Builds a backbone from its name and the fields of its dataclass.

  A name `package.module:Class` imports the module: see `check_trusted` for stored names.

  Raises:
    UserError: if the name or a field is unknown, or a field is missing or invalid.
  """
  backbone = _import(name) if ":" in name else BACKBONES.get(name)
  if backbone is None:
    known = ", ".join(BACKBONES)
    raise UserError(f"model.backbone.name: {name!r} is not one of {known}, or package.module:Class")
  known = {f.name: f for f in dataclasses.fields(backbone) if f.name != "layers"}
  if unknown := sorted(fields.keys() - known.keys()):
    accepted = ", ".join(known) or "no fields"
    raise UserError(f"model.backbone.{unknown[0]}: unknown field; {name} has {accepted}")
  for key, field in known.items():
    has_default = field.default is not field.default_factory  # both are MISSING without one
    if not has_default and key not in fields:
      raise UserError(f"model.backbone.{key}: not set; {name} requires it")
  return backbone(**fields, layers=layers)


def get_field_defaults(name: str) -> dict[str, Any]:
  """Returns the defaults of a backbone's fields; of one of another package none."""
  backbone = BACKBONES.get(name)
  fields = dataclasses.fields(backbone) if backbone else ()
  return {
    field.name: field.default
    for field in fields
    if field.name != "layers" and field.default is not dataclasses.MISSING
  }


def check_trusted(stored: str, named: str | None) -> None:
  """Checks that a backbone of a stored config may be imported: importing a module runs its code.

  Args:
    stored: `model.backbone.name` of a checkpoint's config, which may be a stranger's.
    named: the name that the user gave, None if none.

  Raises:
    UserError: if the backbone is another package's, and the user did not give the same name.
  """
  if ":" in stored and stored != named:
    raise UserError(
      f"model.backbone.name: the run has {stored!r}, code of another package, which is"
      f" imported only if you name it; if you trust it, add"
      f" --config.model.backbone.name={shlex.quote(stored)}"
      f" or, in Python, backbone={stored!r}"
    )


def _import(name: str) -> type[Backbone]:
  """Imports `package.module:Class`."""
  module, _, attribute = name.partition(":")
  try:
    backbone = getattr(importlib.import_module(module), attribute)
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    raise UserError(
      f"model.backbone.name: {name!r} cannot be imported ({error}); install its package, or add its"
      " folder to PYTHONPATH"
    ) from error
  if not (isinstance(backbone, type) and dataclasses.is_dataclass(backbone)):
    raise UserError(f"model.backbone.name: {name!r} is not a dataclass; see docs/backbones.md")
  names = {field.name for field in dataclasses.fields(backbone)}
  if "layers" not in names or not issubclass(backbone, Backbone):
    raise UserError(
      f"model.backbone.name: {name!r} must have a field `layers`, `trunk()` and"
      " `branch(num_classes)`; see docs/backbones.md"
    )
  return backbone
