"""U2S in PyTorch, as its users would write it; `benchmarks.train_step` compares with it.

The paper's pre-activation ResNet. The trunk has `Conv2d` over all frames of all clips, the two
networks have `Conv3d`, all in channels-last layout, so that nothing is copied between them.
"""

import torch
from torch import nn
from torch.nn import functional

EXPANSION = 4


class Bottleneck(nn.Module):
  """BN-ReLU-conv three times, added to the input or to its projection; 2D or 3D."""

  def __init__(self, inputs: int, width: int, stride: int, temporal: tuple[int, ...] | None):
    super().__init__()
    outputs = EXPANSION * width
    norm = nn.BatchNorm2d if temporal is None else nn.BatchNorm3d

    def conv(c, d, extent, stride, frames):
      if temporal is None:
        return nn.Conv2d(c, d, extent, stride, extent // 2, bias=False)
      kernel = (frames, extent, extent)
      padding = tuple(k // 2 for k in kernel)
      return nn.Conv3d(c, d, kernel, (1, stride, stride), padding, bias=False)

    first, second, third, projection = temporal or (1, 1, 1, 1)
    self.norm1, self.norm2, self.norm3 = norm(inputs), norm(width), norm(width)
    self.conv1 = conv(inputs, width, 1, 1, first)
    self.conv2 = conv(width, width, 3, stride, second)
    self.conv3 = conv(width, outputs, 1, 1, third)
    self.projection = None
    if inputs != outputs or stride != 1:
      self.projection = conv(inputs, outputs, 1, stride, projection)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    y = functional.relu(self.norm1(x))
    if self.projection is not None:
      x = self.projection(y)
    y = functional.relu(self.norm2(self.conv1(y)))
    y = functional.relu(self.norm3(self.conv2(y)))
    return x + self.conv3(y)


def make_group(
  inputs: int, width: int, blocks: int, stride: int, temporal: tuple[int, ...] | None
) -> nn.Sequential:
  """Returns `blocks` bottlenecks; the first one has the stride."""
  layers = [Bottleneck(inputs, width, stride, temporal)]
  layers += [Bottleneck(EXPANSION * width, width, 1, temporal) for _ in range(blocks - 1)]
  return nn.Sequential(*layers)


class Branch(nn.Module):
  """Groups 2 and 3 with a classifier: UN or CSN."""

  def __init__(self, num_classes, blocks, width, temporal, strides):
    super().__init__()
    self.group2 = make_group(8 * width, 4 * width, blocks[0], strides[0], temporal[0])
    self.group3 = make_group(16 * width, 8 * width, blocks[1], strides[1], temporal[1])
    self.norm = nn.BatchNorm3d(32 * width)
    self.head = nn.Linear(32 * width, num_classes)

  def features(self, x: torch.Tensor) -> torch.Tensor:
    return functional.relu(self.norm(self.group3(self.group2(x))))

  def classify(self, features: torch.Tensor) -> torch.Tensor:
    return self.head(features.mean((2, 3, 4)))


class U2S(nn.Module):
  """Trunk, universal network, mask network and category-specific network.

  The arguments are the fields of `config.model.backbone`; `blocks` are the bottlenecks of a group.
  """

  def __init__(self, num_classes, blocks, temporal, width=64, strides=(1, 2, 2, 2)):
    super().__init__()
    self.trunk = nn.Sequential(
      nn.Conv2d(3, width, 7, 2, 3, bias=False),
      nn.MaxPool2d(3, 2, 1),
      make_group(width, width, blocks[0], strides[0], None),
      make_group(4 * width, 2 * width, blocks[1], strides[1], None),
    )
    self.universal = Branch(num_classes, blocks[2:], width, temporal, strides[2:])
    self.specific = Branch(num_classes, blocks[2:], width, temporal, strides[2:])
    self.mask = nn.Conv3d(32 * width, num_classes, 1, bias=False)

  def one_pass(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the trunk's and UN's features and UN's logits of a video (n, t, c, h, w)."""
    n, t = video.shape[:2]
    frames = video.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    trunk = self.trunk(frames).unflatten(0, (n, t)).transpose(1, 2)
    features = self.universal.features(trunk)
    return trunk, features, self.universal.classify(features)

  def classify_masked(
    self, trunk: torch.Tensor, features: torch.Tensor, logits: torch.Tensor, csm: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns bridge and specific logits."""
    masks = self.mask(features)
    weights = csm[:, logits.argmax(1)].T
    weights = (weights / weights.sum(1, keepdim=True)).to(masks.dtype)
    mask = torch.einsum("nmthw,nm->nthw", masks, weights)
    specific = self.specific.classify(self.specific.features(trunk) * mask[:, None])
    return masks.mean((2, 3, 4)), specific


def regularizer(kernel: torch.Tensor, csm: torch.Tensor) -> torch.Tensor:
  """Computes Eq. 5, the mean weight similarity of the confusing pairs; kernel (m, c)."""
  unit = functional.normalize(kernel.float(), dim=1)
  pairs = csm - torch.eye(len(csm), device=csm.device)
  return ((1 + unit @ unit.T) / 2 * pairs).sum() / pairs.sum().clamp(min=1)


def set_stage(model: U2S, stage: str) -> list[nn.Parameter]:
  """Freezes what the stage does not train; returns the parameters that it trains."""
  trained = {
    "universal": ("trunk", "universal"),
    "specific": ("specific", "mask"),
    "joint": ("trunk", "universal", "specific", "mask"),
  }[stage]
  for name, module in model.named_children():
    module.train(name in trained)
    module.requires_grad_(name in trained)
  return [p for p in model.parameters() if p.requires_grad]


def compute_loss(
  model: U2S, stage: str, video: torch.Tensor, label: torch.Tensor, csm: torch.Tensor
) -> torch.Tensor:
  """Computes Eq. 3 with the stage's terms; video (n, t, c, h, w) is normalised."""
  with torch.set_grad_enabled(stage != "specific"):
    trunk, features, logits = model.one_pass(video)
  total = 0.0
  if stage != "specific":
    total = functional.cross_entropy(logits.float(), label)
  if stage != "universal":
    bridge, specific = model.classify_masked(trunk, features, logits, csm)
    total = total + functional.cross_entropy(bridge.float(), label)
    total = total + functional.cross_entropy(specific.float(), label)
    total = total + 0.5 * regularizer(model.mask.weight.flatten(1), csm)
  return total
