"""A run: its config, data, networks, schedule and checkpoints, for training and evaluation."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from u2s_jax.models.network import U2S_FIELDS, Network, build_network, describe_architecture
from u2s_jax.run import default_config, settings
from u2s_jax.run.checkpoint import Checkpoints, DamagedError, abstract_state
from u2s_jax.run.state import TrainState, init_stage
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices, distributed, files, lease
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import BEST, STAGES, Stage
from u2s_jax.views import VIEWS, make_mirror_maps, make_mirrored_labels

Batches = Iterator[dict[str, np.ndarray]]
TRAIN_SPLIT, VALIDATION_SPLIT = "train", "validation"


@dataclasses.dataclass(frozen=True)
class Source:
  """A source of batches; `data.input` makes one from a prepared data set.

  Attributes:
    class_names: class names in the order of the labels.
    num_train: number of training clips.
    channels: channels of a frame: 3 for RGB, 2 for each pair of optical flow.
    train_batches: (stage index, first step) -> this host's infinite training batches starting at
      that step, deterministic: `video` (b, t, h, w, c) uint8, `label`, `valid`.
    eval_batches: (split, views) -> this host's batches of one pass over a split: `video`
      (b, v, t, h, w, c) uint8 with the views that are not mirrored, `label` (-1 if unknown),
      `valid` (False for padding), `id`.
    stored: how the data set was prepared, of JSON types; saved in every checkpoint for `predict`.
    class_sizes: number of training clips of each class; empty if unknown.
    paths: split -> file paths by clip id, for clips that have one.
    cache_features: stores the features that a frozen trunk computes; returns `train_batches` and
      batches by split of the centre view, with features as `video`. See `data.input.source`.
    feature_batches: those batches of the centre view, None without a cache.
    name: name of the data set, used in directory names of evaluations.
    digest: hexadecimal digest of class names, clip ids and decoding; empty if unknown.
  """

  class_names: tuple[str, ...]
  num_train: int
  channels: int
  train_batches: Callable[[int, int], Batches]
  eval_batches: Callable[[str, str], Batches]
  stored: Mapping[str, Any]
  class_sizes: tuple[int, ...] = ()
  paths: Callable[[str], Mapping[str, str]] = lambda split: {}
  cache_features: Callable[..., tuple[Callable, Callable]] | None = None
  feature_batches: Callable[[str], Batches] | None = None
  name: str = "data"
  digest: str = ""

  def scoring_batches(self, split: str, views: str) -> Batches:
    """Returns `eval_batches`, of features instead of videos if those of the views are cached."""
    if self.feature_batches is None or views != "center":
      return self.eval_batches(split, views)
    return self.feature_batches(split)

  def map_labels_to(self, class_names: Sequence[str]) -> "Source":
    """Returns a source whose evaluation labels are indices into `class_names`.

    Used to evaluate networks that were trained on other data, whose outputs have the order of
    `class_names`. The data set may have fewer classes, in any order.

    Raises:
      UserError: if the networks lack a class of the data set.
    """
    if self.class_names == tuple(class_names):
      return self
    unknown = [name for name in self.class_names if name not in class_names]
    if unknown:
      raise UserError(
        f"data set {self.name}: the class {unknown[0]!r} is not among the {len(class_names)}"
        f" classes of this run ({len(unknown)} unknown classes); use the run's class names"
      )
    index = {name: i for i, name in enumerate(class_names)}
    # The last entry maps the label -1 of unlabeled clips to itself.
    labels = np.array([*(index[name] for name in self.class_names), -1], np.int32)

    def eval_batches(split: str, views: str) -> Batches:
      for batch in self.eval_batches(split, views):
        yield batch | {"label": labels[batch["label"]]}

    return dataclasses.replace(
      self, class_names=tuple(class_names), eval_batches=eval_batches, feature_batches=None
    )


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, see `open_run`.

  Attributes:
    name: file name of the config, for the summary.
    checkpoints: the caller must close them.
    tx: the optimizer.
  """

  config: ml_collections.ConfigDict
  name: str
  workdir: Workdir
  source: Source
  network: Network
  stages: tuple[Stage, Stage, Stage]
  checkpoints: Checkpoints
  tx: optax.GradientTransformation

  def count_steps(self, stage: Stage) -> int:
    """Returns the number of steps of a stage, at least 1 unless it has 0 epochs."""
    count = round(stage.epochs * self.source.num_train / self.config.batch_size)
    return max(1, count) if stage.epochs else 0

  def count_steps_before(self, stage: Stage) -> int:
    """Returns the number of steps of all earlier stages: TensorBoard counts across stages."""
    return sum(self.count_steps(before) for before in self.stages[: self.stages.index(stage)])

  def make_init(self, stage: Stage) -> Callable[[TrainState | None], TrainState]:
    """Returns a function from the previous stage's state to the stage's initial state, to jit."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), self.stages.index(stage))
    # Parameters do not depend on the frame size.
    shape = (1, self.config.data.num_frames, 32, 32, self.source.channels)
    return functools.partial(init_stage, self.network.model, stage, self.tx, key, shape)

  def eval_shapes(self, stage_name: str) -> TrainState:
    """Returns shapes and types of a stage's state.

    Raises:
      UserError: if this or an earlier stage trains a part that does not exist.
    """
    state = None
    for stage in self.stages[: STAGES.index(stage_name) + 1]:
      state = jax.eval_shape(self.make_init(stage), state)
    return state

  def latest(self) -> tuple[str, int] | None:
    """Returns stage and step of the newest checkpoint, None if there is none.

    All hosts get host 0's answer, so that they resume from the same checkpoint.
    """
    stage, step = self.checkpoints.latest() or (None, 0)
    index, step = devices.broadcast_from_host0([-1 if stage is None else STAGES.index(stage), step])
    return None if index < 0 else (STAGES[index], int(step))

  def restore(self, stage_name: str, step: int) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state, replicated over the devices, and the record of a checkpoint."""
    shapes = self.eval_shapes(STAGES[-1] if stage_name == BEST else stage_name)
    replicated = devices.replicated_sharding(devices.data_mesh())
    return self.checkpoints.restore(stage_name, step, abstract_state(shapes, replicated))

  def restore_latest(self) -> tuple[str, TrainState, dict[str, Any]] | None:
    """Returns stage, state and metadata of the newest intact checkpoint; None if none was saved.

    Damaged checkpoints are quarantined, with a message.

    Raises:
      UserError: if all checkpoints are damaged.
    """
    while latest := self.latest():
      if restored := self._restore_or_quarantine(*latest):
        return latest[0], *restored
    # Without this check a run whose checkpoints are all damaged would silently start over.
    if self.checkpoints.has_quarantined():
      raise UserError(f"{self.workdir.checkpoints}: no intact checkpoint; choose another workdir")
    return None

  def _restore_or_quarantine(
    self, stage_name: str, step: int
  ) -> tuple[TrainState, dict[str, Any]] | None:
    """Returns the result of `restore`, or quarantines a damaged checkpoint and returns None."""
    restored = error = None
    try:
      restored = self.restore(stage_name, step)
    except DamagedError as damage:
      error = damage
    # One process may fail where others succeed; all must agree on the checkpoint.
    if not devices.is_true_on_any_process(error is not None):
      return restored
    path = self.checkpoints.quarantine(stage_name, step)
    log(f"{error or 'checkpoint is damaged on another process'}; renamed to {path.name}")
    return None

  def restore_one_pass(self) -> TrainState:
    """Returns the final state of stage 1, the one-pass model."""
    state, _ = self.restore(STAGES[0], self.checkpoints.last_step(STAGES[0]))
    return state

  def restore_best(self) -> tuple[int, TrainState] | None:
    """Returns step and state of the intact best checkpoint, None if there is none.

    All hosts restore the checkpoint that host 0 finds. A damaged one is quarantined.
    """
    while step := int(devices.broadcast_from_host0(self.checkpoints.last_step(BEST) or 0)):
      if restored := self._restore_or_quarantine(BEST, step):
        return step, restored[0]
    return None

  def make_mirror_maps(self, views: str) -> tuple[tuple[int, ...] | None, ...]:
    """Returns for each view None, or the class that each class becomes in a mirrored view."""
    return make_mirror_maps(views, len(self.source.class_names), self.config.data.flip_label_map)


