"""Reads weights to start from: of another run, or of a file; nothing pickled is ever executed."""

import dataclasses
import json
import pathlib
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from u2s_jax import checkpoint
from u2s_jax.errors import UserError
from u2s_jax.files import Path, on_disk
from u2s_jax.pretrained import names
from u2s_jax.stages import STAGES

SUBNETWORKS = ("trunk", "universal")  # the one-pass model
STEM, HEAD = "params/trunk/stem/kernel", "params/universal/head/"
STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model")  # of PyTorch checkpoints
# Fields of a backbone that change what it computes but no parameter's shape.
NO_SHAPE_TELLS = ("strides", "stem_pool", "strided")
DEFAULTS = {"strides": (1, 2, 2, 2), "stem_pool": True, "strided": "3x3"}
TORCH, SUFFIXES = (".pth", ".pt", ".tar"), (".pth", ".pt", ".tar", ".safetensors", ".npz")


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights of a one-pass model from elsewhere, under our names.

  Attributes:
    origin: where they were read.
    kind: what they are, for messages.
    arrays: by name, as in `params/trunk/stem/kernel`.
    demands: fields of the backbone that they were trained with and no shape tells.
    class_names: of the classifier; None where nobody says which they are.
    steps: of stage 1, done and in all, where they are a checkpoint of stage 1; else None.
  """

  origin: Path
  kind: str
  arrays: dict[str, np.ndarray]
  demands: Mapping[str, Any]
  class_names: Sequence[str] | None = None
  steps: tuple[int, int] | None = None


def read(path: Path) -> Weights:
  """Reads weights; to be called on all hosts.

  Args:
    path: a run's workdir, for its newest checkpoint; `<workdir>/checkpoints/<stage>`, for that
      stage's last one; or a file: a PyTorch state dict (.pth, .pt, .tar or .safetensors) named as
      in torchvision's ResNet, TSM's repository, mmaction2 or timm's resnetv2, Keras's ResNet or
      Inception-I3D as .npz, or the .safetensors that `export` wrote.

  Raises:
    UserError: nothing that can be read.
    OSError: a file that cannot be read.
  """
  if path.is_dir():
    return _from_run(path)
  with on_disk(path) as local:
    return dataclasses.replace(_from_file(local), origin=path)


def _from_run(path: Path) -> Weights:
  """Reads the weights of another run."""
  folder, stages = path / "checkpoints", STAGES
  if path.parent.name == "checkpoints" and path.name in STAGES:
    folder, stages = path.parent, (path.name,)
  newest = checkpoint.read_subnetworks(folder, stages, SUBNETWORKS)
  if not newest:
    raise UserError(
      f"init_from: no checkpoint in {path}; name the --workdir of a run that has trained, or"
      " <workdir>/checkpoints/<stage>"
    )
  origin, weights, record = newest
  model = record["model"]
  in_stage_1 = origin.parent.name == STAGES[0]
  return Weights(
    origin,
    f"the one-pass model of {origin}",
    traverse_util.flatten_dict(weights, sep="/"),
    {name: model.get(f"backbone.{name}", DEFAULTS.get(name)) for name in NO_SHAPE_TELLS},
    model["class_names"],
    (int(origin.name), record.get("total_steps", 0)) if in_stage_1 else None,
  )


def _from_file(path: pathlib.Path) -> Weights:
  """Reads a weight file."""
  try:
    if path.suffix in TORCH:
      arrays = _read_torch(path)
    elif path.suffix == ".safetensors":
      arrays = safetensors.numpy.load_file(path)
      if STEM in arrays or any(name.startswith("params/trunk/") for name in arrays):
        return _from_export(path, arrays)
    elif path.suffix == ".npz":
      with np.load(path) as file:  # refuses pickled objects
        arrays = dict(file)
    else:
      raise UserError(f"not one of {', '.join(SUFFIXES)}")
    source, arrays = names.translate(arrays)
  except OSError:
    raise
  except Exception as error:
    reason = " ".join(str(error).split()) or f"it cannot be read ({type(error).__name__})"
    raise UserError(f"init_from: {path}: {reason}") from error
  return Weights(path, f"{path}, a {source.name}", arrays, source.demands)


def _from_export(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> Weights:
  """Returns the one-pass model in a file that `export` wrote."""
  with safetensors.safe_open(path, "numpy") as file:
    facts = {name: json.loads(value) for name, value in file.metadata().items()}
  return Weights(
    path,
    f"{path}, a u2s_jax export",
    {name: value for name, value in arrays.items() if name.split("/")[1] in SUBNETWORKS},
    {name: facts["backbone"].get(name, DEFAULTS.get(name)) for name in NO_SHAPE_TELLS},
    facts["class_names"],
  )


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a PyTorch state dict, alone or in a checkpoint; nothing in it is executed."""
  try:
    import torch
  except ImportError as error:
    raise UserError(
      "reading it needs PyTorch: `pip install torch`, or convert it to .safetensors"
    ) from error
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
    raise UserError(
      "it is damaged or holds objects besides tensors, and none is executed; save its state dict"
      " alone, or convert it to .safetensors"
    ) from error
  if not isinstance(state, dict):
    raise UserError(f"no state dict but a {type(state).__name__}")
  state = next((state[key] for key in STATE_KEYS if isinstance(state.get(key), dict)), state)
  tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
  return {
    name: value.detach().float().numpy() for name, value in tensors.items()
  }  # NumPy has no bfloat16
