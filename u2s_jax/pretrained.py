"""Weights that training starts from in place of random ones: of another run, or of a file."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from u2s_jax import checkpoint, weight_names

SUBNETWORKS = ("trunk", "universal")  # the one-pass model
STEM, HEAD = "params/trunk/stem/kernel", "params/universal/head/"
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
      in torchvision's ResNet, TSM's repository, mmaction2 or timm's resnetv2, or Keras's ResNet or
      Inception-I3D as .npz.
    params: freshly initialised parameters of `trunk` and `universal`, replicated.
    batch_stats: likewise BN's running averages.
    stages: names of the stages in the order of training.
    class_names: of this run, in the order of the labels.
    needs_classifier: whether a classifier of other classes is an error.
    log: takes a line on what was done.

  Returns:
    `params` and `batch_stats` with the values from there, as NumPy arrays.

  Raises:
    ValueError: nothing to be read there, or weights of a network with other parameters.
  """
  fresh = jax.device_get({"params": params, "batch_stats": batch_stats})
  fresh = traverse_util.flatten_dict(fresh, sep="/")
  if path.is_dir():
    where, weights, same_classes = _from_run(path, stages, class_names)
    log(f"starting from the one-pass model of {where}")
  else:
    where, (source, weights) = path, _from_file(path)
    log(f"starting from {where}, a {source}")
    there = [weights[name].shape for name in weights if name.startswith(HEAD)]
    same_classes = there == [fresh[name].shape for name in weights if name.startswith(HEAD)]
    same_classes = same_classes and bool(there)
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
      raise ValueError(f"init_from: {where}: its classes are others, but universal.epochs is 0")
    log("  classifier: freshly initialised, the classes are others")
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
  log(f"  {len(weights) - 2 * (not same_classes)} of {len(fresh)} arrays loaded")
  weights = traverse_util.unflatten_dict(weights, sep="/")
  return weights["params"], weights["batch_stats"]


def _from_run(
  path: pathlib.Path, stages: tuple[str, ...], class_names: Sequence[str]
) -> tuple[pathlib.Path, dict[str, np.ndarray], bool]:
  """Where the checkpoint lies, its weights by name, and whether its classes are ours."""
  folder = path / "checkpoints"
  if path.parent.name == "checkpoints" and path.name in stages:
    folder, stages = path.parent, (path.name,)
  found = checkpoint.read_subnetworks(folder, stages, SUBNETWORKS)
  if not found:
    raise ValueError(
      f"init_from: no checkpoint in {path}; name the --workdir of a run that has trained, or"
      " <workdir>/checkpoints/<stage>"
    )
  where, weights, model = found
  weights = traverse_util.flatten_dict(weights, sep="/")
  return where, weights, model["class_names"] == list(class_names)


def _from_file(path: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
  """The kind of a weight file, and its arrays under our names."""
  try:
    if path.suffix in TORCH:
      arrays = _read_torch(path)
    elif path.suffix == ".safetensors":
      import safetensors.numpy

      arrays = safetensors.numpy.load_file(path)
    elif path.suffix == ".npz":
      with np.load(path) as file:  # refuses pickled objects
        arrays = dict(file)
    else:
      raise ValueError(f"not one of {', '.join(SUFFIXES)}")
    return weight_names.translate(arrays)
  except OSError:
    raise
  except Exception as error:
    reason = " ".join(str(error).split())
    raise ValueError(f"init_from: {path}: {reason}") from error


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  """A PyTorch state dict, alone or as `state_dict` in a checkpoint; nothing in it is executed."""
  try:
    import torch
  except ImportError as error:
    raise ValueError(
      "reading it needs PyTorch: `pip install torch`, or convert it to .safetensors"
    ) from error
  state = torch.load(path, map_location="cpu", weights_only=True)
  state = state.get("state_dict", state)
  tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
  return {name: value.float().numpy() for name, value in tensors.items()}  # NumPy has no bfloat16
