"""Compile options and the cache of compiled programs."""

import jax
import jax.numpy as jnp
import pytest

from u2s_jax import compiling


def test_the_options_keep_convolutions_out_of_the_new_kernels():
  def program(options):
    video, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    step = jax.jit(
      lambda v, k: jax.lax.conv(v.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1), (1, 1), "SAME"),
      compiler_options=options,
    )
    return step.lower(video, kernel).compile().as_text()

  if compiling.options() is None:
    pytest.skip("no CPU, or a jaxlib without the option")
  assert "ynn" not in program(compiling.options())


def test_programs_are_kept_unless_jax_was_told_where(tmp_path):
  before = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update("jax_compilation_cache_dir", None)
    compiling.use_cache(tmp_path)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
    compiling.use_cache(tmp_path / "other")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
