"""A small network with its stages and batches, shared by tests."""

import jax
import numpy as np

from u2s_jax import stages
from u2s_jax.models.backbones import build_backbone
from u2s_jax.models.network import Network
from u2s_jax.models.u2s import U2S
from u2s_jax.run import state
from u2s_jax.training import steps
from u2s_jax.training.steps import StepOptions

CLASSES, FRAMES, SIZE = 4, 3, 32
PIXELS = {"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.2, 0.3, 0.4)}
TEMPORAL = ((3, 3, 3, 3), (3, 3, 3, 1))
MODEL = U2S(CLASSES, build_backbone("preact_resnet", temporal=TEMPORAL, depth=14, width=2))
NETWORK = Network(MODEL, **PIXELS)
TX = steps.sgd(momentum=0.9, weight_decay=1e-3)
CSM = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
OPTIONS = StepOptions(regularizer_weight=0.5)
NEIGHBOURS = np.array([[1], [0], [-1], [-1]], np.int32)  # `confusing_classes(CSM)`
STAGES = stages.make_stages(dict.fromkeys(stages.STAGES, {"learning_rate": 0.1, "epochs": 1.0}))


def batch(number, size=16):
  """Returns a training batch, random with `number` as the seed."""
  rng = np.random.default_rng(number)
  return {
    "video": rng.integers(0, 256, (size, FRAMES, SIZE, SIZE, 3), np.uint8),
    "label": rng.integers(0, CLASSES, size, np.int32),
    "valid": np.ones(size, bool),
  }


def begin(stage, previous=None, seed=0):
  """Returns the first state of a stage."""
  shape = (1, FRAMES, SIZE, SIZE, 3)
  return jax.jit(lambda p: state.init_stage(MODEL, stage, TX, jax.random.key(seed), shape, p))(
    previous
  )
