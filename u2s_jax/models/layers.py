"""Options that the layers of all backbones share: dtype, convolution method, rematerialization."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from u2s_jax.models.conv import METHODS, Conv
from u2s_jax.models.norm import BatchNorm
from u2s_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Layers:
  """Builds the layers of a backbone.

  Attributes:
    dtype: dtype of the computation; parameters and BN statistics are float32.
    convolution: method of convolutions over several frames, see `conv.conv3d`.
    remat: whether the backward pass recomputes each block from its input (rematerialization), for
      about a third more computation and a fraction of the memory.

  Raises:
    UserError: if the convolution method is unknown.
  """

  dtype: DTypeLike = jnp.float32
  convolution: str = "auto"
  remat: bool = False

  def __post_init__(self) -> None:
    if self.convolution not in METHODS:
      raise UserError(f"model.convolution: {self.convolution!r} is not one of {', '.join(METHODS)}")

  def conv(self, *args: Any, **kwargs: Any) -> Conv:
    """Builds a convolution; takes the arguments of `Conv`."""
    return Conv(*args, **kwargs, method=self.convolution, dtype=self.dtype)

  def norm(self, **kwargs: Any) -> BatchNorm:
    """Builds a batch normalization; takes the arguments of `BatchNorm`."""
    return BatchNorm(**kwargs, dtype=self.dtype)

  def block(
    self, module: nn.Module, x: Float[Array, "n t h w c"], *, train: bool
  ) -> Float[Array, "n t2 h2 w2 d"]:
    """Applies a block of a backbone: `module(x, train=train)`, rematerialized if `remat`."""
    if not self.remat:
      return module(x, train=train)
    # The function closes over `train`, which remains a bool; `nn.remat(module)` would trace it.
    return nn.remat(lambda module, x: module(x, train=train))(module, x)
