"""Temporal shift (Lin et al. 2019, the paper's [69]): frames exchange channels at no cost."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def temporal_shift(video: Float[Array, "n t h w c"], divisor: int = 8) -> Float[Array, "n t h w c"]:
  """Moves a part of the channels by one frame, zeros coming in at the ends.

  Args:
    video: features.
    divisor: 1/divisor of the channels come from the next frame, as many from the one before.

  Returns:
    Channels [0, c // divisor) of the next frame, the following c // divisor of the frame before,
    the rest as they are.
  """
  fold = video.shape[-1] // divisor
  padded = jnp.pad(video[..., : 2 * fold], ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
  following, before = padded[:, 2:, ..., :fold], padded[:, :-2, ..., fold:]
  return jnp.concatenate([following, before, video[..., 2 * fold :]], axis=-1)
