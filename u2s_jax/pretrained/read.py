"""Reads weights to start from: of another run, or of a file; nothing pickled is ever executed."""

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

from u2s_jax import checkpoint, saved_config
from u2s_jax.errors import UserError
from u2s_jax.files import Path, on_disk, whole_file
from u2s_jax.pretrained import names
from u2s_jax.pretrained.names import Pixels
from u2s_jax.stages import STAGES
from u2s_jax.workdir import Workdir

SUBNETWORKS = ("trunk", "universal")  # the one-pass model
STEM, HEAD = "params/trunk/stem/kernel", "params/universal/head/"
STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model")  # of PyTorch checkpoints
# Fields of a backbone that change what it computes but no parameter's shape.
NO_SHAPE_TELLS = ("name", "strides", "stem_pool", "strided")
DEFAULTS = {"strides": (1, 2, 2, 2), "stem_pool": True, "strided": "3x3"}
START = "u2s_jax.start"  # in the metadata of a file that `write` wrote
TORCH, SUFFIXES = (".pth", ".pt", ".tar"), (".pth", ".pt", ".tar", ".safetensors", ".npz")


@dataclasses.dataclass(frozen=True)
class Weights:
  """Weights of a one-pass model from elsewhere, under our names.

  Attributes:
    origin: where they were read.
    kind: what they are, for messages.
    arrays: by name, as in `params/trunk/stem/kernel`.
    demands: fields of the backbone that they were trained with and no shape tells.
    pixels: statistics of the pixels that they were trained with; None where nobody says.
    class_names: of the classifier; None where nobody says which they are.
    steps: of stage 1, done and in all, where they are a checkpoint of stage 1; else None.
  """

  origin: Path
  kind: str
  arrays: dict[str, np.ndarray]
  demands: Mapping[str, Any]
  pixels: Pixels | None = None
  class_names: Sequence[str] | None = None
  steps: tuple[int, int] | None = None

  @property
  def channels(self) -> int:
    """Input channels of the first convolution, 0 where it is missing."""
    return self.arrays[STEM].shape[3] if STEM in self.arrays else 0


def read(path: Path, one_pass: bool = False) -> Weights:
  """Reads weights; to be called on all hosts.

  Args:
    path: a run's workdir, for its newest checkpoint; `<workdir>/checkpoints/<stage>`, for that
      stage's last one; or a file: a PyTorch state dict (.pth, .pt, .tar or .safetensors) named as
      in torchvision's ResNet, TSM's repository, mmaction2 or timm's resnetv2, Keras's ResNet or
      Inception-I3D as .npz, or the .safetensors that `export` or `write` wrote.
    one_pass: whether the weights must be those of the one-pass model, which training with the
      category-specific network changes: of a workdir its last checkpoint of stage 1 is read.

  Raises:
    UserError: nothing that can be read, or a jointly trained network as the one-pass model.
    OSError: a file that cannot be read.
  """
  if path.is_dir():
    return _from_run(path, one_pass)
  with on_disk(path) as local:
    return dataclasses.replace(_from_file(local, one_pass), origin=path)


def write(path: Path, weights: Weights) -> str:
  """Writes weights for `read`; returns the file's `checksum`."""
  facts = {
    "demands": dict(weights.demands),
    "pixels": weights.pixels,
    "class_names": weights.class_names and list(weights.class_names),
  }
  content = safetensors.numpy.save(
    {name: np.ascontiguousarray(value) for name, value in weights.arrays.items()},
    metadata={START: json.dumps(facts), "origin": str(weights.origin)},
  )
  with whole_file(path, "wb") as file:
    file.write(content)
  return hashlib.sha256(content).hexdigest()


def checksum(path: Path) -> str:
  """Returns the SHA-256 of a file.

  Raises:
    OSError: it cannot be read.
  """
  return hashlib.sha256(path.read_bytes()).hexdigest()


