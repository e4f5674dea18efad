"""The checker of backbones, and the example of docs/backbones.md."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from u2s_jax.models.backbones import BACKBONES
from u2s_jax.models.check import find_problems

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLE = re.search(
  r"```python\n(\"\"\"A small 3D CNN.*?)```", (ROOT / "docs/backbones.md").read_text(), re.DOTALL
)[1]
FLAT = ((1, 1, 1, 1),) * 2
SMALL = {
  "preact_resnet": {"depth": 14, "width": 2, "temporal": FLAT},
  "resnet": {"depth": 14, "width": 2, "temporal": FLAT},
  "cnn3d": {"width": 2},
  "r2plus1d_18": {"width": 4},
  "videoprism": {"width": 16, "heads": 2, "spatial_blocks": 1, "temporal_blocks": 1},
}


@pytest.fixture
def example(tmp_path, monkeypatch):
  """A folder with the module `my_networks` of the docs, importable; returns a rewriter."""
  monkeypatch.syspath_prepend(str(tmp_path))

  def write(old="", new=""):
    assert old in EXAMPLE
    (tmp_path / "my_networks.py").write_text(EXAMPLE.replace(old, new))
    sys.modules.pop("my_networks", None)
    return "my_networks:SmallCNN"

  yield write
  sys.modules.pop("my_networks", None)


def test_the_example_has_at_most_45_lines_of_code():
  assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 45


@pytest.mark.parametrize("name", SMALL)
def test_finds_nothing_in_networks_of_this_package(name):
  assert name in BACKBONES and find_problems(name, **SMALL[name]) == []


@pytest.mark.parametrize(
  ("old", "new", "problem"),
  [
    ("return nn.relu(self.norm(self.conv", "return (self.norm(self.conv", "negative values"),
    ("axis=(1, 2, 3)", "axis=(2, 3)", "classify(): shape (2, 4, 3)"),
    ("self.head", "self.output", "no layer `head`"),
    ('name="stem")', 'name="first")', "no layer `stem`"),
    ("return self.head(", "return 0j + self.head(", "classify(): dtype complex64"),
    ("(trunk), train=train))", "(trunk[:, :1]), train=train))", "does not depend on frame 1"),
    (
      "return nn.relu(self.norm(self.conv(trunk), train=train))",
      "return nn.relu(self.norm(self.conv(trunk), train=train)).mean((1, 2, 3))",
      "features(): shape (2, 32)",
    ),
  ],
)
def test_names_what_is_wrong(example, old, new, problem):
  found = find_problems(example(old, new), width=16)
  assert problem in "; ".join(found)


def test_command_checks_the_example(example, tmp_path):
  name = example()
  environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
  command = [sys.executable, "-m", "u2s_jax.models.check", name, "width=8"]
  result = subprocess.run(
    command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
  )
  assert (result.returncode, result.stdout) == (0, f"{name}: no problems found\n"), result.stderr
