"""Translates names and arrays of weight files to this package's: one explicit table per source.

The rules of a table map a source's module names to this package's, such as
`trunk/group0/block0/conv1`, without the subnetwork: groups 0 and 1 belong to the trunk.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from u2s_jax.models.inception_i3d import BOTTOM, TOP
from u2s_jax.models.norm import EPSILON
from u2s_jax.pretrained import videoprism
from u2s_jax.runtime.errors import UserError


class Pixels(NamedTuple):
  """Statistics that pixels are normalised with: (byte / 255 - mean) / std.

  Each has one value for all channels, or one per channel in the order of RGB; `std` is positive.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]


class Source(NamedTuple):
  """Names and conventions of a family of weight files."""

  name: str  # for messages
  # Pattern of an array's name that identifies the family, followed by the extents of the kernel
  # where these decide, such as `conv1.weight 3x3x3`.
  signature: str
  # Patterns for full module names, and this package's name or a function from the match to it.
  rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
  pixels: Pixels  # statistics that its networks were trained with on RGB frames
  separator: str = "."  # between a module's name and that of its leaf
  prefix: str = ""  # pattern of an optional prefix of all names
  epsilon: float = 1e-5  # of its batch normalisation
  bgr: bool = False  # whether its first convolution expects blue, green, red
  preactivation: bool = False  # whether norms come before their convolutions
  # Fields of `model.backbone` that the weights require and no shape reveals.
  required_fields: Mapping[str, str] = MappingProxyType({})


def _block(kind: str, layer: int) -> Callable[[re.Match[str]], str]:
  """Maps the first two numbers of a match to group and block, and the third to `kind`'s number."""
  return lambda match: (
    f"group{int(match[1]) - layer}/block{match[2]}/{kind}{''.join(match.groups()[2:])}"
  )


def _keras(kind: str) -> Callable[[re.Match[str]], str]:
  """Maps `res4b_branch2c` to group 4 - 2, block b, convolution c; `branch1` is the projection."""
  projection = "projection" if kind == "conv" else "projection_norm"
  branch = {"1": projection, "2a": f"{kind}1", "2b": f"{kind}2", "2c": f"{kind}3"}
  return lambda match: (
    f"group{int(match[1]) - 2}/block{ord(match[2]) - ord('a')}/{branch[match[3]]}"
  )


