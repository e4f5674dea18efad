"""Names of weights elsewhere, and how their arrays become ours: one explicit table a source.

A table's rules say which of our modules a module is. Ours are named as in
`trunk/group0/block0/conv1`, without the subnetwork: groups 0 and 1 are the trunk's.
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from u2s_jax.errors import UserError
from u2s_jax.models.norm import EPSILON


class Pixels(NamedTuple):
  """Statistics that pixels are normalised with: (byte / 255 - mean) / std.

  Attributes:
    mean: of byte / 255, one value for all channels or one a channel, in the order of RGB.
    std: likewise, positive.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]


class Source(NamedTuple):
  """How a family of weight files names and stores things.

  Attributes:
    name: for messages.
    sign: a name of an array that tells the family, as a pattern.
    separator: between a module's name and its leaf's.
    prefix: pattern of what stands before the names.
    rules: (pattern of a whole module name, function of the match to our module's name).
    pixels: statistics that its networks are trained with on RGB frames.
    epsilon: what its batch normalisation adds to the variance.
    bgr: whether its first convolution takes blue, green, red.
    preactivation: whether norms stand before their convolutions.
    demands: fields of `model.backbone` that its networks have and no shape tells.
  """

  name: str
  sign: str
  separator: str
  prefix: str
  rules: tuple[tuple[str, Callable[[re.Match], str]], ...]
  pixels: Pixels
  epsilon: float = 1e-5
  bgr: bool = False
  preactivation: bool = False
  demands: Mapping[str, str] = MappingProxyType({})


def _block(kind: str, layer: int) -> Callable[[re.Match], str]:
  """Group and block from the first two numbers of a name, module `kind` and the third."""

  def name(match: re.Match) -> str:
    number = match[3] if match.re.groups > 2 else ""
    return f"group{int(match[1]) - layer}/block{match[2]}/{kind}{number}"

  return name


def _keras(kind: str) -> Callable[[re.Match], str]:
  """`res4b_branch2c`: group 4 - 2, block b, third convolution; `branch1` is the projection."""

  def name(match: re.Match) -> str:
    group, block = int(match[1]) - 2, ord(match[2]) - ord("a")
    branch = {"1": "projection" if kind == "conv" else "projection_norm"}
    branch |= {f"2{letter}": f"{kind}{i}" for i, letter in enumerate("abc", start=1)}
    return f"group{group}/block{block}/{branch[match[3]]}"

  return name


def _to(name: str) -> Callable[[re.Match], str]:
  return lambda match: name


