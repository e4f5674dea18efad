"""Fits weights from elsewhere to our networks: other frames, channels, classes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from u2s_jax.errors import UserError
from u2s_jax.files import Path
from u2s_jax.pretrained.names import Pixels
from u2s_jax.pretrained.read import DEFAULTS, HEAD, STEM, Weights, read

Variables = dict[str, Any]
GREY_LEVEL = 1 / 255  # pixel statistics that differ by less are the same, up to rounding


@dataclasses.dataclass(frozen=True)
class Target:
  """What the weights are for.

  Attributes:
    backbone: `name` and fields of this run's backbone, as in the config. Those that no shape tells
      have to be the ones that the weights were trained with.
    class_names: of this run, in the order of the labels.
    needs_classifier: whether the weights are used as they are: then a classifier of other classes
      is an error, a run's first stage that did not come to its end, and a network that was trained
      jointly with another.
    pixels: statistics that this run's pixels are normalised with.
  """

  backbone: Mapping[str, Any]
  class_names: Sequence[str]
  needs_classifier: bool
  pixels: Pixels


def average_first_convolution(
  kernel: Float[np.ndarray, "kt kh kw cin cout"], channels: int
) -> Float[np.ndarray, "kt kh kw {channels} cout"]:
  """Returns the first convolution for another number of channels: the mean over its own.

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
  """Returns a 2D kernel over several frames, as in I3D (Carreira and Zisserman, CVPR 2017).

  Args:
    kernel: that sees one frame.
    extent: frames of the new one.

  Returns:
    The kernel for every frame, divided by their number: a clip of equal frames gives the same
    response.
  """
  return np.repeat(kernel, extent, axis=0) / np.float32(extent)


def load(
  path: Path,
  params: Variables,
  batch_stats: Variables,
  target: Target,
  log: Callable[[str], None],
) -> tuple[Variables, Variables]:
  """Reads weights, checks that they are a start for a run, and fits them: `read`, `check`, `fit`.

  Args:
    path: see `read.read`.
    params: see `fit`.
    batch_stats: see `fit`.
    target: see `check`.
    log: takes a line on what was done.

  Raises:
    UserError: nothing to be read, or weights of another network.
    OSError: a file that cannot be read.
  """
  weights = read(path, target.needs_classifier)
  check(weights, params, target, log)
  return fit(weights, params, batch_stats, target, log)


def check(weights: Weights, params: Variables, target: Target, log: Callable[[str], None]) -> None:
  """Checks what no shape tells.

  A line says where the weights were trained with other pixel statistics: BN's running averages,
  which a frozen network keeps, then mean nothing.

  Args:
    weights: of `read.read`.
    params: see `fit`.
    target: what they are for.
    log: takes the line.

  Raises:
    UserError: a backbone that computes something else, a stage 1 that did not come to its end, no
      classifier where it is needed, or a classifier of the same classes that was trained with other
      pixel statistics.
  """
  _check_demands(weights, target)
  reason = _why_no_classifier(weights, target, params)
  if reason and target.needs_classifier:
    raise UserError(
      f"init_from: {weights.origin}: no classifier to take over ({reason}), but universal.epochs"
      " is 0"
    )
  theirs, ours = weights.pixels, target.pixels
  if weights.channels != params["trunk"]["stem"]["kernel"].shape[3]:
    return  # optical flow from RGB, say, has statistics of its own
  if theirs is None:
    log(
      f"{weights.origin}: does not say which pixel mean and deviation it was trained with;"
      " model.pixel_mean and model.pixel_std must be these"
    )
  elif _grey_difference(theirs, ours) > GREY_LEVEL:
    line = (
      f"{weights.origin}: trained with pixel mean {_short(theirs.mean)} and deviation"
      f" {_short(theirs.std)}, not {_short(ours.mean)} and {_short(ours.std)}; set"
      " model.pixel_mean=() and model.pixel_std=() to take over its own"
    )
    if not reason:
      raise UserError(f"init_from: {line}")
    log(line)