def open_run(
  config: ml_collections.ConfigDict,
  workdir: Workdir,
  source: Source,
  name: str,
  tx: optax.GradientTransformation,
) -> Run:
  """Opens a new or existing run; the caller must close its checkpoints.

  Args:
    config: a config that passed `validation.check`.

  Raises:
    UserError: if the config does not match the classes of the data set; names the field.
  """
  _check_classes(config, source.class_names)
  num_classes = len(source.class_names)
  if enlargement := settings.describe_enlargement(config, source.stored):
    log(enlargement)
  description = {
    "num_classes": num_classes,
    "class_names": source.class_names,
    "num_train": source.num_train,
    "channels": source.channels,
    "control": config.control,
    **describe_architecture(config.model),
  }
  # Without the backbone's fields: a checkpoint lacks only those that its backbone lacks.
  defaults = {name: default_config.get_config().model[name] for name in U2S_FIELDS}
  run = Run(
    config=config,
    name=name,
    workdir=workdir,
    source=source,
    network=build_network(config, num_classes),
    stages=settings.make_schedule(config),
    checkpoints=Checkpoints(
      workdir.checkpoints, STAGES, json.loads(json.dumps(description)), defaults
    ),
    tx=tx,
  )
  if config.data.flip or any(VIEWS[config.eval.views]):  # raises UserError if the map is invalid
    make_mirrored_labels(num_classes, config.data.flip_label_map)
  return run


def _check_classes(config: ml_collections.ConfigDict, class_names: Sequence[str]) -> None:
  """Raises UserError if the config does not match the classes of the data set."""
  if len(class_names) < 2:
    raise UserError(
      f"data.dir: the data set has only one class, {class_names[0]!r}; prepare one with two or more"
    )
  if config.csm.n >= len(class_names):
    raise UserError(
      f"csm.n: {config.csm.n} must be less than the number of classes, {len(class_names)}"
    )
  unknown = [name for name in config.eval.classes if name not in class_names]
  if unknown:
    raise UserError(f"eval.classes: {unknown[0]!r} is not one of the data set's classes")


@contextlib.contextmanager
def training_lock(workdir: Workdir) -> Iterator[None]:
  """Prevents two runs from training in one workdir at the same time.

  Host 0 holds a file lock, or a lease in a bucket, for all processes of the run.

  Raises:
    UserError: if another run is training in the workdir.
  """
  with contextlib.ExitStack() as stack:
    error = None
    if jax.process_index() == 0:
      try:
        refusal = f"{workdir.root}: another run is training here; wait for it or stop it"
        if files.is_in_bucket(workdir.root):
          # The other run may write checkpoints at any moment, so no cleanup here.
          on_lost = functools.partial(distributed.exit_now, status=1)
          stack.enter_context(lease.hold_lease(workdir.lease, refusal, on_lost))
        else:
          stack.enter_context(files.file_lock(workdir.lock, refusal))
      except (OSError, UserError) as refused:
        error = refused
    if devices.is_true_on_any_process(error is not None):
      raise error or UserError(f"{workdir.root}: process 0 could not lock the workdir")
    yield
