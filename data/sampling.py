"""Sampling of frames and crops; re-exported from `u2s_jax.video.sampling`."""

from u2s_jax.video.sampling import class_shares as class_shares
from u2s_jax.video.sampling import crop_offsets as crop_offsets
from u2s_jax.video.sampling import segment_indices as segment_indices
