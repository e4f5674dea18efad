"""Computes the features of a trunk that no stage trains once, for all stages."""

import dataclasses
import hashlib
import inspect
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from u2s_jax.run.run import Run
from u2s_jax.run.state import TrainState
from u2s_jax.runtime import devices
from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.version import __version__


def cache_features(run: Run, state: TrainState) -> Run:
  """Returns the run with batches of the trunk's features in place of videos.

  Evaluations with other views than the centre, and the report's clips, still read videos.

  Raises:
    UserError: if the source cannot store features, see also `data.input.feature_cache`.
  """
  if run.source.cache_features is None:
    raise UserError("data.cache_features: this source of clips cannot store features")
  config, network, mesh = run.config, run.network, devices.data_mesh()
  trunk = {
    "params": {"trunk": state.params["trunk"]},
    "batch_stats": {name: x for name, x in state.batch_stats.items() if name == "trunk"},
  }
  trunk = jax.tree.map(jnp.copy, trunk)  # the training step donates the state
  program = jax.jit(
    network.compute_trunk,
    out_shardings=devices.batch_sharding(mesh),
    compiler_options=devices.get_compiler_options(),
  )

  def compute(video: UInt8[np.ndarray, "b t h w c"]) -> Float[np.ndarray, "b t2 h2 w2 d"]:
    batch = devices.make_global_batch({"video": video}, mesh)
    return jax.device_get(program(**trunk, video=batch["video"]))

  clip = (1, config.data.num_frames, config.data.crop_size, config.data.crop_size)
  video = jax.ShapeDtypeStruct((*clip, run.source.channels), jnp.uint8)
  features = jax.eval_shape(network.compute_trunk, **trunk, video=video)
  settings: dict[str, Any] = {
    "trunk": _hash_arrays(trunk),
    "backbone": config.model.backbone.to_dict(),
    "code": [__version__, _hash_source(network.model.backbone)],
    "pixels": [*network.pixel_mean, *network.pixel_std],
    "dtype": jnp.dtype(features.dtype).name,
    # Other versions and devices round differently.
    "computed_by": [
      jax.__version__,
      jax.devices()[0].device_kind,
      jax.device_count(),
      config.model.convolution,
    ],
  }
  train_batches, feature_batches = run.source.cache_features(compute, features.shape[1:], settings)
  source = dataclasses.replace(
    run.source, train_batches=train_batches, feature_batches=feature_batches
  )
  return dataclasses.replace(run, source=source)


def _hash_arrays(tree: Any) -> str:
  digest = hashlib.sha256()
  for path, array in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
    digest.update(f"{jax.tree_util.keystr(path)} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array))
  return digest.hexdigest()


def _hash_source(backbone: object) -> str:
  """Returns a digest of the file that defines a backbone, which may be edited."""
  file = pathlib.Path(inspect.getfile(type(backbone)))
  return hashlib.sha256(file.read_bytes()).hexdigest()
