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


def load(workdir: str | os.PathLike[str], views: str | None = None, best: bool = False) -> "Model":
  """Loads the trained networks of a run, to score videos and images.

  Args:
    workdir: directory of the run, local or in a bucket (`gs://...`).
    views: views whose scores are averaged: 'center', '3crop', '5crop' or '10crop'; None: those of
      the run's own evaluation.
    best: whether to load the checkpoint selected by `eval.keep_best` instead of the last one.

  Raises:
    UserError: if there is no checkpoint, or the run does not support the views.
  """
  from u2s_jax.serving import model  # imports JAX, which takes seconds

  return model.load(workdir, views, best)
