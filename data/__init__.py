"""Reading videos: the only package with TensorFlow; of `u2s_jax` it knows errors and views."""

import os

# TensorFlow reads these at its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # of no use here, and it announces itself
