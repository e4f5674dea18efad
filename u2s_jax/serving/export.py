"""A trained run as files that other programs read: a serialised program, and its parameters."""

import json
import shutil

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util
from jax import export as jax_export

from u2s_jax import settings
from u2s_jax.files import filled
from u2s_jax.serving import card, predict_exported
from u2s_jax.serving.predict import Trained
from u2s_jax.workdir import Workdir

PLATFORMS = ("cpu", "cuda", "tpu")
CLIP_FIELDS = ("num_frames", "crop_size", "short_edge", "modality", "flow_pairs")  # of `data`


def export(trained: Trained, workdir: Workdir, control: Workdir | None = None) -> None:
  """Writes a run's networks, whatever was there before.

  `model.jax`, for `jax.export.deserialize`: a function of clips (n, t, h, w, c) uint8, n free, to
  softmax scores (n, m) by prediction and, with a mask network, `mask` (n, t', h', w').
  `model.json`: class names and what a clip has to be. `predict_exported.py`: an example that needs
  jax and numpy alone. `model.safetensors`: parameters and statistics under our names, with class
  names and backbone in the metadata; `init_from` reads it. `model_card.md`: see `card.text`.

  Args:
    trained: from `predict.load`.
    workdir: the run's folder; `export/` in it is made where there is none.
    control: see `card.text`.

  Raises:
    UserError: `control` is no control of the run.
  """
  told = card.text(trained, workdir, control)
  data = trained.config.data
  clip = {field: data[field] for field in CLIP_FIELDS} | {"stored": trained.stored}
  channels = settings.input_channels(trained.config)
  (batch,) = jax_export.symbolic_shape("n")
  shape = (batch, data.num_frames, data.crop_size, data.crop_size, channels)
  program = jax_export.export(jax.jit(trained.outputs), platforms=PLATFORMS)(
    jax.ShapeDtypeStruct(shape, np.uint8)
  )
  facts = {"class_names": trained.class_names, "clip": clip, "platforms": PLATFORMS}
  weights = traverse_util.flatten_dict(trained.variables, sep="/")
  with filled(workdir.export) as local:
    (local / "model_card.md").write_text(told, encoding="utf-8")
    (local / "model.jax").write_bytes(program.serialize())
    (local / "model.json").write_text(json.dumps(facts, indent=2) + "\n")
    safetensors.numpy.save_file(
      {name: np.ascontiguousarray(value) for name, value in weights.items()},
      local / "model.safetensors",
      metadata={
        "class_names": json.dumps(trained.class_names),
        "backbone": json.dumps(trained.config.model.backbone.to_dict()),
      },
    )
    shutil.copyfile(predict_exported.__file__, local / "predict_exported.py")
