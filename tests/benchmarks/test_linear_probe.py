"""The configs of `benchmarks.linear_probe --all`."""

import pathlib

import pytest

from benchmarks import linear_probe
from u2s_jax.pretrained import names
from u2s_jax.run import config_flags

WITHOUT = {
  "timm resnetv2",
  "mmaction2 ResNet",
  "mmaction2 TSM",
  "pytorchvideo SlowOnly ResNet",
  "torchvision r3d_18",
  "torchvision mc3_18",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # ml_collections'
@pytest.mark.parametrize("source", (*names.SOURCES, names.VIDEOPRISM), ids=lambda s: s.name)
def test_every_start_has_a_config_that_its_weights_fit(source):
  config_name = linear_probe.choose_config(f"/weights/file.npz, a {source.name}")
  if source.name in WITHOUT:
    assert config_name is None
    return
  config, _, _ = config_flags.read_config([f"--config={config_name}"])
  backbone = config.model.backbone
  for field, value in source.required_fields.items():
    if field in backbone:
      assert backbone[field] == value
  assert pathlib.Path(config_name.partition(":")[0]).exists()
