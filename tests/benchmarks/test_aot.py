"""Compiles a step for a GPU and a TPU without one; takes half a minute each, if installed."""

import importlib.util
import threading

import pytest

from benchmarks import aot


def test_distinct_configs():
  names = aot.distinct_configs()
  assert names[0] == "sthv2" and {"demo", "sthv2_flow", "cars", "ucf101_i3d"} <= set(names)
  assert "hmdb51" not in names  # sthv2's


@pytest.mark.parametrize("platform, chip", [("gpu", "h100"), ("tpu", "v5e-16")])
def test_joint_step_compiles(platform, chip, monkeypatch):
  if not any(map(importlib.util.find_spec, aot.PLUGINS[platform])):
    pytest.skip(f"requires {' or '.join(aot.PLUGINS[platform])}")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  row = aot.Row(chip, "demo", "bfloat16", "joint", 2, convolution="auto", remat=False)
  result = aot.compile_in_process(row, threading.local())
  assert result.get("fits"), result
  # The demo's joint step of 16 clips has 8.1 GFLOP (benchmarks/README.md), without padding.
  assert 0.7 < result["flops"] / (8.1e9 / 8) < 4, result["flops"]
  assert sum(result["products"].values()) > 50 and result["seconds"] > 0
