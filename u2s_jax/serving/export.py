"""Exports a trained run: a serialized program, its parameters, and a model card."""

import dataclasses
import json
import math
import pathlib
import shutil
from typing import Any

import jax
import jaxlib
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax import export as jax_export
from PIL import Image

from u2s_jax.run import settings
from u2s_jax.run.workdir import Workdir, write_npz
from u2s_jax.runtime.files import output_dir
from u2s_jax.runtime.version import __version__
from u2s_jax.serving import card, predict_exported, preprocess
from u2s_jax.serving.predict import TrainedRun
from u2s_jax.video.decode import BY_CLIP, Storage

PLATFORMS = ("cpu", "cuda", "tpu")
# The compatibility guarantees of jax.export.
READ_BY = (
  "JAX with a jaxlib released up to 6 months after {0}, or up to 3 weeks before; later releases may"
  " read it too. Export the run again with a newer JAX to keep it readable."
)
EXAMPLE_SIZE, EXAMPLE_FRAMES = (320, 240), 12  # pixels (width, height)
CLIP_FIELDS = ("num_frames", "crop_size", "short_edge", "modality", "flow_pairs")  # of `data`


def export(trained: TrainedRun, workdir: Workdir, control: Workdir | None = None) -> None:
  """Writes a run's networks to `<workdir>/export`, atomically; keeps other files that are there.

  `model.jax`, for `jax.export.deserialize`: a function from clips (n, t, h, w, c) uint8, for any n,
  to softmax scores (n, m) by prediction and, with a mask network, `mask` (n, t', h', w').
  `model.json`: class names, the specification of a clip, versions, and the versions of JAX that can
  read the program.
  `predict_exported.py`: scores clips; requires only jax, numpy and flatbuffers.
  `preprocess.py`: makes clips from RGB frames; requires only numpy and Pillow.
  `example.npz`: drawn frames (not of the user's data), the clip that `preprocess.py` makes of them
  (for flow noise, without frames), and the outputs of `model.jax` for it, to check another machine.
  `model.safetensors`: parameters and batch statistics, with class names, backbone and pixel
  statistics in the metadata; can be used as `init_from`.
  `model_card.md`: see `card.format_card`, also for `control` and what is raised.
  """
  text = card.format_card(trained, workdir, control)
  config, data = trained.config, trained.config.data
  stored = dataclasses.asdict(Storage(modality=data.modality, **trained.stored))
  del stored["modality"]  # among the fields of the clip
  clip = {field: data[field] for field in CLIP_FIELDS} | {"stored": stored}
  channels = settings.count_channels(config)
  (batch,) = jax_export.symbolic_shape("n")
  shape = (batch, data.num_frames, data.crop_size, data.crop_size, channels)
  program = jax_export.export(jax.jit(trained.outputs), platforms=PLATFORMS)(
    jax.ShapeDtypeStruct(shape, np.uint8)
  )
  description = {
    "class_names": trained.class_names,
    "clip": clip,
    "temperature": trained.temperature,
    "platforms": PLATFORMS,
    "versions": {
      "u2s_jax": __version__,
      "jax": jax.__version__,
      "jaxlib": jaxlib.__version__,
      "calling_convention": program.calling_convention_version,
    },
    "read_by": READ_BY.format(jaxlib.__version__),
  }
  metadata = {
    "class_names": trained.class_names,
    "backbone": config.model.backbone.to_dict(),
    "pixel_mean": config.model.pixel_mean,
    "pixel_std": config.model.pixel_std,
  }
  weights = traverse_util.flatten_dict(trained.variables, sep="/")
  with output_dir(workdir.export) as local:
    (local / "model_card.md").write_text(text, encoding="utf-8")
    (local / "model.jax").write_bytes(program.serialize())
    # Not with `save_file`: it ignores the umask and lets only the owner read the file.
    content = safetensors.numpy.save(
      {name: np.ascontiguousarray(value) for name, value in weights.items()},
      metadata={name: json.dumps(value) for name, value in metadata.items()},
    )
    (local / "model.safetensors").write_bytes(content)
    for module in (predict_exported, preprocess):
      shutil.copyfile(module.__file__, local / pathlib.Path(module.__file__).name)
    write_npz(local / "example.npz", _make_example(trained, clip))
    (local / "model.json").write_text(json.dumps(description, indent=2) + "\n")


def _make_example(trained: TrainedRun, clip: dict[str, Any]) -> dict[str, np.ndarray]:
  """Returns the arrays of `example.npz`."""
  rng, arrays = np.random.default_rng(0), {}
  if clip["modality"] == "rgb":
    region = None if clip["stored"].get("crop") == BY_CLIP else Storage(**clip["stored"]).region
    width, height = EXAMPLE_SIZE
    if region and max(region) > 1:  # in pixels
      width, height = math.ceil(region.x + region.width), math.ceil(region.y + region.height)
    # A coarse pattern, enlarged, that moves: smooth, like a video.
    pattern = Image.fromarray(rng.integers(0, 256, (6, 16, 3), np.uint8))
    wide = np.asarray(
      pattern.resize((width + 4 * EXAMPLE_FRAMES, height), Image.Resampling.BICUBIC)
    )
    arrays["frames"] = np.stack([wide[:, 4 * k : 4 * k + width] for k in range(EXAMPLE_FRAMES)])
    spec = clip | {"stored": clip["stored"] | {"crop": region and str(region)}}
    clips = preprocess.make_clip([Image.fromarray(frame) for frame in arrays["frames"]], spec)[None]
  else:
    edge, channels = clip["crop_size"], settings.count_channels(trained.config)
    shape = (1, clip["num_frames"], edge, edge, channels)
    clips = rng.integers(0, 256, shape, np.uint8)
  outputs = jax.jit(trained.outputs)(clips)
  return arrays | {"clips": clips} | {name: np.asarray(value) for name, value in outputs.items()}
