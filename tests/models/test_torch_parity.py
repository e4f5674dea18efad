"""Tests of networks, pretrained weights and a training step against PyTorch.

The PyTorch networks are written from their definitions, with parameter names of torchvision, TSM
and timm. Frames are in the batch dimension, (n t, c, h, w), except in convolutions over time.
"""

import functools
import re
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from u2s_jax import stages
from u2s_jax.csm import confusing_classes
from u2s_jax.models.backbones import build_backbone
from u2s_jax.models.network import Network
from u2s_jax.models.non_local import NonLocal
from u2s_jax.models.u2s import U2S
from u2s_jax.pretrained import adapt
from u2s_jax.run import state
from u2s_jax.training import steps

torch = pytest.importorskip("torch", reason="the reference networks require PyTorch")
nn = torch.nn
torch.set_default_dtype(torch.float32)
torch.set_num_threads(2)

CLASSES, SIZE, FRAMES = 7, 64, 4
RESNET18, RESNET50 = (2, 2, 2, 2), (3, 4, 6, 3)
FLAT = ((1, 1, 1, 1), (1, 1, 1, 1))
TOLERANCE = 1e-4


class ClipConv(nn.Conv3d):
  """A convolution over clips whose frames are in the batch dimension."""

  def __init__(self, inputs, outputs, extent, size, stride, frames):
    padding = (extent // 2, size // 2, size // 2)
    super().__init__(
      inputs, outputs, (extent, size, size), (1, stride, stride), padding, bias=False
    )
    self.frames = frames

  def forward(self, x):
    clips = x.unflatten(0, (-1, self.frames)).transpose(1, 2)
    return super().forward(clips).transpose(1, 2).flatten(0, 1)


class TemporalShift(nn.Module):
  """TSM: before `net`, 1/8 of the channels moves one frame back and 1/8 one frame forward."""

  def __init__(self, net, frames):
    super().__init__()
    self.net, self.frames = net, frames

  def forward(self, x):
    x = x.unflatten(0, (-1, self.frames))
    fold = x.shape[2] // 8
    out = torch.zeros_like(x)
    out[:, :-1, :fold] = x[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
    return self.net(out.flatten(0, 1))


def convolution(inputs, outputs, size, stride=1, extent=1, frames=FRAMES):
  if extent > 1:
    return ClipConv(inputs, outputs, extent, size, stride, frames)
  return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


def average(features, frames):
  """Averages over the frames and pixels of a clip."""
  return features.unflatten(0, (-1, frames)).mean((1, 3, 4))


class Bottleneck(nn.Module):
  expansion = 4

  def __init__(self, inputs, width, stride, extent, shift, frames):
    super().__init__()
    outputs = 4 * width
    self.conv1 = convolution(inputs, width, 1, extent=extent, frames=frames)
    if shift:
      self.conv1 = TemporalShift(self.conv1, frames)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = convolution(width, width, 3, stride)
    self.bn2 = nn.BatchNorm2d(width)
    self.conv3 = convolution(width, outputs, 1)
    self.bn3 = nn.BatchNorm2d(outputs)
    self.downsample = None
    if stride != 1 or inputs != outputs:
      shortcut = convolution(inputs, outputs, 1, stride)
      self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

  def forward(self, x):
    y = torch.relu(self.bn1(self.conv1(x)))
    y = torch.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Basic(nn.Module):
  expansion = 1

  def __init__(self, inputs, width, stride, extent, shift, frames):
    super().__init__()
    assert extent == 1 and not shift
    self.conv1 = convolution(inputs, width, 3, stride)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = convolution(width, width, 3)
    self.bn2 = nn.BatchNorm2d(width)
    self.downsample = None
    if stride != 1 or inputs != width:
      self.downsample = nn.Sequential(convolution(inputs, width, 1, stride), nn.BatchNorm2d(width))

  def forward(self, x):
    y = torch.relu(self.bn1(self.conv1(x)))
    y = self.bn2(self.conv2(y))
    return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
  """torchvision's ResNet (v1); (n t, c, h, w) -> last feature map, and logits of the clips.

  `extent` is the temporal extent of the first convolutions of the blocks of layers 3 and 4.
  """

  def __init__(self, block, blocks, *, extent=1, shift=False, frames=FRAMES):
    super().__init__()
    self.frames = frames
    self.conv1 = convolution(3, 64, 7, 2)
    self.bn1 = nn.BatchNorm2d(64)
    self.maxpool = nn.MaxPool2d(3, 2, 1)
    inputs = 64
    for i, count in enumerate(blocks):
      layer = []
      for b in range(count):
        stride = 2 if i > 0 and b == 0 else 1
        layer.append(block(inputs, 64 * 2**i, stride, extent if i >= 2 else 1, shift, frames))
        inputs = 64 * 2**i * block.expansion
      setattr(self, f"layer{i + 1}", nn.Sequential(*layer))
    self.fc = nn.Linear(inputs, CLASSES)

  def forward(self, x):
    x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    return x, self.fc(average(x, self.frames))


class PreactBottleneck(nn.Module):
  """He et al. 2016: BN-ReLU-conv; the shortcut's projection reads the first BN-ReLU's output."""

  def __init__(self, inputs, width, stride, extents, frames):
    super().__init__()
    outputs = 4 * width
    conv = functools.partial(convolution, frames=frames)
    self.norm1 = nn.BatchNorm2d(inputs)
    self.conv1 = conv(inputs, width, 1, extent=extents[0])
    self.norm2 = nn.BatchNorm2d(width)
    self.conv2 = conv(width, width, 3, stride, extents[1])
    self.norm3 = nn.BatchNorm2d(width)
    self.conv3 = conv(width, outputs, 1, extent=extents[2])
    self.downsample = None
    if stride != 1 or inputs != outputs:
      shortcut = conv(inputs, outputs, 1, stride, extents[3])
      self.downsample = nn.Sequential(OrderedDict(conv=shortcut))

  def forward(self, x):
    activated = torch.relu(self.norm1(x))
    y = torch.relu(self.norm2(self.conv1(activated)))
    y = self.conv3(torch.relu(self.norm3(self.conv2(y))))
    return y + (x if self.downsample is None else self.downsample(activated))


class PreactResNet(nn.Module):
  """timm's resnetv2, or some stages of it: the first has the stem and the last the head."""

  def __init__(self, blocks, *, only=range(4), width=64, temporal=FLAT, classes, frames=FRAMES):
    super().__init__()
    self.frames = frames
    if 0 in only:
      self.stem = nn.Sequential(
        OrderedDict(conv=convolution(3, width, 7, 2), pool=nn.MaxPool2d(3, 2, 1))
      )
    self.stages = nn.ModuleDict()
    for i in only:
      inner, stage = width * 2**i, []
      for b in range(blocks[i]):
        inputs = 4 * inner if b else 2 * inner if i else width
        extents = (*FLAT, *temporal)[i]
        stage.append(PreactBottleneck(inputs, inner, 2 if i and not b else 1, extents, frames))
      self.stages[str(i)] = nn.Sequential(OrderedDict(blocks=nn.Sequential(*stage)))
    if 3 in only:
      self.norm = nn.BatchNorm2d(32 * width)
      self.head = nn.Sequential(OrderedDict(fc=nn.Conv2d(32 * width, classes, 1)))

  def features(self, x):
    if hasattr(self, "stem"):
      x = self.stem(x)
    for stage in self.stages.values():
      x = stage(x)
    return torch.relu(self.norm(x)) if hasattr(self, "norm") else x

  def classify(self, features):
    return self.head(average(features, self.frames)[:, :, None, None]).flatten(1)

  def forward(self, x):
    features = self.features(x)
    return features, self.classify(features)


def randomize(network, seed):
  """Returns the network in inference mode with all parameters and statistics random."""
  rng = torch.Generator().manual_seed(seed)

  def uniform(tensor, low, high):
    tensor.copy_(torch.rand(tensor.shape, generator=rng) * (high - low) + low)

  def normal(tensor, deviation):
    tensor.copy_(torch.randn(tensor.shape, generator=rng) * deviation)

  with torch.no_grad():
    for module in network.modules():
      if isinstance(module, nn.BatchNorm2d):
        uniform(module.weight, 0.5, 1.0)
        normal(module.bias, 0.2)
        normal(module.running_mean, 0.2)
        uniform(module.running_var, 0.5, 1.5)
      elif hasattr(module, "weight"):
        normal(module.weight, module.weight[0].numel() ** -0.5)
        if module.bias is not None:
          normal(module.bias, 0.2)
  return network.eval()


def make_clips(seed, count, frames):
  shape = (count, frames, SIZE, SIZE, 3)
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch(video):
  return torch.from_numpy(video).flatten(0, 1).permute(0, 3, 1, 2)


def torch_outputs(network, video):
  """Returns features (n, t, h, w, c) and logits (n, m)."""
  with torch.no_grad():
    features, logits = network(to_torch(video))
  features = features.unflatten(0, video.shape[:2]).permute(0, 1, 3, 4, 2)
  return features.numpy(), logits.numpy()


@functools.cache
def make_one_pass(name, **fields):
  """Returns the zero variables and the jitted outputs of the one-pass model of a backbone."""
  temporal = fields.pop("temporal")
  model = U2S(CLASSES, build_backbone(name, temporal=temporal, **fields))
  video = jax.ShapeDtypeStruct((1, FRAMES, SIZE, SIZE, 3), jnp.float32)
  init = functools.partial(model.init, method=U2S.one_pass)
  shapes = jax.eval_shape(lambda v: init(jax.random.key(0), v), video)
  zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)

  @jax.jit
  def outputs(variables, video):
    out = model.apply(variables, video, method=U2S.one_pass)
    return out["universal_features"], out["universal"]

  return zeros, outputs


def load(zeros, weights, folder, name="weights.pth"):
  """Returns the variables loaded from a file written by PyTorch."""
  path, lines = folder / name, []
  torch.save(weights, path)
  # A TSM target accepts weights with and without a shift.
  target = adapt.Target({"name": "tsm_resnet"}, [str(k) for k in range(CLASSES)], True)
  params, batch_stats = adapt.load(
    path, zeros["params"], zeros["batch_stats"], target, lines.append
  )
  path.unlink()  # 100 MB, which pytest would keep
  arrays = len(jax.tree.leaves(zeros))
  assert lines[-1].strip() == f"{arrays} of {arrays} arrays loaded"
  return {"params": params, "batch_stats": batch_stats}


def assert_same(actual, expected):
  """Checks that arrays are equal, and not so small or constant that any array would pass."""
  for a, b in zip(actual, expected, strict=True):
    assert 0.1 < b.std() < 10
    np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def to_tsm_checkpoint(weights):
  """Renames weights as in a checkpoint of TSM's training script."""
  renamed = {}
  for name, value in weights.items():
    name = re.sub(r"(layer\d\.\d+\.conv1)\.weight", r"\1.net.weight", name)
    prefix = "module.new_" if name.startswith("fc.") else "module.base_model."
    renamed[prefix + name] = value
  return {"epoch": 3, "arch": "resnet50", "state_dict": renamed}


@pytest.fixture(scope="module")
def resnet50():
  return randomize(ResNet(Bottleneck, RESNET50), 0)


@pytest.mark.parametrize("names", ["torchvision", "TSM"])
def test_resnet50(resnet50, names, tmp_path):
  zeros, outputs = make_one_pass("resnet", temporal=FLAT)
  weights = resnet50.state_dict()
  if names == "TSM":
    variables = load(zeros, to_tsm_checkpoint(weights), tmp_path, "tsm.pth.tar")
  else:
    variables = load(zeros, weights, tmp_path)
  video = make_clips(1, 2, FRAMES)
  assert_same(outputs(variables, video), torch_outputs(resnet50, video))


def test_resnet18(tmp_path):
  network = randomize(ResNet(Basic, RESNET18), 2)
  zeros, outputs = make_one_pass("resnet", depth=18, temporal=((1, 1, 1), (1, 1, 1)))
  variables = load(zeros, network.state_dict(), tmp_path)
  video = make_clips(3, 2, FRAMES)
  assert_same(outputs(variables, video), torch_outputs(network, video))


def test_temporal_shift(resnet50, tmp_path):
  network = ResNet(Bottleneck, RESNET50, shift=True).eval()
  weights = to_tsm_checkpoint(resnet50.state_dict())
  network.load_state_dict(
    {re.sub(r"module\.(base_model\.|new_)", "", k): v for k, v in weights["state_dict"].items()}
  )
  zeros, outputs = make_one_pass("tsm_resnet", temporal=FLAT)
  variables = load(zeros, weights, tmp_path)
  video = make_clips(4, 2, FRAMES)
  expected = torch_outputs(network, video)
  assert_same(outputs(variables, video), expected)
  assert np.abs(expected[0] - torch_outputs(resnet50, video)[0]).max() > 0.1


# After nine convolutions over three frames, the middle one of 19 frames is not affected by padding.
INFLATED = dict(extent=3, frames=19)
INFLATED_FIELDS = dict(temporal=((3, 1, 1, 1), (3, 1, 1, 1)))


def test_temporal_kernels(tmp_path):
  network = randomize(ResNet(Bottleneck, RESNET50, **INFLATED), 5)
  zeros, outputs = make_one_pass("resnet", **INFLATED_FIELDS)
  variables = load(zeros, network.state_dict(), tmp_path)
  video = make_clips(6, 1, 19)
  assert_same(outputs(variables, video), torch_outputs(network, video))


def test_inflation(resnet50, tmp_path):
  flat = resnet50.state_dict()
  network = ResNet(Bottleneck, RESNET50, **INFLATED).eval()
  weights = dict(flat)
  for name, value in network.state_dict().items():
    if value.ndim == 5:
      weights[name] = flat[name].unsqueeze(2).repeat(1, 1, 3, 1, 1) / 3
  network.load_state_dict(weights)
  zeros, outputs = make_one_pass("resnet", **INFLATED_FIELDS)
  variables = load(zeros, flat, tmp_path)
  video = make_clips(7, 1, 19)
  assert_same(outputs(variables, video), torch_outputs(network, video))

  equal = np.repeat(video[:, :1], 19, axis=1)
  actual = outputs(variables, equal)
  assert_same(actual, torch_outputs(network, equal))
  features, _ = torch_outputs(resnet50, equal[:, :FRAMES])
  np.testing.assert_allclose(actual[0][:, 9], features[:, 0], rtol=0, atol=TOLERANCE)
  assert np.abs(actual[0][:, 0] - features[:, 0]).max() > 0.1


def test_preactivation_resnet50(tmp_path):
  network = randomize(PreactResNet(RESNET50, classes=CLASSES), 8)
  zeros, outputs = make_one_pass("preact_resnet", temporal=FLAT)
  variables = load(zeros, network.state_dict(), tmp_path)
  video = make_clips(9, 2, FRAMES)
  assert_same(outputs(variables, video), torch_outputs(network, video))


def test_non_local():
  rng = np.random.default_rng(10)
  x = rng.normal(size=(2, 3, 4, 5, 16)).astype(np.float32)
  shapes = {"theta": (16, 6), "phi": (16, 6), "g": (16, 6), "output": (6, 16)}
  kernels = {k: rng.normal(size=s, scale=0.4).astype(np.float32) for k, s in shapes.items()}
  params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
  actual = NonLocal(6).apply({"params": params}, jnp.asarray(x))

  maps = {}
  for name, kernel in kernels.items():
    maps[name] = nn.Conv3d(*kernel.shape, 1, bias=False)
    maps[name].weight = nn.Parameter(torch.from_numpy(kernel.T.copy())[..., None, None, None])
  with torch.no_grad():
    video = torch.from_numpy(x).permute(0, 4, 1, 2, 3)
    theta, phi, g = (maps[name](video).flatten(2) for name in ("theta", "phi", "g"))
    attention = torch.softmax(theta.transpose(1, 2) @ phi / 6**0.5, dim=-1)  # (n, to, from)
    assert attention.max() > 10 * attention.mean()
    y = (attention @ g.transpose(1, 2)).transpose(1, 2).unflatten(2, video.shape[2:])
    expected = video + maps["output"](y)
    assert (expected - video).std() > 0.1
  np.testing.assert_allclose(actual, expected.permute(0, 2, 3, 4, 1), rtol=0, atol=TOLERANCE)


class TorchU2S(nn.Module):
  """Fig. 2 and 3 of the paper with pre-activation blocks, and the terms of Eq. 3."""

  def __init__(self, classes, **fields):
    super().__init__()
    self.trunk = PreactResNet(only=range(2), classes=classes, **fields)
    self.universal = PreactResNet(only=range(2, 4), classes=classes, **fields)
    self.specific = PreactResNet(only=range(2, 4), classes=classes, **fields)
    self.mask = nn.Conv2d(32 * fields["width"], classes, 1, bias=False)
    self.frames = fields["frames"]

  def forward(self, video, labels, csm):
    """Returns the universal logits and the terms of the loss."""
    trunk = self.trunk.features(video)
    features = self.universal.features(trunk)
    universal = self.universal.classify(features)
    masks = self.mask(features)
    bridge = average(masks, self.frames)
    final = []
    for clip, predicted in zip(masks.split(self.frames), universal.argmax(1), strict=True):
      confusing = [j for j in range(len(csm)) if csm[j, predicted] == 1]
      final.append(sum(clip[:, j] for j in confusing) / len(confusing))
    mask = torch.cat(final).unsqueeze(1)
    specific = self.specific.classify(self.specific.features(trunk) * mask)
    weights = self.mask.weight.flatten(1)
    similar = [
      (1 + torch.cosine_similarity(weights[i], weights[j], dim=0)) / 2
      for i in range(len(csm))
      for j in range(len(csm))
      if i != j and csm[i, j] == 1
    ]
    logits = {"universal": universal, "bridge": bridge, "specific": specific}
    terms = {f"loss_{k}": nn.functional.cross_entropy(v, labels) for k, v in logits.items()}
    terms["regularizer"] = sum(similar) / len(similar)
    terms["loss"] = sum(terms[f"loss_{name}"] for name in logits) + 0.5 * terms["regularizer"]
    return universal, terms


def to_torch_weights(tree):
  """Converts parameters or running averages to the names and layout of `TorchU2S`."""
  weights = {}
  for name, value in traverse_util.flatten_dict(tree, sep="/").items():
    value = np.asarray(value)
    for pattern, replacement in (
      (r"/group(\d)/block(\d)/", r"/stages/\1/blocks/\2/"),
      ("/projection/", "/downsample/conv/"),
      ("/stem/", "/stem/conv/"),
      ("/head/", "/head/fc/"),
      ("/(kernel|scale)$", "/weight"),
      ("/(mean|var)$", r"/running_\1"),
    ):
      name = re.sub(pattern, replacement, name)
    if value.ndim == 5:
      value = value.transpose(4, 3, 0, 1, 2)
      value = value[:, :, 0] if value.shape[2] == 1 else value
    elif value.ndim == 2:
      value = value.T[:, :, None, None]
    weights[name.replace("/", ".")] = value
  return weights


@pytest.fixture(scope="module")
def joint_step():
  """Returns states before and after a joint step, metrics; PyTorch network, logits, loss terms."""
  classes, frames, width, blocks = 5, 3, 4, (1, 1, 1, 1)
  temporal = ((3, 3, 3, 3), (3, 3, 3, 1))
  model = U2S(classes, build_backbone("preact_resnet", temporal=temporal, depth=14, width=width))
  durations = {k: dict(learning_rate=1.0, epochs=1.0) for k in ("universal", "specific", "joint")}
  stage = stages.make_stages(durations, attention="mask", specific_init="universal", control=False)[
    2
  ]
  assert stage.name == "joint"
  tx = steps.sgd(momentum=0.9, weight_decay=0.0)
  rng = np.random.default_rng(15)

  def noise(path, leaf):
    name = jax.tree_util.keystr(path)
    if "params" not in name:
      return np.zeros(leaf.shape, leaf.dtype)
    if "scale" in name:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    deviation = 0.2 if "bias" in name else np.prod(leaf.shape[:-1]) ** -0.5
    return (rng.normal(size=leaf.shape) * deviation).astype(np.float32)

  shape = (4, frames, SIZE, SIZE, 3)
  before = jax.eval_shape(lambda: state.init_stage(model, stage, tx, jax.random.key(0), shape))
  before = jax.tree_util.tree_map_with_path(noise, before)
  csm = np.eye(classes, dtype=np.float32)
  for i, j in ((0, 1), (1, 2), (3, 4)):
    csm[i, j] = csm[j, i] = 1
  before = before.replace(csm=before.csm.replace(matrix=csm))
  # Coarse squares, without which all predictions would be the same, and noise, without which one
  # response that rounding moves across a ReLU's zero would be repeated at many positions.
  squares = rng.integers(0, 192, (4, frames, 4, 4, 3), np.uint8).repeat(16, 2).repeat(16, 3)
  video = squares + rng.integers(0, 64, shape, np.uint8)
  label = np.array([3, 0, 2, 1], np.int32)
  pixels = dict(pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.2, 0.3, 0.4))
  step = jax.jit(steps.make_train_step(Network(model, **pixels), stage, tx, steps.StepOptions(0.5)))
  batch = {"video": video, "label": label, "valid": np.ones(4, bool)}
  after, metrics = jax.device_get(step(before, batch, 1.0, confusing_classes(csm)))

  network = TorchU2S(classes, blocks=blocks, width=width, temporal=temporal, frames=frames)
  weights = {k: torch.from_numpy(v.copy()) for k, v in to_torch_weights(before.params).items()}
  names = set(dict(network.named_parameters()))
  assert names == set(weights)
  network.load_state_dict(network.state_dict() | weights)
  # In double precision, so that only the rounding of the JAX step matters.
  network.double().train()
  inputs = to_torch((video / 255 - pixels["pixel_mean"]) / pixels["pixel_std"])
  universal, terms = network(inputs, torch.from_numpy(label).long(), csm)
  terms["loss"].backward()
  return before, after, metrics, network, universal.detach(), terms


