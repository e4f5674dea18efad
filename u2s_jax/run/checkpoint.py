"""Orbax checkpoints of a run, `<workdir>/checkpoints/<stage>/<step>`, written asynchronously.

The last checkpoint of a stage stays when the next stage begins. Each checkpoint holds the state and
a JSON record: a description of the model, a checksum, and the history of the learning rate.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from u2s_jax.run import state as state_lib
from u2s_jax.run.state import TrainState
from u2s_jax.runtime import devices
from u2s_jax.runtime.errors import UserError, describe_bucket_error
from u2s_jax.runtime.files import Path, is_in_bucket
from u2s_jax.stages import BEST

# Orbax writes to the literal path but treats it as a glob pattern when it reads: it then finds
# nothing or, worse, the arrays of another run.
GLOB_CHARACTERS = "*?[\\"
MAX_TO_KEEP = 2  # newest checkpoints of a stage
QUARANTINE_PREFIX = "damaged_"  # of the names of quarantined checkpoints


class DamagedError(UserError):
  """A checkpoint that cannot be restored; the message shows the first line of the reason."""

  def __init__(self, path: Path, reason: Exception | str):
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    super().__init__(f"checkpoint {path} is damaged ({' '.join(lines[0].split())[:200]})")


def check_path(folder: Path) -> None:
  """Raises UserError for a path with a character of glob patterns, where Orbax cannot read."""
  found = next((character for character in GLOB_CHARACTERS if character in str(folder)), None)
  if found:
    raise UserError(
      f"{folder}: checkpoints cannot be read from a path with {found!r}; choose a path without it"
    )


class Checkpoints:
  """Saves and restores the checkpoints of a run.

  Args:
    folder: directory of the checkpoints, an absolute path; created if missing.
    stages: names of the stages in the order of training.
    model: description of the model, of JSON types; checkpoints of other models are refused.
    defaults: values for fields of `model` that checkpoints of earlier versions lack.
  """

  def __init__(
    self,
    folder: Path,
    stages: tuple[str, ...],
    model: dict[str, Any],
    defaults: dict[str, Any],
  ):
    check_path(folder)
    self._folder = folder
    self._model, self._defaults = model, defaults
    self._stages = stages
    self._managers: dict[str, ocp.CheckpointManager] = {}
    # The open folder keeps its inode number in use, so `_was_removed` can tell whether the path
    # still leads to this folder.
    self._descriptor: int | None = None

  def latest(self) -> tuple[str, int] | None:
    """Returns stage and step of the newest complete checkpoint, None if there is none."""
    for stage in reversed(self._stages):
      step = self.last_step(stage)
      if step is not None:
        return stage, step
    return None

  def last_step(self, stage: str) -> int | None:
    """Returns the step of the newest complete checkpoint of a stage, None if there is none."""
    return self._manager(stage).latest_step() if (self._folder / stage).exists() else None

  def save(self, stage: str, step: int, state: TrainState, record: dict[str, Any]) -> None:
    """Starts to write a checkpoint and returns as soon as the caller may change the state.

    A checkpoint that already exists is kept.

    Raises:
      UserError: if the processes' replicas of the state differ.
    """
    manager = self._manager(stage)
    if step in manager.all_steps():
      return
    # Programs compiled for unlike machines round differently, so replicas drift apart silently. One
    # process's file would then not be the state of the others.
    checksum = np.uint32(state_lib.compute_checksum(state))
    if devices.is_true_on_any_process(bool(checksum != devices.broadcast_from_host0(checksum))):
      raise UserError(
        f"{self._folder}: the state differs between processes at stage {stage}, step {step}, since"
        " their programs were compiled on different kinds of machines; use machines of one kind and"
        " an empty compilation cache (<workdir>/compiled, JAX_COMPILATION_CACHE_DIR)"
      )
    # The names of the arrays: Orbax opens every array to list them.
    networks = {"params": state.params, "batch_stats": state.batch_stats, "csm": vars(state.csm)}
    names = jax.tree.map(lambda _: 0, networks)
    record = {**record, "model": self._model, "checksum": int(checksum), "networks": names}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
    with self._add_folder_to_errors():
      manager.save(step, args=args)

  def restore(
    self, stage: str, step: int, abstract: TrainState
  ) -> tuple[TrainState, dict[str, Any]]:
    """Restores the state and the record of a checkpoint.

    Args:
      abstract: shapes, types and shardings of the state.

    Raises:
      DamagedError: if the checkpoint cannot be restored or its checksum is wrong.
      UserError: if a different model saved the checkpoint; names the first field that differs.
    """
    manager, path = self._manager(stage), self._folder / stage / str(step)
    # The record first: restoring the state of another model would fail with Orbax's errors.
    with _raise_damaged(path):
      record = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore())).record
      saved_model = record["model"]
    self._check_model(path, saved_model)
    with _raise_damaged(path):
      restored = manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )
    checksum = record.get("checksum")  # None in checkpoints of earlier versions
    if checksum is not None and checksum != int(state_lib.compute_checksum(restored.state)):
      raise DamagedError(path, "checksum differs")
    return restored.state, record

  def _check_model(self, path: Path, saved_model: dict[str, Any]) -> None:
    """Raises UserError if a checkpoint's description of the model is not that of this run."""
    for field, value in self._model.items():
      saved = saved_model.get(field, self._defaults.get(field))
      if saved == value:
        continue
      if field == "class_names" and saved:  # name the first class that differs
        pairs = enumerate(zip(saved, value, strict=True))
        index = next(i for i, (saved_name, name) in pairs if saved_name != name)
        field, saved, value = f"{field}[{index}]", repr(saved[index]), repr(value[index])
      raise UserError(
        f"checkpoint {path} was saved by a different model: {field} is {saved} in the checkpoint,"
        f" {value} in this config; restore the setting or choose another workdir"
      )

  def has_quarantined(self) -> bool:
    """Returns whether a checkpoint has been quarantined, as host 0 sees it."""
    return bool(devices.broadcast_from_host0(any(self._folder.glob(f"*/{QUARANTINE_PREFIX}*"))))

  def quarantine(self, stage: str, step: int) -> Path:
    """Renames a damaged checkpoint to `damaged_<step>_<k>`, the one before is then the newest."""
    path = self._folder / stage / str(step)
    paths = (path.with_name(f"{QUARANTINE_PREFIX}{step}_{k}") for k in itertools.count())
    target = next(candidate for candidate in paths if not candidate.exists())
    if stage in self._managers:  # Orbax caches the steps: `_manager` opens the folder again
      self._managers.pop(stage).close()
    if jax.process_index() == 0:
      path.rename(target)
    devices.wait_for_host0(f"quarantine_{stage}_{step}", hours=1)
    return target

  def wait(self) -> None:
    """Waits until all checkpoints are written."""
    with self._add_folder_to_errors():
      for manager in self._managers.values():
        manager.wait_until_finished()

  def close(self) -> None:
    """Waits until all checkpoints are written, then stops Orbax's threads."""
    try:
      with self._add_folder_to_errors():
        for manager in self._managers.values():
          manager.close()
    finally:
      self._managers = {}
      if self._descriptor is not None:
        os.close(self._descriptor)
        self._descriptor = None

  def _was_removed(self) -> bool:
    if self._descriptor is None:
      return False
    try:
      return os.stat(self._folder).st_ino != os.fstat(self._descriptor).st_ino
    except FileNotFoundError:
      return True

  @contextlib.contextmanager
  def _add_folder_to_errors(self) -> Iterator[None]:
    """Adds the folder to errors of writing that do not name a file."""
    try:
      yield
    except Exception as error:
      # Orbax fails with all kinds of errors if the folder is gone.
      if self._was_removed():
        raise UserError(
          f"{self._folder}: was removed while a checkpoint was written; do not delete the workdir"
          " of a running job"
        ) from error
      if not isinstance(error, OSError) or error.filename or error.errno is None:
        raise
      raise OSError(error.errno, error.strerror, str(self._folder)) from error

  def _manager(self, stage: str) -> ocp.CheckpointManager:
    if stage not in self._managers:
      # An older best checkpoint is not the best any more.
      keep = 1 if stage == BEST else MAX_TO_KEEP
      options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
      self._managers[stage] = ocp.CheckpointManager(self._folder / stage, options=options)
      if self._descriptor is None and not is_in_bucket(self._folder):
        self._descriptor = os.open(self._folder, os.O_RDONLY)
    return self._managers[stage]


