"""Devices, hosts and compilers: the mesh, where arrays lie, what host 0 sees, how programs compile.

One mesh axis, `data`: batches are split over it, everything else is replicated.
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

from u2s_jax.errors import UserError
from u2s_jax.files import Path

# Without 'individual convolution', which XLA adds by itself: of the demo's and ResNet-50's
# convolutions its newer kernels (YNNPACK) are as fast as the older ones (Eigen), or take up to
# three times as long; see benchmarks/README.md.
_CPU_OPTIONS = {
  "xla_cpu_experimental_ynn_fusion_type": ",".join(
    f"LIBRARY_FUSION_TYPE_{kind}" for kind in ("DOT", "REDUCE", "INDIVIDUAL_DOT")
  )
}


def wait_for_host0(key: str, *, hours: int) -> None:
  """Waits until all hosts are there, at a barrier that knows no time-out of a collective.

  Args:
    key: of the barrier.
    hours: the others wait at most.
  """
  multihost.get_barrier_sync_fn()(key=key, timeout_ms=round(hours * 3600 * 1000))


@functools.cache
def data_mesh() -> Mesh:
  """Returns all devices of all processes along the axis `data`.

  The axis type is Auto: `jax.make_mesh` defaults to Explicit, where operations across a sharded
  batch (a sum by label, say) raise ShardingTypeError.
  """
  return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the placement of a whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """Returns the placement of an array whose first dimension is split over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def fit_batch_size(batch_size: int, devices: int, parts: int = 1) -> int:
  """Returns a global batch that the devices divide: the one asked for, or the next larger one.

  A larger one has at least two clips a device: BN and matrix units gain by it, and no batch that is
  made for many devices should leave them half idle.

  Args:
    batch_size: clips asked for, at least 1.
    devices: of all hosts.
    parts: that the batch is computed in, one after the other.
  """
  unit = devices * parts
  if batch_size % unit == 0:
    return batch_size
  return unit * max(-(-batch_size // unit), -(-2 // parts))


def check_batch_size(field: str, batch_size: int, parts: int = 1) -> None:
  """Checks that the devices divide a global batch.

  Args:
    field: of the config, for the message.
    batch_size: clips of the global batch.
    parts: that the batch is computed in, one after the other.

  Raises:
    UserError: they do not; it names the nearest size that they divide.
  """
  devices = jax.device_count()
  unit = devices * parts
  if batch_size <= 0 or batch_size % unit:
    times = f" times accumulate_steps ({parts})" if parts > 1 else ""
    raise UserError(
      f"{field}: {batch_size} is not a positive multiple of the {devices} devices{times};"
      f" the nearest is {max(unit, round(batch_size / unit) * unit)}"
    )


def broadcast_from_host0(values: Any) -> np.ndarray:
  """Returns host 0's values on all hosts: their views of a shared folder may differ."""
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(values)))


def on_any_process(value: bool) -> bool:
  """Tells all processes whether the value is true on one of them."""
  return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Returns this process's slices of a batch as global arrays, split over the devices.

  Args:
    batch: arrays by name; those that no device can hold (byte strings) are left out.
    mesh: of `data_mesh`.
  """
  return {
    key: jax.make_array_from_process_local_data(batched(mesh), value)
    for key, value in batch.items()
    if value.dtype.kind not in "SUO"
  }


def take_row(array: Shaped[Array, "n ..."], row: ArrayLike) -> Shaped[Array, "..."]:
  """Returns one row of an array whose rows are split over the devices, under `jit`.

  Only that row leaves its device: XLA partitions a gather by a vector of indices, while for a plain
  index it gathers the whole array first.
  """
  return jnp.take(array, jnp.asarray(row)[None], axis=0, mode="clip")[0]


def read_row(array: Shaped[Array, "n ..."], row: int) -> Shaped[np.ndarray, "..."]:
  """Returns one row of an array whose rows are split over the devices; on all hosts."""
  return np.asarray(_row_program()(array, np.int32(row)))


@functools.cache
def _row_program() -> Callable[..., Array]:
  return jax.jit(take_row, out_shardings=replicated(data_mesh()))


@functools.cache
def compiler_options() -> dict[str, str] | None:
  """Returns `compiler_options` of `jax.jit` for the devices at hand; None: XLA's own."""
  if jax.default_backend() != "cpu":
    return None
  try:
    jax.jit(lambda: 0, compiler_options=_CPU_OPTIONS)()
  except jax.errors.JaxRuntimeError:
    return None  # an experimental option: another jaxlib may not have it
  return _CPU_OPTIONS


def use_compilation_cache(folder: Path) -> None:
  """Compiles nothing twice: programs are kept in `folder`, unless JAX was told of another one.

  `JAX_COMPILATION_CACHE_DIR` names one for all runs.
  """
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(folder))
