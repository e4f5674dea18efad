"""Every file in configs/: the size of its networks, and whether its steps can be traced."""

import functools
import importlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default, sthv2_tsm
from tests import config as tests_config
from u2s_jax.evaluation import inference
from u2s_jax.models.network import build_network
from u2s_jax.run import settings, state
from u2s_jax.stages import PREDICTIONS
from u2s_jax.training import steps
from u2s_jax.views import VIEWS

CLASSES = 174
ROOT = pathlib.Path(__file__).resolve().parent.parent
# Parameters with 174 classes: of the one-pass model, and of trunk, both networks and mask network.
# `test_u2s.py` (Table III) and `test_backbones.py` explain the numbers.
PARAMETERS = {
  "cars": (23_856_878, 46_627_740),
  "cars_mini": (23_864_558, 46_640_540),
  "custom": (63_702_766, 126_319_516),
  "custom:r2plus1d": (31_389_387, 60_937_997),
  "custom:s3d": (8_088_398, 15_403_004),
  "custom:small": (1_273_662, 2_605_548),
  "custom:videoprism": (115_091_118, 115_950_684),
  "demo": (342_134, 720_420),
  "dogs": (23_856_878, 46_627_740),
  "hmdb51": (63_702_766, 126_319_516),
  "hmdb51:flow": (63_724_718, 126_341_468),
  "sthv2": (63_702_766, 126_319_516),
  "sthv2_cnn3d": (23_381_646, 44_797_756),
  "sthv2_eco": (37_382_190, 74_173_404),
  "sthv2_flow": (63_724_718, 126_341_468),
  "sthv2_tsm": (23_864_558, 46_640_540),
  "sthv2_tsm:16f": (23_864_558, 46_640_540),
  "sthv2_tsm:authors": (23_864_558, 46_640_540),
  "sthv2_trn": (13_130_158, 25_834_524),
  "tests": (30_392, 71_142),
  "ucf101": (63_702_766, 126_319_516),
  "ucf101:flow": (63_724_718, 126_341_468),
  "ucf101_i3d": (12_458_334, 23_469_644),
}
CONFIGS = {path.stem for path in (ROOT / "configs").glob("[!_]*.py")} - {"default"}
PAPER = ("sthv2", "sthv2_flow", "ucf101", "hmdb51", "cars", "dogs")


def load_config(name):
  if name == "tests":
    return tests_config.get_config()
  stem, _, argument = name.partition(":")
  return importlib.import_module(f"configs.{stem}").get_config(*[argument] * bool(argument))


@pytest.mark.parametrize(("backbone", "other"), [("i3d", "ucf101_i3d"), ("tsm", "sthv2_tsm")])
def test_custom_uses_the_network_of_another_config(backbone, other):
  config, expected = load_config(f"custom:{backbone}"), load_config(other)
  assert config.model == expected.model and config.data.num_frames == expected.data.num_frames
  assert not config.data.flip and not config.data.flip_label_map
  with pytest.raises(
    ValueError, match="unknown variant; choose one of resnet50, small, tsm, i3d, "
  ):
    load_config("custom:c3d")


@pytest.mark.parametrize("start", ["tsm", "i3d", "r2plus1d", "s3d", "videoprism"])
def test_custom_start_trains_few_clips_with_a_frozen_trunk(start):
  config = load_config(f"custom:{start}")
  stages = settings.make_schedule(config)
  assert not any(part.startswith("trunk") for stage in stages for part in stage.trainable)
  assert [stage.epochs for stage in stages] == [10, 3, 5] and config.batch_size == 8


def test_every_config_is_tested():
  assert {name.partition(":")[0] for name in PARAMETERS} == CONFIGS | {"tests"}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_config_documents_its_command_and_uses_known_fields(name):
  module = importlib.import_module(f"configs.{name}")
  assert f"python main.py --config=configs/{name}.py" in module.__doc__
  assert "Expected" in module.__doc__ or name == "demo"
  # Every field is one of the default config's, or of another backbone.
  fields, known = (c.to_dict() for c in (module.get_config(), default.get_config()))
  for section in known:
    if isinstance(known[section], dict):
      assert fields[section].keys() - {"render"} == known[section].keys(), section
  assert fields.keys() == known.keys()


def network_key(config):
  """Identifies the network of a config: there are nine, and each is traced once."""
  return json.dumps([config.model.to_dict(), settings.count_channels(config)])


