"""Universal-to-specific (U2S) action recognition in JAX: models, staged training, evaluation."""

import os

# etils reads this at its first path: buckets are reached by fsspec (`files.named`).
os.environ["EPATH_USE_TF"] = "false"
