"""FLOPs of a training step of each stage, by XLA's cost analysis, over stage 1's.

  python -m benchmarks.step_cost

Lowered at the paper's size (ResNet-50, 18 frames of 224 x 224, 174 classes), never run.
"""

import jax
import jax.numpy as jnp

from u2s_jax import optimizer, stages, state, steps
from u2s_jax.models.backbones import build
from u2s_jax.models.u2s import U2S

BATCH = (1, 18, 224, 224, 3)


def stage_flops() -> dict[str, float]:
  """FLOPs of one training step on one clip, by stage."""
  model = U2S(174, build("preact_resnet", temporal=((3, 3, 3, 3), (3, 3, 3, 1))))
  tx = optimizer.sgd(momentum=0.9, weight_decay=1e-4)
  duration = {"learning_rate": 1e-3, "epochs": 1.0}
  schedule = stages.schedule(
    {name: duration for name in ("universal", "specific", "joint")},
    attention="mask",
    specific_init="universal",
    control=False,
  )
  batch = {
    "video": jax.ShapeDtypeStruct(BATCH, jnp.uint8),
    "label": jax.ShapeDtypeStruct(BATCH[:1], jnp.int32),
    "mask": jax.ShapeDtypeStruct(BATCH[:1], jnp.bool_),
  }
  flops = {}
  previous = None
  for stage in schedule:
    previous = jax.eval_shape(
      lambda previous, stage=stage: state.begin(
        model, stage, tx, jax.random.key(0), BATCH, previous
      ),
      previous,
    )
    step = steps.make_train_step(
      model,
      stage,
      tx,
      regularizer_weight=0.5,
      pixel_mean=(0.5, 0.5, 0.5),
      pixel_std=(0.5, 0.5, 0.5),
    )
    flops[stage.name] = jax.jit(step).lower(previous, batch, 1e-3).cost_analysis()["flops"]
  return flops


if __name__ == "__main__":
  measured = stage_flops()
  for name, count in measured.items():
    print(f"{name:10} {count / 1e9:8.1f} GFLOP a clip  {count / measured['universal']:.3f}")
