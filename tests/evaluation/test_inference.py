"""Evaluation on the devices: views, masks, sparsity; every clip is counted once."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small import (
  CLASSES,
  CSM,
  FRAMES,
  MODEL,
  NEIGHBOURS,
  NETWORK,
  OPTIONS,
  PIXELS,
  SIZE,
  STAGES,
  TX,
  batch,
)
from u2s_jax import csm, regularizer
from u2s_jax.evaluation import inference, scores
from u2s_jax.models.network import Network, mirror, normalize
from u2s_jax.models.u2s import U2S
from u2s_jax.run import state
from u2s_jax.runtime import devices
from u2s_jax.runtime.errors import UserError
from u2s_jax.training import steps

CLASS_NAMES = ("Pouring éclairs", "Pushing X", "Bending Y")
STATE = state.TrainState(step=0.5, params={}, batch_stats={}, momentum=(), csm=())


def first_pixel(current, batch):
  """Returns each clip's first pixel as its score, which identifies the clip."""
  first = batch["video"][:, 0, 0, 0, 0, 0].astype(jnp.float32)
  return {"universal": jnp.stack([first, current.step * jnp.ones_like(first), -first], -1)}


def batches():
  """Yields ten clips in two batches of eight; the second is padded."""
  for start in (0, 8):
    numbers = np.minimum(np.arange(start, start + 8), 9)
    yield {
      "video": np.broadcast_to(
        numbers.astype(np.uint8)[:, None, None, None, None, None], (8, 1, 2, 4, 4, 3)
      ).copy(),
      "label": (numbers % 3).astype(np.int32),
      "valid": np.arange(start, start + 8) < 10,
      "id": np.array([f"clip-é{n}".encode() for n in numbers], object),
    }


def test_scores_hold_every_clip_once_and_in_order_after_a_round_trip(tmp_path):
  step = inference._jit_replicated(first_pixel)
  result = inference.score(step, STATE, batches(), CLASS_NAMES)
  assert list(result.ids) == [f"clip-é{n}" for n in range(10)]
  np.testing.assert_array_equal(result.labels, np.arange(10) % 3)
  np.testing.assert_array_equal(result.predictions["universal"][:, 0], np.arange(10))
  path = tmp_path / "scores/validation.npz"
  scores.write(path, result)
  with np.load(path) as file:
    assert set(file) == {"ids", "labels", "class_names", "universal", "data_digest"}
    assert tuple(file["class_names"]) == CLASS_NAMES
  loaded = scores.read(path)
  jax.tree.map(
    np.testing.assert_array_equal, dataclasses.asdict(loaded), dataclasses.asdict(result)
  )
  assert [path.name for path in (tmp_path / "scores").iterdir()] == ["validation.npz"]


def test_next_batch_is_queued_before_results_are_read():
  seen = []

  def step(current, batch):
    seen.append(len(seen))
    return {"n": len(seen)}

  counts = [len(seen) for _ in inference.iterate_outputs(step, STATE, batches())]
  assert counts == [2, 2]


@dataclasses.dataclass
class Queued:
  """A result that its device has not computed yet; `waiting` holds all such results."""

  waiting: list

  def __post_init__(self):
    self.waiting.append(self)

  def block_until_ready(self):
    if self in self.waiting:
      del self.waiting[: self.waiting.index(self) + 1]
    return self

  def __eq__(self, other):
    return self is other


def test_at_most_two_batches_are_queued():
  waiting, most = [], 0

  def step(current, batch):
    nonlocal most
    result = Queued(waiting)
    most = max(most, len(waiting))
    return {"n": result}

  twenty = [batch for _ in range(10) for batch in batches()]
  # The consumer never reads a result.
  assert len(list(inference.iterate_outputs(step, STATE, twenty))) == 20
  assert most == 2


def test_analysis_step_leaves_clips_sharded(trained):
  mesh, current = devices.data_mesh(), trained[1]["joint"][2]
  current = jax.device_put(current, devices.replicated_sharding(mesh))
  example = batch(5, size=16)
  example |= {"video": example["video"][:, None], "id": inference.encode_ids([b"a"] * 16)}
  example = devices.make_global_batch(example, mesh)
  step = inference.jit_analysis_step(NETWORK)
  program = step.lower(current, example).compile().as_text()
  moved = {
    name: math.prod(map(int, shape.split(",")))
    for name, shape in re.findall(r"(\S+) = \w+\[([\d,]+)\]\S* all-", program)
  }
  results, clips = step(current, example)
  # Only what is read for every clip is gathered: neither frames nor feature maps.
  assert moved and max(moved.values()) == 16 * inference.MAX_ID_BYTES, moved
  assert all(len(value.sharding.device_set) == 8 for value in clips.values())
  assert not any(value.is_fully_replicated for value in clips.values())
  assert all(value.is_fully_replicated for value in results.values())
  kernel = current.params["mask"]["kernel"]
  expected = np.asarray(clips["features"]) @ np.asarray(kernel)
  for row, classes in ((0, [2]), (9, [3, 1]), (15, [0, 1, 2, 3])):
    masks = inference.read_row_masks(clips["features"], row, kernel, np.array(classes))
    np.testing.assert_allclose(masks, expected[row][..., classes], atol=1e-5)


