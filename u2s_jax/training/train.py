"""The training loop: three stages, one loop, resumable at any step.

Order at a step that ends an epoch: update, save, evaluate, decide on the learning rate, next batch.
An evaluation that was cut short is done again from what was saved.
"""

import contextlib
from typing import Any

import jax
import ml_collections

from u2s_jax import csm, devices, interruption, metrics, settings
from u2s_jax import state as state_lib
from u2s_jax.checkpoint import DamagedError
from u2s_jax.console import Board, Meter, Profiler, log
from u2s_jax.errors import UserError
from u2s_jax.evaluation import evaluate
from u2s_jax.run import VALIDATION_SPLIT, Run, Source, open_run
from u2s_jax.stages import BEST, STAGES, Stage
from u2s_jax.state import TrainState
from u2s_jax.training import rate as rate_lib
from u2s_jax.training import start, steps
from u2s_jax.training.pictures import Pictures
from u2s_jax.workdir import Workdir


def is_finished(workdir: Workdir) -> bool:
  """Tells, by host 0's word, whether the run came to its end; if so, prints it."""
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
  board: Board,
  config_name: str,
) -> None:
  """Trains all stages and evaluates, from wherever `workdir` left off.

  Args:
    config: see `configs/default.py`.
    workdir: the run's folder.
    source: of the batches.
    board: takes what TensorBoard shows; called on all hosts.
    config_name: for the summary.

  Raises:
    UserError: a config that cannot work, or is not that of the run in `workdir`; a loss or a
      gradient is not finite: the last good checkpoint stays.
  """
  settings.check(config, workdir)
  if is_finished(workdir):
    return
  if not source.num_train:
    raise UserError(
      f"data set {source.name}: no training clips; use it to evaluate trained runs only"
    )
  run = open_run(config, workdir, source, config_name)
  profiler = Profiler(workdir.profile, config.profile)
  # Closing waits for a checkpoint that is just being written, whatever happens.
  with contextlib.closing(run.checkpoints):
    state, record, done = None, None, -1
    latest = run.restore_latest()
    if latest:
      name, state, record = latest
      _check_same_data(run, record)
      done = STAGES.index(name)
      log(f"going on at stage {name}, step {int(state.step)}, from {workdir.checkpoints}")
    for index in range(max(done, 0), len(run.stages)):
      stage = run.stages[index]
      if index > done:
        state, record = start.begin_stage(run, stage, state, record)
        if latest is None and index == 0:
          _check_first_checkpoint(run, stage)
      with interruption.deferred():
        state = run_stage(run, stage, state, record, board, profiler)
      if index == 0:  # whenever stage 1 ends in this process: stage 2 has no checkpoint yet
        evaluate.score_one_pass(run, state)
    evaluate.final_evaluation(run, state)


def _check_first_checkpoint(run: Run, stage: Stage) -> None:
  """Restores a run's first checkpoint, before anything is trained that could not be restored.

  Raises:
    UserError: what was written is not what is read there.
  """
  run.checkpoints.wait()
  try:
    run.restore(stage.name, 0)
  except DamagedError as error:
    raise UserError(
      f"{run.workdir.checkpoints}: the first checkpoint cannot be read back ({error}); choose a"
      " workdir on another disk"
    ) from error


def _check_same_data(run: Run, record: dict[str, Any]) -> None:
  """Raises UserError where a run resumes on other data than its checkpoint was trained on."""
  known, now = record.get("data_digest"), run.source.digest
  if known and now and known != now:
    raise UserError(
      f"{run.workdir.root}: this run began with another data set (digest {known}) than data.dir"
      f" holds now ({run.source.name}, {now}); restore data.dir or choose another workdir"
    )


