"""The training loop: three stages, one loop, resumable at any step.

Order at a step that ends an epoch: update, evaluate, decide on the learning rate, save, next batch.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from u2s_jax import (
  analysis,
  compiling,
  evaluate,
  fusion,
  metrics,
  optimizer,
  pretrained,
  settings,
  sharding,
  steps,
)
from u2s_jax import csm as csm_lib
from u2s_jax import state as state_lib
from u2s_jax.checkpoint import Checkpoints, abstract_state
from u2s_jax.report import overlay
from u2s_jax.settings import STAGES
from u2s_jax.stages import Stage
from u2s_jax.state import CategorySimilarity, TrainState

Batches = Iterator[dict[str, np.ndarray]]
WriteScalars = Callable[[int, dict[str, float]], None]  # of `clu.metric_writers`
WriteImages = Callable[[int, dict[str, np.ndarray]], None]  # likewise
TRAIN_SPLIT, VALIDATION_SPLIT = "train", "validation"
NUM_SIMILAR = 5  # most similar pairs of classes to show
CLEAR = "\r\x1b[K"  # to the line's beginning, and what is there away
PROFILE_AFTER, PROFILE_STEPS = 10, 5  # of the first stage that a process trains
PICTURED = 4  # clips of TensorBoard's picture of the masks
STEPS_AHEAD = 2  # that the host may be of the device: each keeps a batch in the device's memory


@dataclasses.dataclass(frozen=True)
class Data:
  """Where the batches come from.

  Attributes:
    class_names: in the order of the labels.
    num_train: training examples.
    channels: of a frame: 3 for RGB, 2 for each pair of optical flow.
    train_batches: (stage index, first step) -> this host's endless training batches from that step
      on, always the same: `video` (b, t, h, w, c) uint8, `label`, `mask`.
    eval_batches: (split, views) -> this host's batches of one pass over a split: `video`
      (b, v, t, h, w, c) uint8, `label` (-1 where unknown), `mask`, `id`.
    stored: JSON-able: how the data set was prepared, kept in every checkpoint for `predict`.
  """

  class_names: tuple[str, ...]
  num_train: int
  channels: int
  train_batches: Callable[[int, int], Batches]
  eval_batches: Callable[[str, str], Batches]
  stored: dict[str, Any] = dataclasses.field(default_factory=dict)


def log(message: str) -> None:
  """Prints a line on the first host's terminal, in place of a live one."""
  if jax.process_index() == 0:
    print(f"{CLEAR}{message}" if sys.stdout.isatty() else message, flush=True)


def log_live(message: str) -> None:
  """On a terminal a line that the next one replaces, elsewhere a line."""
  if not sys.stdout.isatty():
    log(message)
  elif jax.process_index() == 0:
    columns = shutil.get_terminal_size().columns - 1
    print(CLEAR + message[:columns], end="", flush=True)


