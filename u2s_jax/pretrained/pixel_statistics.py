"""Takes pixel mean and deviation from the pretrained weights that a run starts from."""

import ml_collections

from u2s_jax.pretrained import read
from u2s_jax.run import saved_config, settings, validation
from u2s_jax.run.settings import PIXEL_FIELDS
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import files
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError


def fit_pixels(config: ml_collections.ConfigDict, workdir: Workdir) -> ml_collections.ConfigDict:
  """Returns a copy of the config with empty pixel statistics taken from the pretrained weights.

  A resumed run keeps the statistics of its saved config.

  Raises:
    UserError: if there are no pretrained weights, or their statistics are unknown.
  """
  empty = [field for field in PIXEL_FIELDS if not config.model[field]]
  if not empty:
    return config
  config, saved = config.copy_and_resolve_references(), saved_config.read(workdir)
  if saved is not None:
    for field in empty:
      config.model[field] = saved.model[field]
    return config
  field = f"model.{empty[0]}"
  if not config.init_from:
    raise UserError(f"{field}: empty, but init_from is not set; set either")
  validation.check_start(config)
  weights = read.read(
    files.resolve_weights(config.init_from), one_pass=config.universal.epochs == 0
  )
  channels = settings.count_channels(config)
  if weights.pixels is None or weights.channels != channels:
    raise UserError(
      f"{field}: empty, but unknown for {channels} channels in {weights.origin}; set {field}"
    )
  for field, values in zip(PIXEL_FIELDS, weights.pixels, strict=True):
    if field in empty:
      config.model[field] = values * (channels // len(values))
      digits = ", ".join(f"{value:.4g}" for value in config.model[field])
      log(f"model.{field}: ({digits}), of {weights.origin}")
  return config
