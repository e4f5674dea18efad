"""Weights from files; `training/test_start.py` tests weights from runs.

`models/test_torch_parity.py` compares the outputs of loaded networks with PyTorch's.
"""

import dataclasses
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from configs import cars_mini, ucf101_i3d
from u2s_jax.models.backbones import build_backbone
from u2s_jax.models.u2s import U2S
from u2s_jax.pretrained import adapt, names, read
from u2s_jax.runtime.errors import UserError

FLAT = ((1, 1, 1, 1), (1, 1, 1, 1))
SMALL = {"depth": 14, "width": 2, "temporal": FLAT}
SHARED = pathlib.Path(__file__).resolve().parents[3] / "shared" / "weights"


def init_variables(backbone, classes=5, channels=3):
  """Returns variables of the one-pass model, all -1, which marks what was not loaded."""
  model, video = U2S(classes, backbone), jnp.zeros((1, 2, 32, 32, channels))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), video, method=U2S.one_pass))
  return jax.tree.map(lambda x: np.full(x.shape, -1, np.float32), shapes)


IMAGENET = names.Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def load(path, name, fields, classes=5, channels=3, needs_classifier=False, pixels=IMAGENET):
  """Returns the loaded arrays by name, and the logged lines."""
  lines = []
  params, batch_stats = adapt.load(
    path,
    **init_variables(build_backbone(name, **fields), classes, channels),
    target=adapt.Target(
      {"name": name, **fields}, [str(i) for i in range(classes)], needs_classifier, pixels
    ),
    log=lines.append,
  )
  loaded = {"params": params, "batch_stats": batch_stats}
  return traverse_util.flatten_dict(loaded, sep="/"), lines


def make_torchvision(rng, classes=5, width=2):
  """Returns the state dict of a bottleneck ResNet of depth 14, with torchvision's names."""
  state = {}

  def conv(name, features, channels, extent):
    state[name] = rng.normal(size=(features, channels, extent, extent)).astype(np.float32)

  def norm(name, features):
    for leaf in ("weight", "bias", "running_mean", "running_var"):
      state[f"{name}.{leaf}"] = rng.uniform(0.5, 1, features).astype(np.float32)
    state[f"{name}.num_batches_tracked"] = np.array(3)

  conv("conv1.weight", width, 3, 7)
  norm("bn1", width)
  channels = width
  for layer in range(1, 5):
    inner = width * 2 ** (layer - 1)
    name = f"layer{layer}.0"
    for i, (features, inputs, extent) in enumerate(
      [(inner, channels, 1), (inner, inner, 3), (4 * inner, inner, 1)], start=1
    ):
      conv(f"{name}.conv{i}.weight", features, inputs, extent)
      norm(f"{name}.bn{i}", features)
    conv(f"{name}.downsample.0.weight", 4 * inner, channels, 1)
    norm(f"{name}.downsample.1", 4 * inner)
    channels = 4 * inner
  state["fc.weight"] = rng.normal(size=(classes, channels)).astype(np.float32)
  state["fc.bias"] = rng.normal(size=classes).astype(np.float32)
  return state


def rename_to_mmaction2(state):
  """Returns the arrays under mmaction2's names of a TSM, which wraps shifted convolutions."""
  renamed = {}
  for name in state:
    new = name.replace("fc.", "cls_head.fc_cls.")
    if not name.startswith("fc."):
      parts = name.split(".")
      if "downsample" in name:
        parts[3] = {"0": "conv", "1": "bn"}[parts[3]]
      elif parts[-2].startswith("conv"):
        parts.insert(-1, "conv")
        if len(parts) > 3 and parts[2] == "conv1":
          parts.insert(-1, "net")
      else:
        parts[-2:-1] = [parts[-2].replace("bn", "conv"), "bn"]
      new = "backbone." + ".".join(parts)
    renamed[new] = state[name]
  return renamed


