"""Data preparation and the input pipeline; the only package that imports TensorFlow.

Of `u2s_jax` it imports only `video`, `views` and `runtime`.
"""

import os

# Before TensorFlow is imported, which reads these variables.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # no speedup here, but logs a line
