"""A step compiles for a GPU and a TPU without one: half a minute each, where the plugins are."""

import importlib.util
import threading

import pytest

from benchmarks import aot


def test_the_networks_of_the_configs():
  names = aot.distinct_configs()
  assert names[0] == "sthv2" and {"demo", "sthv2_flow", "cars", "ucf101_i3d"} <= set(names)
  assert "hmdb51" not in names  # sthv2's


@pytest.mark.parametrize("platform, chip", [("gpu", "h100"), ("tpu", "v5e-16")])
def test_a_joint_step_compiles(platform, chip, monkeypatch):
  if not any(map(importlib.util.find_spec, aot.PLUGINS[platform])):
    pytest.skip(f"needs {' or '.join(aot.PLUGINS[platform])}")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  row = aot.Row(chip, "demo", "bfloat16", "joint", 2, convolution="auto", remat=False)
  answer = aot.compile_apart(row, threading.local())
  assert answer.get("fits"), answer
  # The demo's joint step takes 16 clips 8.1 GFLOP (benchmarks/README.md) but for padding.
  assert 0.7 < answer["flops"] / (8.1e9 / 8) < 4, answer["flops"]
  assert sum(answer["products"].values()) > 50 and answer["seconds"] > 0
