"""Steps: what they train, what they leave alone, and that devices change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from benchmarks import step_cost
from u2s_jax import csm, optimizer, regularizer, sharding, stages, state, steps
from u2s_jax.evaluate import compile_eval
from u2s_jax.models.backbones import build
from u2s_jax.models.u2s import U2S

CLASSES, FRAMES, SIZE = 4, 3, 32
PIXELS = {"pixel_mean": (0.5, 0.4, 0.3), "pixel_std": (0.2, 0.3, 0.4)}
TEMPORAL = ((3, 3, 3, 3), (3, 3, 3, 1))
MODEL = U2S(CLASSES, build("preact_resnet", temporal=TEMPORAL, depth=14, width=2))
TX = optimizer.sgd(momentum=0.9, weight_decay=1e-3)
CSM = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
SCHEDULE = stages.schedule(
  {name: {"learning_rate": 0.1, "epochs": 1.0} for name in ("universal", "specific", "joint")},
  attention="mask",
  specific_init="universal",
  control=False,
)


def batch(number, size=16):
  rng = np.random.default_rng(number)
  return {
    "video": rng.integers(0, 256, (size, FRAMES, SIZE, SIZE, 3), np.uint8),
    "label": rng.integers(0, CLASSES, size, np.int32),
    "mask": np.ones(size, bool),
  }


def begin(stage, previous=None, seed=0):
  shape = (1, FRAMES, SIZE, SIZE, 3)
  return jax.jit(lambda p: state.begin(MODEL, stage, TX, jax.random.key(seed), shape, p))(previous)


def train_step(stage):
  return steps.make_train_step(MODEL, stage, TX, regularizer_weight=0.5, **PIXELS)


def mesh_of(devices):
  return jax.make_mesh(
    (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
  )


def run(stage, first, mesh, count=10):
  """Losses of `count` steps on a mesh, and the last state."""
  replicated = sharding.replicated(mesh)
  current = jax.device_put(first, replicated)
  step = jax.jit(train_step(stage), out_shardings=(replicated, replicated))
  losses = []
  for number in range(count):
    current, metrics = step(current, sharding.global_batch(batch(number), mesh), 0.01)
    losses.append(metrics["loss"])
  return np.array(jax.device_get(losses)), jax.device_put(current, jax.devices()[0])


def sparsity_of(current, mesh):
  replicated = sharding.replicated(mesh)
  step = jax.jit(steps.make_sparsity_step(MODEL, **PIXELS), out_shardings=replicated)
  example = batch(0)
  example["video"] = example["video"][:, None]
  example["mask"][3:5] = False
  return jax.device_get(
    step(jax.device_put(current, replicated), sharding.global_batch(example, mesh))
  )


@pytest.fixture(scope="module")
def trained():
  """(first state, losses, last state) of every stage, on one device and on eight."""
  results, current = {1: {}, 8: {}}, None
  for stage in SCHEDULE:
    first = begin(stage, current)
    if stage.name == "specific":
      first = first.replace(csm=first.csm.replace(matrix=jnp.asarray(CSM)))
    for devices in (8, 1):
      losses, last = run(stage, first, mesh_of(devices))
      results[devices][stage.name] = (first, losses, last)
    current = last
  return results


@pytest.mark.parametrize("stage", ["universal", "specific", "joint"])
def test_one_and_eight_devices_give_the_same_losses(trained, stage):
  np.testing.assert_allclose(trained[8][stage][1], trained[1][stage][1], atol=1e-4)


def test_one_and_eight_devices_give_the_same_csm(trained):
  one_pass = trained[1]["universal"][2]
  results = [sparsity_of(one_pass, mesh_of(devices)) for devices in (1, 8)]
  matrices = []
  for zeros, responses in results:
    similarity = csm.similarity_matrix(csm.class_sparsity(zeros, responses))
    matrices.append(csm.binarize(similarity, csm.threshold(similarity, 1)))
  np.testing.assert_array_equal(*matrices)
  assert matrices[0].sum() > CLASSES


def test_sparsity_by_hand(trained):
  one_pass = trained[1]["universal"][2]
  zeros, responses = sparsity_of(one_pass, mesh_of(1))
  example = batch(0)
  video = steps.normalize(
    jnp.asarray(example["video"]), mean=PIXELS["pixel_mean"], std=PIXELS["pixel_std"]
  )
  features = MODEL.apply(
    {"params": one_pass.params, "batch_stats": one_pass.batch_stats}, video, method=U2S.one_pass
  )["universal_features"]
  real = np.ones(16, bool)
  real[3:5] = False
  for label in range(CLASSES):
    chosen = np.asarray(features)[real & (example["label"] == label)]
    np.testing.assert_allclose(
      zeros[label] / responses[label], (chosen == 0).mean((0, 1, 2, 3)), atol=0.02
    )


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
  current, example = trained[1]["joint"][0], batch(3)
  mesh = mesh_of(1)
  _, metrics = jax.jit(train_step(SCHEDULE[2]))(current, sharding.global_batch(example, mesh), 0.1)
  terms = sum(metrics[f"loss_{name}"] for name in ("universal", "bridge", "specific"))
  expected = regularizer.category_regularizer(current.params["mask"]["kernel"], CSM)
  np.testing.assert_allclose(metrics["regularizer"], expected, atol=1e-6)
  np.testing.assert_allclose(metrics["loss"], terms + 0.5 * expected, rtol=1e-6)


def test_views_are_averaged_and_mirrored_scores_booked_on_the_mirrored_class(trained):
  mesh = mesh_of(8)
  current = jax.device_put(trained[1]["joint"][2], sharding.replicated(mesh))
  example = batch(5, size=8)
  columns = np.array([1, 0, 2, 3])

  def scores(videos, mirror_columns):
    step = steps.make_eval_step(MODEL, SCHEDULE[2], mirror_columns=mirror_columns, **PIXELS)
    entries = {**example, "video": videos, "id": np.zeros((8, 64), np.uint8)}
    return jax.device_get(compile_eval(step, mesh)(current, sharding.global_batch(entries, mesh)))

  plain, mirrored = example["video"], example["video"][:, :, :, ::-1]
  first, second = (scores(v[:, None], (None,)) for v in (plain, mirrored))
  both = scores(np.stack([plain, mirrored], 1), (None, columns))
  for name in ("universal", "bridge", "specific"):
    np.testing.assert_allclose(both[name], (first[name] + second[name][:, columns]) / 2, atol=1e-5)
    np.testing.assert_allclose(both[name].sum(-1), 1, rtol=1e-5)


def test_normalize_by_hand():
  pixel = jnp.array([[[255, 0, 51]]], jnp.uint8)
  out = steps.normalize(pixel, (0.5, 0.4, 0.3), (0.2, 0.4, 0.1))
  np.testing.assert_allclose(out[0, 0], [2.5, -1.0, -1.0], rtol=1e-5)


def test_normalize_ten_channels_by_one_mean():
  pixels = jnp.arange(0, 250, 25, jnp.uint8).reshape(1, 1, 1, 10)  # of optical flow
  out = steps.normalize(pixels, (0.5,), (0.25,))
  assert out.shape == (1, 1, 1, 10)
  np.testing.assert_allclose(out[0, 0, 0, :3], [-2, 4 * 25 / 255 - 2, 4 * 50 / 255 - 2], rtol=1e-5)


def test_later_stages_cost_little_more():
  # The trunk runs once, and frozen networks only forward: at 18 x 224 x 224 with ResNet-50.
  # Within 3 % of the count by hand, which has nothing backward in trunk and UN in stage 2.
  flops, by_hand = (count(**step_cost.PAPER) for count in (step_cost.analysed, step_cost.counted))
  assert flops["specific"] <= 1.2 * flops["universal"]
  assert flops["joint"] <= 1.9 * flops["universal"]
  for stage, count in flops.items():
    np.testing.assert_allclose(count, by_hand[stage], rtol=0.03, err_msg=stage)


@pytest.mark.parametrize(("size", "nearest"), [(20, 16), (0, 8), (3, 8)])
def test_a_batch_that_the_devices_do_not_divide(size, nearest):
  with pytest.raises(ValueError, match=f"^batch_size: {size} is not .* 8 devices.* {nearest}$"):
    sharding.check_batch_size("batch_size", size)


def test_a_batch_that_its_parts_do_not_divide():
  sharding.check_batch_size("batch_size", 32, 2)
  with pytest.raises(
    ValueError, match=r"8 devices times accumulate_steps \(3\); the nearest is 24"
  ):
    sharding.check_batch_size("batch_size", 32, 3)


@pytest.mark.parametrize(
  ("selection", "guide"), [("own", "prediction"), ("soft", "prediction"), ("confusing", "label")]
)
def test_the_masks_that_an_ablation_combines(trained, selection, guide):
  example = batch(5, size=8)
  soft = np.random.default_rng(0).uniform(0.1, 0.9, (CLASSES, CLASSES)).astype(np.float32)
  soft = (soft + soft.T) / 2
  np.fill_diagonal(soft, 1)
  current = trained[1]["specific"][2]
  current = current.replace(csm=current.csm.replace(similarity=soft))
  variables = {"params": current.params, "batch_stats": current.batch_stats}
  video = steps.normalize(jnp.asarray(example["video"]), *PIXELS.values())
  out = jax.device_get(jax.jit(MODEL.apply)(variables, video, CSM))
  columns = {"own": np.eye(CLASSES), "soft": soft, "confusing": CSM}[selection]
  guides = example["label"] if guide == "label" else out["universal"].argmax(-1)
  weights = columns[:, guides].T
  assert guide == "prediction" or (guides != out["universal"].argmax(-1)).any()
  combined = np.einsum("nthwm,nm->nthw", out["masks"], weights / weights.sum(1, keepdims=True))
  masked = out["specific_features"] / (1 + np.exp(-combined[..., None]))
  head = jax.device_get(current.params["specific"]["head"])
  logits = masked.mean((1, 2, 3)) @ head["kernel"] + head["bias"]

  masks = {"selection": selection, "guide": guide}
  step = steps.make_eval_step(MODEL, SCHEDULE[2], mirror_columns=(None,), **PIXELS, **masks)
  example = {name: jnp.asarray(value) for name, value in example.items()}
  scores = jax.jit(step)(current, example["video"][:, None], example["label"])
  np.testing.assert_allclose(scores["specific"], jax.nn.softmax(logits), atol=1e-5)
  train = steps.make_train_step(MODEL, SCHEDULE[1], TX, regularizer_weight=0.5, **PIXELS, **masks)
  _, metrics = jax.jit(train)(current, example, 0.1)
  expected = regularizer.category_regularizer(current.params["mask"]["kernel"], CSM)
  np.testing.assert_allclose(metrics["regularizer"], expected, atol=1e-6)  # the binary CSM's


def test_the_label_guides_a_mirrored_view_as_what_it_turns_into(trained):
  columns, example = np.array([1, 0, 2, 3]), batch(5, size=8)
  current = trained[1]["joint"][2]
  masks = {"selection": "own", "guide": "label"}

  def scores(video, label, mirror_columns):
    step = steps.make_eval_step(
      MODEL, SCHEDULE[2], mirror_columns=mirror_columns, **PIXELS, **masks
    )
    return jax.jit(step)(current, jnp.asarray(video), jnp.asarray(label))["specific"]

  video, label = example["video"][:, None], example["label"]
  seen = scores(video, columns[label], (None,))
  assert np.abs(seen - scores(video, label, (None,))).max() > 1e-6
  np.testing.assert_allclose(scores(video, label, (columns,)), seen[:, columns], atol=1e-6)


def test_accumulated_gradients_are_the_mean_of_the_parts(trained):
  # Parts are clips 0, 2, 4, ... and 1, 3, 5, ...: every device keeps its own.
  stage, (first, _, _) = SCHEDULE[2], trained[1]["joint"]
  example = batch(7, size=8) | {"mask": np.array([True] * 5 + [False, True, False])}
  example = {name: jnp.asarray(value) for name, value in example.items()}
  step = steps.make_train_step(
    MODEL, stage, optax.identity(), regularizer_weight=0.5, accumulate_steps=2, **PIXELS
  )
  after, metrics = jax.jit(step)(first, example, 1.0)
  single = steps.make_train_step(MODEL, stage, optax.identity(), regularizer_weight=0.5, **PIXELS)
  single = jax.jit(single)
  current, shares, moved = first, (4 / 6, 2 / 6), []
  for offset in (0, 1):
    part = {name: value[offset::2] for name, value in example.items()}
    # At the same parameters, with the BN averages of the part before.
    new, part_metrics = single(current, part, 1.0)
    moved.append((jax.tree.map(jnp.subtract, current.params, new.params), part_metrics))
    current = current.replace(batch_stats=new.batch_stats)
  sums = jax.tree.map(lambda a, b: shares[0] * a + shares[1] * b, *moved)
  got = jax.tree.map(jnp.subtract, first.params, after.params)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5)  # noqa: E731
  jax.tree.map(close, got, sums[0])
  jax.tree.map(close, after.batch_stats, current.batch_stats)
  for name in ("loss", "loss_bridge", "regularizer", "accuracy_universal"):
    close(metrics[name], sums[1][name])


def test_rematerialisation_changes_nothing_but_memory(trained):
  stage, (first, _, _) = SCHEDULE[2], trained[1]["joint"]
  example = {name: jnp.asarray(value) for name, value in batch(7, size=16).items()}
  backbone = build("preact_resnet", temporal=TEMPORAL, depth=14, width=2, remat=True)
  results, memory = [], []
  for model in (MODEL, U2S(CLASSES, backbone)):
    step = steps.make_train_step(model, stage, TX, regularizer_weight=0.5, **PIXELS)
    compiled = jax.jit(step).lower(first, example, 0.01).compile()
    results.append(compiled(first, example, 0.01))
    memory.append(compiled.cost_analysis()["flops"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *results)
  assert memory[1] > 1.1 * memory[0]  # the forward pass is there twice


def test_another_number_of_views_is_an_error(trained):
  step = steps.make_eval_step(MODEL, SCHEDULE[2], mirror_columns=(None,) * 3, **PIXELS)
  example = batch(5, size=8)
  with pytest.raises(ValueError, match="^1 views of a clip, but 3 are asked for$"):
    step(trained[1]["joint"][2], example["video"][:, None], example["label"])