class Run:
  """What the stages of a run share: config, networks, compiled functions, checkpoints, output.

  Args:
    config: as in `configs/sthv2.py`.
    workdir: the run's folder.
    data: see `Data`.
    write_scalars: takes a step, counted through all stages, and scalars by name.
    config_name: for the summary.
    write_images: takes a step and images (n, h, w, 3) uint8 by name; None: no picture is made.

  Raises:
    ValueError: a config that cannot work, with the field's name.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    data: Data,
    write_scalars: WriteScalars,
    config_name: str,
    write_images: WriteImages | None = None,
  ):
    self.config, self.workdir, self.data = config, workdir, data
    self.write_scalars, self.write_images = write_scalars, write_images
    self.profiled = not config.profile
    self.config_name = config_name
    self.mesh = sharding.data_mesh()
    self.pixels = {key: tuple(config.model[key]) for key in settings.PIXEL_FIELDS}
    self.masks = {field: config.csm[field] for field in settings.MASK_FIELDS}
    self.stages = settings.schedule(config)
    self.model = settings.build_model(config, len(data.class_names))
    # What a checkpoint has to agree with, in words of JSON.
    fields = settings.model_fields(config)
    backbone = fields.pop("backbone")
    described = {
      "num_classes": len(data.class_names),
      "class_names": data.class_names,
      "num_train": data.num_train,
      "channels": data.channels,
      "control": config.control,
      **fields,
      **{f"backbone.{name}": value for name, value in backbone.items()},
    }
    self.checkpoints = Checkpoints(
      workdir / "checkpoints", STAGES, json.loads(json.dumps(described))
    )
    self.mirror_columns = {
      views: evaluate.mirror_columns(
        views, len(data.class_names), tuple(config.data.flip_label_map)
      )
      for views in ("center", config.eval.views)
    }
    if config.csm.n >= len(data.class_names):
      raise ValueError(
        f"csm.n: {config.csm.n} confusing classes a class, but there are"
        f" {len(data.class_names)} in all"
      )
    unknown = [name for name in config.eval.classes if name not in data.class_names]
    if unknown:
      raise ValueError(f"eval.classes: {unknown[0]!r} is not one of the data set's classes")
    self.tx = optimizer.sgd(config.optimizer.momentum, config.optimizer.weight_decay)
    self.compiled = {}  # evaluation by (one-pass or not, views), and what the picture takes
    self.pictured = None  # a batch of clips, the same for every picture

  def total_steps(self, stage: Stage) -> int:
    """Steps of a stage: its epochs' examples over the batch size, at least one unless 0 epochs."""
    count = round(stage.epochs * self.data.num_train / self.config.batch_size)
    return max(1, count) if stage.epochs else 0

  def record(self, stage: Stage, plateau: optimizer.Plateau) -> dict[str, Any]:
    """What is saved beside a state."""
    return {
      "plateau": dataclasses.asdict(plateau),
      "total_steps": self.total_steps(stage),
      "stored": self.data.stored,
    }

  def begin(self, stage: Stage) -> Callable[[TrainState | None], TrainState]:
    """A jit-able function that makes the stage's first state from the state before."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), self.stages.index(stage))
    # Parameters do not depend on the size of the frames.
    shape = (1, self.config.data.num_frames, 32, 32, self.data.channels)
    return lambda previous: state_lib.begin(self.model, stage, self.tx, key, shape, previous)

  def scores(
    self, stage: Stage, state: TrainState, views: str, split: str = VALIDATION_SPLIT
  ) -> dict[str, np.ndarray]:
    """Scores of a split, as of `evaluate.score`."""
    key = (stage.one_pass, views)
    if key not in self.compiled:
      step = steps.make_eval_step(
        self.model,
        stage,
        mirror_columns=self.mirror_columns[views],
        **self.pixels,
        **self.masks,
      )
      self.compiled[key] = evaluate.compile_eval(step, self.mesh)
    batches = self.data.eval_batches(split, views)
    scores = evaluate.score(self.compiled[key], state, batches, self.mesh, self.data.class_names)
    if self.config.csm.guide == "label" and not stage.one_pass and scores["label"].min() < 0:
      raise ValueError(f"csm.guide: 'label', but clips of the split {split!r} have no label")
    return scores


def is_finished(workdir: pathlib.Path) -> bool:
  """Whether the run in `workdir` came to its end, by the first host's word; if so, says it."""
  path = workdir / "summary.json"
  finished = bool(sharding.first_host_says(path.exists()))
  if finished:
    log(f"{workdir}: this run is finished, see {path}; nothing to do")
  return finished


