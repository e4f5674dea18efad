"""Universal-to-specific (U2S) action recognition in JAX: models, staged training, evaluation.

model = u2s_jax.load("/runs/mine")
model.predict("clip.mp4").label
"""

import os
from typing import TYPE_CHECKING

from u2s_jax.version import __version__ as __version__

if TYPE_CHECKING:
  from u2s_jax.model import Model

# etils reads this at its first path: buckets are reached by fsspec (`files.named`).
os.environ["EPATH_USE_TF"] = "false"


def load(workdir: str | os.PathLike[str], views: str | None = None, best: bool = False) -> "Model":
  """Loads what a run has learned, to score videos and images.

  Args:
    workdir: the run's folder, or its place in a bucket.
    views: that scores are averaged over: 'center', '3crop', '5crop' or '10crop'; None: as in the
      run's evaluation.
    best: whether to take the checkpoint that `eval.keep_best` chose, not the last one.

  Raises:
    UserError: there is no run that has trained, no best checkpoint, or views that it cannot have.
  """
  from u2s_jax import model  # with JAX, which takes seconds to import

  return model.load(workdir, views, best)
