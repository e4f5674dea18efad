"""Translates VideoPrism's weights: Google's .npz and the .safetensors of `transformers`."""

import re
from collections.abc import Mapping

import numpy as np

from u2s_jax.models.videoprism import PATCH
from u2s_jax.runtime.errors import UserError

HEAD_SIZE = 64  # channels of an attention head in all published models
_FLAX = "params/"
_TORCH_PREFIXES = ("", "vision_model.")
# Modules that are not in the blocks: this package's name, that of the .npz, that of transformers.
_MODULES = (
  ("trunk/stem", "patch_projection/linear", "spatial_embeddings.patch_embeddings.projection"),
  ("trunk/embedding", "spatial_pos_emb/emb_var", "spatial_embeddings.position_embeddings"),
  ("trunk/encoder/norm", "spatial_ln", "layernorm1"),
  ("universal/temporal/embedding", "temporal_pos_emb/emb_var",
   "temporal_embeddings.position_embeddings"),
  ("universal/temporal/encoder/norm", "temporal_ln", "layernorm2"),
)  # fmt: skip
_BLOCKS = {"spatial": "trunk/encoder/blocks", "temporal": "universal/temporal/encoder/blocks"}
# Modules of a block, likewise.
_BLOCK = (
  ("norm1", "layer_norm", "layernorm_before"),
  ("query", "self_attention/query", "attention.q_proj"),
  ("key", "self_attention/key", "attention.k_proj"),
  ("value", "self_attention/value", "attention.v_proj"),
  ("output", "self_attention/post", "attention.o_proj"),
  ("norm2", "ff_layer/layer_norm", "layernorm_after"),
  ("mlp1", "ff_layer/ffn_layer1/linear", "mlp.fc1"),
  ("mlp2", "ff_layer/ffn_layer2/linear", "mlp.fc2"),
)


def matches(names: Mapping[str, np.ndarray]) -> bool:
  """Returns whether the arrays are a VideoPrism video encoder's, by their names."""
  return _FLAX + _MODULES[0][1] + "/kernel" in names or _torch_prefix(names) is not None


def translate(weights: Mapping[str, np.ndarray]) -> tuple[dict[str, object], dict[str, np.ndarray]]:
  """Translates the arrays of a video encoder to this package's names and conventions.

  Args:
    weights: arrays by their names in the file.

  Returns:
    The fields of `model.backbone` that the weights require and no shape reveals, and float32 arrays
    by names such as `params/trunk/encoder/blocks/query/kernel`, those of a block with the blocks as
    the leading axis.

  Raises:
    UserError: if a name is unknown, or a block lacks an array that another one has.
  """
  prefix = _torch_prefix(weights)
  arrays = _read_flax(weights) if prefix is None else _read_torch(weights, prefix)
  width = arrays["params/trunk/stem/kernel"].shape[-1]
  heads = width // HEAD_SIZE
  if prefix is None:
    query = weights[f"{_FLAX}spatial_encoder/transformers_stack/x_layers/self_attention/query/w"]
    heads = query.shape[2]
  return {"name": "videoprism", "heads": heads}, arrays


def _torch_prefix(names):
  stem = _MODULES[0][2] + ".weight"
  return next((prefix for prefix in _TORCH_PREFIXES if prefix + stem in names), None)


def _read_flax(weights):
  arrays = {}
  for key, value in weights.items():
    path = key.removeprefix(_FLAX)
    if match := re.fullmatch(r"(spatial|temporal)_encoder/transformers_stack/x_layers/(.+)", path):
      module = _find(_BLOCK, 1, match[2], "/")
      name = module and (f"{_BLOCKS[match[1]]}/{module[0]}", module[1])
    else:
      name = _find(_MODULES, 1, path, "/")
    if name is None:
      raise UserError(f"{key}: unknown name in a VideoPrism encoder")
    module, leaf = name
    kind = module.rpartition("/")[2]
    leaf = {"w": "kernel", "b": "bias"}.get(leaf, leaf)
    value = np.asarray(value, np.float32)
    if kind == "stem" and leaf == "kernel":
      value = value.reshape(1, PATCH, PATCH, -1, value.shape[-1])
    elif kind in ("query", "key", "value"):
      value = value.reshape(*value.shape[:-2], -1)  # heads and their channels
    elif kind == "output" and leaf == "kernel":
      value = np.swapaxes(value.reshape(*value.shape[:2], -1), 1, 2)
    elif leaf == "scale":
      value = value + np.float32(1)  # stored as the difference to 1
    arrays["params/" + "/".join(filter(None, (module, leaf)))] = value
  return arrays


def _read_torch(weights, prefix):
  arrays, blocks = {}, {}
  for key, value in weights.items():
    path, value = key.removeprefix(prefix), np.asarray(value, np.float32)
    match = re.fullmatch(r"(spatial|temporal)_layers\.(\d+)\.(.+)", path)
    name = _find(_BLOCK, 2, match[3], ".") if match else _find(_MODULES, 2, path, ".")
    if name is None:
      raise UserError(f"{key}: unknown name in a VideoPrism encoder")
    module, leaf = name
    kind = module.rpartition("/")[2]
    if "norm" in kind and leaf == "weight":
      leaf, value = "scale", value + np.float32(1)  # stored as the difference to 1
    elif kind == "stem" and leaf == "weight":
      leaf, value = "kernel", np.moveaxis(value, (1, 0), (-2, -1))
    elif leaf == "weight":
      leaf, value = "kernel", value.T
    elif kind == "embedding":
      value = value[0]
    target = "/".join(filter(None, (module, leaf)))
    if match:
      blocks.setdefault(f"params/{_BLOCKS[match[1]]}/{target}", {})[int(match[2])] = value
    else:
      arrays[f"params/{target}"] = value
  for target, values in blocks.items():
    count = max(len(v) for name, v in blocks.items() if name.split("/")[1] == target.split("/")[1])
    if sorted(values) != list(range(count)):
      raise UserError(f"{target}: missing in a block of a VideoPrism encoder")
    arrays[target] = np.stack([values[i] for i in range(count)])
  return arrays


def _find(modules, column, path, separator):
  """Returns this package's module and the leaf's name in the file, or None."""
  for module in modules:
    if path == module[column]:
      return module[0], ""
    head, _, leaf = path.rpartition(separator)
    if head == module[column]:
      return module[0], leaf
  return None