def test_analysis_step_never_materializes_the_masks_of_all_classes():
  model = U2S(10_007, MODEL.backbone)
  shape = (1, FRAMES, SIZE, SIZE, 3)
  current = state.init_stages(model, STAGES, TX, shape)[-1]
  step = inference.make_analysis_step(Network(model, **PIXELS))
  example = jax.tree.map(jnp.asarray, batch(5, size=2))
  jaxpr = jax.make_jaxpr(step)(current, example | {"video": example["video"][:, None]})
  arrays = re.findall(r"\w+\[([\d,]+)\]", str(jaxpr))
  classwise = {tuple(map(int, a.split(","))) for a in arrays if "10007" in a.split(",")}
  assert classwise and all(len(shape) <= 2 for shape in classwise), classwise


def test_too_long_id_raises():
  long = [{**batch, "id": np.array([b"x" * 257] * 8, object)} for batch in batches()]
  with pytest.raises(UserError, match="^id x{257}: longer than 256 bytes; rename the clip$"):
    inference.score(inference._jit_replicated(first_pixel), STATE, long, CLASS_NAMES)


def count_zeros(current, count):
  """Returns the sparsity counts of a batch with two clips of padding, on `count` devices."""
  mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count], axis_types=AUTO)
  placement = devices.replicated_sharding(mesh)
  step = jax.jit(inference.make_sparsity_step(NETWORK), out_shardings=placement)
  example = batch(0)
  example["video"] = example["video"][:, None]
  example["valid"][3:5] = False
  counted = step(jax.device_put(current, placement), devices.make_global_batch(example, mesh))
  clips = example["label"], example["valid"], CLASSES
  return {name: csm.add_by_class(None, values, *clips) for name, values in counted.items()}


AUTO = (jax.sharding.AxisType.Auto,)


def test_csm_is_the_same_on_one_and_eight_devices(trained):
  matrices = []
  for count in (1, 8):
    counted = count_zeros(trained[1]["universal"][2], count)
    similarity = csm.similarity_matrix(csm.class_sparsity(counted["zeros"], counted["responses"]))
    matrices.append(csm.binarize(similarity, csm.threshold(similarity, 1)))
  np.testing.assert_array_equal(*matrices)
  assert matrices[0].sum() > CLASSES


def test_sparsity_by_hand(trained):
  one_pass = trained[1]["universal"][2]
  counted, example = count_zeros(one_pass, 1), batch(0)
  video = normalize(jnp.asarray(example["video"]), *PIXELS.values())
  features = MODEL.apply(
    {"params": one_pass.params, "batch_stats": one_pass.batch_stats}, video, method=U2S.one_pass
  )["universal_features"]
  valid = np.ones(16, bool)
  valid[3:5] = False
  for label in range(CLASSES):
    chosen = np.asarray(features)[valid & (example["label"] == label)]
    share = counted["zeros"][label] / counted["responses"][label]
    np.testing.assert_allclose(share, (chosen == 0).mean((0, 1, 2, 3)), atol=0.02)


def score(current, video, label, mirrors, **masks):
  """Returns the scores of a jitted step with the given mask settings."""
  network = dataclasses.replace(NETWORK, **masks)
  step = jax.jit(inference.make_score_step(network, mirrors))
  return jax.device_get(step(current, {"video": jnp.asarray(video), "label": jnp.asarray(label)}))