def train(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  data: Data,
  write_scalars: WriteScalars,
  config_name: str,
  write_images: WriteImages | None = None,
) -> None:
  """Trains all stages and evaluates, from wherever `workdir` left off.

  Args:
    config: as in `configs/sthv2.py`.
    workdir: checkpoints, scores, `config.json` and `summary.json` go there.
    data: see `Data`.
    write_scalars: takes a step, counted through all stages, and scalars by name.
    config_name: for the summary.
    write_images: takes a step and images (n, h, w, 3) uint8 by name, on all hosts; None: no picture
      of the masks is made.

  Raises:
    ValueError: a config that cannot work, or one that is not the one of the run in `workdir`.
    FloatingPointError: a loss or gradient is not finite; the last good checkpoint stays.
  """
  settings.check(config, workdir)
  if is_finished(workdir):
    return
  run = Run(config, workdir, data, write_scalars, config_name, write_images)
  # Closing waits for a checkpoint that is just being written, whatever happens.
  with contextlib.closing(run.checkpoints):
    state, record, done = None, None, -1
    latest = find_latest(run)
    if latest:
      state, record = restore(run, *latest)
      done = STAGES.index(latest[0])
      log(f"going on at stage {latest[0]}, step {latest[1]}, from {workdir / 'checkpoints'}")
    for index in range(max(done, 0), len(run.stages)):
      stage = run.stages[index]
      if index > done:
        state, record = begin_stage(run, stage, state)
      state = run_stage(run, index, state, optimizer.Plateau(**record["plateau"]))
      if index == 0:
        # Whenever stage 1 ends in this process: stage 2 has no checkpoint yet.
        log(f"evaluating the one-pass model, views: {config.eval.views}")
        write_scores(
          workdir, one_pass_of(VALIDATION_SPLIT), run.scores(stage, state, config.eval.views)
        )
    log(f"evaluating, views: {config.eval.views}")
    final = run.scores(run.stages[-1], state, config.eval.views)
    one_pass = evaluate.read_scores(scores_path(workdir, one_pass_of(VALIDATION_SPLIT)))
    analyse(run, workdir, run.stages[-1], state, one_pass, final, VALIDATION_SPLIT)
    if jax.process_index() == 0:
      conclude(run, workdir, state, one_pass, final, VALIDATION_SPLIT)


def evaluate_latest(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  data: Data,
  write_scalars: WriteScalars,
  config_name: str,
) -> None:
  """Evaluates the newest checkpoint and the one-pass model with `config.eval`; trains nothing.

  The scores and the summary of a finished run are written anew. Those of a run half-way, or in
  other views than the run's own, go to `<workdir>/eval/<views>_<stage>_<step>`, with `<split>_` in
  front for another split than validation, and with the `csm.selection` and `csm.guide` behind that
  are not the run's own.

  Args and raises as `train`; ValueError also where there is no checkpoint.
  """
  settings.check(config, workdir, settings.FREE_IN_EVALUATION)
  run = Run(config, workdir, data, write_scalars, config_name)
  with contextlib.closing(run.checkpoints):
    latest = find_latest(run)
    if not latest:
      raise ValueError(f"{workdir / 'checkpoints'}: no checkpoint to evaluate; train first")
    split, views, folder = config.eval.split, config.eval.views, workdir
    own = settings.read(workdir) or config
    name = f"{views}_{latest[0]}_{latest[1]}"
    other = [value for field, value in run.masks.items() if value != own["csm"][field]]
    name = "_".join([name, *other])
    if split != VALIDATION_SPLIT:
      folder = workdir / "eval" / f"{split}_{name}"
    elif latest != (STAGES[-1], run.total_steps(run.stages[-1])) or (
      other or views != own["eval"]["views"]
    ):
      folder = workdir / "eval" / name
    state, _ = restore(run, *latest)
    log(f"evaluating stage {latest[0]}, step {latest[1]}, split: {split}, views: {views}")
    final = one_pass = run.scores(run.stages[STAGES.index(latest[0])], state, views, split)
    if latest[0] != STAGES[0]:
      log(f"evaluating the one-pass model, views: {views}")
      before, _ = restore(run, STAGES[0], run.checkpoints.last_step(STAGES[0]))
      one_pass = run.scores(run.stages[0], before, views, split)
    analyse(run, folder, run.stages[STAGES.index(latest[0])], state, one_pass, final, split)
    if jax.process_index() == 0:
      write_scores(folder, one_pass_of(split), one_pass)
      conclude(run, folder, state, one_pass, final, split)


def find_latest(run: Run) -> tuple[str, int] | None:
  """The newest checkpoint, by the first host's word: all have to go on from the same one."""
  stage, step = run.checkpoints.latest() or (None, 0)
  index, step = sharding.first_host_says([-1 if stage is None else STAGES.index(stage), step])
  return None if index < 0 else (STAGES[index], int(step))