@pytest.fixture(scope="module")
def state():
  return make_torchvision(np.random.default_rng(0))


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
  safetensors.numpy.save_file(state, path)
  return path


def test_average_first_convolution_by_hand():
  kernel = np.zeros((1, 1, 2, 3, 2), np.float32)
  kernel[0, 0, 0, :, 0] = 1, 2, 6  # mean 3
  kernel[0, 0, 1, :, 1] = -1, 0, 4  # mean 1
  averaged = adapt.average_first_convolution(kernel, 10)
  assert averaged.shape == (1, 1, 2, 10, 2) and averaged.dtype == np.float32
  np.testing.assert_array_equal(averaged[0, 0, 0, :, 0], [3] * 10)
  np.testing.assert_array_equal(averaged[0, 0, 1, :, 1], [1] * 10)


@pytest.mark.parametrize("channels", [1, 2, 10])
def test_averaged_response_to_uniform_input_is_proportional_to_channels(channels):
  kernel = np.random.default_rng(0).normal(size=(1, 7, 7, 3, 4))
  averaged = adapt.average_first_convolution(kernel, channels)
  np.testing.assert_allclose(averaged.sum((1, 2, 3)), kernel.sum((1, 2, 3)) * channels / 3)


def test_every_array_is_loaded_into_its_place(file, state):
  loaded, lines = load(file, "resnet", SMALL, needs_classifier=True)
  assert lines[1:] == [f"  {len(loaded)} of {len(loaded)} arrays loaded"]
  block, kernel = "trunk/group1/block0", state["layer2.0.conv2.weight"]
  for i in range(4):
    for j in range(4):
      actual = loaded[f"params/{block}/conv2/kernel"][0, :, :, i, j]
      np.testing.assert_array_equal(actual, kernel[j, i])
  for name, torch_name in (
    (f"params/{block}/norm2/scale", "layer2.0.bn2.weight"),
    (f"params/{block}/norm3/bias", "layer2.0.bn3.bias"),
    (f"batch_stats/{block}/projection_norm/mean", "layer2.0.downsample.1.running_mean"),
    ("batch_stats/universal/group3/block0/norm1/var", "layer4.0.bn1.running_var"),
    ("params/trunk/stem_norm/scale", "bn1.weight"),
    ("params/universal/head/bias", "fc.bias"),
  ):
    np.testing.assert_array_equal(loaded[name], state[torch_name])
  np.testing.assert_array_equal(loaded["params/universal/head/kernel"], state["fc.weight"].T)


def test_names_of_tsm_and_mmaction2(file, state, tmp_path):
  expected, _ = load(file, "resnet", SMALL)
  wrapped = {name.replace("fc.", "new_fc."): value for name, value in state.items()}
  for i in range(1, 5):
    wrapped[f"layer{i}.0.conv1.net.weight"] = wrapped.pop(f"layer{i}.0.conv1.weight")
  wrapped = {
    f"module.{name}" if name.startswith("new_fc") else f"module.base_model.{name}": value
    for name, value in wrapped.items()
  }
  for number, arrays in enumerate((wrapped, rename_to_mmaction2(state))):
    path = tmp_path / f"{number}.npz"
    np.savez(path, **arrays)
    loaded, _ = load(path, "tsm_resnet", SMALL)
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_inflates_kernels_and_averages_the_first_convolution(file, state):
  fields = SMALL | {"temporal": ((3, 1, 1, 1), (1, 3, 1, 3))}
  loaded, lines = load(file, "resnet", fields, channels=10)
  first = loaded["params/universal/group2/block0/conv1/kernel"]
  assert first.shape[0] == 3
  expected = state["layer3.0.conv1.weight"].transpose(2, 3, 1, 0) / np.float32(3)
  for t in range(3):
    np.testing.assert_allclose(first[t], expected, rtol=1e-6)
  stem = loaded["params/trunk/stem/kernel"]
  assert stem.shape[3] == 10
  mean = state["conv1.weight"].mean(1).transpose(1, 2, 0)
  np.testing.assert_allclose(stem[0, :, :, 7], mean, rtol=1e-5, atol=1e-6)
  assert "  first convolution: mean over 3 input channels, for each of 10" in lines
  assert "  3 convolutions inflated over time" in lines


