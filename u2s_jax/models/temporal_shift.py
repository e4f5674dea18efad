"""Temporal shift (Lin et al. 2019, the paper's [69])."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def temporal_shift(video: Float[Array, "n t h w c"], divisor: int = 8) -> Float[Array, "n t h w c"]:
  """Shifts a part of the channels by one frame in each direction, with zeros at the ends.

  Args:
    divisor: 1/divisor of the channels are shifted in each direction.

  Returns:
    Features whose first c // divisor channels are those of the next frame, whose following
    c // divisor channels are those of the previous frame, and whose other channels are unchanged.
  """
  fold = video.shape[-1] // divisor
  padded = jnp.pad(video[..., : 2 * fold], ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
  following, previous = padded[:, 2:, ..., :fold], padded[:, :-2, ..., fold:]
  return jnp.concatenate([following, previous, video[..., 2 * fold :]], axis=-1)