# `.net` is TSM's wrapper around the convolutions that it shifts.
_RESNET = (
  (r"conv1", _to("stem")),
  (r"bn1", _to("stem_norm")),
  (r"layer(\d)\.(\d+)\.conv(\d)(?:\.net)?", _block("conv", 1)),
  (r"layer(\d)\.(\d+)\.bn(\d)", _block("norm", 1)),
  (r"layer(\d)\.(\d+)\.downsample\.0", _block("projection", 1)),
  (r"layer(\d)\.(\d+)\.downsample\.1", _block("projection_norm", 1)),
  (r"fc|new_fc", _to("head")),
)
_MMACTION2 = (
  (r"conv1\.conv", _to("stem")),
  (r"conv1\.bn", _to("stem_norm")),
  (r"layer(\d)\.(\d+)\.conv(\d)\.conv(?:\.net)?", _block("conv", 1)),
  (r"layer(\d)\.(\d+)\.conv(\d)\.bn", _block("norm", 1)),
  (r"layer(\d)\.(\d+)\.downsample\.conv", _block("projection", 1)),
  (r"layer(\d)\.(\d+)\.downsample\.bn", _block("projection_norm", 1)),
  (r"fc_cls", _to("head")),
)
_TORCHVISION_PREFIX = r"(module\.)?(base_model\.)?"
_MMACTION2_PREFIX = r"(backbone\.|cls_head\.)?"
_IMAGENET = Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mmaction2 has them times 255
_SYMMETRIC = Pixels((0.5,), (0.5,))  # pixels in [-1, 1]; timm calls them Inception's
# Bytes less Caffe's means, not divided. Theirs are of BGR: the first convolution is turned to RGB.
_CAFFE = Pixels((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3)
_SHIFTED = MappingProxyType({"name": "tsm_resnet", "strided": "3x3"})
_UNSHIFTED = MappingProxyType({"strided": "3x3"})  # no name: they start a `tsm_resnet` as well
SOURCES = (
  Source(
    "torchvision ResNet",
    _TORCHVISION_PREFIX + r"layer1\.0\.conv1\.weight",
    ".",
    _TORCHVISION_PREFIX,
    _RESNET,
    _IMAGENET,
    demands=_UNSHIFTED,
  ),
  Source(
    "TSM",
    _TORCHVISION_PREFIX + r"layer1\.0\.conv1\.net\.weight",
    ".",
    _TORCHVISION_PREFIX,
    _RESNET,
    _IMAGENET,
    demands=_SHIFTED,
  ),
  Source(
    "mmaction2 ResNet",
    r"backbone\.layer1\.0\.conv1\.conv\.weight",
    ".",
    _MMACTION2_PREFIX,
    _MMACTION2,
    _IMAGENET,
    demands=_UNSHIFTED,
  ),
  Source(
    "mmaction2 TSM",
    r"backbone\.layer1\.0\.conv1\.conv\.net\.weight",
    ".",
    _MMACTION2_PREFIX,
    _MMACTION2,
    _IMAGENET,
    demands=_SHIFTED,
  ),
  Source(
    "timm resnetv2",
    r"stages\.0\.blocks\.0\.conv1\.weight",
    ".",
    "",
    (
      (r"stem\.conv", _to("stem")),
      (r"stages\.(\d)\.blocks\.(\d+)\.conv(\d)", _block("conv", 0)),
      (r"stages\.(\d)\.blocks\.(\d+)\.norm(\d)", _block("norm", 0)),
      (r"stages\.(\d)\.blocks\.(\d+)\.downsample\.conv", _block("projection", 0)),
      (r"norm", _to("norm")),
      (r"head\.fc", _to("head")),
    ),
    _SYMMETRIC,
    preactivation=True,
  ),
  Source(
    "Keras ResNet",
    r"res2a_branch2a/kernel",
    "/",
    "",
    (
      (r"conv1", _to("stem")),
      (r"bn_conv1", _to("stem_norm")),
      (r"res(\d)([a-z])_branch(1|2[abc])", _keras("conv")),
      (r"bn(\d)([a-z])_branch(1|2[abc])", _keras("norm")),
      (r"fc1000", _to("head")),
    ),
    _CAFFE,
    epsilon=1e-3,
    bgr=True,
    demands=MappingProxyType({"strided": "1x1"}),
  ),
  Source(
    "Inception-I3D",
    r"params\|Conv3d_1a_7x7\|Conv_0\|kernel",
    "|",
    r"(params\||batch_stats\|)",
    (
      (r"Conv3d_1a_7x7\|Conv_0", _to("stem")),
      (r"Conv3d_1a_7x7\|BatchNorm_0", _to("stem_norm")),
      (r"(Conv3d_2[bc])_.x.\|Conv_0", lambda m: f"{m[1]}/conv"),
      (r"(Conv3d_2[bc])_.x.\|BatchNorm_0", lambda m: f"{m[1]}/norm"),
      (
        r"(Mixed_..)\|(Branch_.)/Conv3d_(0[ab])_.x.\|Conv_0",
        lambda m: f"{m[1]}/{m[2]}_{m[3]}/conv",
      ),
      (
        r"(Mixed_..)\|(Branch_.)/Conv3d_(0[ab])_.x.\|BatchNorm_0",
        lambda m: f"{m[1]}/{m[2]}_{m[3]}/norm",
      ),
      (r"Logits/Conv3d_0c_1x1\|Conv_0", _to("head")),
    ),
    _SYMMETRIC,
    epsilon=1e-3,
  ),
)
# Our leaf of a norm by its name elsewhere.
_NORM_LEAVES = {
  "weight": "scale", "gamma": "scale", "bias": "bias", "beta": "bias", "running_mean": "mean",
  "moving_mean": "mean", "mean": "mean", "running_var": "var", "moving_variance": "var",
  "var": "var",
}  # fmt: skip
_TRUNK = re.compile(r"stem|group[01]/|Conv3d_|Mixed_3")


def translate(weights: Mapping[str, np.ndarray]) -> tuple[Source, dict[str, np.ndarray]]:
  """Weights of a file under our names.

  Args:
    weights: arrays by their names in the file.

  Returns:
    The source whose table was used, and float32 arrays by our names, as in
    `params/trunk/group0/block0/conv1/kernel`: kernels are (kt, kh, kw, c, d) with the file's own
    kt, a bias of a convolution is part of the mean of the norm behind it, and variances are meant
    for our norm's epsilon.

  Raises:
    UserError: no table knows the file, or its table does not know a name in it, or gives two
      names one place.
  """
  source = next(
    (source for source in SOURCES if any(re.fullmatch(source.sign, key) for key in weights)), None
  )
  if source is None:
    first = ", ".join(sorted(weights)[:3]) or "no arrays"
    known = ", ".join(source.name for source in SOURCES)
    raise UserError(f"weights of no known source ({known}): {first}, ...")
  ours, biases = {}, {}
  for key, value in weights.items():
    stem, _, leaf = re.sub(f"^{source.prefix}", "", key).rpartition(source.separator)
    if leaf == "num_batches_tracked":
      continue
    unknown = f"{key} has no place in a {source.name}"
    matches = ((re.fullmatch(pattern, stem), to) for pattern, to in source.rules)
    module = next((to(match) for match, to in matches if match), None)
    if module is None:
      raise UserError(unknown)
    value = np.asarray(value, np.float32)
    part = f"{'trunk' if _TRUNK.match(module) else 'universal'}/{module}"
    norm = "norm" in module.rpartition("/")[2]
    if leaf not in (_NORM_LEAVES if norm else ("weight", "kernel", "bias")):
      raise UserError(unknown)
    if norm:
      leaf = _NORM_LEAVES[leaf]
      if leaf == "var":
        value = value + np.float32(source.epsilon - EPSILON)
      target = f"{'batch_stats' if leaf in ('mean', 'var') else 'params'}/{part}/{leaf}"
    elif module == "head":
      target = f"params/{part}/{'bias' if leaf == 'bias' else 'kernel'}"
      value = value if leaf == "bias" else _dense(value, leaf)
    elif leaf == "bias":
      biases[part] = value
      continue
    else:
      value = _kernel(value, leaf)
      if source.bgr and module == "stem":
        value = value[..., ::-1, :]
      target = f"params/{part}/kernel"
    if target in ours:
      raise UserError(f"{key} and another name are both the {target} of a {source.name}")
    ours[target] = value
  for part, bias in biases.items():
    # (x + b - mean) is (x - (mean - b)).
    mean = f"batch_stats/{_norm_behind(part)}/mean"
    if source.preactivation or mean not in ours or ours[mean].shape != bias.shape:
      raise UserError(f"{part} of a {source.name} has a bias, but no norm of its size behind it")
    ours[mean] = ours[mean] - bias
  return source, ours


def _norm_behind(conv: str) -> str:
  """Our name of the norm behind one of our convolutions, of post-activation networks."""
  folder, _, last = conv.rpartition("/")
  return f"{folder}/{last.replace('conv', 'norm') if 'conv' in last else f'{last}_norm'}"


def _kernel(value, leaf):
  """(kt, kh, kw, c, d) of a convolution; PyTorch has the channels first."""
  if leaf == "weight":
    value = np.moveaxis(value, (1, 0), (-2, -1))
  return value[None] if value.ndim == 4 else value


def _dense(value, leaf):
  """(c, m) of a classifier, which may be a convolution of extent 1."""
  if leaf == "weight":
    return value.reshape(value.shape[:2]).T
  return value.reshape(value.shape[-2:])
