"""Checks a backbone, also one of another package.

python -m u2s_jax.models.check my_package.my_module:MyBackbone width=32
"""

import argparse
import ast
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from u2s_jax.models.backbones import build_backbone
from u2s_jax.models.u2s import U2S
from u2s_jax.runtime.errors import UserError, one_line_errors

CLASSES = 3


def find_problems(name: str, frames: int = 4, size: int = 64, /, **fields: Any) -> list[str]:
  """Returns what is wrong with a backbone; empty if nothing was found.

  Args:
    name: see `backbones.build_backbone`.
    frames: frames of the clips that it is tried on.
    size: their rows and columns.
    **fields: fields of the backbone.

  Raises:
    UserError: if it cannot be built.
  """
  backbone = build_backbone(name, **fields)
  trunk, branch = backbone.trunk(), backbone.branch(CLASSES)
  if not (isinstance(trunk, nn.Module) and isinstance(branch, nn.Module)):
    return ["trunk() and branch() must return Flax modules"]
  for method in ("features", "classify"):
    if not callable(getattr(branch, method, None)):
      return [f"branch(): its module has no method {method}()"]
  key, csm = jax.random.key(1), jnp.eye(CLASSES)
  video = jax.random.normal(jax.random.key(0), (2, frames, size, size, 3))
  shared, _ = trunk.init_with_output(key, video, train=False)
  features, _ = branch.init_with_output(key, shared, train=False, method="features")
  if features.ndim != 5 or features.shape[0] != 2:
    return [
      f"features(): shape {features.shape}; must be (clips, frames, rows, columns, channels), with"
      " an axis of length 1 for what the network averages"
    ]
  problems = []
  if not np.isfinite(features).all():
    problems.append("features(): has values that are not finite")
  elif float(features.min()) < 0:
    problems.append("features(): has negative values; end with a ReLU, since Eq. 1 counts zeros")
  logits, _ = branch.init_with_output(key, features, method="classify")
  if logits.shape != (2, CLASSES):
    return [*problems, f"classify(): shape {logits.shape}; must be (clips, {CLASSES} classes)"]
  if logits.dtype != jnp.float32:
    return [*problems, f"classify(): dtype {logits.dtype}; logits must be float32"]
  model = U2S(CLASSES, backbone)
  outputs, variables = model.init_with_output(key, video, csm)
  params, logits = variables["params"], outputs["universal"]
  for network in ("universal", "specific"):
    if "kernel" not in params[network].get("head", {}):
      problems.append("branch(): no layer `head`; name the classifier so, a Dense layer")
      break
  if "kernel" not in params.get("trunk", {}).get("stem", {}):
    problems.append("trunk(): no layer `stem`; name the first convolution so")
  for other in range(1, frames):
    changed = video.at[:, other].add(1.0)
    if np.array_equal(model.apply(variables, changed, csm)["universal"], logits):
      problems.append(f"classify(): does not depend on frame {other} of {frames}")
      break
  problems += _find_training_problems(model, variables, video, csm)
  return problems


def _find_training_problems(model, variables, video, csm):
  """Returns what is wrong with the updates of the running averages and with the gradients."""
  parts = ("trunk", "universal", "specific", "mask")

  def loss(params):
    outputs, updates = model.apply(
      {**variables, "params": params}, video, csm, train=parts, mutable=["batch_stats"]
    )
    return jnp.sum(outputs["universal"] ** 2) + jnp.sum(outputs["specific"] ** 2), updates

  gradients, updates = jax.grad(loss, has_aux=True)(variables["params"])
  problems = []
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients)):
    problems.append("gradients: not finite")
  before = variables.get("batch_stats", {})
  if jax.tree.map(jnp.shape, updates.get("batch_stats", {})) != jax.tree.map(jnp.shape, before):
    problems.append("batch_stats: training changes their names or shapes")
  return problems


def main() -> None:
  """Prints what is wrong with the backbone that the command line names."""
  parser = argparse.ArgumentParser("python -m u2s_jax.models.check", description=__doc__)
  parser.add_argument("name", help="package.module:Class, or a name in `backbones.BACKBONES`")
  parser.add_argument("fields", nargs="*", help="fields of the backbone, <field>=<value>")
  parser.add_argument("--frames", type=int, default=4)
  parser.add_argument("--size", type=int, default=64, help="rows and columns of a frame")
  args = parser.parse_args()
  with one_line_errors():
    fields = {}
    for field in args.fields:
      key, _, value = field.partition("=")
      try:
        fields[key] = ast.literal_eval(value)
      except (SyntaxError, ValueError):
        fields[key] = value
    problems = find_problems(args.name, args.frames, args.size, **fields)
    if problems:
      raise UserError(f"{args.name}: " + "; ".join(problems))
  print(f"{args.name}: no problems found")


if __name__ == "__main__":
  main()