def fit(
  weights: Weights,
  params: Variables,
  batch_stats: Variables,
  target: Target,
  log: Callable[[str], None],
) -> tuple[Variables, Variables]:
  """Returns the one-pass model's weights from elsewhere; to be called on all hosts.

  2D kernels are inflated where ours see several frames, the first convolution is averaged where
  the number of input channels differs, and the classifier is taken over where the classes are the
  same (of a file: as many). Everything else has to fit, name for name and shape for shape.

  Args:
    weights: of `read.read`.
    params: freshly initialised parameters of `trunk` and `universal`, replicated.
    batch_stats: likewise BN's running averages.
    target: what they are for.
    log: takes a line on what was done.

  Returns:
    `params` and `batch_stats` with the values from there, as NumPy arrays.

  Raises:
    UserError: an array too many, too few, or of another shape.
  """
  fresh = jax.device_get({"params": params, "batch_stats": batch_stats})
  fresh = traverse_util.flatten_dict(fresh, sep="/")
  log(f"starting from {weights.kind}")
  arrays = _fit_shapes(weights.arrays, fresh, log)
  reason = _why_no_classifier(weights, target, params)
  if reason:
    log(f"  classifier: freshly initialised, {reason}")
    arrays = {name: value for name, value in arrays.items() if not name.startswith(HEAD)}
    arrays |= {name: value for name, value in fresh.items() if name.startswith(HEAD)}
  _check_shapes(weights.origin, arrays, fresh)
  new = sum(name.startswith(HEAD) for name in fresh) if reason else 0
  log(f"  {len(arrays) - new} of {len(fresh)} arrays loaded")
  tree = traverse_util.unflatten_dict(arrays, sep="/")
  return tree["params"], tree["batch_stats"]


def _grey_difference(theirs: Pixels, ours: Pixels) -> float:
  """Returns by how much of the range of a pixel black or white differ under two normalisations."""
  ends = np.array([[0.0], [1.0]])
  seen = (ends - ours.mean) / ours.std * theirs.std + theirs.mean
  return float(np.abs(seen - ends).max())


def _short(values: Sequence[float]) -> str:
  """Returns numbers with three digits."""
  return f"({', '.join(f'{value:.3g}' for value in values)})"


def _check_demands(weights: Weights, target: Target) -> None:
  """Raises UserError for weights of another network that no shape tells, or half-trained ones."""
  for name, value in weights.demands.items():
    ours = target.backbone.get(name, DEFAULTS.get(name))
    if value is not None and _listed(ours) != _listed(value):
      raise UserError(
        f"init_from: {weights.origin}: its network has backbone.{name} = {value}, not {ours}; set"
        f" config.model.backbone.{name} as there"
      )
  if weights.steps:
    step, total = weights.steps
    if step < total and (target.needs_classifier or step == 0):
      raise UserError(
        f"init_from: {weights.origin}: its stage universal is at step {step} of {total}; let it"
        " come to its end first"
      )


def _fit_shapes(
  arrays: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray], log: Callable[[str], None]
) -> dict[str, np.ndarray]:
  """Returns the weights with convolutions averaged over colours and inflated over time."""
  fitted, inflated = dict(arrays), 0
  for name in fresh.keys() & arrays.keys():
    ours, theirs = fresh[name].shape, arrays[name].shape
    if len(ours) == len(theirs) == 5:
      if name == STEM and ours[3] != theirs[3]:
        log(f"  first convolution: mean over {theirs[3]} input channels, for each of {ours[3]}")
        fitted[name] = average_first_convolution(fitted[name], ours[3])
      if theirs[0] == 1 < ours[0]:
        fitted[name] = inflate(fitted[name], ours[0])
        inflated += 1
  if inflated:
    log(f"  {inflated} convolutions inflated over time")
  return fitted


def _why_no_classifier(weights: Weights, target: Target, params: Variables) -> str | None:
  """Returns why the classifier is no start for ours, None where it is one."""
  others = "the classes are others"
  if weights.class_names is not None:
    return None if list(weights.class_names) == list(target.class_names) else others
  theirs = {
    name.removeprefix(HEAD): value.shape
    for name, value in weights.arrays.items()
    if name.startswith(HEAD)
  }
  if not theirs:
    return "the file has none for these classes"
  ours = {name: value.shape for name, value in params["universal"]["head"].items()}
  return None if theirs.items() <= ours.items() else others


def _check_shapes(
  origin: Path, arrays: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]
) -> None:
  """Raises UserError for an array too many, too few or of another shape."""
  # Parameters first: their shapes tell more than those of statistics.
  names = sorted(
    fresh.keys() | arrays.keys(), key=lambda name: (name.startswith("batch_stats"), name)
  )
  for name in names:
    theirs, ours = (tree[name].shape if name in tree else None for tree in (arrays, fresh))
    if theirs != ours:
      raise UserError(
        f"init_from: {origin}: {name} has shape {theirs} there and {ours} here; set"
        " config.model.backbone as there"
      )


def _listed(value):
  """Returns tuples as lists, as JSON gives them back."""
  return [_listed(item) for item in value] if isinstance(value, tuple | list) else value
