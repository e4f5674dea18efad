"""Fits pretrained weights to a run's networks: other frames, channels, classes."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from u2s_jax.pretrained.names import Pixels
from u2s_jax.pretrained.read import DEFAULTS, HEAD, STEM, Weights, read
from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.files import Path

Variables = dict[str, Any]
# Layers of the universal network that a backbone's published weights lack.
NEW_LAYERS = {"videoprism": ("norm", "projection")}
GREY_LEVEL = 1 / 255  # normalisations that differ by less are equal up to rounding


@dataclasses.dataclass(frozen=True)
class Target:
  """The network that the weights are loaded into.

  Attributes:
    backbone: as `config.model.backbone`; must agree with the weights' `required_fields`.
    class_names: in the order of the labels.
    needs_classifier: whether the weights are used without further training. Then a classifier of
      other classes, an unfinished stage 1 and a jointly trained network are errors.
    pixels: statistics that the network's pixels are normalised with.
  """

  backbone: Mapping[str, Any]
  class_names: Sequence[str]
  needs_classifier: bool
  pixels: Pixels


def average_first_convolution(
  kernel: Float[np.ndarray, "kt kh kw cin cout"], channels: int
) -> Float[np.ndarray, "kt kh kw {channels} cout"]:
  """Returns the mean over the input channels, repeated for each of `channels`.

  This is the cross-modality pre-training of Temporal Segment Networks (Wang et al., ECCV 2016),
  which takes RGB weights to optical flow; as there, without rescaling.
  """
  return np.repeat(kernel.mean(axis=3, keepdims=True), channels, axis=3)


def load(
  path: Path,
  params: Variables,
  batch_stats: Variables,
  target: Target,
  log: Callable[[str], None],
) -> tuple[Variables, Variables]:
  """Reads, checks and fits weights: `read.read`, `check` and `fit` in one call."""
  weights = read(path, target.needs_classifier)
  check(weights, params, target, log)
  return fit(weights, params, batch_stats, target, log)


def check(weights: Weights, params: Variables, target: Target, log: Callable[[str], None]) -> None:
  """Checks what the shapes of the arrays do not reveal.

  Logs a line if the pixel statistics are unknown, or differ and the classifier is new. With other
  statistics BN's running averages, which a frozen network keeps, are wrong.

  Raises:
    UserError: if the backbone differs, stage 1 is unfinished, a classifier is needed and missing,
      or the classifier fits but was trained with other pixel statistics.
  """
  for name, required in weights.required_fields.items():
    value = target.backbone.get(name, DEFAULTS.get(name))
    # As JSON, because saved fields have lists instead of tuples.
    if required is not None and json.dumps(value) != json.dumps(required):
      raise UserError(
        f"init_from: {weights.origin}: its network has backbone.{name} = {required}, not {value};"
        f" set model.backbone.{name} to match"
      )
  step, total = weights.steps or (0, 0)
  if step < total and (target.needs_classifier or step == 0):
    raise UserError(
      f"init_from: {weights.origin}: stage universal is at step {step} of {total}; finish it first"
    )
  reason = _why_no_classifier(weights, target, params)
  if reason and target.needs_classifier:
    raise UserError(
      f"init_from: {weights.origin}: no classifier for these classes ({reason});"
      " universal.epochs=0 requires one"
    )
  if weights.channels != params["trunk"]["stem"]["kernel"].shape[3]:
    return  # another modality, such as optical flow from RGB, has other statistics
  trained, expected = weights.pixels, target.pixels
  if trained is None:
    log(
      f"{weights.origin}: pixel statistics are unknown; model.pixel_mean and model.pixel_std must"
      " be those that it was trained with"
    )
  elif _grey_difference(trained, expected) > GREY_LEVEL:
    message = (
      f"{weights.origin}: trained with pixel mean {_format(trained.mean)} and deviation"
      f" {_format(trained.std)}, not {_format(expected.mean)} and {_format(expected.std)}; set"
      " model.pixel_mean=() and model.pixel_std=() to use its own"
    )
    if not reason:
      raise UserError(f"init_from: {message}")
    log(message)


def fit(
  weights: Weights,
  params: Variables,
  batch_stats: Variables,
  target: Target,
  log: Callable[[str], None],
) -> tuple[Variables, Variables]:
  """Returns the one-pass model with pretrained weights; to be called on all hosts.

  2D kernels are inflated if the network's see several frames, the first convolution is averaged if
  the number of input channels differs, and the classifier is kept if the classes are equal (for
  files without class names: equally many). All other names and shapes must match.

  Args:
    params: newly initialised parameters of `trunk` and `universal`, replicated.
    batch_stats: BN's running averages, likewise.
    log: is called with lines that describe what was done.

  Returns:
    `params` and `batch_stats` with the pretrained values, as NumPy arrays.

  Raises:
    UserError: if an array is missing, unexpected or of another shape.
  """
  initial = jax.device_get({"params": params, "batch_stats": batch_stats})
  initial = traverse_util.flatten_dict(initial, sep="/")
  log(f"starting from {weights.kind}")
  arrays = _fit_shapes(_move_temporal_encoder(weights.arrays, initial), initial, log)
  new = _select_new_layers(weights, arrays, initial)
  for layer in sorted({name.split("/")[2] for name in new}):
    log(f"  {layer}: not in the file; initialized randomly")
  arrays |= new
  if reason := _why_no_classifier(weights, target, params):
    log(f"  classifier: newly initialised, {reason}")
    head = {name: value for name, value in initial.items() if name.startswith(HEAD)}
    arrays = {name: x for name, x in arrays.items() if not name.startswith(HEAD)} | head
    new |= head
  _check_shapes(weights.origin, arrays, initial)
  log(f"  {len(arrays) - len(new)} of {len(initial)} arrays loaded")
  tree = traverse_util.unflatten_dict(arrays, sep="/")
  return tree["params"], tree.get("batch_stats", {})


def _grey_difference(trained: Pixels, used: Pixels) -> float:
  """Returns how far black or white is shifted, as a share of the range of a pixel.

  That is what the network, trained with one normalisation, sees under the other.
  """
  ends = np.array([[0.0], [1.0]])
  seen = (ends - used.mean) / used.std * trained.std + trained.mean
  return float(np.abs(seen - ends).max())


def _format(values: Sequence[float]) -> str:
  return f"({', '.join(f'{value:.3g}' for value in values)})"


def _fit_shapes(
  arrays: Mapping[str, np.ndarray], initial: Mapping[str, np.ndarray], log: Callable[[str], None]
) -> dict[str, np.ndarray]:
  """Returns the arrays with convolutions averaged over channels and inflated over time."""
  fitted, num_inflated = dict(arrays), 0
  for name in initial.keys() & arrays.keys():
    wanted, shape = initial[name].shape, arrays[name].shape
    if len(wanted) == 1 < len(shape) and arrays[name].size == max(shape) == wanted[0]:
      fitted[name] = arrays[name].ravel()  # BN of Haiku and Sonnet: (1, 1, 1, 1, c)
    if not len(wanted) == len(shape) == 5:
      continue
    if name == STEM and wanted[3] != shape[3]:
      log(f"  first convolution: mean over {shape[3]} input channels, for each of {wanted[3]}")
      fitted[name] = average_first_convolution(fitted[name], wanted[3])
    if shape[0] == 1 < wanted[0]:
      # As in I3D (Carreira and Zisserman, CVPR 2017): the response to equal frames stays.
      fitted[name] = np.repeat(fitted[name], wanted[0], axis=0) / np.float32(wanted[0])
      num_inflated += 1
  if num_inflated:
    log(f"  {num_inflated} convolutions inflated over time")
  return fitted


def _move_temporal_encoder(
  arrays: Mapping[str, np.ndarray], initial: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns the arrays with VideoPrism's temporal encoder in the subnetwork that has it."""
  moved = {}
  for name, value in arrays.items():
    other = name.replace("/universal/temporal/", "/trunk/temporal/")
    moved[other if name not in initial and other in initial else name] = value
  return moved


