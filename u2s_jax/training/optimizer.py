"""SGD as in PyTorch."""

import functools

import optax


@functools.cache
def sgd(
  momentum: float, weight_decay: float, clip_norm: float = 0.0
) -> optax.GradientTransformation:
  """Returns the update direction of SGD: the momentum of gradient + weight_decay * parameter.

  The caller multiplies it by minus the learning rate, which is outside the momentum, as in PyTorch.
  Weight decay applies to all parameters, including those of BN, as in PyTorch.

  Cached: equal arguments return the same object, so that cached jitted functions are found by it.

  Args:
    momentum: in [0, 1) (paper: 0.9).
    weight_decay: >= 0 (paper: 1e-4).
    clip_norm: maximum norm of the gradient of all trained parameters; 0 for no limit (paper).
  """
  limit = (optax.clip_by_global_norm(clip_norm),) if clip_norm else ()
  return optax.chain(*limit, optax.add_decayed_weights(weight_decay), optax.trace(momentum))
