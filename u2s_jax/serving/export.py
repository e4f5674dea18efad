"""A trained run as files that other programs read: a serialised program, and its parameters."""

import json
import pathlib

import jax
import jaxlib
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax import export as jax_export

from u2s_jax import settings
from u2s_jax.files import filled
from u2s_jax.serving import card, predict_exported
from u2s_jax.serving.predict import Trained
from u2s_jax.version import __version__
from u2s_jax.workdir import Workdir

PLATFORMS = ("cpu", "cuda", "tpu")
EXAMPLE = pathlib.Path(predict_exported.__file__)
# What jax.export promises, see its documentation's compatibility guarantees.
READ_BY = (
  "JAX with a jaxlib released up to 6 months after {0}, or up to 3 weeks before; later releases may"
  " read it too. Export the run again with a newer JAX to keep it readable."
)
CLIP_FIELDS = ("num_frames", "crop_size", "short_edge", "modality", "flow_pairs")  # of `data`


def export(trained: Trained, workdir: Workdir, control: Workdir | None = None) -> None:
  """Writes a run's networks to `<workdir>/export`, all files at once; its other files stay.

  `model.jax`, for `jax.export.deserialize`: a function of clips (n, t, h, w, c) uint8, n free, to
  softmax scores (n, m) by prediction and, with a mask network, `mask` (n, t', h', w').
  `model.json`: class names, what a clip has to be, versions, and which versions of JAX read it.
  `predict_exported.py`: an example that needs jax, numpy and flatbuffers alone.
  `model.safetensors`: parameters and statistics under our names, with class names, backbone and
  pixel statistics in the metadata; `init_from` reads it. `model_card.md`: see `card.text`.

  Args:
    trained: from `predict.load`.
    workdir: the run's folder.
    control: see `card.text`.

  Raises:
    UserError: `control` is no control of the run.
  """
  text = card.text(trained, workdir, control)
  config, data = trained.config, trained.config.data
  clip = {field: data[field] for field in CLIP_FIELDS} | {"stored": trained.stored}
  channels = settings.input_channels(config)
  (batch,) = jax_export.symbolic_shape("n")
  shape = (batch, data.num_frames, data.crop_size, data.crop_size, channels)
  program = jax_export.export(jax.jit(trained.outputs), platforms=PLATFORMS)(
    jax.ShapeDtypeStruct(shape, np.uint8)
  )
  facts = {
    "class_names": trained.class_names,
    "clip": clip,
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
  with filled(workdir.export) as local:
    (local / "model_card.md").write_text(text, encoding="utf-8")
    (local / "model.jax").write_bytes(program.serialize())
    # Not by `save_file`, whose files only their owner may read, whatever the umask.
    content = safetensors.numpy.save(
      {name: np.ascontiguousarray(value) for name, value in weights.items()},
      metadata={name: json.dumps(value) for name, value in metadata.items()},
    )
    (local / "model.safetensors").write_bytes(content)
    (local / "predict_exported.py").write_bytes(EXAMPLE.read_bytes())
    (local / "model.json").write_text(json.dumps(facts, indent=2) + "\n")
