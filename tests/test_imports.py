"""What importing costs: no TensorFlow in `u2s_jax`, nothing at all in the package itself."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CODE = """
import sys
import u2s_jax
assert not {"jax", "tensorflow"} & set(sys.modules)
import u2s_jax.fusion, u2s_jax.serving.export, u2s_jax.serving.predict, u2s_jax.training.train
assert not {"tensorflow", "matplotlib", "sklearn"} & set(sys.modules)
import u2s_jax.model
assert "tensorflow" not in sys.modules
"""


def test_no_tensorflow_and_nothing_that_draws():
  subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=os.environ, check=True)


def test_an_id_that_prepare_takes_is_one_that_evaluation_takes():
  from data.sources.listing import MAX_ID_BYTES
  from u2s_jax.evaluation.inference import ID_BYTES

  assert MAX_ID_BYTES == ID_BYTES


def test_an_exported_model_names_every_field_of_a_clip():
  import dataclasses

  from data.clips import ClipSpec
  from u2s_jax.serving.export import CLIP_FIELDS

  assert {field.name for field in dataclasses.fields(ClipSpec)} == set(CLIP_FIELDS)
