"""Tests of networks against their published implementations, with random weights.

torchvision's and transformers' state dicts are read as `init_from` reads them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from u2s_jax.models.backbones import build_backbone
from u2s_jax.models.u2s import U2S
from u2s_jax.pretrained import adapt, names, read

torch = pytest.importorskip("torch", reason="the published networks require PyTorch")
safetensors_torch = pytest.importorskip("safetensors.torch")
CLASSES = 400


def randomize(module):
  """Gives norms values of their own: at their initial values, swapped ones are not noticed."""
  generator = torch.Generator().manual_seed(0)
  for name, value in module.state_dict().items():
    if value.ndim == 1 and value.dtype == torch.float32:
      noise = torch.rand(value.shape, generator=generator)
      value.copy_(noise + 0.5 if "var" in name else 0.2 * noise + value)
  return module.eval()


def load(module, path, fields, pixels, channels=3, method=U2S.one_pass):
  """Writes a state dict and starts a network from it; returns network, variables and log."""
  safetensors_torch.save_file(
    {name: value.contiguous().clone() for name, value in module.state_dict().items()}, path
  )
  model = U2S(CLASSES, build_backbone(**fields))
  video = jnp.zeros((1, 2, 36, 36, channels))
  if fields["name"] == "s3d":
    video = jnp.zeros((1, 4, 64, 64, channels))
  variables = jax.jit(lambda: model.init(jax.random.key(0), video, method=method))()
  lines = []
  target = adapt.Target(fields, [str(i) for i in range(CLASSES)], False, names.Pixels(*pixels))
  params, batch_stats = adapt.load(
    path, variables["params"], variables["batch_stats"], target, lines.append
  )
  return model, {"params": params, "batch_stats": batch_stats}, lines


@pytest.mark.parametrize(
  ("name", "shapes"),
  [
    ("r3d_18", [(2, 8, 56, 56), (1, 5, 73, 91)]),
    ("mc3_18", [(2, 8, 56, 56), (1, 5, 73, 91)]),
    ("r2plus1d_18", [(2, 8, 56, 56), (1, 5, 73, 91)]),
    ("s3d", [(1, 16, 224, 224), (1, 18, 231, 250)]),  # the smallest that torchvision's accepts
  ],
)
def test_networks_of_torchvision(name, shapes, tmp_path):
  video_models = pytest.importorskip("torchvision", reason="requires torchvision").models.video
  module = randomize(getattr(video_models, name)(weights=None))
  fields, pixels = {"name": name}, names._KINETICS
  model, variables, lines = load(module, tmp_path / "w.safetensors", fields, pixels)
  assert not any("initialised" in line for line in lines)
  assert read.read(tmp_path / "w.safetensors").pixels == pixels
  run = jax.jit(lambda v, x: model.apply(v, x, method=U2S.one_pass)["universal"])
  for shape in shapes:
    video = np.random.default_rng(0).normal(size=(*shape, 3)).astype(np.float32)
    with torch.no_grad():
      expected = module(torch.tensor(video.transpose(0, 4, 1, 2, 3))).numpy()
    np.testing.assert_allclose(run(variables, video), expected, atol=1e-4)


def test_kinetics_weights_start_a_flow_network(tmp_path):
  video_models = pytest.importorskip("torchvision", reason="requires torchvision").models.video
  module = randomize(video_models.r2plus1d_18(weights=None))
  path, fields = tmp_path / "w.safetensors", {"name": "r2plus1d_18"}
  _, variables, lines = load(module, path, fields, ((0.5,), (0.5,)), channels=10)
  stem = module.stem[0].weight.detach().numpy()
  got = np.asarray(variables["params"]["trunk"]["stem"]["kernel"])
  expected = stem.mean(1).transpose(1, 2, 3, 0)[..., None, :]
  np.testing.assert_allclose(got, np.repeat(expected, 10, 3), rtol=1e-6)
  assert any("mean over 3 input channels, for each of 10" in line for line in lines)


@pytest.mark.parametrize("name", ["r3d_18", "mc3_18"])
def test_weights_of_the_other_network_raise(name, tmp_path):
  video_models = pytest.importorskip("torchvision", reason="requires torchvision").models.video
  module = getattr(video_models, name)(weights=None)
  other = {"r3d_18": "mc3_18", "mc3_18": "r3d_18"}[name]
  with pytest.raises(ValueError, match=f"its network has backbone.name = {name}, not {other}"):
    load(module, tmp_path / "w.safetensors", {"name": other}, names._KINETICS)


SMALL = {"width": 128, "heads": 2, "spatial_blocks": 3, "temporal_blocks": 2}


def make_videoprism():
  """Builds transformers' network with the fields of `SMALL`."""
  transformers = pytest.importorskip("transformers", reason="requires transformers")
  if not hasattr(transformers, "VideoPrismVisionConfig"):
    pytest.skip("requires transformers >= 5.24, which has VideoPrism")
  config = transformers.VideoPrismVisionConfig(
    hidden_size=128,
    num_attention_heads=2,
    intermediate_size=512,
    num_spatial_layers=3,
    num_temporal_layers=2,
  )
  torch.manual_seed(0)
  return randomize(
    transformers.VideoPrismVisionModel._from_config(config, attn_implementation="eager")
  )


