"""Reads pretrained weights from a run or a file; pickled code is never executed."""

import dataclasses
import hashlib
import json
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from u2s_jax.pretrained import names
from u2s_jax.pretrained.names import Pixels
from u2s_jax.run import checkpoint, saved_config
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.files import Path, atomic_open, local_copy
from u2s_jax.stages import STAGES

ONE_PASS = ("trunk", "universal")  # the one-pass model
STEM, HEAD = "params/trunk/stem/kernel", "params/universal/head/"
STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model")  # of PyTorch checkpoints
# Fields of a backbone that change what it computes but no parameter's shape.
SHAPE_NEUTRAL_FIELDS = ("name", "strides", "stem_pool", "strided", "heads")
DEFAULTS: dict[str, Any] = {
  "strides": (1, 2, 2, 2),
  "stem_pool": True,
  "strided": "3x3",
  "heads": 12,
}
_START_KEY = "u2s_jax.start"  # metadata key of files that `write` wrote
TORCH_SUFFIXES = (".pth", ".pt", ".tar")
SUFFIXES = (*TORCH_SUFFIXES, ".safetensors", ".npz")


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights of a one-pass model, under the names of this package."""

  origin: Path  # the file or checkpoint that they were read from
  kind: str  # description for messages
  arrays: dict[str, np.ndarray]  # by names such as `params/trunk/stem/kernel`
  required_fields: Mapping[str, Any]  # fields of `model.backbone` that no shape reveals
  pixels: Pixels | None = None  # statistics of their training; None if unknown
  class_names: Sequence[str] | None = None  # of the classifier; None if unknown
  # Finished and total steps if they are a checkpoint of stage 1.
  steps: tuple[int, int] | None = None

  @property
  def channels(self) -> int:
    """Input channels of the first convolution, 0 if it is missing."""
    return self.arrays[STEM].shape[3] if STEM in self.arrays else 0


def read(path: Path, one_pass: bool = False) -> Weights:
  """Reads weights; to be called on all hosts.

  Args:
    path: a run's workdir, for its newest checkpoint; `<workdir>/checkpoints/<stage>`, for the last
      one of that stage; or a file: a PyTorch state dict (.pth, .pt, .tar or .safetensors) with the
      names of torchvision's ResNet, video networks or S3D, TSM's repository, mmaction2, timm's
      resnetv2 or transformers' VideoPrism; Keras's ResNet, Inception-I3D or VideoPrism as .npz; or
      a .safetensors file written by `export` or `write`.
    one_pass: whether the weights must be the one-pass model's. Joint training changes them, so the
      last checkpoint of stage 1 is read from a workdir.

  Raises:
    UserError: if there are no readable weights, or if `one_pass` and they were trained jointly.
    OSError: if the file cannot be read.
  """
  if path.is_dir():
    return _from_run(path, one_pass)
  with local_copy(path) as local:
    return dataclasses.replace(_from_file(local, one_pass), origin=path)


def write(path: Path, weights: Weights) -> str:
  """Writes weights for `read`; returns the file's `checksum`."""
  metadata = {
    "demands": dict(weights.required_fields),
    "pixels": weights.pixels,
    "class_names": weights.class_names and list(weights.class_names),
  }
  content = safetensors.numpy.save(
    {name: np.ascontiguousarray(value) for name, value in weights.arrays.items()},
    metadata={_START_KEY: json.dumps(metadata), "origin": str(weights.origin)},
  )
  with atomic_open(path, "wb") as file:
    file.write(content)
  return hashlib.sha256(content).hexdigest()


def checksum(path: Path) -> str:
  """Returns the SHA-256 of a file in hexadecimal."""
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _from_run(path: Path, one_pass: bool) -> Weights:
  folder, stages = path / "checkpoints", STAGES[:1] if one_pass else STAGES
  if path.parent.name == "checkpoints" and path.name in STAGES:
    folder, stages = path.parent, (path.name,)
  newest = checkpoint.read_networks(folder, stages, ONE_PASS)
  if not newest:
    missing = f"checkpoint of stage {stages[0]}" if len(stages) == 1 else "checkpoint"
    raise UserError(
      f"init_from: {path}: no {missing}; name the workdir of a trained run or"
      " <workdir>/checkpoints/<stage>"
    )
  origin, weights, record = newest
  model, stage = record["model"], origin.parent.name
  if one_pass and stage == STAGES[-1] and not model.get("control"):
    raise UserError(
      f"init_from: {path}: trained jointly with the category-specific network, so it is not the"
      f" one-pass model that universal.epochs=0 requires; name {folder / STAGES[0]}"
    )
  # A stage may end early, see `Stage.stop_patience`.
  is_complete = stage != STAGES[0] or (folder / STAGES[1]).exists()
  return Weights(
    origin,
    f"the one-pass model of {origin}",
    traverse_util.flatten_dict(weights, sep="/"),
    {name: model.get(f"backbone.{name}", DEFAULTS.get(name)) for name in SHAPE_NEUTRAL_FIELDS},
    _pixels_of_run(record, Workdir(folder.parent)),
    model["class_names"],
    None if is_complete else (int(origin.name), record.get("total_steps", 0)),
  )


