"""Tests of batch sizes, rows of sharded arrays, compiler options and the compilation cache."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax.runtime import devices
from u2s_jax.runtime.errors import UserError


@pytest.mark.parametrize(
  ("num_devices", "fitted"),
  [(1, 20), (2, 20), (3, 21), (4, 20), (8, 24), (16, 32), (20, 20), (256, 512)],
)
def test_fit_batch_size(num_devices, fitted):
  assert devices.fit_batch_size(20, num_devices) == fitted


@pytest.mark.parametrize(("parts", "fitted"), [(1, 24), (2, 32), (4, 32), (5, 40)])
def test_fit_batch_size_with_parts(parts, fitted):
  assert devices.fit_batch_size(20, 8, parts) == fitted


@pytest.mark.parametrize(("size", "nearest"), [(20, 16), (0, 8), (3, 8)])
def test_check_batch_size_names_the_nearest_size(size, nearest):
  with pytest.raises(UserError, match=f"^batch_size: {size} must be .* 8 devices.* {nearest}$"):
    devices.check_batch_size("batch_size", size)


def test_check_batch_size_with_parts():
  devices.check_batch_size("batch_size", 32, 2)
  with pytest.raises(UserError, match=r"8 devices times accumulate_steps \(3\); the nearest is 24"):
    devices.check_batch_size("batch_size", 32, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_read_row_transfers_only_that_row(dtype):
  mesh = devices.data_mesh()
  values = np.random.default_rng(0).integers(0, 256, (16, 3, 5)).astype(dtype)
  array = devices.make_global_batch({"a": values}, mesh)["a"]
  for row in (0, 7, 15):
    got = devices.read_row(array, row)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, values[row])
  row = jax.ShapeDtypeStruct((), jnp.int32, sharding=devices.replicated_sharding(mesh))
  program = devices._row_program().lower(array, row).compile().as_text()
  assert re.search(r"\[1,3,5\]\S* all-reduce", program), "the program must exchange the row"
  assert not re.search(r"\[(16|2),3,5\]\S* all-", program)


def test_compiler_options_keep_the_older_convolutions():
  def program(options):
    video, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    step = jax.jit(
      lambda v, k: jax.lax.conv(v.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), "SAME"),
      compiler_options=options,
    )
    return step.lower(video, kernel).compile().as_text()

  if devices.get_compiler_options() is None:
    pytest.skip("not a CPU, or a jaxlib without the option")
  assert "ynn" not in program(devices.get_compiler_options())


def test_compilation_cache_keeps_an_explicit_folder(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    devices.use_compilation_cache(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    devices.use_compilation_cache(tmp_path / "other")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
