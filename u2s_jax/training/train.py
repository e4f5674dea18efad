"""The training loop over the three stages, resumable at any step."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from u2s_jax import csm
from u2s_jax.evaluation import evaluate, metrics
from u2s_jax.run import state as state_lib
from u2s_jax.run.checkpoint import DamagedError
from u2s_jax.run.run import VALIDATION_SPLIT, Run, Source, open_run
from u2s_jax.run.state import TrainState
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices, distributed, signals
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import BEST, STAGES, Plateau, Stage, learning_rate
from u2s_jax.training import frozen_trunk, start, steps
from u2s_jax.training.mask_summary import MaskSummary
from u2s_jax.training.meter import Meter, MetricWriter, Profiler

Metadata = Mapping[str, Any]
HINT_EPOCHS = 5  # epochs of stage 1 after which an accuracy at chance level is questioned


def is_finished(workdir: Workdir) -> bool:
  """Returns whether the run is finished, as seen by host 0, and logs missing result files."""
  finished = bool(devices.broadcast_from_host0(workdir.summary.exists()))
  if finished:
    log(f"{workdir.root}: this run is finished, see {workdir.summary}; nothing to do")
    split = VALIDATION_SPLIT
    for path in (workdir.scores(split), workdir.one_pass_scores(split), workdir.per_class):
      if not path.exists():
        log(f"{path}: missing; --mode=eval regenerates it")
  return finished


def train(
  config: ml_collections.ConfigDict,
  workdir: Workdir,
  source: Source,
  writer: MetricWriter,
  config_name: str,
) -> None:
  """Trains all stages and evaluates, or resumes from the newest checkpoint in `workdir`.

  Args:
    config: a config that passed `validation.check`.
    writer: receives scalars and images; called on all hosts.

  Raises:
    UserError: if the data set has no training clips or differs from that of the run in `workdir`,
      or a loss, gradient or score is not finite; the last good checkpoint is kept.
    Interrupted: if the process receives a signal to stop; all steps are saved.
  """
  if is_finished(workdir):
    return
  if not source.num_train:
    raise UserError(
      f"data set {source.name}: no training clips; use it to evaluate trained runs only"
    )
  run = open_run(config, workdir, source, config_name, steps.sgd(**config.optimizer))
  profiler = Profiler(workdir.profile, config.profile)
  # Closing waits for a checkpoint that is still being written, also after an exception:
  # `Interrupted` is raised right after a save has started.
  with contextlib.closing(run.checkpoints):
    state, metadata, resumed_index = None, None, -1
    if restored := run.restore_latest():
      name, state, metadata = restored
      _check_same_data(run, metadata)
      resumed_index = STAGES.index(name)
      log(f"resuming at stage {name}, step {int(state.step)}, from {workdir.checkpoints}")
    # The stage of the newest checkpoint is run even if the checkpoint is its last, because its
    # validation or scores may be missing. Only later stages begin with `begin_stage`.
    for index in range(max(resumed_index, 0), len(run.stages)):
      stage = run.stages[index]
      if index > resumed_index:
        state, metadata = start.begin_stage(run, stage, state, metadata)
        if index == 0:
          _check_first_checkpoint(run, stage)
      if config.data.cache_features and not run.source.feature_batches:
        run = frozen_trunk.cache_features(run, state)
      state = run_stage(run, stage, state, metadata, writer, profiler)
      if index == 0:
        # Before stage 2 has a checkpoint, so that an interrupt here repeats the scoring on resume.
        evaluate.score_one_pass(run, state)
    evaluate.final_evaluation(run, state)


def run_stage(
  run: Run,
  stage: Stage,
  state: TrainState,
  metadata: Metadata,
  writer: MetricWriter,
  profiler: Profiler,
) -> TrainState:
  """Trains one stage from `state.step` to its end, and returns its last state.

  Args:
    state: the first state of the stage, or the state of a checkpoint; donated.
    metadata: the metadata saved with `state`.

  Raises:
    UserError: if a loss, gradient, parameter or score is not finite.
    Interrupted: if the process receives a signal to stop; all steps are saved.
  """
  config, first, total = run.config, int(state.step), run.count_steps(stage)
  mesh = devices.data_mesh()
  validator = Validator(run, stage, metadata, writer)
  # A state is saved before its validation, marked as not validated. If the run stopped in between,
  # the validation is repeated here, because plateau and best checkpoint depend on its result.
  if not metadata.get("validated", True):
    validator.validate(state, metadata)
  if first >= total or validator.should_stop():
    return state
  options = steps.StepOptions(
    regularizer_weight=config.regularizer_weight,
    label_smoothing=config.label_smoothing,
    seed=config.seed,
    accumulate_steps=config.accumulate_steps,
  )
  train_step = steps.jit_train_step(run.network, stage, run.tx, options)
  pairs = None
  if stage.regularized:
    pairs = csm.confusing_classes(state.csm.matrix)
    pairs = jax.device_put(pairs, devices.replicated_sharding(mesh))
  meter = Meter(run, stage, first, writer)
  log(f"stage {stage.name}: {stage.epochs:g} epochs, {total} steps of {config.batch_size} clips")
  # Batches are a function of stage and step alone, so the stream of a resumed stage continues
  # exactly where it stopped.
  batches = run.source.train_batches(run.stages.index(stage), first)
  for step in range(first + 1, total + 1):
    batch = devices.make_global_batch(next(batches), mesh)
    epoch = (step - 1) * config.batch_size / run.source.num_train
    rate = learning_rate(stage, epoch, validator.plateau)
    state, step_metrics = train_step(state, batch, rate, pairs)
    meter.add(step, step_metrics)
    profiler.after_step(step, first, total, step_metrics)

    epoch_done = meter.ends_epoch(step)
    validation_due = meter.ends_epoch(step, config.eval.every_epochs)
    # Synchronizes the processes, so every process must call it once per step, on any path. All of
    # them return True at the same step.
    stop = distributed.should_stop()
    save = validation_due or stop or step == total or step % config.checkpoint_every_steps == 0
    if epoch_done or save or step % config.log_every_steps == 0:
      meter.report_async(step, rate)
    # Before a save: if a loss is not finite, this raises, and the last good checkpoint remains the
    # newest one.
    if epoch_done or save:
      meter.flush()
    if save:
      metadata = save_checkpoint(run, stage, step, state, validator, validated=not validation_due)
    if stop:
      raise signals.Interrupted(f"saved at stage {stage.name}, step {step}")
    if validation_due:
      validator.validate(state, metadata)
      if validator.should_stop():
        log(
          f"  stage {stage.name} ends early: no lower error for {stage.stop_patience} validations"
        )
        break
    # The speed of the next epoch must not include saving and validation.
    if epoch_done:
      meter.restart(step)
  # Before the next stage saves its first state: on resume, its checkpoint would hide this stage.
  run.checkpoints.wait()
  return state


def save_checkpoint(
  run: Run,
  stage: Stage,
  step: int,
  state: TrainState,
  validator: "Validator",
  *,
  validated: bool,
) -> Metadata:
  """Starts to save a state, and returns the metadata saved with it.

  The state may be donated after the call, while the checkpoint is still being written.

  Args:
    validated: False if a validation of this state follows; a run that resumes here repeats it.

  Raises:
    UserError: if an array is not finite, or the workdir has lost its config.
  """
  if not state_lib.is_finite(state):
    raise stage.make_divergence_error(step, "a parameter or statistic is not finite")
  # If the workdir was deleted, Orbax would create it again, without a config. Only host 0 checks,
  # because the other hosts' view of a network file system may be stale.
  if jax.process_index() == 0 and not run.workdir.config.exists():
    raise UserError(
      f"{run.workdir.config}: deleted while the run was training; restore it, then rerun the same"
      " command to resume"
    )
  metadata = validator.make_metadata(validated=validated)
  run.checkpoints.save(stage.name, step, state, metadata)
  return metadata


class Validator:
  """Validates a stage between its steps, and tracks the plateau and the best checkpoint.

  Args:
    metadata: metadata of the checkpoint that the stage starts or resumes from.

  Attributes:
    plateau: history of the validation error, for the learning rate.
    best: top-1 accuracy of the best checkpoint in percent, None if none is kept.
  """

  def __init__(self, run: Run, stage: Stage, metadata: Metadata, writer: MetricWriter):
    self._run, self._stage, self._writer = run, stage, writer
    self._metadata = metadata
    self._mask_summary = MaskSummary(run, writer)
    self._has_hinted = False
    self.plateau: Plateau = Plateau(**metadata["plateau"])
    self.best: float | None = metadata.get("best")

  def make_metadata(self, *, validated: bool) -> Metadata:
    """Returns the metadata of a checkpoint saved now, see `start.make_metadata`."""
    updated = start.make_metadata(
      self._run, self._stage, self.plateau, best=self.best, validated=validated
    )
    return {**self._metadata, **updated}

  def should_stop(self) -> bool:
    """Returns whether the stage ends early."""
    return 0 < self._stage.stop_patience <= self.plateau.since_best

  def validate(self, state: TrainState, metadata: Metadata) -> None:
    """Validates a state on the centre view, updates the plateau and saves a new best checkpoint.

    State and metadata are those of one of the stage's own checkpoints.

    Raises:
      UserError: if a score is not finite.
      Interrupted: if the process receives a signal to stop.
    """
    run, stage = self._run, self._stage
    step = run.count_steps_before(stage) + int(state.step)
    accuracies, chance, is_better = compute_accuracies(run, state)
    self._mask_summary.write(stage, state, step)
    self._writer.write_scalars(
      step, {f"{stage.name}/validation_{name}": value for name, value in accuracies.items()}
    )
    top1 = list(accuracies.values())[-1]  # of the merged prediction
    epoch = int(state.step) * run.config.batch_size / run.source.num_train
    if stage.one_pass and epoch >= HINT_EPOCHS and not is_better and not self._has_hinted:
      self._has_hinted = True
      log(
        f"  not significantly better than chance ({chance:.1f} %) after {epoch:.0f} epochs: look at"
        " the frames (data.prepare --preview), cut out a region (--crop), or start from pretrained"
        " weights (docs/weights.md)"
      )
    self.plateau.update(1 - top1 / 100, stage.patience)
    keeps_best = run.config.eval.keep_best and stage.name == STAGES[-1]
    if keeps_best and (self.best is None or top1 > self.best):
      run.checkpoints.save(BEST, int(state.step), state, metadata)
      # Metadata of later checkpoints refers to this one as the best, so it must be complete before.
      run.checkpoints.wait()
      self.best = top1


def compute_accuracies(run: Run, state: TrainState) -> tuple[dict[str, float], float, bool]:
  """Computes validation accuracies.

  Returns:
    Top-1 of every prediction and, last, of their mean, in percent; the chance level, that of the
    most frequent class, in percent; and whether the 95 % interval of the last is above it.

  Raises:
    UserError: if a score is not finite.
  """
  scores = evaluate.score(run, state, "center", VALIDATION_SPLIT)
  by_name = dict(scores.predictions)
  if len(by_name) > 1:
    by_name["merged"] = scores.merged
  accuracies = {
    name: 100 * metrics.top_k_accuracy(values, scores.labels, 1) for name, values in by_name.items()
  }
  bound = " (upper bounds: labels select the masks)" if evaluate.is_upper_bound(run, state) else ""
  chance = 100 * metrics.chance_level(scores.labels)
  line = "  ".join(f"{name} {value:.1f} %" for name, value in accuracies.items())
  log(f"  validation top-1: {line}  (chance {chance:.1f} %){bound}")
  low, _ = metrics.wilson_interval(list(accuracies.values())[-1] / 100, len(scores.labels))
  return accuracies, chance, 100 * low > chance


def _check_first_checkpoint(run: Run, stage: Stage) -> None:
  """Raises UserError if the first checkpoint cannot be restored, before hours depend on it."""
  run.checkpoints.wait()
  try:
    run.restore(stage.name, 0)
  except DamagedError as error:
    raise UserError(
      f"{run.workdir.checkpoints}: the first checkpoint cannot be read back ({error}); choose a"
      " workdir on another disk"
    ) from error


def _check_same_data(run: Run, metadata: Metadata) -> None:
  """Raises UserError if the data set differs from the one that the checkpoint was trained on."""
  saved, current = metadata.get("data_digest"), run.source.digest
  if saved and current and saved != current:
    raise UserError(
      f"{run.workdir.root}: trained on another data set (digest {saved}) than data.dir contains"
      f" ({run.source.name}, {current}); restore data.dir or choose another workdir"
    )