def begin_stage(
  run: Run, stage: Stage, previous: TrainState | None
) -> tuple[TrainState, dict[str, Any]]:
  """A stage's first state and record, saved at once.

  So the CSM is computed, and `init_from` read, once for a stage and never again.
  """
  similarity = None
  if stage.name == "specific" and stage.regularized:
    similarity = category_similarity(run, previous)
  begin = jax.jit(run.begin(stage), out_shardings=sharding.replicated(run.mesh))
  state = begin(previous)
  if previous is None and run.config.init_from:
    state = start_from(run, stage, state, "universal")
  if stage.init == "pretrained":
    state = start_from(run, stage, state, "specific")
  if similarity is not None:
    state = state.replace(csm=similarity)
  if previous is None and jax.process_index() == 0:
    # Not before: whoever corrects a wrong `init_from` may do so in the same folder.
    evaluate.write_json(settings.path_of(run.workdir), settings.jsonable(run.config))
  record = run.record(stage, optimizer.Plateau())
  run.checkpoints.save(stage.name, 0, state, record)
  return state, record


def start_from(run: Run, stage: Stage, state: TrainState, network: str) -> TrainState:
  """The state with `init_from`'s weights: in trunk and UN ('universal') or the CSN ('specific')."""
  trees = {
    key: {"trunk": getattr(state, key)["trunk"], "universal": getattr(state, key)[network]}
    for key in ("params", "batch_stats")
  }
  params, batch_stats = pretrained.load(
    pathlib.Path(run.config.init_from),
    **trees,
    backbone=run.config.model.backbone.to_dict(),
    stages=STAGES,
    class_names=run.data.class_names,
    needs_classifier=stage.epochs == 0,
    log=log,
  )
  weights = {"params": params, "batch_stats": batch_stats}
  weights = jax.device_put(weights, sharding.replicated(run.mesh))
  new = {key: {network: tree["universal"]} for key, tree in weights.items()}
  if network == "universal":
    new = weights
  return state.replace(**{key: {**getattr(state, key), **new[key]} for key in new})


def restore(run: Run, stage_name: str, step: int) -> tuple[TrainState, dict[str, Any]]:
  """State and record of a checkpoint, replicated over the devices."""
  previous = None
  for stage in run.stages[: STAGES.index(stage_name) + 1]:
    previous = jax.eval_shape(run.begin(stage), previous)
  abstract = abstract_state(previous, sharding.replicated(run.mesh))
  return run.checkpoints.restore(stage_name, step, abstract)