def _pixels_of_run(record: Mapping[str, Any], workdir: Workdir) -> Pixels | None:
  """Returns the pixel statistics of a checkpoint; earlier versions have them in the config only."""
  if "pixels" in record:
    return Pixels(*map(tuple, record["pixels"]))
  config = saved_config.read(workdir)
  return config and Pixels(config.model.pixel_mean, config.model.pixel_std)


def _from_file(path: pathlib.Path, one_pass: bool) -> Weights:
  metadata = {}
  try:
    if path.suffix in TORCH_SUFFIXES:
      arrays = _read_torch(path)
    elif path.suffix == ".safetensors":
      arrays = safetensors.numpy.load_file(path)
      with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
      if STEM in arrays or any(name.startswith("params/trunk/") for name in arrays):
        return _from_export(path, arrays, metadata, one_pass)
    elif path.suffix == ".npz":
      with np.load(path) as file:  # refuses pickled objects
        arrays = dict(file)
    else:
      raise UserError(f"unknown format; must be one of {', '.join(SUFFIXES)}")
    source, arrays = names.translate(arrays)
  except OSError:
    raise
  except Exception as error:  # the readers raise errors of many types for a damaged file
    reason = " ".join(str(error).split()) or f"cannot be read ({type(error).__name__})"
    raise UserError(f"init_from: {path}: {reason}") from error
  weights = Weights(path, f"{path}, a {source.name}", arrays, source.required_fields)
  known = source.pixels if weights.channels == 3 else None
  return dataclasses.replace(weights, pixels=_pixels_of_metadata(metadata) or known)


def _pixels_of_metadata(metadata: Mapping[str, str]) -> Pixels | None:
  if "pixel_mean" not in metadata:
    return None
  return Pixels(*(tuple(json.loads(metadata[name])) for name in ("pixel_mean", "pixel_std")))


def _from_export(
  path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: Mapping[str, str], one_pass: bool
) -> Weights:
  if _START_KEY in metadata:
    start = json.loads(metadata[_START_KEY])
    pixels = start["pixels"] and Pixels(*map(tuple, start["pixels"]))
    kind = f"{path}, a copy of {metadata['origin']}"
    return Weights(path, kind, arrays, start["demands"], pixels, start["class_names"])
  if one_pass and any(name.split("/")[1] == "specific" for name in arrays):
    raise UserError(
      "universal network trained jointly with the category-specific one, so it is not the"
      " one-pass model that universal.epochs=0 requires; name the run's workdir"
    )
  backbone = json.loads(metadata["backbone"])
  return Weights(
    path,
    f"{path}, a u2s_jax export",
    {name: value for name, value in arrays.items() if name.split("/")[1] in ONE_PASS},
    {name: backbone.get(name, DEFAULTS.get(name)) for name in SHAPE_NEUTRAL_FIELDS},
    _pixels_of_metadata(metadata),
    json.loads(metadata["class_names"]),
  )


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "requires PyTorch; run `pip install torch` or convert the file to .safetensors"
    ) from error
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
    raise UserError(
      "damaged or contains objects other than tensors, which are never executed; save its state"
      " dict alone or convert the file to .safetensors"
    ) from error
  if not isinstance(state, dict):
    raise UserError(f"must hold a state dict, not a {type(state).__name__}; save one alone")
  state = next((state[key] for key in STATE_KEYS if isinstance(state.get(key), dict)), state)
  # float() because NumPy has no bfloat16.
  return {
    name: value.detach().float().numpy()
    for name, value in state.items()
    if isinstance(value, torch.Tensor)
  }
