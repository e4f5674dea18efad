"""Universal-to-specific (U2S) action recognition in JAX: models, staged training, evaluation.

model = u2s_jax.load("/runs/mine")
model.predict("clip.mp4").label
"""

import os
from typing import TYPE_CHECKING

from u2s_jax.runtime.version import __version__ as __version__

if TYPE_CHECKING:
  from u2s_jax.serving.model import Model

# etils reads this when the first path is created: use fsspec for buckets, not TensorFlow
# (`files.parse_path`).
os.environ["EPATH_USE_TF"] = "false"


def load(
  workdir: str | os.PathLike[str],
  views: str | None = None,
  best: bool = False,
  backbone: str | None = None,
  crop: str | None = None,
) -> "Model":
  """Loads the trained networks of a run, to score videos and images.

  Args:
    workdir: directory of the run, local or in a bucket (`gs://...`).
    views: views whose scores are averaged: 'center', '3crop', '5crop' or '10crop'; None: those of
      the run's own evaluation.
    best: whether to load the checkpoint selected by `eval.keep_best` instead of the last one.
    backbone: name of a backbone of another package, `package.module:Class`. Loading imports that
      module, which runs its code, so the run's own name for it is not enough.
    crop: region of every frame, `x,y,width,height` in pixels, or in shares of the frame; None: that
      of the training data.

  Raises:
    UserError: if there is no checkpoint, the run does not support the views, or its backbone is
      another package's and not `backbone`; or if `crop` is not a region.
  """
  from u2s_jax.serving import model  # imports JAX, which takes seconds

  return model.load(workdir, views, best, backbone, crop)