def test_norms_of_one_axis_or_of_all(file):
  expected, _ = load(file, "resnet", SMALL)
  weights = read.read(file)
  target = adapt.Target(
    {"name": "resnet", **SMALL}, [str(i) for i in range(5)], needs_classifier=False, pixels=IMAGENET
  )
  variables = init_variables(build_backbone("resnet", **SMALL), 5, 3)
  # As Haiku and Sonnet store them, and weights that were converted from theirs.
  arrays = {
    name: x.reshape(1, 1, 1, 1, -1) if x.ndim == 1 and "head" not in name else x
    for name, x in weights.arrays.items()
  }

  def fit(arrays):
    changed = dataclasses.replace(weights, arrays=arrays)
    return adapt.fit(changed, **variables, target=target, log=lambda line: None)

  params, batch_stats = fit(arrays)
  loaded = traverse_util.flatten_dict({"params": params, "batch_stats": batch_stats}, sep="/")
  for name, value in expected.items():
    np.testing.assert_array_equal(loaded[name], value, err_msg=name)
  name = next(name for name, x in weights.arrays.items() if x.ndim == 1 and x.size == 4)
  with pytest.raises(UserError, match=rf"{name} is of shape \(1, 1, 2, 2\) in the weights"):
    fit(arrays | {name: np.ones((1, 1, 2, 2))})


def test_classifier_of_other_classes_is_newly_initialised(file):
  loaded, lines = load(file, "resnet", SMALL, classes=4)
  assert lines[-2:] == [
    "  classifier: newly initialised, classes differ",
    f"  {len(loaded) - 2} of {len(loaded)} arrays loaded",
  ]
  assert (loaded["params/universal/head/kernel"] == -1).all()
  with pytest.raises(UserError, match="no classifier for these classes .classes differ.; univ"):
    load(file, "resnet", SMALL, classes=4, needs_classifier=True)


def test_keras_conventions_by_hand():
  """A bias before the norm, another epsilon, BGR: the function of a pixel stays the same."""
  rng = np.random.default_rng(0)
  kernel, bias = rng.normal(size=(7, 7, 3, 1)), rng.normal(size=1)
  gamma, beta, mean, variance = rng.uniform(0.001, 0.01, (4, 1))
  arrays = names.translate(
    {
      "res2a_branch2a/kernel": np.zeros((1, 1, 1, 1)),
      "conv1/kernel": kernel,
      "conv1/bias": bias,
      "bn_conv1/gamma": gamma,
      "bn_conv1/beta": beta,
      "bn_conv1/moving_mean": mean,
      "bn_conv1/moving_variance": variance,
    }
  )[1]
  rgb = rng.normal(size=(7, 7, 3))
  expected = np.sum(kernel[..., 0] * rgb[..., ::-1]) + bias
  expected = gamma * (expected - mean) / np.sqrt(variance + 1e-3) + beta
  value = np.sum(arrays["params/trunk/stem/kernel"][0, ..., 0] * rgb)
  norm = "trunk/stem_norm"
  value = value - arrays[f"batch_stats/{norm}/mean"]
  value = value / np.sqrt(arrays[f"batch_stats/{norm}/var"] + 1e-5)
  value = arrays[f"params/{norm}/scale"] * value + arrays[f"params/{norm}/bias"]
  np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize(
  ("name", "backbone", "fields", "classes", "config"),
  [
    (
      "resnet50_imagenet_keras.npz",
      "resnet",
      {"temporal": FLAT, "strided": "1x1"},
      1000,
      cars_mini.get_config(),
    ),
    ("i3d_rgb_kinetics400_flax.npz", "inception_i3d", {}, 400, ucf101_i3d.get_config()),
  ],
)
def test_published_weights_load_completely(name, backbone, fields, classes, config):
  if not SHARED.is_dir():
    pytest.skip(f"no folder {SHARED}")
  pixels = names.Pixels(config.model.pixel_mean, config.model.pixel_std)
  loaded, lines = load(
    SHARED / name, backbone, fields, classes, needs_classifier=True, pixels=pixels
  )
  assert lines[-1] == f"  {len(loaded)} of {len(loaded)} arrays loaded"
  assert all(np.isfinite(value).all() for value in loaded.values())
  assert min((v.min() for n, v in loaded.items() if n.endswith("/var")), default=0) > 0