@functools.cache
def trace_steps(key, name):
  """Traces the steps of a config; returns the parameters of the one-pass model and of U2S."""
  config = load_config(name)
  for field in settings.PIXEL_FIELDS:
    config.model[field] = config.model[field] or (0.5,)  # () stands for the weights' own
  network = build_network(config, CLASSES)
  tx = steps.sgd(**config.optimizer)
  size, channels = config.data.crop_size, settings.count_channels(config)
  video = (2, config.data.num_frames, size, size, channels)
  batch = {
    "video": jax.ShapeDtypeStruct(video, jnp.uint8),
    "label": jax.ShapeDtypeStruct(video[:1], jnp.int32),
    "valid": jax.ShapeDtypeStruct(video[:1], jnp.bool_),
  }
  neighbours = jax.ShapeDtypeStruct((CLASSES, 5), jnp.int32)
  stages = settings.make_schedule(config)
  states = state.init_stages(network.model, stages, tx, (1, *video[1:]))
  counts = [sum(leaf.size for leaf in jax.tree.leaves(each.params)) for each in states]
  # The joint step runs and trains every part of the network; the others are parts of it.
  current, options = states[2], steps.StepOptions(config.regularizer_weight)
  step = steps.make_train_step(network, stages[2], tx, options)
  after, metrics = jax.eval_shape(step, current, batch, 1e-3, neighbours)
  assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, current)
  assert metrics["loss"].shape == ()
  mirrors = [tuple(range(CLASSES)) if mirrored else None for mirrored in VIEWS[config.eval.views]]
  views = jax.ShapeDtypeStruct((2, mirrors.count(None), *video[1:]), jnp.uint8)
  scores = jax.eval_shape(
    inference.make_score_step(network, mirrors), current, batch | {"video": views}
  )
  assert {name: value.shape for name, value in scores.items()} == {
    name: (2, CLASSES) for name in PREDICTIONS
  }
  # The CSM is computed from non-negative features.
  counted = jax.eval_shape(inference.make_sparsity_step(network), current, batch | {"video": views})
  assert len(counted["zeros"]) == 2 and np.issubdtype(counted["zeros"].dtype, np.integer)
  return counts[0], counts[2]


FIRST = {}  # by `network_key`: the first config that has this network


@pytest.mark.parametrize("name", PARAMETERS)
def test_steps_can_be_traced(name):
  key = network_key(load_config(name))
  assert trace_steps(key, FIRST.setdefault(key, name)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PAPER)
def test_values_of_the_paper(name):
  config = load_config(name)
  assert config.batch_size == 20
  assert config.data.num_frames == (1 if name in ("cars", "dogs") else 18)
  assert (config.data.short_edge, config.data.crop_size) == (240, 224)
  assert config.universal.learning_rate == config.specific.learning_rate == 1e-3
  assert config.universal.decay_epochs == config.specific.decay_epochs == (7, 12)
  assert config.joint.learning_rate == 1e-4 and config.regularizer_weight == 0.5
  assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)
  target = {"ucf101": 0.95, "cars": 0.95, "hmdb51": 0.9, "dogs": 0.9}.get(name, 0.85)
  assert config.csm.target_accuracy == target
  assert config.data.flip == (not name.startswith("sthv2"))
  assert config.data.multi_scale == () and config.data.color_jitter == (0, 0, 0, 0)
  assert config.eval.views == "10crop"


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_config_for_both_streams(name):
  rgb, flow = load_config(name), load_config(f"{name}:flow")
  assert (rgb.data.modality, flow.data.modality) == ("rgb", "flow")
  assert len(rgb.model.pixel_mean) == 3 and len(flow.model.pixel_mean) == 1
  assert flow.model.pixel_mean[0] * 255 == pytest.approx(128)  # no motion


def test_recipe_of_tsm_authors():
  """The command in TSM's README and its defaults: rates x 5 and x 10, deviation 0.001."""
  config = sthv2_tsm.get_config("authors")
  first = config.universal
  assert (first.learning_rate, first.epochs, config.batch_size) == (0.01, 50.0, 64)
  assert (first.classifier_rates, first.classifier_deviation) == ((5.0, 10.0), 0.001)
  assert config.data.offset_per_segment and config.optimizer.clip_norm == 20
  for name in ("specific", "joint"):  # the paper's
    assert (config[name].classifier_rates, config[name].classifier_deviation) == ((1.0, 1.0), 0.01)
  plain = sthv2_tsm.get_config()
  assert plain.universal.classifier_rates == (1.0, 1.0) and not plain.data.offset_per_segment
