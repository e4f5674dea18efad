"""How the layers of every backbone compute: their types, their convolutions, what they keep."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from u2s_jax.models.conv import Conv
from u2s_jax.models.norm import BatchNorm


class Layers(NamedTuple):
  """What a backbone is made of, and whether its blocks are computed twice.

  Attributes:
    conv: makes a convolution, with the arguments of `Conv`.
    norm: makes a normalisation, with the arguments of `BatchNorm`.
    remat: rematerialisation: of a block only the input is kept for the backward pass, which
      computes the block once more; a third more work, a fraction of the memory.
  """

  conv: Callable[..., nn.Module] = Conv
  norm: Callable[..., nn.Module] = BatchNorm
  remat: bool = False

  def block(
    self, module: nn.Module, x: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 d"]:
    """`module(x, train=train)`, a block of a backbone."""
    if not self.remat:
      return module(x, train=train)
    # Around a function, because `train` must not be traced.
    return nn.remat(lambda module, x: module(x, train=train))(module, x)
