"""Batches that devices divide, compile options, and the cache of compiled programs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from u2s_jax import devices
from u2s_jax.errors import UserError


@pytest.mark.parametrize(
  ("devices_at_hand", "fitted"),
  [(1, 20), (2, 20), (3, 21), (4, 20), (8, 24), (16, 32), (20, 20), (256, 512)],
)
def test_a_batch_of_20_on_any_number_of_devices(devices_at_hand, fitted):
  assert devices.fit_batch_size(20, devices_at_hand) == fitted


@pytest.mark.parametrize(("parts", "fitted"), [(1, 24), (2, 32), (4, 32), (5, 40)])
def test_a_batch_of_20_in_parts_on_8_devices(parts, fitted):
  assert devices.fit_batch_size(20, 8, parts) == fitted


@pytest.mark.parametrize(("size", "nearest"), [(20, 16), (0, 8), (3, 8)])
def test_a_batch_that_the_devices_do_not_divide(size, nearest):
  with pytest.raises(UserError, match=f"^batch_size: {size} is not .* 8 devices.* {nearest}$"):
    devices.check_batch_size("batch_size", size)


def test_a_batch_that_its_parts_do_not_divide():
  devices.check_batch_size("batch_size", 32, 2)
  with pytest.raises(UserError, match=r"8 devices times accumulate_steps \(3\); the nearest is 24"):
    devices.check_batch_size("batch_size", 32, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_one_row_alone_leaves_its_device(dtype):
  mesh = devices.data_mesh()
  values = np.random.default_rng(0).integers(0, 256, (16, 3, 5)).astype(dtype)
  array = devices.global_batch({"a": values}, mesh)["a"]
  for row in (0, 7, 15):
    got = devices.read_row(array, row)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, values[row])
  row = jax.ShapeDtypeStruct((), jnp.int32, sharding=devices.replicated(mesh))
  program = devices._row_program().lower(array, row).compile().as_text()
  assert re.search(r"\[1,3,5\]\S* all-reduce", program), "where XLA exchanges the row"
  assert not re.search(r"\[(16|2),3,5\]\S* all-", program)


def test_the_options_keep_convolutions_out_of_the_new_kernels():
  def program(options):
    video, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    step = jax.jit(
      lambda v, k: jax.lax.conv(v.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), "SAME"),
      compiler_options=options,
    )
    return step.lower(video, kernel).compile().as_text()

  if devices.compiler_options() is None:
    pytest.skip("no CPU, or a jaxlib without the option")
  assert "ynn" not in program(devices.compiler_options())


def test_programs_are_kept_unless_jax_was_told_where(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    devices.use_compilation_cache(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    devices.use_compilation_cache(tmp_path / "other")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