def run_stage(run: Run, index: int, state: TrainState, plateau: optimizer.Plateau) -> TrainState:
  """Trains one stage from `state.step` to its end."""
  config, stage = run.config, run.stages[index]
  total, num_train = run.total_steps(stage), run.data.num_train
  first = int(state.step)
  if first >= total:
    return state
  replicated = sharding.replicated(run.mesh)
  train_step = jax.jit(
    steps.make_train_step(
      run.model,
      stage,
      run.tx,
      regularizer_weight=config.regularizer_weight,
      accumulate_steps=config.accumulate_steps,
      **run.pixels,
      **run.masks,
    ),
    donate_argnums=0,
    out_shardings=(replicated, replicated),
    compiler_options=compiling.options(),
  )
  log(f"stage {stage.name}: {stage.epochs:g} epochs, {total} steps of {config.batch_size} clips")
  offset = sum(run.total_steps(before) for before in run.stages[:index])
  batches = run.data.train_batches(index, first)
  waiting, started, counted = [], time.monotonic(), first

  def report(step, waiting, rate, started, counted):
    means = mean_metrics(stage, step, waiting) | {"learning_rate": rate}
    if step > counted:
      seconds = max(time.monotonic() - started, 1e-9)
      means["clips_per_second"] = (step - counted) * config.batch_size / seconds
    run.write_scalars(
      offset + step, {f"{stage.name}/{name}": value for name, value in means.items()}
    )
    epoch = step * config.batch_size / num_train
    line = progress(stage, step, total, epoch, config.batch_size, means)
    (log if ends_epoch(step) else log_live)(line)

  def ends_epoch(step):
    """The first step at or behind an epoch's last example; the stage's last step always is one."""
    before, after = (math.floor(k * config.batch_size / num_train) for k in (step - 1, step))
    return step == total or after > before

  tracing = None  # the step whose end ends the profile
  due = None  # a report that waits until the device has its next step
  for step in range(first + 1, total + 1):
    batch = sharding.global_batch(next(batches), run.mesh)
    seen = (step - 1) * config.batch_size / num_train
    rate = optimizer.learning_rate(stage, seen, plateau)
    state, scalars = train_step(state, batch, rate)
    if due:
      report(*due)
      due = None
    waiting.append(scalars)
    if len(waiting) > STEPS_AHEAD:
      jax.block_until_ready(waiting[-1 - STEPS_AHEAD])
    if step == first + 1:
      jax.block_until_ready(scalars)  # compilation is no part of the speed
      started, counted = time.monotonic(), step
    epoch_done = ends_epoch(step)
    if tracing and step in (tracing, total):
      jax.block_until_ready(scalars)
      jax.profiler.stop_trace()
      tracing = None
      log(f"profile of {PROFILE_STEPS} steps: {run.workdir / 'profile'}; see ui.perfetto.dev")
    elif not run.profiled and step == min(first + PROFILE_AFTER, total - 1):
      jax.block_until_ready(scalars)
      jax.profiler.start_trace(run.workdir / "profile", create_perfetto_trace=True)
      run.profiled, tracing = True, step + PROFILE_STEPS
    save = step == total or step % config.checkpoint_every_steps == 0
    if epoch_done or save or step % config.log_every_steps == 0:
      due, waiting = (step, waiting, rate, started, counted), []
    if epoch_done or save:
      report(*due)
      due = None
    if epoch_done:
      results = validate(run, stage, state, offset + step)
      run.write_scalars(
        offset + step, {f"{stage.name}/validation_{k}": v for k, v in results.items()}
      )
      if stage.decay == "plateau":
        accuracy = results.get("merged", results["universal"]) / 100
        plateau.update(1 - accuracy, stage.patience)
      # Evaluation is no part of the training speed.
      started, counted = time.monotonic(), step
    if save:
      if not state_lib.all_finite(state):
        raise FloatingPointError(diverged(stage, step, "a parameter or statistic is not finite"))
      run.checkpoints.save(stage.name, step, state, run.record(stage, plateau))
  run.checkpoints.wait()
  return state


def mean_metrics(stage: Stage, step: int, waiting: list[dict[str, jax.Array]]) -> dict[str, float]:
  """Means over the steps since the last call.

  Raises:
    FloatingPointError: one of them is not finite.
  """
  fetched = jax.device_get(waiting)
  means = {name: float(np.mean([scalars[name] for scalars in fetched])) for name in fetched[0]}
  for name, value in means.items():
    if not math.isfinite(value):
      raise FloatingPointError(diverged(stage, step, f"{name} is {value}"))
  return means


def diverged(stage: Stage, step: int, what: str) -> str:
  """The error's line for a run that cannot go on."""
  return (
    f"stage {stage.name}, step {step}: {what}; stopped, the last good checkpoint stays; take a"
    f" lower {stage.name}.learning_rate in another --workdir"
  )


def progress(
  stage: Stage, step: int, total: int, epoch: float, batch_size: int, means: dict[str, float]
) -> str:
  """A line for the terminal; ETA is the stage's end."""
  line = f"  {stage.name} epoch {epoch:.1f}/{stage.epochs:g} step {step}/{total}"
  if "clips_per_second" in means:
    left = datetime.timedelta(
      seconds=round((total - step) * batch_size / means["clips_per_second"])
    )
    line += f"  {means['clips_per_second']:.0f} clips/s  ETA {left}"
  line += f"  lr {means['learning_rate']:.2g}  loss {means['loss']:.3f}:"
  for name in stage.losses:
    line += f"  {name} {means[f'loss_{name}']:.3f} ({100 * means[f'accuracy_{name}']:.1f} %)"
  if "regularizer" in means:
    line += f"  regularizer {means['regularizer']:.3f}"
  return line


