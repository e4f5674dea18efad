"""Weights that stage 1 starts from in place of random ones."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jaxtyping import Float

from u2s_jax import checkpoint

SUBNETWORKS = ("trunk", "universal")  # the one-pass model
STEM, HEAD = "params/trunk/stem/kernel", "params/universal/head/"

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


def from_run(
  folder: pathlib.Path,
  params: Variables,
  batch_stats: Variables,
  *,
  stages: tuple[str, ...],
  class_names: Sequence[str],
  log: Callable[[str], None],
) -> tuple[Variables, Variables]:
  """The one-pass model of another run's newest checkpoint; to be called on all hosts.

  The first convolution is averaged where the number of input channels differs; the classifier is
  taken over only where the classes are the same.

  Args:
    folder: the other run's workdir.
    params: freshly initialised parameters of `trunk` and `universal`, replicated.
    batch_stats: likewise BN's running averages.
    stages: names of the stages in the order of training.
    class_names: of this run, in the order of the labels.
    log: takes a line on what was done.

  Returns:
    `params` and `batch_stats` with the other run's values, as NumPy arrays.

  Raises:
    ValueError: there is no checkpoint, or one of networks with other parameters.
  """
  found = checkpoint.read_subnetworks(folder / "checkpoints", stages, SUBNETWORKS)
  if not found:
    raise ValueError(
      f"init_from: no checkpoint in {folder / 'checkpoints'}; name the --workdir of a run that has"
      " trained"
    )
  path, weights, model = found
  log(f"starting from the one-pass model of {path}")
  fresh = jax.device_get({"params": params, "batch_stats": batch_stats})
  fresh, weights = (traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, weights))
  channels, before = fresh[STEM].shape[3], weights[STEM].shape[3]
  if channels != before:
    log(f"  first convolution: mean over {before} input channels, for each of {channels}")
    weights[STEM] = average_first_convolution(weights[STEM], channels)
  if model["class_names"] != list(class_names):
    log("  classifier: freshly initialised, the classes are others")
    weights = {name: value for name, value in weights.items() if not name.startswith(HEAD)}
    weights |= {name: value for name, value in fresh.items() if name.startswith(HEAD)}
  for name in sorted(fresh.keys() | weights.keys()):
    there, here = (tree[name].shape if name in tree else None for tree in (weights, fresh))
    if there != here:
      raise ValueError(
        f"init_from: {path}: {name} has shape {there} there and {here} here; set config.model as"
        " that run's"
      )
  weights = traverse_util.unflatten_dict(weights, sep="/")
  return weights["params"], weights["batch_stats"]
