"""One mesh axis, `data`: batches are split over it, everything else is replicated."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
  """All devices of all processes along the axis `data`.

  The axis type is Auto: `jax.make_mesh` defaults to Explicit, where operations across a sharded
  batch (a sum by label, say) raise ShardingTypeError.
  """
  return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """The first dimension is split over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(field: str, batch_size: int, parts: int = 1) -> None:
  """Raises ValueError, naming the config field, where the devices do not divide a global batch.

  Args:
    field: of the config.
    batch_size: global.
    parts: that the batch is computed in, one after the other.
  """
  devices = jax.device_count()
  unit = devices * parts
  if batch_size <= 0 or batch_size % unit:
    times = f" times accumulate_steps ({parts})" if parts > 1 else ""
    raise ValueError(
      f"{field}: {batch_size} is not a positive multiple of the {devices} devices{times};"
      f" the nearest is {max(unit, round(batch_size / unit) * unit)}"
    )


def first_host_says(values: Any) -> np.ndarray:
  """What the first host sees, on all hosts: their views of a shared folder may differ."""
  return np.asarray(multihost_utils.broadcast_one_to_all(np.asarray(values)))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's slices of a batch as global arrays, split over the devices.

  Entries that no device can hold (byte strings) are left out.
  """
  return {
    key: jax.make_array_from_process_local_data(batched(mesh), value)
    for key, value in batch.items()
    if value.dtype.kind not in "SUO"
  }
