"""Suggests the first training command for a prepared data set, and says why."""

import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from data.input import store

SAMPLED = 64  # clips whose lengths are read
FEW_CLIPS = 200  # a class; with fewer, pretrained weights matter (docs/evidence.md)
# Epochs of all stages of these starts in configs/custom.py.
EPOCHS = {"small": 64.0, "i3d": 18.0}
# CPU seconds for a frame of a training clip in an epoch, measured with these starts on the cores of
# a server; i3d's from cached features of 112 pixels, and for computing these once.
TRAINING_SECONDS = {"small": 0.0043, "i3d": 0.03}
FEATURE_SECONDS = 0.1
STARTUP_MINUTES = {"small": 2.0, "i3d": 6.0}  # imports and compilation
SMALL_I3D = {"data.num_frames": 16, "data.short_edge": 128, "data.crop_size": 112}


def suggest_commands(dataset: store.PreparedDataset) -> list[str]:
  """Returns lines with commands that train on a data set; none if it has no training clips."""
  sizes = [size for size in dataset.class_sizes() if size]
  if not sizes:
    return []
  length = _median_length(dataset.split("train"))
  return format_commands(os.fspath(dataset.folder), dataset.modality, sizes, length)


def format_commands(folder: str, modality: str, sizes: Sequence[int], length: int) -> list[str]:
  """Returns lines with commands, each with its reasons.

  Args:
    sizes: training clips of each class.
    length: median frames of a clip.
  """
  if modality == "flow":
    fields = {"data.modality": "flow", "model.pixel_mean": "(0.5,)", "model.pixel_std": "(0.5,)"}
    return _format(folder, "configs/custom.py", fields, ["the paper's network on optical flow"])
  if length == 1:
    return _format(folder, "configs/cars.py", {}, ["images; ImageNet weights: docs/weights.md"])
  frames, per_class = int(np.clip(4 * round(length / 8), 8, 16)), round(float(np.median(sizes)))
  why_frames = f"{frames} frames a clip: half of the clips have at most {length}"
  is_cpu, clips, lines = jax.default_backend() == "cpu", sum(sizes), []
  if is_cpu:
    minutes = _estimate_minutes("small", clips, frames)
    reasons = ["a small network from scratch: there is no GPU", why_frames, minutes]
    lines += _format(folder, "configs/custom.py:small", {"data.num_frames": frames}, reasons)
  elif per_class >= FEW_CLIPS:
    fields = {"data.num_frames": frames, "init_from": "<resnet50.pth>"}
    reasons = [f"about {per_class} clips a class, enough to train a whole network", why_frames]
    lines += _format(folder, "configs/custom.py:tsm", fields, reasons)
  if per_class < FEW_CLIPS:
    reasons = [
      f"pretrained weights with a frozen trunk: about {per_class} clips a class are few;"
      " docs/weights.md says where to get them"
    ]
    fields = {"init_from": "<i3d_rgb_kinetics400_flax.npz>", "data.cache_features": True}
    if is_cpu:
      fields |= SMALL_I3D
      reasons += [_estimate_minutes("i3d", clips, SMALL_I3D["data.num_frames"])]
    lines += _format(folder, "configs/custom.py:i3d", fields, reasons)
  return [
    *lines,
    "  If no class has a side, add --config.data.flip=True: mirrored clips are more data",
  ]


def _format(
  folder: str, config: str, fields: Mapping[str, Any], reasons: Sequence[str]
) -> list[str]:
  words = [f"--config.{name}={value}" for name, value in {"data.dir": folder, **fields}.items()]
  # A name in angle brackets is the user's to replace, so it is not quoted.
  words = [word if "<" in word else shlex.quote(word) for word in words]
  command = " ".join([f"python main.py --config={config} --workdir=<new folder>", *words])
  return [f"  {command}", *(f"    {reason}" for reason in reasons)]


def _estimate_minutes(start: str, clips: int, frames: int) -> str:
  seconds = EPOCHS[start] * TRAINING_SECONDS[start] + (FEATURE_SECONDS if start == "i3d" else 0)
  cores = os.cpu_count() or 1
  minutes = STARTUP_MINUTES[start] + seconds * clips * frames / cores / 60
  return f"{EPOCHS[start]:g} epochs, about {minutes:.0f} minutes on {cores} CPU cores"


def _median_length(split: store.Split) -> int:
  """Returns the median number of frames of evenly chosen clips."""
  numbers = np.linspace(0, len(split.records) - 1, min(SAMPLED, len(split.records))).astype(int)
  lengths = [len(store.parse_record(split.records[i])[2]) for i in numbers.tolist()]
  return int(np.median(lengths))