def picture(run: Run, stage: Stage, state: TrainState, step: int) -> None:
  """Writes the first validation clips under their masks, for TensorBoard; all hosts.

  Args:
    run: the run.
    stage: of the state.
    state: the networks.
    step: counted through all stages.
  """
  if not run.write_images or "mask" not in state.params:
    return
  if "picture" not in run.compiled:
    analyse_step = steps.make_analysis_step(run.model, stage, **run.pixels, **run.masks)
    run.compiled["picture"] = analysis.compile_step(analyse_step, run.mesh)
    batch = next(iter(run.data.eval_batches(VALIDATION_SPLIT, "center")))
    run.pictured = {**batch, "id": evaluate.id_codes(batch["id"])}
  batch = sharding.global_batch(run.pictured, run.mesh)
  found, batch = run.compiled["picture"](state, batch)
  videos, masks = (
    np.asarray(values[:PICTURED]) for values in (batch["video"][:, 0], found["mask"])
  )
  rows = []
  for video, mask in zip(videos, masks, strict=True):
    rows += [overlay.frames_of(video), overlay.blend(video, mask)]
  run.write_images(step, {f"{stage.name}/masks": np.asarray(overlay.strip(rows))[None]})


def validate(run: Run, stage: Stage, state: TrainState, step: int) -> dict[str, float]:
  """Top-1 in percent of every prediction and of their mean, on the centre view.

  Args:
    run: the run.
    stage: of the state.
    state: the networks.
    step: counted through all stages, for the picture of the masks.

  Raises:
    FloatingPointError: a score is not finite.
  """
  scores = run.scores(stage, state, "center")
  if not all(np.isfinite(values).all() for values in evaluate.predictions(scores).values()):
    raise FloatingPointError(diverged(stage, int(state.step), "validation scores are not finite"))
  results = {
    name: 100 * metrics.top_k_accuracy(values, scores["label"], 1)
    for name, values in evaluate.predictions(scores).items()
  }
  picture(run, stage, state, step)
  if len(results) > 1:
    results["merged"] = 100 * metrics.top_k_accuracy(evaluate.merged(scores), scores["label"], 1)
  log("  validation top-1: " + "  ".join(f"{k} {v:.1f} %" for k, v in results.items()))
  return results


def category_similarity(run: Run, state: TrainState) -> CategorySimilarity:
  """The CSM of the one-pass model (Section III-A): sparsity over the training set, N from top-N.

  N is read off the validation split, centre view: the paper does not say, and on the training set
  the accuracy is that of what the network has learned by heart.
  """
  log("category similarity matrix: one pass over the training set")
  step = steps.make_sparsity_step(run.model, **run.pixels)

  def accumulate(sums, state, batch):
    return jax.tree.map(jnp.add, sums, step(state, batch))

  replicated = sharding.replicated(run.mesh)
  accumulate = jax.jit(
    accumulate,
    out_shardings=replicated,
    donate_argnums=0,
    compiler_options=compiling.options(),
  )
  sums = None
  for batch in run.data.eval_batches(TRAIN_SPLIT, "center"):
    batch = sharding.global_batch(batch, run.mesh)
    if sums is None:
      sums = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype, device=replicated),
        jax.eval_shape(step, state, batch),
      )
    sums = accumulate(sums, state, batch)
  zeros, responses = jax.device_get(sums)
  missing = [name for name, count in zip(run.data.class_names, responses, strict=True) if not count]
  if missing:
    raise ValueError(f"split {TRAIN_SPLIT}: no example of class {missing[0]!r}; the CSM needs all")
  scores = run.scores(run.stages[0], state, "center")
  curve = metrics.top_n_curve(scores["universal"], scores["label"])
  n = run.config.csm.n or csm_lib.confusing_count(curve, run.config.csm.target_accuracy)
  sparsity = csm_lib.class_sparsity(zeros, responses)
  similarity = csm_lib.similarity_matrix(sparsity, run.config.csm.distance)
  alpha = csm_lib.threshold(similarity, n)
  matrix = csm_lib.binarize(similarity, alpha)
  average = (matrix.sum() - len(matrix)) / len(matrix)
  log(
    f"  N = {n} (top-{n} accuracy {100 * curve[n - 1]:.1f} %), alpha = {alpha:.4f},"
    f" {average:.2f} confusing classes a class; most similar:"
  )
  names = run.data.class_names
  for i, j, value in csm_lib.most_similar(similarity, NUM_SIMILAR):
    log(f"    {value:.4f}  {names[i]} / {names[j]}")
  result = CategorySimilarity(
    matrix=matrix,
    similarity=similarity.astype(np.float32),
    topn_accuracy=curve.astype(np.float32),
    alpha=np.float32(alpha),
    n=np.int32(n),
  )
  return jax.device_put(result, replicated)


