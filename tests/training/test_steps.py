"""Tests of training steps: trained and frozen parts, losses, and independence of devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import step_cost
from tests.small import (
  CSM,
  NEIGHBOURS,
  NETWORK,
  OPTIONS,
  PIXELS,
  STAGES,
  TEMPORAL,
  TX,
  batch,
  begin,
)
from u2s_jax import regularizer
from u2s_jax.models.backbones import build_backbone
from u2s_jax.models.layers import Layers
from u2s_jax.models.network import Network
from u2s_jax.models.u2s import U2S
from u2s_jax.run import state
from u2s_jax.runtime.errors import UserError
from u2s_jax.training import steps

LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]]))
LABELS = jnp.array([0, 2, 1])


def train_step(stage, network=NETWORK, tx=TX, **fields):
  return jax.jit(steps.make_train_step(network, stage, tx, dataclasses.replace(OPTIONS, **fields)))


@pytest.mark.parametrize("stage", ["universal", "specific", "joint"])
def test_one_and_eight_devices_give_the_same_losses(trained, stage):
  np.testing.assert_allclose(trained[8][stage][1], trained[1][stage][1], atol=1e-4)


def test_frozen_networks_are_bitwise_unchanged(trained):
  first, _, last = trained[8]["specific"]
  for name in ("trunk", "universal"):
    for collection in ("params", "batch_stats"):
      jax.tree.map(
        np.testing.assert_array_equal,
        getattr(first, collection)[name],
        getattr(last, collection)[name],
      )
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first.params, last.params)
  assert all(jax.tree.leaves(moved["specific"])) and all(jax.tree.leaves(moved["mask"]))


def test_trains_only_the_trainable_groups_and_heads(trained):
  parts = ("universal/head", "specific/group3", "mask")
  stage = dataclasses.replace(STAGES[2], trainable=parts)
  before = trained[1]["joint"][0]
  trainable = state.select_trainable(before.params, parts)
  assert {name: sorted(tree) for name, tree in trainable.items()} == {
    "universal": ["head"],
    "specific": ["group3"],
    "mask": ["kernel"],
  }
  first = before.replace(momentum=TX.init(trainable))
  network = dataclasses.replace(NETWORK, model=NETWORK.model.clone(dropout=0.5))
  example = {name: jnp.asarray(value) for name, value in batch(3).items()}
  last, metrics = train_step(stage, network)(first, example, 0.1, NEIGHBOURS)
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first.params, last.params)
  assert all(jax.tree.leaves(state.select_trainable(moved, parts)))
  frozen = state.merge_params(
    moved, jax.tree.map(lambda _: False, state.select_trainable(moved, parts))
  )
  assert not any(jax.tree.leaves(frozen))
  # BN statistics of partly trainable subnetworks are frozen, but channels are dropped.
  jax.tree.map(np.testing.assert_array_equal, first.batch_stats, last.batch_stats)
  without_dropout = train_step(stage)(first, example, 0.1, NEIGHBOURS)[1]
  for name in ("loss_universal", "loss_specific"):
    assert metrics[name] != without_dropout[name]


def test_dropout_does_not_change_the_masks(trained):
  """Masks are computed and selected from features without dropout."""
  first = trained[1]["joint"][0]
  heads = {name: dict(tree) for name, tree in first.params.items()}
  kernel = np.random.default_rng(0).normal(size=heads["universal"]["head"]["kernel"].shape)
  heads["universal"]["head"] = heads["universal"]["head"] | {"kernel": jnp.float32(kernel)}
  example = {name: jnp.asarray(value) for name, value in batch(3).items()}

  def outputs(dropout, key):
    network = dataclasses.replace(NETWORK, model=NETWORK.model.clone(dropout=dropout))
    train = ("trunk", "universal", "specific", "mask")
    call = lambda k: network(  # noqa: E731
      heads, first.batch_stats, first.csm, example["video"], train=train, key=k
    )
    return jax.jit(call)(jax.random.key(key))[0]

  plain, unchanged = outputs(0.0, 0), []
  for key in range(3):
    dropped = outputs(0.5, key)
    np.testing.assert_allclose(dropped["mask"], plain["mask"], rtol=1e-5, atol=1e-6)
    unchanged.append(jnp.argmax(dropped["universal"], -1) == jnp.argmax(plain["universal"], -1))
  assert not np.all(unchanged)  # dropout does change predictions


def test_scales_the_learning_rate_of_classifiers(trained):
  """The update of kernel and bias is multiplied by their factors, all others are unchanged."""
  stage, first = STAGES[0], trained[1]["universal"][0]
  example = {name: jnp.asarray(value) for name, value in batch(3).items()}
  plain, _ = train_step(stage)(first, example, 0.1)
  faster = dataclasses.replace(stage, classifier_rates=(5.0, 10.0))
  last, _ = train_step(faster)(first, example, 0.1)
  moved = [jax.tree.map(jnp.subtract, end.params, first.params) for end in (plain, last)]
  for leaf, factor in (("kernel", 5), ("bias", 10)):
    slow, fast = (
      tree["universal"].pop("head")[leaf] if leaf == "bias" else tree["universal"]["head"][leaf]
      for tree in moved
    )
    np.testing.assert_allclose(fast, factor * slow, rtol=1e-4, atol=1e-7)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), *moved)
  # The momentum does not depend on the rates, as in PyTorch.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    plain.momentum,
    last.momentum,
  )


def test_scales_the_initial_deviation_of_classifiers():
  def kernels(stage, previous=None):
    params = begin(stage, previous).params
    return {name: tree["head"]["kernel"] for name, tree in params.items() if "head" in tree}

  narrow = dataclasses.replace(STAGES[0], classifier_deviation=0.001)
  plain, small = kernels(STAGES[0])["universal"], kernels(narrow)["universal"]
  assert plain.std() == pytest.approx(0.01, rel=0.3) and small.std() == pytest.approx(1e-3, rel=0.3)
  # Only of classifiers that are new in the stage: the universal one is unchanged.
  one_pass = begin(STAGES[0])
  later = dataclasses.replace(STAGES[1], init="random", classifier_deviation=0.0)
  both = kernels(later, one_pass)
  np.testing.assert_array_equal(both["universal"], plain)
  assert not both["specific"].any()


def test_unknown_part_is_reported_with_the_existing_ones(trained):
  with pytest.raises(UserError, match="'universal/fc' does not exist; universal has universal/g"):
    state.select_trainable(trained[1]["joint"][0].params, ("trunk", "universal/fc"))


def test_optimizer_state_contains_trained_parts_only(trained):
  def names(current):
    trees = [t for t in jax.tree.leaves(current.momentum, is_leaf=lambda x: isinstance(x, dict))]
    return set().union(*(tree.keys() for tree in trees if isinstance(tree, dict)))

  assert names(trained[1]["universal"][0]) == {"trunk", "universal"}
  assert names(trained[1]["specific"][0]) == {"specific", "mask"}
  assert names(trained[1]["joint"][0]) == {"trunk", "universal", "specific", "mask"}
  assert "specific" not in trained[1]["universal"][2].params


def test_specific_network_starts_with_the_weights_of_the_universal_one(trained):
  first = trained[1]["specific"][0]
  before = trained[1]["universal"][2]
  jax.tree.map(np.testing.assert_array_equal, first.params["specific"], before.params["universal"])


def test_losses_of_the_joint_stage_add_up(trained):
  current = trained[1]["joint"][0]
  example = {name: jnp.asarray(value) for name, value in batch(3).items()}
  _, metrics = train_step(STAGES[2])(current, example, 0.1, NEIGHBOURS)
  terms = sum(metrics[f"loss_{name}"] for name in ("universal", "bridge", "specific"))
  expected = regularizer.category_regularizer(current.params["mask"]["kernel"], CSM)
  np.testing.assert_allclose(metrics["regularizer"], expected, atol=1e-6)
  np.testing.assert_allclose(metrics["loss"], terms + 0.5 * expected, rtol=1e-6)


def test_later_stages_cost_little_more():
  # At 18 x 224 x 224 with ResNet-50. The trunk runs once, and frozen networks only forward: within
  # 3 % of the count by hand, which has no backward pass of trunk and UN in stage 2.
  flops, by_hand = (count(**step_cost.PAPER) for count in (step_cost.analysed, step_cost.counted))
  assert flops["specific"] <= 1.2 * flops["universal"]
  assert flops["joint"] <= 1.9 * flops["universal"]
  for stage, count in flops.items():
    np.testing.assert_allclose(count, by_hand[stage], rtol=0.03, err_msg=stage)


def test_accumulated_gradients_are_the_mean_of_the_parts(trained):
  # The parts are clips 0, 2, 4, ... and 1, 3, 5, ..., so that every device keeps its clips.
  stage, (first, _, _) = STAGES[2], trained[1]["joint"]
  example = batch(7, size=8) | {"valid": np.array([True] * 5 + [False, True, False])}
  example = {name: jnp.asarray(value) for name, value in example.items()}
  double = train_step(stage, tx=optax.identity(), accumulate_steps=2)
  after, metrics = double(first, example, 1.0, NEIGHBOURS)
  single = train_step(stage, tx=optax.identity())
  current, shares, moved = first, (4 / 6, 2 / 6), []
  for offset in (0, 1):
    part = {name: value[offset::2] for name, value in example.items()}
    # With the same parameters, but the BN averages of the previous part.
    new, part_metrics = single(current, part, 1.0, NEIGHBOURS)
    moved.append((jax.tree.map(jnp.subtract, current.params, new.params), part_metrics))
    current = current.replace(batch_stats=new.batch_stats)
  sums = jax.tree.map(lambda a, b: shares[0] * a + shares[1] * b, *moved)
  got = jax.tree.map(jnp.subtract, first.params, after.params)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
  jax.tree.map(close, got, sums[0])
  jax.tree.map(close, after.batch_stats, current.batch_stats)
  for name in ("loss", "loss_bridge", "regularizer", "accuracy_universal"):
    close(metrics[name], sums[1][name])


def test_dropped_channels_are_a_function_of_seed_stage_and_step(trained):
  stage, (first, _, _) = STAGES[2], trained[1]["joint"]
  example = {name: jnp.asarray(value) for name, value in batch(7, size=8).items()}
  model = U2S(NETWORK.model.num_classes, NETWORK.model.backbone, dropout=0.5)
  network = dataclasses.replace(NETWORK, model=model)
  step = train_step(stage, network, seed=3)
  later = first.replace(step=first.step + 1)
  once, twice, other = (step(s, example, 0.0, NEIGHBOURS)[1] for s in (first, first, later))
  plain = train_step(stage)(first, example, 0.0, NEIGHBOURS)[1]
  for name in ("loss_universal", "loss_specific"):
    assert once[name] == twice[name] and len({float(x[name]) for x in (once, other, plain)}) == 3
  assert once["loss_bridge"] == plain["loss_bridge"]  # there is no dropout before the mask network
  video = (first.params, first.batch_stats, first.csm, example["video"])
  # Nothing is dropped in inference.
  actual, expected = (
    jax.jit(lambda *args, run=run: run(*args)[0])(*video) for run in (network, NETWORK)
  )
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_drops_half_of_the_channels_and_doubles_the_others():
  drop = (
    U2S(3, NETWORK.model.backbone, dropout=0.5).bind({}, rngs={"dropout": jax.random.key(0)}).drop
  )
  out = np.asarray(drop(jnp.ones((64, 2, 3, 3, 16)), deterministic=False))
  assert {*np.unique(out)} == {0.0, 2.0}
  np.testing.assert_array_equal(
    out, np.broadcast_to(out[:, :1, :1, :1], out.shape)
  )  # all of a channel
  assert 0.4 < (out[:, 0, 0, 0] == 0).mean() < 0.6


def test_rematerialization_does_not_change_results(trained):
  stage, (first, _, _) = STAGES[2], trained[1]["joint"]
  example = {name: jnp.asarray(value) for name, value in batch(7, size=16).items()}
  backbone = build_backbone(
    "preact_resnet", temporal=TEMPORAL, depth=14, width=2, layers=Layers(remat=True)
  )
  rematerialized = Network(U2S(NETWORK.model.num_classes, backbone), **PIXELS)
  results, flops = [], []
  for network in (NETWORK, rematerialized):
    compiled = train_step(stage, network).lower(first, example, 0.01, NEIGHBOURS).compile()
    results.append(compiled(first, example, 0.01, NEIGHBOURS))
    flops.append(compiled.cost_analysis()["flops"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *results)
  assert flops[1] > 1.1 * flops[0]  # the forward pass runs twice


def test_convolutions_of_gpus_give_the_same_losses(trained, monkeypatch):
  first = trained[1]["joint"][0]
  example = {name: jnp.asarray(value) for name, value in batch(3).items()}
  _, metrics = train_step(STAGES[2])(first, example, 0.1, NEIGHBOURS)

  def select_gpu(*operands, cuda=None, default=None, **_):
    return (cuda or default)(*operands)

  monkeypatch.setattr(jax.lax, "platform_dependent", select_gpu)
  _, gpu_metrics = train_step(STAGES[2])(first, example, 0.1, NEIGHBOURS)
  assert metrics.keys() == gpu_metrics.keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(gpu_metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def test_cross_entropy_is_the_mean_of_negative_log_probabilities():
  loss = steps.cross_entropy(LOGITS, LABELS, jnp.array([True, True, True]))
  np.testing.assert_allclose(loss, -np.log([0.5, 0.8, 0.6]).mean(), rtol=1e-6)


def test_cross_entropy_ignores_padding():
  logits = LOGITS.at[1].set(jnp.inf)
  loss = steps.cross_entropy(logits, jnp.array([0, -1, 1]), jnp.array([True, False, True]))
  np.testing.assert_allclose(loss, -np.log([0.5, 0.6]).mean(), rtol=1e-6)


def test_cross_entropy_is_zero_for_padding_only():
  assert steps.cross_entropy(LOGITS, LABELS, jnp.zeros(3, bool)) == 0


def test_cross_entropy_label_smoothing_mixes_label_and_uniform():
  loss = steps.cross_entropy(LOGITS[:1], LABELS[:1], jnp.array([True]), smoothing=0.3)
  # 0.7 for the label and 0.1 for every class: weights 0.8, 0.1, 0.1 of 0.5, 0.25, 0.25.
  np.testing.assert_allclose(loss, -(0.8 * np.log(0.5) + 0.2 * np.log(0.25)), rtol=1e-6)