def _select_new_layers(
  weights: Weights, arrays: Mapping[str, np.ndarray], initial: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns the initial arrays of the layers that published weights of this backbone lack."""
  is_run = weights.class_names is not None  # it has them
  layers = () if is_run else NEW_LAYERS.get(weights.required_fields.get("name"), ())
  prefixes = [
    f"{tree}/universal/{layer}/" for tree in ("params", "batch_stats") for layer in layers
  ]
  return {
    name: value
    for name, value in initial.items()
    if name not in arrays and name.startswith(tuple(prefixes))
  }


def _why_no_classifier(weights: Weights, target: Target, params: Variables) -> str | None:
  """Returns why the classifier cannot be used, None if it can."""
  if weights.class_names is not None:
    return None if list(weights.class_names) == list(target.class_names) else "classes differ"
  shapes = {name: x.shape for name, x in weights.arrays.items() if name.startswith(HEAD)}
  if not shapes:
    return "the file has none"
  wanted = {HEAD + name: x.shape for name, x in params["universal"]["head"].items()}
  return None if shapes.items() <= wanted.items() else "classes differ"


def _check_shapes(
  origin: Path, arrays: Mapping[str, np.ndarray], initial: Mapping[str, np.ndarray]
) -> None:
  # Parameters first: their shapes are more informative than those of statistics.
  names = sorted(
    initial.keys() | arrays.keys(), key=lambda name: (name.startswith("batch_stats"), name)
  )
  for name in names:
    shape, wanted = (
      f"of shape {tree[name].shape}" if name in tree else "missing" for tree in (arrays, initial)
    )
    if shape != wanted:
      raise UserError(
        f"init_from: {origin}: {name} is {shape} in the weights, but {wanted} in this config; set"
        " model.backbone to match"
      )