# TSM wraps the convolutions whose input it shifts; `.net` is the convolution.
_RESNET = (
  (r"conv1", "stem"),
  (r"bn1", "stem_norm"),
  (r"layer(\d)\.(\d+)\.conv(\d)(?:\.net)?", _block("conv", 1)),
  (r"layer(\d)\.(\d+)\.bn(\d)", _block("norm", 1)),
  (r"layer(\d)\.(\d+)\.downsample\.0", _block("projection", 1)),
  (r"layer(\d)\.(\d+)\.downsample\.1", _block("projection_norm", 1)),
  (r"fc|new_fc", "head"),
)
_MMACTION2_RESNET = (
  (r"conv1\.conv", "stem"),
  (r"conv1\.bn", "stem_norm"),
  (r"layer(\d)\.(\d+)\.conv(\d)\.conv(?:\.net)?", _block("conv", 1)),
  (r"layer(\d)\.(\d+)\.conv(\d)\.bn", _block("norm", 1)),
  (r"layer(\d)\.(\d+)\.downsample\.conv", _block("projection", 1)),
  (r"layer(\d)\.(\d+)\.downsample\.bn", _block("projection_norm", 1)),
  (r"fc_cls", "head"),
)
_ABC = {"a": "1", "b": "2", "c": "3"}  # of the convolutions of a bottleneck
_SLOW_BLOCK = r"blocks\.([1-4])\.res_blocks\.(\d+)\."
_SLOW_RESNET = (
  (r"blocks\.0\.conv", "stem"),
  (r"blocks\.0\.norm", "stem_norm"),
  (rf"{_SLOW_BLOCK}branch1_conv", _block("projection", 1)),
  (rf"{_SLOW_BLOCK}branch1_norm", _block("projection_norm", 1)),
  *(
    (rf"{_SLOW_BLOCK}branch2\.{kind}_{letter}", _block(f"{kind}{number}", 1))
    for kind in ("conv", "norm")
    for letter, number in _ABC.items()
  ),
  (r"blocks\.5\.proj", "head"),
)
# In an R(2+1)D network, 0.0 and 0.1 are the convolution in space and its norm, 0.3 that in time.
_VIDEO_RESNET = (
  (r"stem\.0", "stem"),
  (r"stem\.1", "stem_norm"),
  (r"stem\.3", "stem_temporal"),
  (r"stem\.4", "stem_temporal_norm"),
  (r"layer(\d)\.(\d)\.conv(\d)\.0(?:\.3)?", _block("conv", 1)),
  (r"layer(\d)\.(\d)\.conv(\d)\.0\.0", lambda m: f"{_block('conv', 1)(m)}_spatial"),
  (r"layer(\d)\.(\d)\.conv(\d)\.0\.1", lambda m: f"{_block('conv', 1)(m)}_spatial_norm"),
  (r"layer(\d)\.(\d)\.conv(\d)\.1", _block("norm", 1)),
  (r"layer(\d)\.(\d)\.downsample\.0", _block("projection", 1)),
  (r"layer(\d)\.(\d)\.downsample\.1", _block("projection_norm", 1)),
  (r"fc", "head"),
)
_S3D_MODULES = {
  "0.1": "Conv3d_1a",
  "2": "Conv3d_2b",
  "3.0": "Conv3d_2c_spatial",
  "3.1": "Conv3d_2c",
  **dict(zip(("5", "6", "8", "9", "10", "11", "12", "14", "15"), (*BOTTOM, *TOP), strict=True)),
}
_S3D_BRANCHES = {
  "0": "Branch_0_0a",
  **{f"{i}.0": f"Branch_{i}_0a" for i in (1, 2)},
  **{f"{i}.1.0": f"Branch_{i}_0b_spatial" for i in (1, 2)},
  **{f"{i}.1.1": f"Branch_{i}_0b" for i in (1, 2)},
  "3.1": "Branch_3_0b",
}
_S3D_LAYERS = {"0": "conv", "1": "norm"}
_IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mmaction2 has them times 255
_KINETICS = Pixels((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))  # torchvision's
_HALF = Pixels((0.45,), (0.225,))  # pytorchvideo's
_SYMMETRIC = Pixels((0.5,), (0.5,))  # pixels in [-1, 1], Inception's in timm
# Bytes minus Caffe's means, not divided; here in the order RGB, as `translate` reorders the stem.
_CAFFE = Pixels((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)
_SHIFTED = MappingProxyType({"name": "tsm_resnet", "strided": "3x3"})
_UNSHIFTED = MappingProxyType({"strided": "3x3"})  # no name: they fit `tsm_resnet` as well
_I3D = {"Conv": "conv", "BatchNorm": "norm"}
_TORCHVISION = Source(
  "torchvision ResNet",
  r"(module\.)?(base_model\.)?layer1\.0\.conv1\.weight",
  _RESNET,
  _IMAGENET,
  prefix=r"(module\.)?(base_model\.)?",
  required_fields=_UNSHIFTED,
)
_MMACTION2 = Source(
  "mmaction2 ResNet",
  r"backbone\.layer1\.0\.conv1\.conv\.weight",
  _MMACTION2_RESNET,
  _IMAGENET,
  prefix=r"(backbone\.|cls_head\.)?",
  required_fields=_UNSHIFTED,
)
SOURCES = (
  _TORCHVISION,
  _TORCHVISION._replace(
    name="TSM",
    signature=r"(module\.)?(base_model\.)?layer1\.0\.conv1\.net\.weight",
    required_fields=_SHIFTED,
  ),
  _MMACTION2,
  _MMACTION2._replace(
    name="mmaction2 TSM",
    signature=r"backbone\.layer1\.0\.conv1\.conv\.net\.weight",
    required_fields=_SHIFTED,
  ),
  Source(
    "pytorchvideo SlowOnly ResNet",
    r"blocks\.1\.res_blocks\.0\.branch2\.conv_a\.weight 1x1x1",
    _SLOW_RESNET,
    _HALF,
    required_fields=_UNSHIFTED,
  ),
  Source(
    "timm resnetv2",
    r"stages\.0\.blocks\.0\.conv1\.weight",
    (
      (r"stem\.conv", "stem"),
      (r"stages\.(\d)\.blocks\.(\d+)\.conv(\d)", _block("conv", 0)),
      (r"stages\.(\d)\.blocks\.(\d+)\.norm(\d)", _block("norm", 0)),
      (r"stages\.(\d)\.blocks\.(\d+)\.downsample\.conv", _block("projection", 0)),
      (r"norm", "norm"),
      (r"head\.fc", "head"),
    ),
    _SYMMETRIC,
    preactivation=True,
  ),
  Source(
    "Keras ResNet",
    r"res2a_branch2a/kernel",
    (
      (r"conv1", "stem"),
      (r"bn_conv1", "stem_norm"),
      (r"res(\d)([a-z])_branch(1|2[abc])", _keras("conv")),
      (r"bn(\d)([a-z])_branch(1|2[abc])", _keras("norm")),
      (r"fc1000", "head"),
    ),
    _CAFFE,
    separator="/",
    epsilon=1e-3,
    bgr=True,
    required_fields=MappingProxyType({"strided": "1x1"}),
  ),
  Source(
    "Inception-I3D",
    r"params\|Conv3d_1a_7x7\|Conv_0\|kernel",
    (
      (r"Conv3d_1a_7x7\|Conv_0", "stem"),
      (r"Conv3d_1a_7x7\|BatchNorm_0", "stem_norm"),
      (r"(Conv3d_2[bc])_.x.\|(Conv|BatchNorm)_0", lambda m: f"{m[1]}/{_I3D[m[2]]}"),
      (
        r"(Mixed_..)\|(Branch_.)/Conv3d_(0[ab])_.x.\|(Conv|BatchNorm)_0",
        lambda m: f"{m[1]}/{m[2]}_{m[3]}/{_I3D[m[4]]}",
      ),
      (r"Logits/Conv3d_0c_1x1\|Conv_0", "head"),
    ),
    _SYMMETRIC,
    separator="|",
    prefix=r"(params\||batch_stats\|)",
    epsilon=1e-3,
  ),
  *(
    Source(
      f"torchvision {name}",
      signature,
      _VIDEO_RESNET,
      _KINETICS,
      required_fields=MappingProxyType({"name": name}),
    )
    for name, signature in (
      ("r3d_18", r"layer2\.0\.conv1\.0\.weight 3x3x3"),
      ("mc3_18", r"layer2\.0\.conv1\.0\.weight 1x3x3"),
      ("r2plus1d_18", r"layer2\.0\.conv1\.0\.0\.weight"),
    )
  ),
  Source(
    "torchvision s3d",
    r"features\.5\.branch1\.1\.0\.0\.weight",
    (
      (r"features\.0\.0\.0", "stem"),
      (r"features\.0\.0\.1", "stem_norm"),
      (
        r"features\.(0\.1|2|3\.[01])\.([01])",
        lambda m: f"{_S3D_MODULES[m[1]]}/{_S3D_LAYERS[m[2]]}",
      ),
      (
        r"features\.(5|6|8|9|1[01245])\.branch(0|[12]\.0|[12]\.1\.[01]|3\.1)\.([01])",
        lambda m: f"{_S3D_MODULES[m[1]]}/{_S3D_BRANCHES[m[2]]}/{_S3D_LAYERS[m[3]]}",
      ),
      (r"classifier\.1", "head"),
    ),
    _KINETICS,
    epsilon=1e-3,
    required_fields=MappingProxyType({"name": "s3d"}),
  ),
)
VIDEOPRISM = Source("VideoPrism encoder", "", (), Pixels((0.0,), (1.0,)))
# Leaves of a norm by their names in the sources.
_NORM_LEAVES = {
  "weight": "scale", "gamma": "scale", "bias": "bias", "beta": "bias", "running_mean": "mean",
  "moving_mean": "mean", "mean": "mean", "running_var": "var", "moving_variance": "var",
  "var": "var",
}  # fmt: skip
_TRUNK = re.compile(r"stem|group[01]/|Conv3d_|Mixed_3")


def translate(weights: Mapping[str, np.ndarray]) -> tuple[Source, dict[str, np.ndarray]]:
  """Translates the arrays of a weight file, by name, to this package's names and conventions.

  Returns:
    The matching source, and float32 arrays by names such as
    `params/trunk/group0/block0/conv1/kernel`. Kernels are (kt, kh, kw, c, d) with the file's kt,
    the bias of a convolution is folded into the mean of the norm after it, and variances are
    adjusted to this package's epsilon.

  Raises:
    UserError: if no source matches, a name is unknown, or two names mean the same array.
  """
  if videoprism.matches(weights):
    required, arrays = videoprism.translate(weights)
    return VIDEOPRISM._replace(required_fields=required), arrays
  source = _find_source(weights)
  arrays, biases = {}, {}
  for key, value in weights.items():
    stem, _, leaf = re.sub(f"^{source.prefix}", "", key).rpartition(source.separator)
    if leaf == "num_batches_tracked":
      continue
    matches = ((re.fullmatch(pattern, stem), to) for pattern, to in source.rules)
    match, to = next((found for found in matches if found[0]), (None, None))
    module = to(match) if callable(to) else to
    is_norm = module is not None and "norm" in module.rpartition("/")[2]
    if module is None or leaf not in (_NORM_LEAVES if is_norm else ("weight", "kernel", "bias")):
      raise UserError(f"{key}: unknown name in a {source.name}")
    value = np.asarray(value, np.float32)
    part = f"{'trunk' if _TRUNK.match(module) else 'universal'}/{module}"
    target = f"params/{part}/{'bias' if leaf == 'bias' else 'kernel'}"
    if is_norm:
      leaf = _NORM_LEAVES[leaf]
      target = f"{'batch_stats' if leaf in ('mean', 'var') else 'params'}/{part}/{leaf}"
      if leaf == "var":
        value = value + np.float32(source.epsilon - EPSILON)
    elif leaf != "bias":
      value = _convert_kernel(source, module, leaf, value)
    elif module != "head":
      biases[part] = value
      continue
    if target in arrays:
      raise UserError(f"{key}: a second array for {target} of a {source.name}; remove one")
    arrays[target] = value
  for part, bias in biases.items():
    # The norm subtracts its mean: (x + bias) - mean = x - (mean - bias).
    mean = f"batch_stats/{_norm_after(part)}/mean"
    if source.preactivation or mean not in arrays or arrays[mean].shape != bias.shape:
      raise UserError(f"{part} of a {source.name}: has a bias, but no norm of its size after it")
    arrays[mean] = arrays[mean] - bias
  return source, arrays


def _find_source(weights: Mapping[str, np.ndarray]) -> Source:
  keys = [f"{key} {'x'.join(map(str, np.shape(value)[2:]))}" for key, value in weights.items()]
  for source in SOURCES:
    if any(re.fullmatch(f"{source.signature}( .*)?", key) for key in keys):
      return source
  first = ", ".join(sorted(weights)[:3]) or "no arrays"
  known = ", ".join(source.name for source in (*SOURCES, VIDEOPRISM))
  raise UserError(f"unknown source of weights ({first}, ...); must be one of {known}")


def _norm_after(conv: str) -> str:
  """Returns the name of the norm after a convolution of a post-activation network."""
  folder, _, last = conv.rpartition("/")
  return f"{folder}/{last.replace('conv', 'norm') if 'conv' in last else f'{last}_norm'}"


def _convert_kernel(source: Source, module: str, leaf: str, value: np.ndarray) -> np.ndarray:
  """Returns a convolution's kernel as (kt, kh, kw, c, d), the classifier's as (c, m)."""
  is_torch = leaf == "weight"  # PyTorch's kernels have (d, c) first.
  if module == "head":  # may be a convolution of extent 1 in the source
    return value.reshape(value.shape[:2]).T if is_torch else value.reshape(value.shape[-2:])
  if is_torch:
    value = np.moveaxis(value, (1, 0), (-2, -1))
  if source.bgr and module == "stem":
    value = value[..., ::-1, :]
  return value[None] if value.ndim == 4 else value
