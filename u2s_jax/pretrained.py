"""Weights that training starts from in place of random ones: of another run, or of a file."""

import json
import pathlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from u2s_jax import checkpoint, weight_names

SUBNETWORKS = ("trunk", "universal")  # the one-pass model
STEM, HEAD = "params/trunk/stem/kernel", "params/universal/head/"
STATE_KEYS = ("state_dict", "model_state_dict", "model_state", "model")  # of PyTorch checkpoints
# Fields of a backbone that change what it computes but no parameter's shape.
NO_SHAPE_TELLS = ("strides", "stem_pool", "strided")
DEFAULTS = {"strides": (1, 2, 2, 2), "stem_pool": True, "strided": "3x3"}
TORCH, SUFFIXES = (".pth", ".pt", ".tar"), (".pth", ".pt", ".tar", ".safetensors", ".npz")

Variables = dict[str, Any]


def average_first_convolution(
  kernel: Float[np.ndarray, "kt kh kw cin cout"], channels: int
) -> Float[np.ndarray, "kt kh kw {channels} cout"]:
  """The first convolution for another number of input channels: the mean of those there are.

  Cross-modality pre-training as in Temporal Segment Networks (Wang et al., ECCV 2016), that takes
  RGB weights to optical flow; like theirs without rescaling.

  Args:
    kernel: of the first convolution.
    channels: input channels of the new one.

  Returns:
    The mean over the input channels, for each of the new ones.
  """
  return np.repeat(kernel.mean(axis=3, keepdims=True), channels, axis=3)


def inflate(
  kernel: Float[np.ndarray, "1 kh kw c d"], extent: int
) -> Float[np.ndarray, "{extent} kh kw c d"]:
  """A 2D kernel over several frames, as in I3D (Carreira and Zisserman, CVPR 2017).

  Args:
    kernel: that sees one frame.
    extent: frames of the new one.

  Returns:
    The kernel for every frame, divided by their number: a clip of equal frames gives the same
    response.
  """
  return np.repeat(kernel, extent, axis=0) / np.float32(extent)


def load(
  path: pathlib.Path,
  params: Variables,
  batch_stats: Variables,
  *,
  backbone: Mapping[str, Any],
  stages: tuple[str, ...],
  class_names: Sequence[str],
  needs_classifier: bool,
  log: Callable[[str], None],
) -> tuple[Variables, Variables]:
  """The one-pass model's weights from elsewhere; to be called on all hosts.

  2D kernels are inflated where ours see several frames, the first convolution is averaged where
  the number of input channels differs, and the classifier is taken over where the classes are the
  same (of a file: as many). Everything else has to fit, name for name and shape for shape.

  Args:
    path: a run's workdir, for its newest checkpoint; `<workdir>/checkpoints/<stage>`, for that
      stage's last one; or a file: a PyTorch state dict (.pth, .pt, .tar or .safetensors) named as
      in torchvision's ResNet, TSM's repository, mmaction2 or timm's resnetv2, Keras's ResNet or
      Inception-I3D as .npz, or the .safetensors that `export` wrote.
    params: freshly initialised parameters of `trunk` and `universal`, replicated.
    batch_stats: likewise BN's running averages.
    backbone: `name` and fields of this run's backbone, as in the config. Those that no shape tells
      have to be the ones that the weights were trained with.
    stages: names of the stages in the order of training.
    class_names: of this run, in the order of the labels.
    needs_classifier: whether the weights are used as they are: then a classifier of other classes
      is an error, and a run's first stage that did not come to its end.
    log: takes a line on what was done.

  Returns:
    `params` and `batch_stats` with the values from there, as NumPy arrays.

  Raises:
    ValueError: nothing to be read there, or weights of another network.
    OSError: a file that cannot be read.
  """
  fresh = jax.device_get({"params": params, "batch_stats": batch_stats})
  fresh = traverse_util.flatten_dict(fresh, sep="/")
  if path.is_dir():
    where, weights, record = _from_run(path, stages)
    log(f"starting from the one-pass model of {where}")
    model = record["model"]
    demands = {name: model.get(f"backbone.{name}", DEFAULTS.get(name)) for name in NO_SHAPE_TELLS}
    same_classes = model["class_names"] == list(class_names)
    new_classes = "the classes are others"
    _check_trained(where, stages, record, needs_classifier)
  else:
    where, (source, weights) = path, _from_file(path, class_names)
    log(f"starting from {where}, a {source.name}")
    demands = source.demands
    there = {name: value.shape for name, value in weights.items() if name.startswith(HEAD)}
    same_classes = bool(there) and all(fresh[name].shape == there[name] for name in there)
    new_classes = "the classes are others" if there else "the file has none for these classes"
  for name, value in demands.items():
    here = backbone.get(name, DEFAULTS.get(name))
    if _listed(here) != _listed(value):
      raise ValueError(
        f"init_from: {where}: its network has backbone.{name} = {value}, not {here}; set"
        f" config.model.backbone.{name} as there"
      )
  inflated = 0
  for name in fresh.keys() & weights.keys():
    here, there = fresh[name].shape, weights[name].shape
    if len(here) == len(there) == 5:
      if name == STEM and here[3] != there[3]:
        log(f"  first convolution: mean over {there[3]} input channels, for each of {here[3]}")
        weights[name] = average_first_convolution(weights[name], here[3])
      if there[0] == 1 < here[0]:
        weights[name] = inflate(weights[name], here[0])
        inflated += 1
  if inflated:
    log(f"  {inflated} convolutions inflated over time")
  if not same_classes:
    if needs_classifier:
      raise ValueError(
        f"init_from: {where}: no classifier to take over ({new_classes}), but universal.epochs is 0"
      )
    log(f"  classifier: freshly initialised, {new_classes}")
    weights = {name: value for name, value in weights.items() if not name.startswith(HEAD)}
    weights |= {name: value for name, value in fresh.items() if name.startswith(HEAD)}
  # Parameters first: their shapes tell more than those of statistics.
  names = fresh.keys() | weights.keys()
  for name in sorted(names, key=lambda name: (name.startswith("batch_stats"), name)):
    there, here = (tree[name].shape if name in tree else None for tree in (weights, fresh))
    if there != here:
      raise ValueError(
        f"init_from: {where}: {name} has shape {there} there and {here} here; set"
        " config.model.backbone as there"
      )
  new = 0 if same_classes else sum(name.startswith(HEAD) for name in fresh)
  log(f"  {len(weights) - new} of {len(fresh)} arrays loaded")
  weights = traverse_util.unflatten_dict(weights, sep="/")
  return weights["params"], weights["batch_stats"]