def one_pass_of(split: str) -> str:
  """Name of a split's scores by the model after stage 1."""
  return f"{split}_one_pass"


def scores_path(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Where scores lie in a run's folder, or in one of its evaluations'."""
  return folder / "scores" / f"{name}.npz"


def write_scores(folder: pathlib.Path, name: str, scores: dict[str, np.ndarray]) -> None:
  """Writes scores to their `scores_path`, on the first host."""
  if jax.process_index() == 0:
    evaluate.write_scores(scores_path(folder, name), scores)


def analyse(
  run: Run,
  folder: pathlib.Path,
  stage: Stage,
  state: TrainState,
  one_pass: dict[str, np.ndarray],
  final: dict[str, np.ndarray],
  split: str,
) -> None:
  """Writes `<folder>/analysis/<split>.npz` for the report, where labels are known; all hosts."""
  count = min(run.config.eval.pairs, math.comb(len(np.unique(final["label"])), 2))
  if not run.config.eval.pairs or final["label"].min() < 0:
    return
  log("features and masks, for the report")
  before, _ = restore(run, STAGES[0], run.checkpoints.last_step(STAGES[0]))
  similarity = analysis.class_similarity(state.csm, one_pass)
  pairs = analysis.confusing_pairs(similarity, final["label"], count)

  def collect(stage, state, examples):
    step = steps.make_analysis_step(run.model, stage, **run.pixels, **run.masks)
    return analysis.collect(
      analysis.compile_step(step, run.mesh),
      state,
      run.data.eval_batches(split, "center"),
      run.mesh,
      classes=pairs.ravel().tolist(),
      examples=examples,
    )

  arrays = analysis.gather(
    collect(run.stages[0], before, ()),
    collect(stage, state, analysis.choose_examples(pairs, one_pass, final)),
    pairs,
    similarity,
    state,
    run.data.class_names,
  )
  if jax.process_index() == 0:
    evaluate.write_arrays(folder / "analysis" / f"{split}.npz", arrays)


def conclude(
  run: Run,
  folder: pathlib.Path,
  state: TrainState,
  one_pass: dict[str, np.ndarray],
  final: dict[str, np.ndarray],
  split: str,
) -> None:
  """Writes scores and, where all labels are known, accuracies; prints them; on the first host."""
  write_scores(folder, split, final)
  unknown = int(np.sum(final["label"] < 0))
  if unknown:
    log(f"{unknown} of {len(final['label'])} clips have no label: scores only")
    log(f"written: {scores_path(folder, split)}")
    return
  summary = evaluate.summarize(one_pass, final, state, run.config_name)
  log(fusion.table(summary["one_pass"], summary["predictions"]))
  matrix = jax.device_get(state.csm.matrix)
  rows = evaluate.per_class(one_pass, final, run.data.class_names, matrix)
  log(f"\n{evaluate.per_class_table(rows)}")
  if run.config.eval.classes:
    log(f"\n{evaluate.gains_table(rows, run.config.eval.classes)}\n")
  evaluate.write_per_class(folder / "per_class.csv", rows)
  log(f"top-1 of all {len(rows)} classes: {folder / 'per_class.csv'}")
  evaluate.write_json(folder / "summary.json", summary)
  log(f"written: {folder / 'summary.json'}")