def _from_run(path: Path, one_pass: bool) -> Weights:
  """Reads the weights of another run."""
  folder, stages = path / "checkpoints", STAGES[:1] if one_pass else STAGES
  if path.parent.name == "checkpoints" and path.name in STAGES:
    folder, stages = path.parent, (path.name,)
  newest = checkpoint.read_subnetworks(folder, stages, SUBNETWORKS)
  if not newest:
    which = f"checkpoint of stage {stages[0]}" if len(stages) == 1 else "checkpoint"
    raise UserError(
      f"init_from: no {which} in {path}; name the workdir of a run that has trained, or"
      " <workdir>/checkpoints/<stage>"
    )
  origin, weights, record = newest
  model, stage = record["model"], origin.parent.name
  if one_pass and stage == STAGES[-1] and not model.get("control"):
    raise UserError(
      f"init_from: {path}: trained jointly with the category-specific network, so it is not the"
      f" one-pass model that universal.epochs=0 needs; name {folder / STAGES[0]}"
    )
  return Weights(
    origin,
    f"the one-pass model of {origin}",
    traverse_util.flatten_dict(weights, sep="/"),
    {name: model.get(f"backbone.{name}", DEFAULTS.get(name)) for name in NO_SHAPE_TELLS},
    _pixels_of_run(record, Workdir(folder.parent)),
    model["class_names"],
    (int(origin.name), record.get("total_steps", 0)) if stage == STAGES[0] else None,
  )


def _pixels_of_run(record: Mapping[str, Any], workdir: Workdir) -> Pixels | None:
  """Returns the pixel statistics of a checkpoint; an earlier version's are in the config alone."""
  if "pixels" in record:
    return Pixels(*map(tuple, record["pixels"]))
  config = saved_config.read(workdir)
  return config and Pixels(config.model.pixel_mean, config.model.pixel_std)


def _from_file(path: pathlib.Path, one_pass: bool) -> Weights:
  """Reads a weight file."""
  facts = {}
  try:
    if path.suffix in TORCH:
      arrays = _read_torch(path)
    elif path.suffix == ".safetensors":
      arrays = safetensors.numpy.load_file(path)
      with safetensors.safe_open(path, "numpy") as file:
        facts = file.metadata() or {}
      if STEM in arrays or any(name.startswith("params/trunk/") for name in arrays):
        return _from_ours(path, arrays, facts, one_pass)
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
  weights = Weights(path, f"{path}, a {source.name}", arrays, source.demands)
  known = source.pixels if weights.channels == 3 else None
  return dataclasses.replace(weights, pixels=_pixels_of_metadata(facts) or known)


def _pixels_of_metadata(facts: Mapping[str, str]) -> Pixels | None:
  """Returns the pixel statistics that a .safetensors file names, as JSON lists."""
  if "pixel_mean" not in facts:
    return None
  return Pixels(*(tuple(json.loads(facts[name])) for name in ("pixel_mean", "pixel_std")))


def _from_ours(
  path: pathlib.Path, arrays: dict[str, np.ndarray], facts: Mapping[str, str], one_pass: bool
) -> Weights:
  """Returns the one-pass model in a file that `export` or `write` wrote."""
  if START in facts:
    start = json.loads(facts[START])
    pixels = start["pixels"] and Pixels(*map(tuple, start["pixels"]))
    kind = f"{path}, a copy of {facts['origin']}"
    return Weights(path, kind, arrays, start["demands"], pixels, start["class_names"])
  if one_pass and any(name.split("/")[1] == "specific" for name in arrays):
    raise UserError(
      "its universal network was trained jointly with the category-specific one, so it is not the"
      " one-pass model that universal.epochs=0 needs; name the run's workdir"
    )
  backbone = json.loads(facts["backbone"])
  return Weights(
    path,
    f"{path}, a u2s_jax export",
    {name: value for name, value in arrays.items() if name.split("/")[1] in SUBNETWORKS},
    {name: backbone.get(name, DEFAULTS.get(name)) for name in NO_SHAPE_TELLS},
    _pixels_of_metadata(facts),
    json.loads(facts["class_names"]),
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