def test_loss_of_a_joint_step(joint_step):
  _, _, metrics, _, universal, terms = joint_step
  # Otherwise rounding could select other masks.
  best = universal.sort(descending=True).values
  assert (best[:, 0] - best[:, 1]).min() > 0.01
  assert len(set(universal.argmax(1).tolist())) > 1
  for name, expected in terms.items():
    assert metrics[name] == pytest.approx(expected.item(), abs=TOLERANCE), name


def test_gradients_of_a_joint_step(joint_step):
  before, after, _, network, _, _ = joint_step
  # Without weight decay and previous momentum, at a learning rate of 1, the update is the gradient.
  gradients = to_torch_weights(jax.tree.map(np.subtract, before.params, after.params))
  for name, parameter in network.named_parameters():
    expected = parameter.grad.numpy()
    largest = np.abs(expected).max()
    assert largest > 1e-5, name
    np.testing.assert_allclose(gradients[name], expected, rtol=0, atol=1e-3 * largest, err_msg=name)


def test_running_means_after_a_joint_step(joint_step):
  _, after, _, network, _, _ = joint_step
  expected = network.state_dict()
  for name, value in to_torch_weights(after.batch_stats).items():
    if name.endswith("running_mean"):
      np.testing.assert_allclose(value, expected[name], rtol=0, atol=TOLERANCE, err_msg=name)