def _npz(path, arrays):
  np.savez(path, **arrays)
  return path


def test_errors(file, state, tmp_path):
  def assert_raises(path, match, **fields):
    with pytest.raises(UserError, match=match) as error:
      load(path, "resnet", SMALL | fields)
    assert str(error.value).startswith(f"init_from: {path}: ")
    assert "\n" not in str(error.value)

  assert_raises(
    file,
    r"group0/block0/conv1/kernel is of shape \(1, 1, 1, 2, 2\) in .* of shape \(1, 1, 1, 4, 4\)",
    width=4,
  )
  assert_raises(file, "group0/block1/.* is missing in the weights, but of shape", depth=26)
  short = {name: value for name, value in state.items() if name != "layer3.0.bn2.running_var"}
  assert_raises(
    _npz(tmp_path / "short.npz", short),
    r"batch_stats/universal/group2/block0/norm2/var is missing in the weights, but of shape \(8,\)",
  )
  more = state | {"layer4.0.se.fc1.weight": np.zeros(3)}
  assert_raises(
    _npz(tmp_path / "more.npz", more), "layer4.0.se.fc1.weight: unknown name in a torchvision"
  )
  assert_raises(
    _npz(tmp_path / "leaf.npz", state | {"layer1.0.bn1.momentum": np.zeros(3)}),
    "layer1.0.bn1.momentum: unknown name in a torchvision",
  )
  assert_raises(
    _npz(tmp_path / "two.npz", state | {"new_fc.bias": state["fc.bias"]}),
    "new_fc.bias: a second array for params/universal/head/bias",
  )
  assert_raises(
    _npz(tmp_path / "bias.npz", state | {"layer9.0.conv1.bias": np.zeros(4)}),
    "group8/block0/conv1 of a torchvision ResNet: has a bias, but no norm",
  )
  deep = {**state, **{n.replace("layer1.0", "layer1.1"): v for n, v in state.items()}}
  assert_raises(
    _npz(tmp_path / "deep.npz", deep),
    r"group0/block1/.* but missing in this config; set model.back",
  )
  assert_raises(
    _npz(tmp_path / "else.npz", {"w": np.zeros(2)}), "unknown source of weights .w, ...."
  )
  wide = state | {"conv1.bias": np.zeros(1)}
  assert_raises(
    _npz(tmp_path / "wide.npz", wide), "trunk/stem of a torchvision .* no norm of its size"
  )
  assert_raises(_npz(tmp_path / "empty.npz", {}), "unknown source of weights .no arrays")
  assert_raises(file, "its network has backbone.strided = 3x3, not 1x1; set model", strided="1x1")
  shifted = {
    name.replace("conv1.weight", "conv1.net.weight"): value for name, value in state.items()
  }
  shifted["conv1.weight"] = shifted.pop("conv1.net.weight")
  assert_raises(
    _npz(tmp_path / "tsm.npz", shifted), "its network has backbone.name = tsm_resnet, not resn"
  )
  (tmp_path / "x.h5").write_bytes(b"")
  assert_raises(tmp_path / "x.h5", "unknown format; must be one of .pth")
  (tmp_path / "x.npz").write_bytes(b"words")
  assert_raises(tmp_path / "x.npz", ".")
  (tmp_path / "x.safetensors").write_bytes(b"words")
  assert_raises(tmp_path / "x.safetensors", ".")