def run_stage(
  run: Run,
  stage: Stage,
  state: TrainState,
  record: dict[str, Any],
  board: Board,
  profiler: Profiler,
) -> TrainState:
  """Trains one stage from `state.step` to its end, and returns its last state.

  Args:
    run: the run.
    stage: that is trained.
    state: the stage's first one, or of a checkpoint.
    record: saved beside it.
    board: takes what TensorBoard shows.
    profiler: of the process.

  Raises:
    UserError: a number is not finite.
    Interrupted: the process is asked to end, and all steps are saved.
  """
  config, first, total = run.config, int(state.step), run.total_steps(stage)
  plateau = rate_lib.Plateau(**record["plateau"])
  pictures, offset = Pictures(run, board.write_images), run.steps_before(stage)
  best = record.get("best")
  if not record.get("validated", True):  # earlier versions saved afterwards
    top1 = validate(run, stage, state, plateau, board, pictures)
    best = keep_best(run, stage, state, record, top1, best)
  if first >= total:
    return state
  mesh, num_train = devices.data_mesh(), run.source.num_train
  train_step = steps.train_step(
    run.network,
    stage,
    run.tx,
    config.regularizer_weight,
    config.label_smoothing,
    config.seed,
    config.accumulate_steps,
  )
  neighbours = None
  if stage.regularized:  # of the CSM, which does not change within a stage
    neighbours = jax.device_put(csm.neighbours(state.csm.matrix), devices.replicated(mesh))
  meter = Meter(
    stage,
    first,
    total,
    batch_size=config.batch_size,
    num_train=num_train,
    write_scalars=lambda step, scalars: board.write_scalars(offset + step, scalars),
  )
  log(f"stage {stage.name}: {stage.epochs:g} epochs, {total} steps of {config.batch_size} clips")
  batches = run.source.train_batches(run.stages.index(stage), first)
  for step in range(first + 1, total + 1):
    batch = devices.global_batch(next(batches), mesh)
    seen = (step - 1) * config.batch_size / num_train
    rate = rate_lib.learning_rate(stage, seen, plateau)
    state, scalars = train_step(state, batch, rate, neighbours)
    meter.add(step, scalars)
    profiler.after(step, first, total, scalars)
    epoch_done = meter.ends_epoch(step)
    due = meter.ends_epoch(step, config.eval.every_epochs)  # of an evaluation
    ends = interruption.reached(offset + step)
    save = due or ends or step == total or step % config.checkpoint_every_steps == 0
    if epoch_done or save or step % config.log_every_steps == 0:
      meter.tell_later(step, rate)
    if epoch_done or save:
      meter.flush()
    if save:
      if not state_lib.all_finite(state):
        raise stage.diverged(step, "a parameter or statistic is not finite")
      # Orbax would begin a new folder. Of host 0: others' views of a shared one may be old.
      if jax.process_index() == 0 and not run.workdir.config.exists():
        raise UserError(f"{run.workdir.config}: gone while the run was training; it ends here")
      beside = record | rate_lib.record(run, stage, plateau, best, validated=not due)
      run.checkpoints.save(stage.name, step, state, beside)
    if ends:
      raise interruption.Interrupted(f"saved at stage {stage.name}, step {step}")
    if due:
      top1 = validate(run, stage, state, plateau, board, pictures)
      best = keep_best(run, stage, state, beside, top1, best)
    if epoch_done:
      meter.restart(step)
  run.checkpoints.wait()
  return state


def validate(
  run: Run,
  stage: Stage,
  state: TrainState,
  plateau: rate_lib.Plateau,
  board: Board,
  pictures: Pictures,
) -> float:
  """Evaluates a state between two steps, on the centre view: shows it, and tells the plateau.

  Args:
    run: the run.
    stage: of the state.
    state: the networks.
    plateau: history of the learning rate.
    board: takes what TensorBoard shows.
    pictures: of the stage.

  Returns:
    Top-1 in percent of all predictions together.

  Raises:
    UserError: a score is not finite.
    Interrupted: the process is asked to end.
  """
  step = run.steps_before(stage) + int(state.step)
  with interruption.deferred(False):
    accuracies = validation_accuracies(run, state)
    pictures.write(stage, state, step)
  board.write_scalars(step, {f"{stage.name}/validation_{k}": v for k, v in accuracies.items()})
  top1 = list(accuracies.values())[-1]
  if stage.decay == "plateau":
    plateau.update(1 - top1 / 100, stage.patience)
  return top1


def keep_best(
  run: Run,
  stage: Stage,
  state: TrainState,
  record: dict[str, Any],
  top1: float,
  best: float | None,
) -> float | None:
  """Keeps a state of the last stage where it is the best so far, and the config asks for that.

  Args:
    run: the run.
    stage: of the state.
    state: the networks, whose own checkpoint is begun.
    record: saved beside it.
    top1: of the state, as `validate` returned it.
    best: of the best one so far; None: there is none.

  Returns:
    The best one's from now on.
  """
  if not run.config.eval.keep_best or stage.name != STAGES[-1]:
    return None
  if best is not None and top1 <= best:
    return best
  run.checkpoints.save(BEST, int(state.step), state, record)
  run.checkpoints.wait()  # before a later checkpoint says that there is this one
  return top1


def validation_accuracies(run: Run, state: TrainState) -> dict[str, float]:
  """Returns top-1 in percent of every prediction and, last, of their mean, on the centre view.

  Args:
    run: the run.
    state: the networks.

  Raises:
    UserError: a score is not finite.
  """
  scores = evaluate.score(run, state, "center", VALIDATION_SPLIT)
  by_name = dict(scores.predictions)
  if len(by_name) > 1:
    by_name["merged"] = scores.merged
  accuracies = {
    name: 100 * metrics.top_k_accuracy(values, scores.labels, 1) for name, values in by_name.items()
  }
  bound = " (upper bounds: labels select the masks)" if evaluate.is_upper_bound(run, state) else ""
  log("  validation top-1: " + "  ".join(f"{k} {v:.1f} %" for k, v in accuracies.items()) + bound)
  return accuracies
