"""The default experiment, and changes that several experiments share.

`u2s_jax/run/default_config.py` documents every field.
"""

from collections.abc import Collection

import ml_collections

# The fields are in the package: its wheel has no configs/, but has to read runs of older versions.
from u2s_jax.run.default_config import get_config as get_config


def set_flow(config: ml_collections.ConfigDict) -> None:
  """Sets the input to optical flow, with one mean and deviation for all channels."""
  config.data.modality = "flow"
  config.model.pixel_mean = (128 / 255,)  # the byte that encodes no motion
  config.model.pixel_std = (0.226,)  # ImageNet's deviation, as in TSN


def check_variant(name: str, variant: str, known: Collection[str]) -> None:
  """Raises ValueError if --config has an unknown variant after the colon."""
  if variant not in known:
    raise ValueError(
      f"--config={name}:{variant}: unknown variant; choose one of {', '.join(known)}"
    )


def set_modality(config: ml_collections.ConfigDict, modality: str) -> None:
  """Sets the input to 'rgb' or 'flow'."""
  check_variant("...", modality, ("rgb", "flow"))
  if modality == "flow":
    set_flow(config)


def set_images(config: ml_collections.ConfigDict) -> None:
  """Sets the input to images, which are clips of one frame, and the network to 2D."""
  config.data.num_frames = 1
  config.data.flip = True  # the paper does not say
  config.model.backbone.temporal = ((1, 1, 1, 1), (1, 1, 1, 1))


def set_render(config: ml_collections.ConfigDict) -> None:
  """Adds `data.render`: a run first renders and prepares its data set (default: in the workdir)."""
  config.data.render = ml_collections.ConfigDict()
  config.data.render.dir = ""  # directory of the videos; empty: <workdir>/tiny_something
  config.data.render.num_train = 350  # clips, ten per class, few enough to overfit
  config.data.render.num_validation = 560  # clips
  config.data.render.num_test = 35  # clips
  config.data.render.difficulty = 1.0  # 0..1; higher: subtler differences within a family
  # 0..1. At 0 the action fills the frame; at 1 it takes half the height, among ten other objects.
  config.data.render.clutter = 0.0
  config.data.render.seed = 0
  config.data.render.workers = 2  # processes that render and decode
