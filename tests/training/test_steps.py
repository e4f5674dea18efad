"""Training steps: what they train, what they leave alone, and that devices change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import step_cost
from tests.small import CSM, NEIGHBOURS, NETWORK, PIXELS, STAGES, TEMPORAL, TX, batch, begin
from u2s_jax import regularizer, state
from u2s_jax.errors import UserError
from u2s_jax.models.backbones import build
from u2s_jax.models.network import Network
from u2s_jax.models.u2s import U2S
from u2s_jax.training import steps


def train_step(stage, network=NETWORK, tx=TX, **fields):
  return jax.jit(steps.make_train_step(network, stage, tx, regularizer_weight=0.5, **fields))


@pytest.mark.parametrize("stage", ["universal", "specific", "joint"])
def test_one_and_eight_devices_give_the_same_losses(trained, stage):
  np.testing.assert_allclose(trained[8][stage][1], trained[1][stage][1], atol=1e-4)


def test_frozen_networks_stay_bit_for_bit(trained):
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


def test_only_the_named_groups_and_heads_learn(trained):
  parts = ("universal/head", "specific/group3", "mask")
  stage = dataclasses.replace(STAGES[2], trainable=parts)
  before = trained[1]["joint"][0]
  learning = state.learning(before.params, parts)
  assert {name: sorted(tree) for name, tree in learning.items()} == {
    "universal": ["head"],
    "specific": ["group3"],
    "mask": ["kernel"],
  }
  first = before.replace(momentum=TX.init(learning))
  network = dataclasses.replace(NETWORK, model=NETWORK.model.clone(dropout=0.5))
  example = {name: jnp.asarray(value) for name, value in batch(3).items()}
  last, metrics = train_step(stage, network)(first, example, 0.1, NEIGHBOURS)
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), first.params, last.params)
  assert all(jax.tree.leaves(state.learning(moved, parts)))
  kept = state.with_learned(moved, jax.tree.map(lambda _: False, state.learning(moved, parts)))
  assert not any(jax.tree.leaves(kept))
  # Statistics of BN stay where only a part learns; channels are dropped all the same.
  jax.tree.map(np.testing.assert_array_equal, first.batch_stats, last.batch_stats)
  without = train_step(stage)(first, example, 0.1, NEIGHBOURS)[1]
  for name in ("loss_universal", "loss_specific"):
    assert metrics[name] != without[name]


def test_dropped_channels_do_not_choose_the_mask(trained):
  """Masks read undropped features, so the masks are those of a network that drops nothing."""
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

  whole, guesses = outputs(0.0, 0), []
  for key in range(3):
    dropped = outputs(0.5, key)
    np.testing.assert_allclose(dropped["mask"], whole["mask"], rtol=1e-5, atol=1e-6)
    guesses.append(jnp.argmax(dropped["universal"], -1) == jnp.argmax(whole["universal"], -1))
  assert not np.all(guesses)  # what is dropped changes the predictions


def test_classifiers_have_rates_of_their_own(trained):
  """SGD's rule written out: rate times factor on the classifier, the plain rate on all else."""
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
  # The momentum knows nothing of rates, as in PyTorch.
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    plain.momentum,
    last.momentum,
  )


def test_classifiers_begin_with_a_deviation_of_their_own():
  def kernels(stage, previous=None):
    params = begin(stage, previous).params
    return {name: tree["head"]["kernel"] for name, tree in params.items() if "head" in tree}

  narrow = dataclasses.replace(STAGES[0], classifier_deviation=0.001)
  plain, small = kernels(STAGES[0])["universal"], kernels(narrow)["universal"]
  assert plain.std() == pytest.approx(0.01, rel=0.3) and small.std() == pytest.approx(1e-3, rel=0.3)
  # Of classifiers that begin in the stage: the universal one stays as it is.
  one_pass = begin(STAGES[0])
  later = dataclasses.replace(STAGES[1], init="random", classifier_deviation=0.0)
  both = kernels(later, one_pass)
  np.testing.assert_array_equal(both["universal"], plain)
  assert not both["specific"].any()


def test_a_part_that_is_not_there_is_named_with_those_that_are(trained):
  with pytest.raises(UserError, match="'universal/fc' is not there; universal has universal/g"):
    state.learning(trained[1]["joint"][0].params, ("trunk", "universal/fc"))


