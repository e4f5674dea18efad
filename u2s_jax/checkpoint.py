"""Orbax checkpoints of a run: `<workdir>/checkpoints/<stage>/<step>`, written asynchronously.

A stage's last checkpoint stays when the next stage begins. Beside the state lies a JSON record: the
model that wrote it and the learning rate's history.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from u2s_jax import devices
from u2s_jax import state as state_lib
from u2s_jax.errors import UserError, bucket_error
from u2s_jax.files import Path, absolute, in_bucket
from u2s_jax.stages import BEST
from u2s_jax.state import TrainState

# Orbax writes to such a path as it is, but matches the whole path as a pattern when it reads: it
# finds nothing there or, worse, the arrays of a run next to this one.
PATTERNS = "*?[\\"
KEEP = 2  # newest checkpoints of a stage
ASIDE = "damaged_"  # begins the name of a checkpoint that was set aside


class DamagedError(UserError):
  """A checkpoint that does not restore.

  Args:
    path: of the checkpoint.
    reason: why, or the error that said so.
  """

  def __init__(self, path: Path, reason: Exception | str):
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    super().__init__(f"checkpoint {path} is damaged ({' '.join(lines[0].split())[:200]})")


def check_path(folder: Path) -> None:
  """Checks that Orbax can read what it writes to a folder: it reads these characters as patterns.

  Raises:
    UserError: a path with such a character.
  """
  found = next((character for character in PATTERNS if character in str(folder)), None)
  if found:
    raise UserError(
      f"{folder}: checkpoints cannot be read from a path with {found!r}; choose a path without it"
    )


class Checkpoints:
  """The checkpoints below one folder.

  Args:
    folder: created when missing.
    stages: names of the stages in the order of training.
    model: description of the model, in JSON's types; a checkpoint of another one is refused.
    defaults: values of fields of `model` that a checkpoint of an earlier version does not have.
  """

  def __init__(
    self,
    folder: Path,
    stages: tuple[str, ...],
    model: dict[str, Any],
    defaults: dict[str, Any],
  ):
    check_path(folder)
    self._folder = absolute(folder)
    self._model, self._defaults = model, defaults
    self._stages = stages
    self._managers: dict[str, ocp.CheckpointManager] = {}
    self._open: int | None = None  # the folder, held open: another one cannot be taken for it

  def latest(self) -> tuple[str, int] | None:
    """Returns stage and step of the newest complete checkpoint, None where there is none."""
    for stage in reversed(self._stages):
      step = self.last_step(stage)
      if step is not None:
        return stage, step
    return None

  def last_step(self, stage: str) -> int | None:
    """Returns the step of a stage's newest complete checkpoint, None where there is none."""
    return self._manager(stage).latest_step() if (self._folder / stage).exists() else None

  def save(self, stage: str, step: int, state: TrainState, record: dict[str, Any]) -> None:
    """Begins to write; returns once the state may change. A step that is there already stays.

    Raises:
      UserError: the processes' replicas of the state differ.
    """
    manager = self._manager(stage)
    if step in manager.all_steps():
      return
    checksum = np.uint32(state_lib.checksum(state))  # of this process's replica
    if devices.on_any_process(bool(checksum != devices.broadcast_from_host0(checksum))):
      raise UserError(
        f"{self._folder}: at stage {stage}, step {step} the processes do not have the same numbers:"
        " their programs were compiled on unlike machines, here or for a cache; start all on equal"
        " ones, with an empty cache (<workdir>/compiled, JAX_COMPILATION_CACHE_DIR)"
      )
    record = {**record, "model": self._model, "checksum": int(checksum)}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
    with self._named():
      manager.save(step, args=args)

  def restore(
    self, stage: str, step: int, abstract: TrainState
  ) -> tuple[TrainState, dict[str, Any]]:
    """Reads a state and its record.

    Args:
      stage: the stage's name.
      step: as `latest` gives it.
      abstract: shapes, types and shardings of the state.

    Raises:
      DamagedError: it does not restore, or not to what was saved.
      UserError: the checkpoint is another model's, with the field that differs.
    """
    manager, path = self._manager(stage), self._folder / stage / str(step)
    with _damage(path):
      record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
      model = record["model"]
    for field, value in self._model.items():
      saved = model.get(field, self._defaults.get(field))
      if saved != value:
        if field == "class_names" and saved:  # too many to show them all
          pairs = zip(saved, value, strict=True)
          first = next(i for i, (theirs, ours) in enumerate(pairs) if theirs != ours)
          field, saved, value = f"{field}[{first}]", repr(saved[first]), repr(value[first])
        raise UserError(
          f"checkpoint {self._folder / stage / str(step)} is another model's: {field} is {saved}"
          f" there and {value} here; set it back or take another workdir"
        )
    with _damage(path):
      restored = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )
    saved = record.get("checksum")  # None: an earlier version's
    if saved is not None and saved != int(state_lib.checksum(restored.state)):
      raise DamagedError(path, "its numbers are not those that were saved")
    return restored.state, record

  def any_damaged(self) -> bool:
    """Tells, by host 0's word, whether a checkpoint was set aside."""
    return bool(devices.broadcast_from_host0(any(self._folder.glob(f"*/{ASIDE}*"))))

  def set_aside(self, stage: str, step: int) -> Path:
    """Renames a checkpoint, so that the one before is the newest; returns its new name."""
    path = self._folder / stage / str(step)
    aside = next(
      name for k in itertools.count() if not (name := path.with_name(f"{ASIDE}{step}_{k}")).exists()
    )
    if stage in self._managers:
      self._managers.pop(stage).close()
    if jax.process_index() == 0:
      path.rename(aside)
    devices.wait_for_host0(f"aside_{stage}_{step}", hours=1)
    return aside

  def wait(self) -> None:
    """Waits until everything that was begun is written."""
    with self._named():
      for manager in self._managers.values():
        manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then gives back threads."""
    try:
      with self._named():
        for manager in self._managers.values():
          manager.close()
    finally:
      self._managers = {}
      if self._open is not None:
        os.close(self._open)
        self._open = None

  def _was_removed(self) -> bool:
    if self._open is None:
      return False
    try:
      return os.stat(self._folder).st_ino != os.fstat(self._open).st_ino
    except FileNotFoundError:
      return True

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    """Names the folder in errors of writing, some of which name nothing."""
    try:
      yield
    except Exception as error:
      if self._was_removed():  # whatever Orbax makes of it
        raise UserError(f"{self._folder}: removed while a checkpoint was written") from error
      if not isinstance(error, OSError) or error.filename or error.errno is None:
        raise
      raise OSError(error.errno, error.strerror, str(self._folder)) from error

  def _manager(self, stage: str) -> ocp.CheckpointManager:
    if stage not in self._managers:
      # Of the best ones the one before is none.
      keep = 1 if stage == BEST else KEEP
      options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
      self._managers[stage] = ocp.CheckpointManager(self._folder / stage, options=options)
      if self._open is None and not in_bucket(self._folder):
        self._open = os.open(self._folder, os.O_RDONLY)
    return self._managers[stage]


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
  """Makes a `DamagedError` of what Orbax raises, but where memory, rights or the bucket fail."""
  try:
    yield
  except (UserError, MemoryError, PermissionError):
    raise
  except Exception as error:  # Orbax and TensorStore have no type of their own for it
    if "RESOURCE_EXHAUSTED" in str(error) or bucket_error(error) is not None:
      raise
    raise DamagedError(path, error) from error


def read_subnetworks(
  folder: Path, stages: tuple[str, ...], names: tuple[str, ...]
) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
  """Reads parts of the newest complete checkpoint of another run, and writes nothing.

  Args:
    folder: the other run's checkpoints.
    stages: names of the stages in the order of training.
    names: of the subnetworks.

  Returns:
    The checkpoint's folder, `<stage>/<step>`, its `params` and `batch_stats` of those subnetworks
    as NumPy arrays, and its record with the description of the model that wrote it; None where
    there is no checkpoint. By host 0's word: another run may still be training.
  """

  def wanted(tree):
    return {key: {name: tree[key][name] for name in names} for key in ("params", "batch_stats")}

  return _read_newest(folder, stages, wanted)


def read_networks(
  folder: Path, stages: tuple[str, ...]
) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
  """Reads as `read_subnetworks` all of them, and the `csm`: what a prediction needs."""
  return _read_newest(
    folder, stages, lambda tree: {key: tree[key] for key in ("params", "batch_stats", "csm")}
  )


def read_record(folder: Path, stages: tuple[str, ...]) -> dict[str, Any] | None:
  """Returns the record of the newest complete checkpoint, None where there is none."""
  path = newest(folder, stages)
  if path is None:
    return None
  with _damage(path):
    return _record(path)


def _record(path: Path) -> dict[str, Any]:
  return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / "record")


def newest(folder: Path, stages: tuple[str, ...]) -> Path | None:
  """Returns the newest complete checkpoint, by host 0's word; None where there is none."""
  check_path(folder)
  last = -1, 0
  for i, stage in enumerate(stages):
    steps = ocp.utils.checkpoint_steps(folder / stage) if (folder / stage).is_dir() else ()
    last = (i, max(steps)) if steps else last
  index, step = devices.broadcast_from_host0(last)
  return None if index < 0 else absolute(folder / stages[index] / str(step))


def _read_newest(
  folder: Path,
  stages: tuple[str, ...],
  wanted: Callable[[dict[str, Any]], dict[str, Any]],
) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
  """Reads what `wanted` takes of the tree of the newest complete checkpoint's state."""
  path = newest(folder, stages)
  if path is None:
    return None
  with _damage(path):
    record = _record(path)
    handler = ocp.PyTreeCheckpointHandler()
    part = wanted(handler.metadata(path / "state").tree)
    # As NumPy arrays, whatever devices they were on.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), part)
    weights = ocp.Checkpointer(handler).restore(
      path / "state",
      ocp.args.PyTreeRestore(part, restore_args=as_numpy, partial_restore=True),
    )
  return path, weights, record


def abstract_state(state: TrainState, placement: jax.sharding.Sharding) -> TrainState:
  """Returns shapes and types of a state (or of its `eval_shape`), to be restored at `placement`."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement), state)