class _Evil:
  def __reduce__(self):
    return pathlib.Path.touch, (pathlib.Path("executed"),)


def test_pickled_code_is_never_executed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  np.savez("evil.npz", **{"layer1.0.conv1.weight": np.array([_Evil()], object)})
  with pytest.raises(UserError, match="^init_from: evil.npz: Object arrays cannot be loaded"):
    load(pathlib.Path("evil.npz"), "resnet", SMALL)
  assert not pathlib.Path("executed").exists()
  pytest.importorskip("torch", reason="PyTorch is not installed: no .pth files")
  pathlib.Path("evil.pth").write_bytes(pickle.dumps({"layer1.0.conv1.weight": _Evil()}, 2))
  with pytest.raises(UserError, match="^init_from: evil.pth: damaged or contains objects other"):
    load(pathlib.Path("evil.pth"), "resnet", SMALL)
  assert not pathlib.Path("executed").exists()


def test_pixel_statistics_of_every_source(file, state, tmp_path):
  """The transforms of torchvision, TSM, timm and I3D, and Caffe's means in the order BGR."""

  def get_pixel_line(path, name, fields, pixels, classes=4):
    lines = load(path, name, SMALL | fields, classes, pixels=names.Pixels(*pixels))[1]
    return lines[0] if "trained with pixel" in lines[0] else None

  shifted = _npz(tmp_path / "tsm.npz", rename_to_mmaction2(state))
  half = (0.5,), (0.5,)
  for path, name in ((file, "resnet"), (shifted, "tsm_resnet")):
    # mmaction2 gives them as bytes.
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    same = tuple(tuple(x / 255 for x in values) for values in (mean, std))
    assert get_pixel_line(path, name, {}, same) is None
    assert get_pixel_line(path, name, {}, half).startswith(
      f"{path}: trained with pixel mean (0.485, 0.456,"
    )
    with pytest.raises(UserError, match="^init_from: .*not .0.5. and .0.5.; set model.pixel_mean="):
      get_pixel_line(path, name, {}, half, classes=5)  # equally many: the classifier is kept
  families = {source.name: source.pixels for source in names.SOURCES}
  assert families["timm resnetv2"] == families["Inception-I3D"] == half
  caffe = families["Keras ResNet"]
  blue_green_red = np.array([103.939, 116.779, 123.68])
  video = np.random.default_rng(0).integers(0, 256, (2, 3, 3))
  normalized = (video / 255 - caffe.mean) / caffe.std
  np.testing.assert_allclose(normalized[..., ::-1], video[..., ::-1] - blue_green_red, atol=1e-9)


def test_pixel_statistics_in_metadata(state, tmp_path):
  path = tmp_path / "own.safetensors"
  metadata = {"pixel_mean": "[0.1, 0.2, 0.3]", "pixel_std": "[0.5, 0.5, 0.5]"}
  safetensors.numpy.save_file(state, path, metadata=metadata)
  pixels = names.Pixels((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
  load(path, "resnet", SMALL, pixels=pixels, needs_classifier=True)
  with pytest.raises(UserError, match="trained with pixel mean"):
    load(path, "resnet", SMALL)


def test_pixel_statistics_of_another_modality_are_not_compared(file, state, tmp_path):
  flow = names.Pixels((128 / 255,), (0.226,))
  lines = load(file, "resnet", SMALL, channels=10, pixels=flow)[1]
  assert not any("pixel mean" in line for line in lines)
  kernel = state["conv1.weight"]
  ten = state | {"conv1.weight": np.repeat(kernel.mean(1, keepdims=True), 10, axis=1)}
  path = _npz(tmp_path / "flow.npz", ten)
  lines = load(path, "resnet", SMALL, channels=10, pixels=flow)[1]
  assert "pixel statistics are unknown" in lines[0]