def test_views_are_averaged_and_mirrored_scores_mapped_back(trained):
  current, example, mirror = trained[1]["joint"][2], batch(5, size=8), (1, 0, 2, 3)
  plain, mirrored = example["video"], example["video"][:, :, :, ::-1]
  first, second = (score(current, v[:, None], example["label"], (None,)) for v in (plain, mirrored))
  both = score(current, plain[:, None], example["label"], (None, mirror))  # mirrored there
  for name in ("universal", "bridge", "specific"):
    expected = (first[name] + second[name][:, list(mirror)]) / 2
    np.testing.assert_allclose(both[name], expected, atol=1e-5)
    np.testing.assert_allclose(both[name].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
  ("selection", "guide"), [("own", "prediction"), ("soft", "prediction"), ("confusing", "label")]
)
def test_masks_of_ablations_by_hand(trained, selection, guide):
  example = batch(5, size=8)
  soft = np.random.default_rng(0).uniform(0.1, 0.9, (CLASSES, CLASSES)).astype(np.float32)
  soft = (soft + soft.T) / 2
  np.fill_diagonal(soft, 1)
  current = trained[1]["specific"][2]
  current = current.replace(csm=current.csm.replace(similarity=soft))
  variables = {"params": current.params, "batch_stats": current.batch_stats}
  video = normalize(jnp.asarray(example["video"]), *PIXELS.values())
  out = jax.device_get(APPLY(variables, video, CSM))
  masks = out["universal_features"] @ np.asarray(current.params["mask"]["kernel"])
  others = soft[~np.eye(CLASSES, dtype=bool)]
  normalized = (soft - others.min()) / (others.max() - others.min())
  np.fill_diagonal(normalized, 1)
  columns = {"own": np.eye(CLASSES), "soft": normalized, "confusing": CSM}[selection]
  guides = example["label"] if guide == "label" else out["universal"].argmax(-1)
  weights = columns[:, guides].T
  assert guide == "prediction" or (guides != out["universal"].argmax(-1)).any()
  combined = np.einsum("nthwm,nm->nthw", masks, weights / weights.sum(1, keepdims=True))
  masked = out["specific_features"] * combined[..., None]
  head = jax.device_get(current.params["specific"]["head"])
  logits = masked.mean((1, 2, 3)) @ head["kernel"] + head["bias"]

  masks = {"selection": selection, "guide": guide}
  got = score(current, example["video"][:, None], example["label"], (None,), **masks)
  np.testing.assert_allclose(got["specific"], jax.nn.softmax(logits), atol=1e-5)
  # Training combines the same masks; its regularizer still uses the binary CSM.
  example = {name: jnp.asarray(value) for name, value in example.items()}
  network = dataclasses.replace(NETWORK, **masks)
  train = steps.make_train_step(network, STAGES[1], TX, OPTIONS)
  _, metrics = jax.jit(train)(current, example, 0.1, NEIGHBOURS)
  expected = regularizer.category_regularizer(current.params["mask"]["kernel"], CSM)
  np.testing.assert_allclose(metrics["regularizer"], expected, atol=1e-6)


APPLY = jax.jit(MODEL.apply)


def test_guiding_label_is_mirrored_with_the_view(trained):
  mirror, example = (1, 0, 2, 3), batch(5, size=8)
  current, masks = trained[1]["joint"][2], {"selection": "own", "guide": "label"}
  video, label, columns = example["video"][:, None], example["label"], np.array(mirror)
  mirrored = video[:, :, :, :, ::-1]
  plain, seen, other, both = (
    score(current, pixels, y, mirrors, **masks)["specific"]
    for pixels, y, mirrors in (
      (video, label, (None,)),
      (mirrored, columns[label], (None,)),
      (mirrored, label, (None,)),
      (video, label, (None, mirror)),
    )
  )
  assert np.abs(seen - other).max() > 1e-6
  np.testing.assert_allclose(both, (plain + seen[:, columns]) / 2, atol=1e-6)


@pytest.mark.parametrize("crops", [2, 5])
def test_crops_are_mirrored_on_the_device(trained, crops):
  """All crops, then their mirror images: bitwise equal to views mirrored by the input pipeline."""
  current, example = trained[1]["joint"][2], batch(5, size=8)
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (8, crops, *example["video"].shape[1:]), np.uint8)
  identity = tuple(range(CLASSES))
  on_device = score(current, video, example["label"], (None,) * crops + (identity,) * crops)
  views = np.concatenate([video, video[..., ::-1, :]], 1)
  before = score(current, views, example["label"], (None,) * 2 * crops)
  for name, values in before.items():
    np.testing.assert_array_equal(on_device[name], values)


def test_mirror_by_hand_and_as_in_training():
  flow = np.array([[0, 1, 128], [1, 2, 128], [255, 3, 100], [7, 8, 9]], np.uint8).T  # (w, c)
  expected = [[128, 128, 156, 9], [255, 2, 253, 8], [255, 1, 1, 7]]
  np.testing.assert_array_equal(mirror(jnp.asarray(flow[None]))[0], expected)
  rgb = np.arange(18, dtype=np.uint8).reshape(1, 2, 3, 3)
  np.testing.assert_array_equal(mirror(jnp.asarray(rgb)), rgb[:, :, ::-1])
  tf = pytest.importorskip("tensorflow", reason="mirrors training clips")
  from data.input import image_ops

  codes = np.arange(256, dtype=np.uint8).reshape(1, 8, 8, 4)
  for video, is_flow in ((codes, True), (rgb, False)):
    expected = image_ops.mirror(tf.constant(video), is_flow=is_flow)
    np.testing.assert_array_equal(mirror(jnp.asarray(video)), expected)


def test_wrong_number_of_crops_raises(trained):
  step = inference.make_score_step(NETWORK, (None,) * 3)
  example = batch(5, size=8)
  with pytest.raises(ValueError, match="^video: 1 crops of a clip; must be 3$"):
    step(trained[1]["joint"][2], {**example, "video": example["video"][:, None]})