def test_optimizer_state_only_for_what_is_trained(trained):
  def names(current):
    trees = [t for t in jax.tree.leaves(current.momentum, is_leaf=lambda x: isinstance(x, dict))]
    return set().union(*(tree.keys() for tree in trees if isinstance(tree, dict)))

  assert names(trained[1]["universal"][0]) == {"trunk", "universal"}
  assert names(trained[1]["specific"][0]) == {"specific", "mask"}
  assert names(trained[1]["joint"][0]) == {"trunk", "universal", "specific", "mask"}
  assert "specific" not in trained[1]["universal"][2].params


def test_the_specific_network_starts_as_the_universal_one(trained):
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
  # The trunk runs once, and frozen networks only forward: at 18 x 224 x 224 with ResNet-50.
  # Within 3 % of the count by hand, which has nothing backward in trunk and UN in stage 2.
  flops, by_hand = (count(**step_cost.PAPER) for count in (step_cost.analysed, step_cost.counted))
  assert flops["specific"] <= 1.2 * flops["universal"]
  assert flops["joint"] <= 1.9 * flops["universal"]
  for stage, count in flops.items():
    np.testing.assert_allclose(count, by_hand[stage], rtol=0.03, err_msg=stage)


def test_accumulated_gradients_are_the_mean_of_the_parts(trained):
  # Parts are clips 0, 2, 4, ... and 1, 3, 5, ...: every device keeps its own.
  stage, (first, _, _) = STAGES[2], trained[1]["joint"]
  example = batch(7, size=8) | {"valid": np.array([True] * 5 + [False, True, False])}
  example = {name: jnp.asarray(value) for name, value in example.items()}
  double = train_step(stage, tx=optax.identity(), accumulate_steps=2)
  after, metrics = double(first, example, 1.0, NEIGHBOURS)
  single = train_step(stage, tx=optax.identity())
  current, shares, moved = first, (4 / 6, 2 / 6), []
  for offset in (0, 1):
    part = {name: value[offset::2] for name, value in example.items()}
    # At the same parameters, with the BN averages of the part before.
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
  assert once["loss_bridge"] == plain["loss_bridge"]  # the mask network's has no such classifier
  video = (first.params, first.batch_stats, first.csm, example["video"])
  # Nothing is dropped in tests.
  ours, theirs = (
    jax.jit(lambda *args, run=run: run(*args)[0])(*video) for run in (network, NETWORK)
  )
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_half_of_the_channels_are_dropped_and_the_others_doubled():
  drop = (
    U2S(3, NETWORK.model.backbone, dropout=0.5).bind({}, rngs={"dropout": jax.random.key(0)}).drop
  )
  out = np.asarray(drop(jnp.ones((64, 2, 3, 3, 16)), deterministic=False))
  assert {*np.unique(out)} == {0.0, 2.0}
  np.testing.assert_array_equal(out, np.broadcast_to(out[:, :1, :1, :1], out.shape))  # all of one
  assert 0.4 < (out[:, 0, 0, 0] == 0).mean() < 0.6


def test_rematerialisation_changes_nothing_but_memory(trained):
  stage, (first, _, _) = STAGES[2], trained[1]["joint"]
  example = {name: jnp.asarray(value) for name, value in batch(7, size=16).items()}
  backbone = build("preact_resnet", temporal=TEMPORAL, depth=14, width=2, remat=True)
  twice = Network(U2S(NETWORK.model.num_classes, backbone), **PIXELS)
  results, flops = [], []
  for network in (NETWORK, twice):
    compiled = train_step(stage, network).lower(first, example, 0.01, NEIGHBOURS).compile()
    results.append(compiled(first, example, 0.01, NEIGHBOURS))
    flops.append(compiled.cost_analysis()["flops"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *results)
  assert flops[1] > 1.1 * flops[0]  # the forward pass is there twice


def test_the_convolutions_that_gpus_compile_change_no_loss(trained, monkeypatch):
  first = trained[1]["joint"][0]
  example = {name: jnp.asarray(value) for name, value in batch(3).items()}
  _, metrics = train_step(STAGES[2])(first, example, 0.1, NEIGHBOURS)

  def as_for_gpus(*operands, cuda=None, default=None, **_):
    return (cuda or default)(*operands)

  monkeypatch.setattr(jax.lax, "platform_dependent", as_for_gpus)
  _, others = train_step(STAGES[2])(first, example, 0.1, NEIGHBOURS)
  assert metrics.keys() == others.keys()
  for name, value in metrics.items():
    np.testing.assert_allclose(others[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