def _check_trained(where, stages, record, needs_end):
  """Raises ValueError for a first stage that has not begun or, if need be, not ended."""
  step, total = int(where.name), record.get("total_steps", 0)
  if where.parent.name == stages[0] and step < total and (needs_end or step == 0):
    raise ValueError(
      f"init_from: {where}: its stage {stages[0]} is at step {step} of {total}; let it come to its"
      " end first"
    )


def _listed(value):
  """Tuples as lists, as JSON gives them back."""
  return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def _from_run(
  path: pathlib.Path, stages: tuple[str, ...]
) -> tuple[pathlib.Path, dict[str, np.ndarray], dict[str, Any]]:
  """Where the checkpoint lies, its weights by name, and its record."""
  folder = path / "checkpoints"
  if path.parent.name == "checkpoints" and path.name in stages:
    folder, stages = path.parent, (path.name,)
  found = checkpoint.read_subnetworks(folder, stages, SUBNETWORKS)
  if not found:
    raise ValueError(
      f"init_from: no checkpoint in {path}; name the --workdir of a run that has trained, or"
      " <workdir>/checkpoints/<stage>"
    )
  where, weights, record = found
  return where, traverse_util.flatten_dict(weights, sep="/"), record


def _from_file(
  path: pathlib.Path, class_names: Sequence[str]
) -> tuple[weight_names.Source, dict[str, np.ndarray]]:
  """The kind of a weight file, and its arrays under our names."""
  try:
    if path.suffix in TORCH:
      arrays = _read_torch(path)
    elif path.suffix == ".safetensors":
      import safetensors.numpy

      arrays = safetensors.numpy.load_file(path)
      if STEM in arrays or any(name.startswith("params/trunk/") for name in arrays):
        return _from_export(path, arrays, class_names)
    elif path.suffix == ".npz":
      with np.load(path) as file:  # refuses pickled objects
        arrays = dict(file)
    else:
      raise ValueError(f"not one of {', '.join(SUFFIXES)}")
    return weight_names.translate(arrays)
  except OSError:
    raise
  except Exception as error:
    reason = " ".join(str(error).split()) or f"it cannot be read ({type(error).__name__})"
    raise ValueError(f"init_from: {path}: {reason}") from error


def _from_export(
  path: pathlib.Path, arrays: dict[str, np.ndarray], class_names: Sequence[str]
) -> tuple[weight_names.Source, dict[str, np.ndarray]]:
  """The one-pass model in a file that `export` wrote; its classifier only for the same classes."""
  import safetensors

  with safetensors.safe_open(path, "numpy") as file:
    facts = {name: json.loads(value) for name, value in file.metadata().items()}
  demands = {name: facts["backbone"].get(name, DEFAULTS.get(name)) for name in NO_SHAPE_TELLS}
  same = facts["class_names"] == list(class_names)
  ours = {
    name: value
    for name, value in arrays.items()
    if name.split("/")[1] in SUBNETWORKS and (same or not name.startswith(HEAD))
  }
  return weight_names.Source("u2s_jax export", "", "/", "", (), demands=demands), ours


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  """A PyTorch state dict, alone or in a checkpoint; nothing in it is executed."""
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      "reading it needs PyTorch: `pip install torch`, or convert it to .safetensors"
    ) from error
  try:
    state = torch.load(path, map_location="cpu", weights_only=True)
  except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
    raise ValueError(
      "it is damaged or holds objects besides tensors, and none is executed; save its state dict"
      " alone, or convert it to .safetensors"
    ) from error
  if not isinstance(state, dict):
    raise ValueError(f"no state dict but a {type(state).__name__}")
  state = next((state[key] for key in STATE_KEYS if isinstance(state.get(key), dict)), state)
  tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
  return {
    name: value.detach().float().numpy() for name, value in tensors.items()
  }  # NumPy has no bfloat16
