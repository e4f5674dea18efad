"""Every file in configs/: its networks' sizes, and that its steps can be traced."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax import evaluate, optimizer, settings, state, steps

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Parameters with 174 classes: of the one-pass model, and of trunk, both networks and mask network.
# Where they come from: `test_u2s.py` (Table III) and `test_backbones.py`.
PARAMETERS = {
  "cars": (23_856_878, 46_627_740),
  "cars_mini": (23_864_558, 46_640_540),
  "custom": (63_702_766, 126_319_516),
  "demo": (342_134, 720_420),
  "dogs": (23_856_878, 46_627_740),
  "hmdb51": (63_702_766, 126_319_516),
  "hmdb51:flow": (63_724_718, 126_341_468),
  "sthv2": (63_702_766, 126_319_516),
  "sthv2_eco": (37_382_190, 74_173_404),
  "sthv2_flow": (63_724_718, 126_341_468),
  "sthv2_tsm": (23_864_558, 46_640_540),
  "sthv2_tsm:16f": (23_864_558, 46_640_540),
  "tests": (30_392, 71_142),
  "ucf101": (63_702_766, 126_319_516),
  "ucf101:flow": (63_724_718, 126_341_468),
  "ucf101_i3d": (12_458_334, 23_469_644),
}
CONFIGS = {path.stem for path in (ROOT / "configs").glob("*.py")}


def config_of(name):
  stem, _, argument = name.partition(":")
  return importlib.import_module(f"configs.{stem}").get_config(*[argument] * bool(argument))


def test_no_config_is_missing():
  assert {name.partition(":")[0] for name in PARAMETERS} == CONFIGS


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_step_of_a_config_can_be_traced(name):
  config = config_of(name)
  model = settings.build_model(config, 174)
  tx = optimizer.sgd(config.optimizer.momentum, config.optimizer.weight_decay)
  pixels = {key: tuple(config.model[key]) for key in settings.PIXEL_FIELDS}
  masks = {"selection": config.csm.selection, "guide": config.csm.guide}
  size, channels = config.data.crop_size, settings.input_channels(config)
  video = (2, config.data.num_frames, size, size, channels)
  batch = {
    "video": jax.ShapeDtypeStruct(video, jnp.uint8),
    "label": jax.ShapeDtypeStruct(video[:1], jnp.int32),
    "mask": jax.ShapeDtypeStruct(video[:1], jnp.bool_),
  }
  current, counts = None, []
  for stage in settings.schedule(config):
    current = jax.eval_shape(
      lambda previous, stage=stage: state.begin(
        model, stage, tx, jax.random.key(0), (1, *video[1:]), previous
      ),
      current,
    )
    counts.append(sum(leaf.size for leaf in jax.tree.leaves(current.params)))
    step = steps.make_train_step(
      model, stage, tx, regularizer_weight=config.regularizer_weight, **pixels, **masks
    )
    after, metrics = jax.eval_shape(step, current, batch, 1e-3)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, current)
    assert metrics["loss"].shape == ()
  assert (counts[0], counts[2]) == PARAMETERS[name]
  columns = evaluate.mirror_columns(config.eval.views, 174, tuple(config.data.flip_label_map))
  step = steps.make_eval_step(model, stage, mirror_columns=columns, **pixels, **masks)
  views = jax.ShapeDtypeStruct((2, len(columns), *video[1:]), jnp.uint8)
  scores = jax.eval_shape(step, current, views, batch["label"])
  assert {key: value.shape for key, value in scores.items()} == {
    key: (2, 174) for key in steps.PREDICTIONS
  }
  # The CSM is made of non-negative features.
  features = jax.eval_shape(
    steps.make_sparsity_step(model, **pixels), current, batch | {"video": views}
  )
  assert features[0].shape[0] == 174 and np.issubdtype(features[0].dtype, np.integer)
