"""Tests of the U2S model: sizes, outputs and which statistics are updated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.models.backbones import build_backbone
from u2s_jax.models.u2s import U2S

CLASSES = 5
TEMPORAL = ((3, 3, 3, 3), (3, 3, 3, 1))
PAPER = build_backbone("preact_resnet", temporal=TEMPORAL)
SMALL = build_backbone("preact_resnet", temporal=TEMPORAL, depth=14, width=2)
CSM = jnp.array(
  [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 1, 0], [0, 0, 1, 0, 1.0]]
)


def count_parameters(tree):
  """Counts parameters in units of 2**20."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree)) / 2**20


# Table III of the paper, whose parameter column is in units of 2**20.
@pytest.mark.parametrize(
  ("attention", "total"), [("mask", 120.47), ("none", 120.13), ("non_local", 120.88)]
)
def test_parameter_table(attention, total):
  model = U2S(174, PAPER, attention=attention)
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 2, 64, 64, 3)), jnp.eye(174))
  )["params"]
  one_pass = count_parameters(params["trunk"]) + count_parameters(params["universal"])
  assert one_pass == pytest.approx(60.75, abs=0.005)
  assert count_parameters(params) == pytest.approx(total, abs=0.005)


def test_parameters_with_other_temporal_extents():
  model = U2S(174, build_backbone("preact_resnet", temporal=((1, 1, 1, 1), (1, 1, 1, 1))))
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 2, 64, 64, 3)), method=U2S.one_pass)
  )["params"]
  # Pre-activation ResNet-50 with 174 classes: the 25,557,032 of ResNet-50 less its 1000-way head,
  # with batch norms before the convolutions instead of after (the stem and the projections have
  # none; each group's first block normalises its input, and one follows the last block).
  usual = 25_557_032 - 2049 * 1000 + 2049 * 174
  after = 64 + 256 + 512 + 1024 + 2048  # after the stem and the projections
  last = 3 * 256 + 4 * 512 + 6 * 1024 + 3 * 2048  # after every third convolution
  first = (
    (64 + 2 * 256) + (256 + 3 * 512) + (512 + 5 * 1024) + (1024 + 2 * 2048)
  )  # before the first
  assert count_parameters(params) * 2**20 == usual + 2 * (first + 2048 - after - last)


@pytest.fixture(scope="module")
def small():
  model = U2S(CLASSES, SMALL)
  video = jax.random.normal(jax.random.key(1), (4, 3, 64, 64, 3))
  return model, video, model.init(jax.random.key(0), video, CSM)


def test_outputs(small):
  model, video, variables = small
  out = model.apply(variables, video, CSM)
  shapes = {name: value.shape for name, value in out.items()}
  features = (4, 3, 2, 2, 64)
  assert shapes == {
    "universal": (4, CLASSES),
    "bridge": (4, CLASSES),
    "specific": (4, CLASSES),
    "universal_features": features,
    "specific_features": features,
    "mask": (*features[:4], 1),
  }
  assert (out["universal_features"] >= 0).all() and (out["specific_features"] >= 0).all()
  one_pass = model.apply(variables, video, method=U2S.one_pass)
  np.testing.assert_allclose(one_pass["universal"], out["universal"], rtol=1e-5)


@pytest.mark.parametrize(("activation", "limit"), [("sigmoid", 1.0), ("none", 0.0), ("none", 0.02)])
def test_specific_prediction_by_hand(small, activation, limit):
  _, video, variables = small
  model = U2S(CLASSES, SMALL, mask_activation=activation, mask_limit=limit)
  guide = jnp.array([0, 2, 3, 4])
  out = jax.tree.map(np.asarray, model.apply(variables, video, CSM, guide))
  kernel = np.asarray(variables["params"]["mask"]["kernel"])
  head = jax.tree.map(np.asarray, variables["params"]["specific"]["head"])
  masks = out["universal_features"] @ kernel
  np.testing.assert_allclose(out["bridge"], masks.mean((1, 2, 3)), atol=1e-6)
  for n, confusing in enumerate([[0, 1], [2, 4], [3], [2, 4]]):
    mask = masks[n][..., confusing].mean(-1, keepdims=True)
    if activation == "sigmoid":
      mask = 1 / (1 + np.exp(-mask))
    elif limit:
      rms = np.sqrt((mask**2).mean())
      mask = mask / max(1, rms / limit)
    np.testing.assert_allclose(out["mask"][n], mask, atol=1e-6)
    pooled = (out["specific_features"][n] * mask).mean((0, 1, 2))
    np.testing.assert_allclose(
      out["specific"][n], pooled @ head["kernel"] + head["bias"], atol=1e-5
    )


