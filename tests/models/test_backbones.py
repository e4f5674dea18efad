"""Tests of backbones: published parameter counts, shapes and invalid fields."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.models import resnet, trn
from u2s_jax.models.backbones import BACKBONES, build_backbone
from u2s_jax.models.layers import Layers
from u2s_jax.models.resnet import temporal_shift
from u2s_jax.models.u2s import U2S
from u2s_jax.runtime.errors import UserError

FLAT, FLAT_BASIC = ((1, 1, 1, 1),) * 2, ((1, 1, 1),) * 2
# SlowOnly's inflation, as in mmaction2: the first convolution of groups 2 and 3 sees 3 frames.
SLOW = ((3, 1, 1, 1),) * 2
SLOW_MORE = 2 * (512 * 256 + 5 * 1024 * 256 + 1024 * 512 + 2 * 2048 * 512)
# ECO-Lite with 1000 classes, layer by layer: convolutions, two parameters per channel of a norm.
INCEPTION_3A = 192 * (64 + 64 + 64 + 32) + 9 * (64 * 64 + 64 * 96 + 96 * 96)
INCEPTION_3B = 256 * (64 + 64 + 64 + 64) + 9 * (64 * 96 + 64 * 96 + 96 * 96)
ECO_CONVS = (
  49 * 3 * 64 + 64 * 64 + 9 * 64 * 192 + INCEPTION_3A + INCEPTION_3B + 320 * 64 + 9 * 64 * 96
  + 27 * (96 * 128 + 2 * 128 * 128 + 2 * 128 * 256 + 3 * 256 * 256 + 2 * 256 * 512 + 3 * 512 * 512)
)  # fmt: skip
ECO_NORMS_2D = 64 + 64 + 192 + (4 * 64 + 2 * 96 + 32) + (3 * 64 + 3 * 96 + 64)  # to inception_3b
ECO_NORMS = ECO_NORMS_2D + 64 + 96
ECO_NORMS += 2 * 128 + (128 + 256) + 2 * 256 + (256 + 512) + 2 * 512 + 512
ECO = ECO_CONVS + 2 * ECO_NORMS + 513 * 1000
# BN-Inception with 1000 classes has 11,295,240 parameters in pretrainedmodels, whose convolutions
# have a bias per output channel, and a classifier of 1024 inputs.
BN_INCEPTION_CHANNELS = ECO_NORMS_2D + sum(
  single + sum(middle) + double[0] + 2 * double[1] + projection
  for single, middle, double, projection, _ in trn.TOP.values()
)
BN_INCEPTION = 11_295_240 - 1025 * 1000 - BN_INCEPTION_CHANNELS
# MultiScale TRN of 8 frames: 1024 -> 256, an MLP for 2 to 8 frames, one classifier for all.
RELATIONS = sum(256 * 256 * k + 256 for k in range(2, 9))
TRN = BN_INCEPTION + 1025 * 256 + RELATIONS + 174 * (7 * 256 + 1)
CNN3D_CHANNELS = (32, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512)
CNN3D = (
  75 * 3 * 32 + sum(27 * a * b for a, b in itertools.pairwise(CNN3D_CHANNELS))
  + 2 * sum(CNN3D_CHANNELS) + 513 * 174
)  # fmt: skip
# 114 million in VideoPrism's README: 12 + 4 blocks, patches, embeddings, two norms. BN and the
# classifier come on top.
VIDEOPRISM_BLOCK = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
VIDEOPRISM = 16 * VIDEOPRISM_BLOCK + (3 * 18 * 18 + 1) * 768 + (256 + 16) * 768 + 4 * 768
VIDEOPRISM += 2 * 768 + 769 * 174
# torchvision's and timm's model lists; I3D with 400 classes as in DeepMind's checkpoint.
KNOWN = [
  ("resnet", {"depth": 18, "temporal": FLAT_BASIC}, 1000, 11_689_512),
  ("resnet", {"depth": 34, "temporal": FLAT_BASIC}, 1000, 21_797_672),
  ("resnet", {"temporal": FLAT}, 1000, 25_557_032),
  ("resnet", {"temporal": FLAT, "strided": "1x1"}, 1000, 25_557_032),
  ("resnet", {"temporal": SLOW}, 1000, 25_557_032 + SLOW_MORE),
  ("resnet", {"depth": 101, "temporal": FLAT}, 1000, 44_549_160),
  ("resnet", {"depth": 152, "temporal": FLAT}, 1000, 60_192_808),
  ("tsm_resnet", {"temporal": FLAT}, 1000, 25_557_032),
  ("preact_resnet", {"temporal": FLAT}, 1000, 25_549_352),
  ("eco_lite", {}, 1000, ECO),
  ("inception_i3d", {}, 400, 12_689_984),
  ("r3d_18", {}, 400, 33_371_472),
  ("mc3_18", {}, 400, 11_695_440),
  ("r2plus1d_18", {}, 400, 31_505_325),
  ("s3d", {}, 400, 8_320_048),
  ("trn", {}, 174, TRN),
  ("cnn3d", {}, 174, CNN3D),
  ("videoprism", {}, 174, VIDEOPRISM),
]


SMALL_VIDEOPRISM = {"width": 16, "heads": 2, "spatial_blocks": 2, "temporal_blocks": 2}


def init_one_pass(name, fields, classes, shape):
  """Returns the shapes of outputs and parameters."""
  model, video = U2S(classes, build_backbone(name, **fields)), jnp.zeros(shape)
  outputs, variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), video, method=U2S.one_pass)
  )
  return outputs, variables["params"]


@pytest.mark.parametrize(("name", "fields", "classes", "expected"), KNOWN)
def test_parameter_counts(name, fields, classes, expected):
  _, params = init_one_pass(name, fields, classes, (1, 8, 64, 64, 3))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_covers_all_backbones():
  assert {name for name, *_ in KNOWN} == set(BACKBONES)


@pytest.mark.parametrize(
  ("name", "fields", "frames", "features"),
  [
    ("resnet", {"temporal": SLOW}, 4, (4, 7, 7, 2048)),
    ("resnet", {"temporal": FLAT_BASIC, "depth": 18}, 1, (1, 7, 7, 512)),
    ("preact_resnet", {"temporal": ((3, 3, 3),) * 2, "depth": 34}, 4, (4, 7, 7, 512)),
    ("tsm_resnet", {"temporal": FLAT}, 8, (8, 7, 7, 2048)),
    ("eco_lite", {}, 16, (4, 7, 7, 512)),
    ("inception_i3d", {}, 64, (8, 7, 7, 1024)),
    ("r2plus1d_18", {}, 16, (2, 14, 14, 512)),
    ("mc3_18", {}, 16, (16, 14, 14, 512)),
    ("s3d", {}, 64, (8, 7, 7, 1024)),
    ("trn", {}, 8, (8, 7, 7, 1024)),
    ("cnn3d", {}, 18, (18, 7, 7, 512)),
    ("videoprism", {}, 9, (9, 12, 12, 768)),
  ],
)
def test_last_feature_map(name, fields, frames, features):
  outputs, _ = init_one_pass(name, fields, 5, (1, frames, 224, 224, 3))
  assert outputs["universal_features"].shape == (1, *features)


# ResNets are compared with PyTorch; the others are checked for finite, non-negative features that
# depend on every frame of a clip.
@pytest.mark.parametrize(
  ("name", "fields"),
  [
    ("eco_lite", {}),
    ("inception_i3d", {}),
    ("s3d", {}),
    ("trn", {}),
    ("cnn3d", {"width": 4}),
    ("r3d_18", {"width": 4}),
    ("mc3_18", {"width": 4}),
    ("r2plus1d_18", {"width": 4}),
    ("videoprism", SMALL_VIDEOPRISM),
    ("videoprism", SMALL_VIDEOPRISM | {"temporal": "shared"}),
  ],
)
def test_features_depend_on_every_frame(name, fields):
  model, rng = U2S(2, build_backbone(name, **fields)), np.random.default_rng(0)
  shape = (1, 8, 32, 32, 3)
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros(shape), method=U2S.one_pass)
  )
  variables = jax.tree.map(
    # Kernels preserve the scale of their input; all other arrays are positive, as in norms.
    lambda x: (
      rng.normal(0, np.prod(x.shape[:-1]) ** -0.5, x.shape).astype(np.float32)
      if len(x.shape) > 1
      else np.ones(x.shape, np.float32)
    ),
    shapes,
  )
  videos = np.repeat(rng.normal(size=shape).astype(np.float32), 9, axis=0)
  videos[np.arange(8), np.arange(8)] += 1  # the last one is not changed
  run = jax.jit(lambda w, v: model.apply(w, v, method=U2S.one_pass)["universal_features"])
  features = np.asarray(run(variables, videos))
  assert np.isfinite(features).all() and (features >= 0).all() and (features > 0).any()
  for t in range(8):
    assert (features[t] != features[8]).any(), t


def test_relations_of_a_single_frame_raise():
  with pytest.raises(UserError, match="^data.num_frames: trn requires at least 2 frames"):
    init_one_pass("trn", {}, 2, (1, 1, 64, 64, 3))


def test_tuples_are_ordered_distinct_and_fixed():
  for length in range(2, 9):
    tuples = trn.choose_tuples(8, length)
    assert len(set(tuples)) == len(tuples) == (1 if length == 8 else 3)
    assert all(len(t) == length and sorted(set(t)) == list(t) for t in tuples)
  assert trn.choose_tuples(8, 3) == trn.choose_tuples(8, 3)


def test_temporal_shift_by_hand():
  video = np.arange(3 * 17, dtype=np.float32).reshape(1, 3, 1, 1, 17) + 1
  shifted = np.asarray(temporal_shift(jnp.asarray(video), 8))
  np.testing.assert_array_equal(shifted[0, :, 0, 0, :2], [*video[0, 1:, 0, 0, :2], [0, 0]])
  np.testing.assert_array_equal(shifted[0, :, 0, 0, 2:4], [[0, 0], *video[0, :2, 0, 0, 2:4]])
  np.testing.assert_array_equal(shifted[..., 4:], video[..., 4:])


@pytest.mark.parametrize(
  ("depth", "shifts"), [(50, 3 + 4 + 6 + 3), (101, 2 + 2 + 12 + 2)]
)  # every other one of 3, 4, 23 and 3 blocks
def test_tsm_shifts_every_other_block_of_deep_networks(depth, shifts, monkeypatch):
  calls = []
  monkeypatch.setattr(resnet, "temporal_shift", lambda video, divisor: calls.append(1) or video)
  model = U2S(2, build_backbone("tsm_resnet", temporal=FLAT, depth=depth, width=2))
  video = jnp.zeros((1, 2, 32, 32, 3))
  jax.eval_shape(lambda: model.init(jax.random.key(0), video, method=U2S.one_pass))
  assert len(calls) == shifts


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("vgg", {}, "model.backbone.name: 'vgg' is not one of preact_resnet, resnet, tsm_resnet, "),
    ("resnet", {}, "model.backbone.temporal: not set; resnet requires it"),
    ("eco_lite", {"depth": 18}, "model.backbone.depth: unknown field; eco_lite has no fields"),
    ("resnet", {"preactivation": True, "temporal": FLAT}, "model.backbone.preactivation: unknown"),
    ("resnet", {"temporal": FLAT, "depth": 5}, "model.backbone.depth: 5 is not one of 14, 18, "),
    ("resnet", {"temporal": FLAT_BASIC}, "model.backbone.temporal: .* must be 4 odd numbers for"),
    ("resnet", {"temporal": ((2, 1, 1, 1),) * 2}, "model.backbone.temporal: .* must be 4 odd"),
    ("resnet", {"temporal": FLAT, "strided": "2x2"}, "model.backbone.strided: '2x2' is not one"),
    ("preact_resnet", {"temporal": FLAT, "strided": "1x1"}, "model.backbone.strided: '1x1' req"),
    ("resnet", {"temporal": FLAT_BASIC, "depth": 18, "strided": "1x1"}, "model.backbone.strided: "),
    ("resnet", {"temporal": FLAT, "shift": 8}, "model.backbone.shift: unknown field; resnet has"),
    ("resnet", {"temporal": FLAT, "strides": (1, 2, 2, 0)}, "model.backbone.strides: .* must"),
    ("resnet", {"temporal": FLAT, "width": 0}, "model.backbone.width: 0 must be >= 1"),
    ("r3d_18", {"width": 1}, "model.backbone.width: 1 must be >= 2"),
    ("cnn3d", {"width": 0}, "model.backbone.width: 0 must be >= 1"),
    ("videoprism", {"heads": 5}, "model.backbone.heads: 5 must divide width = 768"),
    ("videoprism", {"frames": 0}, "model.backbone.frames: 0 must be an integer >= 1"),
    ("videoprism", {"temporal": "none"}, "model.backbone.temporal: 'none' is not one of"),
    (".x:Net", {}, "model.backbone.name: '.x:Net' cannot be imported"),
    ("no_package:Net", {}, "model.backbone.name: 'no_package:Net' cannot be imported"),
    ("dataclasses:Net", {}, "model.backbone.name: 'dataclasses:Net' cannot be imported"),
    ("dataclasses:replace", {}, "model.backbone.name: 'dataclasses:replace' is not a dataclass"),
    ("u2s_jax.views:VIEWS", {}, "model.backbone.name: 'u2s_jax.views:VIEWS' is not a dataclass"),
    ("u2s_jax.stages:Stage", {}, "model.backbone.name: 'u2s_jax.stages:Stage' must have a field"),
  ],
)
def test_rejects_invalid_fields(name, fields, message):
  with pytest.raises(ValueError, match=f"^{message}"):
    build_backbone(name, **fields)


def test_rejects_an_unknown_convolution_method():
  with pytest.raises(UserError, match="^model.convolution: 'fft' is not one of"):
    Layers(convolution="fft")