@contextlib.contextmanager
def _raise_damaged(path: Path) -> Iterator[None]:
  """Converts Orbax's errors to `DamagedError`, except lack of memory, permission or a bucket."""
  try:
    yield
  except (UserError, MemoryError, PermissionError):
    raise
  except Exception as error:  # Orbax and TensorStore have no exception type for damaged files
    if "RESOURCE_EXHAUSTED" in str(error) or describe_bucket_error(error) is not None:
      raise
    raise DamagedError(path, error) from error


def read_networks(
  folder: Path, stages: tuple[str, ...], names: tuple[str, ...] | None = None
) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
  """Reads networks from the newest complete checkpoint of another run, without writing to it.

  All hosts read the checkpoint that host 0 finds, since the other run may still be training.

  Args:
    stages: names of the stages in the order of training.
    names: names of the subnetworks; None for all of them and the CSM, as a prediction needs.

  Returns:
    The path `<stage>/<step>` of the checkpoint, `params`, `batch_stats` and maybe `csm` as NumPy
    arrays, and the record; None if there is no checkpoint.
  """
  path = find_newest(folder, stages)
  if path is None:
    return None
  with _raise_damaged(path):
    record = _restore_record(path)
    handler = ocp.PyTreeCheckpointHandler()
    # Checkpoints of earlier versions have no names.
    tree = record.get("networks") or handler.metadata(path / "state").tree
    if names is None:
      subtree = {key: tree[key] for key in ("params", "batch_stats", "csm")}
    else:
      subtree = {
        # A subnetwork without BN has no statistics.
        key: {name: tree[key][name] for name in names if key == "params" or name in tree[key]}
        for key in ("params", "batch_stats")
      }
    # NumPy arrays, because the devices of the other run may not exist here.
    restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), subtree)
    weights = ocp.Checkpointer(handler).restore(
      path / "state",
      ocp.args.PyTreeRestore(subtree, restore_args=restore_args, partial_restore=True),
    )
  return path, weights, record


def read_record(folder: Path, stages: tuple[str, ...]) -> dict[str, Any] | None:
  """Returns the record of the newest complete checkpoint, None if there is none."""
  path = find_newest(folder, stages)
  if path is None:
    return None
  with _raise_damaged(path):
    return _restore_record(path)


def _restore_record(path: Path) -> dict[str, Any]:
  return ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(path / "record")


def find_newest(folder: Path, stages: tuple[str, ...]) -> Path | None:
  """Returns the newest complete checkpoint that host 0 finds, None if there is none."""
  check_path(folder)
  newest = -1, 0  # index of the stage, step
  for i, stage in enumerate(stages):
    steps = ocp.utils.checkpoint_steps(folder / stage) if (folder / stage).is_dir() else ()
    # Orbax takes `damaged_4_0` for a checkpoint of step 0.
    steps = [step for step in steps if (folder / stage / str(step)).is_dir()]
    newest = (i, max(steps)) if steps else newest
  index, step = devices.broadcast_from_host0(newest)
  return None if index < 0 else folder / stages[index] / str(step)


def abstract_state(state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
  """Returns shapes and types of a state (or of its `eval_shape`) with one sharding for all."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)