@pytest.mark.parametrize("temporal", ["separate", "shared"])
def test_videoprism(temporal, tmp_path):
  """Compares tokens: other sizes and numbers of frames interpolate the embeddings."""
  module = make_videoprism()
  fields = {"name": "videoprism", "temporal": temporal, **SMALL}
  path = tmp_path / "w.safetensors"
  model, variables, lines = load(module, path, fields, ((0.0,), (1.0,)))
  assert "  norm: not in the file; initialized randomly" in lines
  assert any("projection" in line for line in lines) == (temporal == "shared")

  def compute_tokens(model, video):
    tokens = model.trunk(video, train=False)
    return tokens if temporal == "shared" else model.universal.temporal(tokens)

  run = jax.jit(lambda v, x: model.apply(v, x, method=compute_tokens))
  for shape in [(1, 16, 288, 288), (2, 4, 288, 288), (1, 5, 180, 216), (1, 8, 97, 61)]:
    video = np.random.default_rng(0).uniform(size=(*shape, 3)).astype(np.float32)
    with torch.no_grad():
      frames = torch.tensor(video.transpose(0, 1, 4, 2, 3))
      expected = module(frames, interpolate_pos_encoding=True).last_hidden_state.numpy()
    tokens = np.asarray(run(variables, video))
    assert tokens.shape == (*shape[:2], shape[2] // 18, shape[3] // 18, 128)
    np.testing.assert_allclose(tokens.reshape(expected.shape), expected, atol=1e-4)


def test_both_files_of_videoprism_have_the_same_arrays(tmp_path):
  """Rewrites transformers' arrays under the names and in the layout of Google's .npz."""
  module = make_videoprism()
  state = {name: value.numpy() for name, value in module.state_dict().items()}
  required, arrays = names.translate(state)
  flax = {}
  stem = state["spatial_embeddings.patch_embeddings.projection.weight"]
  flax["patch_projection/linear/kernel"] = stem[:, :, 0].transpose(2, 3, 1, 0).reshape(-1, 128)
  flax["patch_projection/linear/bias"] = state[
    "spatial_embeddings.patch_embeddings.projection.bias"
  ]
  for kind, norm, blocks in (("spatial", "layernorm1", 3), ("temporal", "layernorm2", 2)):
    flax[f"{kind}_pos_emb/emb_var"] = state[f"{kind}_embeddings.position_embeddings"][0]
    flax[f"{kind}_ln/scale"], flax[f"{kind}_ln/bias"] = (
      state[f"{norm}.{leaf}"] for leaf in ("weight", "bias")
    )
    folder = f"{kind}_encoder/transformers_stack/x_layers"

    def stack(name, kind=kind, blocks=blocks):
      return np.stack([state[f"{kind}_layers.{i}.{name}"] for i in range(blocks)])

    for module_name, theirs in (("layer_norm", "before"), ("ff_layer/layer_norm", "after")):
      flax[f"{folder}/{module_name}/scale"] = stack(f"layernorm_{theirs}.weight")
      flax[f"{folder}/{module_name}/bias"] = stack(f"layernorm_{theirs}.bias")
    for module_name, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
      attention = f"{folder}/self_attention/{module_name}"
      weight = stack(f"attention.{theirs}_proj.weight").transpose(0, 2, 1)
      flax[f"{attention}/w"] = weight.reshape(blocks, 128, 2, 64)
      flax[f"{attention}/b"] = stack(f"attention.{theirs}_proj.bias").reshape(blocks, 2, 64)
    weight = stack("attention.o_proj.weight").reshape(blocks, 128, 2, 64)
    flax[f"{folder}/self_attention/post/w"] = weight
    flax[f"{folder}/self_attention/post/b"] = stack("attention.o_proj.bias")
    for i in (1, 2):
      layer = f"{folder}/ff_layer/ffn_layer{i}/linear"
      flax[f"{layer}/kernel"] = stack(f"mlp.fc{i}.weight").transpose(0, 2, 1)
      flax[f"{layer}/bias"] = stack(f"mlp.fc{i}.bias")
  np.savez(tmp_path / "w.npz", **{f"params/{name}": value for name, value in flax.items()})
  weights = read.read(tmp_path / "w.npz")
  assert dict(weights.required_fields) == dict(required.required_fields)
  assert weights.arrays.keys() == arrays.keys()
  for name, value in arrays.items():
    np.testing.assert_array_equal(weights.arrays[name], value, err_msg=name)
  assert traverse_util.unflatten_dict(arrays, sep="/")["params"].keys() == {"trunk", "universal"}


def test_slow_only_of_pytorchvideo(tmp_path):
  """Its head pools 8 frames of 7 x 7, so only clips of that size have the mean over all places."""
  resnet = pytest.importorskip("pytorchvideo.models.resnet", reason="requires pytorchvideo")
  module = randomize(
    resnet.create_resnet(
      model_depth=50,
      model_num_class=CLASSES,
      stem_conv_kernel_size=(1, 7, 7),
      head_pool_kernel_size=(8, 7, 7),
      dropout_rate=0.0,
    )
  )
  fields = {"name": "resnet", "temporal": ((3, 1, 1, 1), (3, 1, 1, 1))}
  model, variables, lines = load(module, tmp_path / "w.safetensors", fields, names._HALF)
  assert not any("initialised" in line for line in lines)
  run = jax.jit(lambda v, x: model.apply(v, x, method=U2S.one_pass)["universal"])
  video = np.random.default_rng(0).normal(size=(1, 8, 224, 224, 3)).astype(np.float32)
  with torch.no_grad():
    expected = module(torch.tensor(video.transpose(0, 4, 1, 2, 3))).numpy()
  np.testing.assert_allclose(run(variables, video), expected, atol=1e-4 * np.abs(expected).max())
