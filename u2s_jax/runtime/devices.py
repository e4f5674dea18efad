"""Device mesh, shardings, communication between hosts, and compiler options.

The mesh has one axis, `data`: batches are split over it, everything else is replicated.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Shaped
from orbax.checkpoint import multihost

from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.files import Path

# XLA's default, without LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION: for the convolutions of the
# demo and of ResNet-50 its newer kernels (YNNPACK) are as fast as the older ones (Eigen) or take up
# to three times as long, with jaxlib 0.10.2 and 0.11.2; see benchmarks/README.md.
_CPU_OPTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": ",".join(
    f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "REDUCE", "INDIVIDUAL_DOT")
  )
}


def wait_for_host0(key: str, *, hours: int) -> None:
  """Waits until all hosts reach this barrier, for work that host 0 does alone.

  Unlike a collective operation, the barrier has a timeout of its own.
  """
  multihost.get_barrier_sync_fn()(key=key, timeout_ms=round(hours * 3600 * 1000))


@functools.cache
def data_mesh() -> Mesh:
  """Returns the mesh of all devices of all processes, with one axis `data`.

  The axis type is Auto: `jax.make_mesh` defaults to Explicit, where operations across a sharded
  batch, such as a sum by label, raise ShardingTypeError.
  """
  return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that copies an array to every device."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits the first dimension over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def fit_batch_size(batch_size: int, devices: int, parts: int = 1) -> int:
  """Returns the smallest divisible global batch size that is at least `batch_size`.

  If `batch_size` is not divisible, every device gets at least two clips, which is better for batch
  normalization and makes better use of matrix units. A batch is computed in `parts`, the
  `accumulate_steps`.
  """
  unit = devices * parts
  if batch_size % unit == 0:
    return batch_size
  return unit * max(-(-batch_size // unit), -(-2 // parts))


def check_batch_size(field: str, batch_size: int, parts: int = 1) -> None:
  """Raises UserError with the nearest valid size if the devices cannot split a batch evenly."""
  devices = jax.device_count()
  unit = devices * parts
  if batch_size <= 0 or batch_size % unit:
    times = f" times accumulate_steps ({parts})" if parts > 1 else ""
    raise UserError(
      f"{field}: {batch_size} must be a positive multiple of the {devices} devices{times};"
      f" the nearest is {max(unit, round(batch_size / unit) * unit)}"
    )


def broadcast_from_host0(values: Any) -> np.ndarray:
  """Returns host 0's values on all hosts.

  Needed before decisions that depend on files: hosts may see different states of a shared
  directory.
  """
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(values)))


def is_true_on_any_process(value: bool) -> bool:
  """Returns, on all processes, whether the value is true on at least one of them."""
  return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def make_global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Returns global arrays, split over the devices, from this process's part of a batch.

  Strings and objects are left out, since devices cannot hold them.
  """
  return {
    key: jax.make_array_from_process_local_data(batch_sharding(mesh), value)
    for key, value in batch.items()
    if value.dtype.kind not in "SUO"
  }


def take_row(array: Shaped[Array, "n ..."], row: ArrayLike) -> Shaped[Array, "..."]:
  """Returns one row of an array whose rows are split over the devices, under `jit`."""
  # A vector of indices, because XLA partitions that gather: only the row leaves its device. For a
  # scalar index it would gather the full array first.
  return jnp.take(array, jnp.asarray(row)[None], axis=0, mode="clip")[0]


def read_row(array: Shaped[Array, "n ..."], row: int) -> Shaped[np.ndarray, "..."]:
  """Returns one row of an array whose rows are split over the devices, on all hosts."""
  return np.asarray(_row_program()(array, np.int32(row)))


@functools.cache
def _row_program() -> Callable[..., Array]:
  return jax.jit(take_row, out_shardings=replicated_sharding(data_mesh()))


@functools.cache
def get_compiler_options() -> dict[str, str] | None:
  """Returns the argument `compiler_options` of `jax.jit`; None for XLA's defaults."""
  if jax.default_backend() != "cpu":
    return None
  try:
    jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
  except jax.errors.JaxRuntimeError:
    return None  # the option is experimental: another jaxlib may not have it
  return _CPU_OPTIONS


def use_compilation_cache(folder: Path) -> None:
  """Keeps compiled programs in `folder`, unless `JAX_COMPILATION_CACHE_DIR` is set."""
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(folder))
