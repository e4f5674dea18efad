"""FLOPs of a training step of each stage, by XLA's cost analysis and counted by hand.

  python -m benchmarks.step_cost

Lowered at the paper's size (pre-activation ResNet-50, 18 frames of 224 x 224, 174 classes), not
run.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from u2s_jax import stages
from u2s_jax.models.backbones import build_backbone
from u2s_jax.models.layers import Layers
from u2s_jax.models.network import Network
from u2s_jax.models.resnet import DEPTHS, EXPANSION
from u2s_jax.models.u2s import U2S
from u2s_jax.run import state
from u2s_jax.training import steps

TEMPORAL = ((3, 3, 3, 3), (3, 3, 3, 1))
NEIGHBOURS = 16  # confusing classes of the class that has most of them
PAPER = {"video": (18, 224, 224), "num_classes": 174, "depth": 50, "width": 64}
DEMO = {"depth": 14, "width": 8, "strides": (1, 2, 2, 1), "temporal": TEMPORAL}  # configs/demo.py
OPTIMIZER = {"momentum": 0.9, "weight_decay": 1e-4}
RATE = 1e-3


def build_stages(
  num_classes: int, name: str = "preact_resnet", dtype: str = "float32", **fields: Any
) -> tuple[Network, tuple[stages.Stage, ...]]:
  """Returns a network and its training stages; `fields` are those of the backbone."""
  backbone = build_backbone(name, Layers(dtype=jnp.dtype(dtype)), **fields)
  model = U2S(num_classes, backbone, dtype=jnp.dtype(dtype))
  durations = dict.fromkeys(stages.STAGES, {"learning_rate": RATE, "epochs": 1.0})
  network = Network(model, pixel_mean=(0.5,) * 3, pixel_std=(0.25,) * 3)
  return network, stages.make_stages(durations)


def make_batch_shapes(
  shape: tuple[int, ...], sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the abstract arrays of a batch; `shape` is that of the videos."""
  fields = {"video": (shape, jnp.uint8), "label": (shape[:1], jnp.int32)}
  fields["valid"] = shape[:1], jnp.bool_
  return {k: jax.ShapeDtypeStruct(*field, sharding=sharding) for k, field in fields.items()}


@functools.cache  # a study counts the same programs for each of its seeds
def count_flops(
  network: Network,
  schedule: tuple[stages.Stage, ...],
  tx: optax.GradientTransformation,
  shape: tuple[int, ...],
  num_neighbours: int,
) -> dict[str, float]:
  """Returns XLA's FLOPs of a training step of each stage; `shape` is that of the videos."""
  neighbours = jax.ShapeDtypeStruct((network.model.num_classes, num_neighbours), jnp.int32)
  flops, states = {}, state.init_stages(network.model, schedule, tx, shape)
  for stage, first in zip(schedule, states, strict=True):
    step = jax.jit(steps.make_train_step(network, stage, tx, steps.StepOptions(0.5)))
    lowered = step.lower(first, make_batch_shapes(shape), RATE, neighbours)
    flops[stage.name] = lowered.cost_analysis()["flops"]
  return flops


def analysed(
  video: tuple[int, int, int], num_classes: int, depth: int, width: int
) -> dict[str, float]:
  """Returns XLA's FLOPs of one training step on a clip (frames, rows, columns), by stage."""
  built = build_stages(num_classes, depth=depth, width=width, temporal=TEMPORAL)
  return count_flops(*built, steps.sgd(**OPTIMIZER), (1, *video, 3), NEIGHBOURS)


def counted(
  video: tuple[int, int, int], num_classes: int, depth: int, width: int
) -> dict[str, float]:
  """Returns the same FLOPs counted by hand: two per multiplication of a convolution.

  As in XLA's count, multiplications with the zeros around a frame are excluded, and those with the
  zeros before and after a clip are included. A trained convolution is computed three times
  (forward, gradients of input and kernel), a frozen one once. There is no gradient of the pixels,
  and none from a trained network into a frozen one.
  """
  frames, size = video[0], video[1]
  # Multiplications of the convolutions, the stem's first.
  trunk, branch = [frames * count_taps(size, 7, 2) ** 2 * 3 * width], []
  size, inputs = -(-size // 4), width
  for group, (blocks, stride) in enumerate(zip(DEPTHS[depth][1], (1, 2, 2, 2), strict=True)):
    convolutions = trunk if group < 2 else branch
    times = (1, 1, 1, 1) if group < 2 else TEMPORAL[group - 2]
    inner = width * 2**group
    for block in range(blocks):
      before, size = size, -(-size // stride) if block == 0 else size
      places, outputs = frames * size**2, EXPANSION * inner
      if block == 0:
        convolutions.append(places * times[3] * inputs * outputs)
      convolutions += [
        frames * before**2 * times[0] * inputs * inner,
        frames * count_taps(before, 3, stride if block == 0 else 1) ** 2 * times[1] * inner**2,
        places * times[2] * inner * outputs,
      ]
      inputs = outputs
  mask = frames * size**2 * inputs * num_classes
  # The input of a network after a frozen one has no gradient: first projection and convolution.
  first = sum(branch[:2])
  return {
    "universal": 2.0 * (3 * (sum(trunk) + sum(branch)) - trunk[0]),
    "specific": 2.0 * (sum(trunk) + sum(branch) + 3 * sum(branch) - first + 2 * mask),
    "joint": 2.0 * (3 * (sum(trunk) + 2 * sum(branch) + mask) - trunk[0]),
  }


def count_taps(size: int, extent: int, stride: int) -> int:
  """Counts the kernel taps that fall on a row of `size`, not on its border of zeros."""
  first = range(-(extent // 2), size - extent // 2, stride)
  return sum(0 <= start + k < size for start in first for k in range(extent))


def main() -> None:
  by_xla, by_hand = analysed(**PAPER), counted(**PAPER)
  print(f"{'stage':10} {'XLA':>16} {'by hand':>16} {'ratio':>7} {'of stage 1':>11}")
  for name, count in by_xla.items():
    print(
      f"{name:10} {count / 1e9:10.1f} GFLOP {by_hand[name] / 1e9:10.1f} GFLOP"
      f" {count / by_hand[name]:7.3f} {count / by_xla['universal']:11.3f}"
    )


if __name__ == "__main__":
  main()
