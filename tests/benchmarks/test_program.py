"""Costs counted in compiled programs, compared with numbers computed by hand."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import program
from u2s_jax.runtime import devices


def count(function, *shapes, chip=None):
  arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  return program.count(jax.jit(function).lower(*arguments).compile(), chip)


def test_product_in_a_loop_counts_once_per_iteration():
  cost = count(lambda x, k: jax.lax.map(lambda a: a @ k, x), (10, 64, 64), (64, 32))
  assert cost.flops == 10 * 2 * 64 * 64 * 32
  assert cost.products["product"] == 10


def test_each_gradient_of_a_convolution_costs_as_much_as_the_convolution():
  def conv(x, k):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=numbers)

  shapes = (10, 16, 16, 8), (1, 1, 8, 16)  # 1x1: no multiplications with the zeros around a frame
  once = 2 * 10 * 16 * 16 * 8 * 16
  assert count(conv, *shapes).flops == once
  both = count(jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), (0, 1)), *shapes)
  assert both.flops == 3 * once


def test_time_of_a_sum_is_bound_by_memory_and_of_a_product_by_flops():
  chip = program.Chip({"float32": 1e9}, bandwidth=1e6, link=1e6)
  added = count(lambda x, y: x + y, (1000,), (1000,), chip=chip)
  assert added.bytes == 3 * 4000 and added.seconds == pytest.approx(0.012)
  chip = program.Chip({"float32": 1e6}, bandwidth=1e9, link=1e6)
  product = count(jnp.matmul, (100, 100), (100, 100), chip=chip)
  assert product.seconds == pytest.approx(2 * 100**3 / 1e6)


def test_collectives_count_the_bytes_of_their_results():
  mesh = devices.data_mesh()
  shape = jax.ShapeDtypeStruct((80, 30), jnp.float32, sharding=devices.batch_sharding(mesh))
  summed = jax.jit(lambda x: x.sum(0), out_shardings=devices.replicated_sharding(mesh))
  assert program.count(summed.lower(shape).compile()).collectives == 30 * 4