def test_universal_prediction_guides_by_default(small):
  model, video, variables = small
  out = model.apply(variables, video, CSM)
  guided = model.apply(variables, video, CSM, jnp.argmax(out["universal"], -1))
  np.testing.assert_array_equal(out["specific"], guided["specific"])


def test_updates_statistics_of_trained_subnetworks_only(small):
  model, video, variables = small
  _, updates = model.apply(
    variables, video, CSM, train=("specific", "mask"), mutable=["batch_stats"]
  )
  for name in ("trunk", "universal"):
    jax.tree.map(
      np.testing.assert_array_equal, updates["batch_stats"][name], variables["batch_stats"][name]
    )
  moved = jax.tree.map(
    lambda a, b: bool(jnp.any(a != b)),
    updates["batch_stats"]["specific"],
    variables["batch_stats"]["specific"],
  )
  assert all(jax.tree.leaves(moved))


def test_accepts_videos_of_one_frame(small):
  model, video, variables = small
  assert model.apply(variables, video[:, :1], CSM)["mask"].shape == (4, 1, 2, 2, 1)


@pytest.mark.parametrize("attention", ["none", "non_local"])
def test_has_no_bridge_without_a_mask_network(attention):
  model = U2S(CLASSES, SMALL, attention=attention, non_local_width=3)
  video = jnp.ones((1, 2, 32, 32, 3))
  out, variables = model.init_with_output(jax.random.key(0), video, CSM)
  assert set(out) == {"universal", "specific", "universal_features", "specific_features"}
  assert ("non_local" in variables["params"]) == (attention == "non_local")
  # The non-local block starts as the identity.
  specific = variables["params"]["specific"]["head"]
  pooled = out["specific_features"].mean((1, 2, 3))
  np.testing.assert_allclose(
    out["specific"], pooled @ specific["kernel"] + specific["bias"], atol=1e-5
  )


def test_detached_networks_have_the_gradients_of_the_one_pass_model(small):
  _, video, variables = small

  def gradients(detached, names):
    model = U2S(CLASSES, SMALL, detached=detached)

    def loss(params):
      out = model.apply({**variables, "params": params}, video, CSM)
      return sum(jnp.sum(out[name] ** 2) for name in names)

    return jax.grad(loss)(variables["params"])

  predictions = ("universal", "specific", "bridge")
  one_pass, attached = gradients(False, ["universal"]), gradients(False, predictions)
  detached = gradients(True, predictions)
  for name in ("trunk", "universal"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      detached[name],
      one_pass[name],
    )
  for name in ("specific", "mask"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
      detached[name],
      attached[name],
    )
  assert (
    float(
      jnp.max(jnp.abs(attached["trunk"]["stem"]["kernel"] - one_pass["trunk"]["stem"]["kernel"]))
    )
    > 1e-3
  )


def test_rejects_a_negative_limit():
  with pytest.raises(ValueError, match="model.mask_limit: -1.0 must be >= 0 and finite"):
    U2S(CLASSES, SMALL, mask_limit=-1.0)


@pytest.mark.parametrize("field", ["attention", "mask_activation"])
def test_rejects_unknown_names(field):
  with pytest.raises(ValueError, match=f"model.{field}: 'x' is not one of"):
    U2S(CLASSES, SMALL, **{field: "x"})


@pytest.mark.parametrize("detached", [False, True])
def test_prediction_without_dropout_guides_the_masks(detached):
  video = jax.random.uniform(jax.random.key(1), (16, 2, 32, 32, 3))
  model = U2S(CLASSES, SMALL, mask_limit=0.0, detached=detached)
  variables = model.init(jax.random.key(0), video, CSM)
  parts, identity = ("trunk", "universal", "specific", "mask"), jnp.eye(CLASSES)

  def outputs(dropout):
    rngs = {"dropout": jax.random.key(2)}
    dropped_model = model.clone(dropout=dropout)
    options = dict(train=parts, mutable=["batch_stats"], rngs=rngs)
    return dropped_model.apply(variables, video, identity, **options)[0]

  plain, dropped = jax.device_get((outputs(0.0), outputs(0.7)))
  predicted, predicted_with_dropout = (x["universal"].argmax(-1) for x in (plain, dropped))
  assert (predicted != predicted_with_dropout).any()
  kernel = np.asarray(variables["params"]["mask"]["kernel"])[:, predicted]
  expected = np.einsum("nthwc,cn->nthw", dropped["universal_features"], kernel)
  np.testing.assert_allclose(dropped["mask"][..., 0], expected, atol=1e-5)
  np.testing.assert_array_equal(dropped["mask"], plain["mask"])
