"""What the stages of a run, its evaluations and its end share."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from u2s_jax import devices, files, interruption, lease, settings
from u2s_jax import state as state_lib
from u2s_jax.checkpoint import Checkpoints, DamagedError, abstract_state
from u2s_jax.console import log
from u2s_jax.errors import UserError
from u2s_jax.models.network import Network
from u2s_jax.stages import BEST, STAGES, Stage
from u2s_jax.state import TrainState
from u2s_jax.views import VIEWS, mirrored_labels, mirrors
from u2s_jax.workdir import Workdir

Batches = Iterator[dict[str, np.ndarray]]
TRAIN_SPLIT, VALIDATION_SPLIT = "train", "validation"


@dataclasses.dataclass(frozen=True)
class Source:
  """Where the batches come from; `data.source` has those of prepared data sets.

  Attributes:
    class_names: in the order of the labels.
    num_train: training clips.
    channels: of a frame: 3 for RGB, 2 for each pair of optical flow.
    train_batches: (stage index, first step) -> this host's endless training batches from that step
      on, always the same: `video` (b, t, h, w, c) uint8, `label`, `valid`.
    eval_batches: (split, views) -> this host's batches of one pass over a split: `video`
      (b, v, t, h, w, c) uint8, the views that are not mirrored, `label` (-1 where unknown),
      `valid` (False for padding), `id`.
    stored: in JSON's types, how the data set was prepared, kept in every checkpoint for `predict`.
    class_sizes: training clips of each class; empty where nobody counted.
    paths: split -> the files' paths by the clips' ids, of those that have one.
    name: of the data set, for folders of evaluations.
    digest: hexadecimal digest of class names, clip ids and decoding; empty where unknown.
  """

  class_names: tuple[str, ...]
  num_train: int
  channels: int
  train_batches: Callable[[int, int], Batches]
  eval_batches: Callable[[str, str], Batches]
  stored: Mapping[str, Any]
  class_sizes: tuple[int, ...] = ()
  paths: Callable[[str], Mapping[str, str]] = lambda split: {}
  name: str = "data"
  digest: str = ""

  def with_classes_of(self, class_names: Sequence[str]) -> "Source":
    """Returns the source for an evaluation by networks that were trained on other data.

    Labels of the evaluation batches become indices into `class_names`; the data set may have fewer
    classes, in any order.

    Args:
      class_names: of the networks, in the order of their outputs.

    Raises:
      UserError: the data set has a class that the networks do not know.
    """
    if self.class_names == tuple(class_names):
      return self
    unknown = [name for name in self.class_names if name not in class_names]
    if unknown:
      raise UserError(
        f"data set {self.name}: the class {unknown[0]!r} is not among the {len(class_names)}"
        f" classes of this run ({len(unknown)} such classes); rename its classes as the run's"
      )
    index = {name: i for i, name in enumerate(class_names)}
    labels = np.array([*(index[name] for name in self.class_names), -1], np.int32)  # -1 stays -1

    def eval_batches(split: str, views: str) -> Batches:
      for batch in self.eval_batches(split, views):
        yield batch | {"label": labels[batch["label"]]}

    return dataclasses.replace(self, class_names=tuple(class_names), eval_batches=eval_batches)


@dataclasses.dataclass(frozen=True)
class Run:
  """A run: what `open_run` makes of a config, a folder and a data set.

  Attributes:
    config: see `configs/default.py`.
    name: of the config's file, for the summary.
    workdir: the run's folder.
    source: of the batches.
    network: the networks, and what turns bytes into their input.
    stages: the schedule.
    checkpoints: of the run, to be closed.
  """

  config: ml_collections.ConfigDict
  name: str
  workdir: Workdir
  source: Source
  network: Network
  stages: tuple[Stage, Stage, Stage]
  checkpoints: Checkpoints

  @property
  def tx(self):
    """The optimizer."""
    return state_lib.sgd(**self.config.optimizer)

  def total_steps(self, stage: Stage) -> int:
    """Counts a stage's steps: its clips over the batch size, at least 1 unless it has 0 epochs."""
    count = round(stage.epochs * self.source.num_train / self.config.batch_size)
    return max(1, count) if stage.epochs else 0

  def steps_before(self, stage: Stage) -> int:
    """Counts the steps of the stages before: TensorBoard's steps count through all stages."""
    return sum(self.total_steps(before) for before in self.stages[: self.stages.index(stage)])

  def begin(self, stage: Stage) -> Callable[[TrainState | None], TrainState]:
    """Returns a jit-able function that makes the stage's first state from the state before."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), self.stages.index(stage))
    # Parameters do not depend on the size of the frames.
    shape = (1, self.config.data.num_frames, 32, 32, self.source.channels)
    return lambda previous: state_lib.begin(
      self.network.model, stage, self.tx, key, shape, previous
    )

  def shapes(self, stage_name: str) -> TrainState:
    """Returns shapes and types of a stage's state, made from the stages before.

    Raises:
      UserError: one of these stages trains a part that is not there.
    """
    state = None
    for stage in self.stages[: STAGES.index(stage_name) + 1]:
      state = jax.eval_shape(self.begin(stage), state)
    return state

  def latest(self) -> tuple[str, int] | None:
    """Returns stage and step of the newest checkpoint, by host 0's word: all go on from one."""
    stage, step = self.checkpoints.latest() or (None, 0)
    index, step = devices.broadcast_from_host0([-1 if stage is None else STAGES.index(stage), step])
    return None if index < 0 else (STAGES[index], int(step))

  def restore(self, stage_name: str, step: int) -> tuple[TrainState, dict[str, Any]]:
    """Returns state and record of a checkpoint, replicated over the devices."""
    last = STAGES[-1] if stage_name == BEST else stage_name
    placement = devices.replicated(devices.data_mesh())
    return self.checkpoints.restore(stage_name, step, abstract_state(self.shapes(last), placement))

  def restore_latest(self) -> tuple[str, TrainState, dict[str, Any]] | None:
    """Returns stage, state and record of the newest checkpoint that is whole; None: there is none.

    Those that are not are set aside, and a line says so.

    Raises:
      UserError: there are checkpoints, and none is whole.
    """
    while latest := self.latest():
      if restored := self._restore_whole(*latest):
        return latest[0], *restored
    if self.checkpoints.any_damaged():
      raise UserError(f"{self.workdir.checkpoints}: no checkpoint is whole; take another workdir")
    return None

  def _restore_whole(self, stage_name: str, step: int) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns what `restore` does, None for a checkpoint that is not whole, which is set aside."""
    restored = error = None
    try:
      restored = self.restore(stage_name, step)
    except DamagedError as damage:
      error = damage
    if not devices.on_any_process(error is not None):
      return restored
    aside = self.checkpoints.set_aside(stage_name, step)
    log(f"{error or 'damaged, says another process'}; set aside as {aside.name}")
    return None

  def restore_one_pass(self) -> TrainState:
    """Returns the state after stage 1."""
    state, _ = self.restore(STAGES[0], self.checkpoints.last_step(STAGES[0]))
    return state

  def restore_best(self) -> tuple[int, TrainState] | None:
    """Returns step and state of the best checkpoint that is whole, None where there is none.

    By host 0's word. Those that are not whole are set aside, and a line says so.
    """
    while step := int(devices.broadcast_from_host0(self.checkpoints.last_step(BEST) or 0)):
      if restored := self._restore_whole(BEST, step):
        return step, restored[0]
    return None

  def mirrors(self, views: str) -> tuple[tuple[int, ...] | None, ...]:
    """Returns for each view None, or for a mirrored one the class that each class turns into."""
    return mirrors(views, len(self.source.class_names), self.config.data.flip_label_map)


def open_run(config: ml_collections.ConfigDict, workdir: Workdir, source: Source, name: str) -> Run:
  """Opens a new run or one to go on with; its checkpoints are to be closed.

  Args:
    config: checked by `settings.check`.
    workdir: the run's folder.
    source: of the batches.
    name: of the config's file.

  Raises:
    UserError: a config that does not fit the data set's classes, with the field's name.
  """
  num_classes = len(source.class_names)
  if num_classes < 2:
    raise UserError(
      f"data.dir: the data set has one class only, {source.class_names[0]!r}; prepare one that has"
      " two or more"
    )
  if config.csm.n >= num_classes:
    raise UserError(
      f"csm.n: {config.csm.n} confusing classes a class, but there are {num_classes} in all"
    )
  unknown = [name for name in config.eval.classes if name not in source.class_names]
  if unknown:
    raise UserError(f"eval.classes: {unknown[0]!r} is not one of the data set's classes")
  if enlargement := settings.enlargement(config, source.stored):
    log(enlargement)
  described = {
    "num_classes": num_classes,
    "class_names": source.class_names,
    "num_train": source.num_train,
    "channels": source.channels,
    "control": config.control,
    **settings.describe_model(config),
  }
  run = Run(
    config=config,
    name=name,
    workdir=workdir,
    source=source,
    network=settings.build_network(config, num_classes),
    stages=settings.schedule(config),
    checkpoints=Checkpoints(
      workdir.checkpoints, STAGES, json.loads(json.dumps(described)), settings.describe_defaults()
    ),
  )
  if config.data.flip or any(VIEWS[config.eval.views]):
    mirrored_labels(num_classes, config.data.flip_label_map)  # raises for a map that does not fit
  return run


@contextlib.contextmanager
def locked(workdir: Workdir) -> Iterator[None]:
  """Lets one run at a time train in a folder; its processes are one run.

  Args:
    workdir: a folder that exists.

  Raises:
    UserError: another run trains there.
  """
  with contextlib.ExitStack() as stack:
    error = None
    if jax.process_index() == 0:
      try:
        refusal = f"{workdir.root}: another run trains there; wait for it or end it"
        if files.in_bucket(workdir.root):
          lost = functools.partial(interruption.end_now, status=1)
          stack.enter_context(lease.held(workdir.lease, refusal, lost))
        else:
          stack.enter_context(files.locked(workdir.lock, refusal))
      except (OSError, UserError) as refused:
        error = refused
    if devices.on_any_process(error is not None):
      raise error or UserError(f"{workdir.root}: process 0 may not train there")
    yield
