"""Imports: `u2s_jax` never imports TensorFlow, and importing the package alone is cheap."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = """
import sys
import u2s_jax
assert not {"jax", "tensorflow"} & set(sys.modules)
import u2s_jax.fusion, u2s_jax.serving.cli, u2s_jax.training.train
assert not {"data", "configs", "tensorflow", "clu", "matplotlib", "sklearn"} & set(sys.modules)
"""


def test_imports_neither_tensorflow_nor_plotting():
  subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=os.environ, check=True)


def test_export_has_every_field_of_a_clip():
  import dataclasses

  from u2s_jax.serving.export import CLIP_FIELDS
  from u2s_jax.video.clips import ClipSpec

  assert {field.name for field in dataclasses.fields(ClipSpec)} == set(CLIP_FIELDS)
