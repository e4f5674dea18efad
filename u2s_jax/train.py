"""The training loop: three stages, one loop, resumable at any step.

Order at a step that ends an epoch: update, evaluate, decide on the learning rate, save, next batch.
"""

import dataclasses
import datetime
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from u2s_jax import csm as csm_lib
from u2s_jax import evaluate, fusion, metrics, optimizer, sharding, stages, steps
from u2s_jax import state as state_lib
from u2s_jax.checkpoint import Checkpoints, abstract_state
from u2s_jax.models.u2s import U2S
from u2s_jax.stages import Stage
from u2s_jax.state import CategorySimilarity, TrainState

Batches = Iterator[dict[str, np.ndarray]]
WriteScalars = Callable[[int, dict[str, float]], None]  # of `clu.metric_writers`
TRAIN_SPLIT, VALIDATION_SPLIT = "train", "validation"
ONE_PASS = f"{VALIDATION_SPLIT}_one_pass"  # name of the scores of the model after stage 1
STAGES = ("universal", "specific", "joint")
DTYPES = ("float32", "bfloat16")
PIXEL_FIELDS = ("pixel_mean", "pixel_std")
# Fields that change nothing that training computes: a run may go on with other values of them.
FREE_FIELDS = ("eval", "log_every_steps", "checkpoint_every_steps", "data.num_threads",
               "data.prepare_workers")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Data:
  """Where the batches come from.

  Attributes:
    class_names: in the order of the labels.
    num_train: training examples.
    train_batches: (stage index, first step) -> this host's endless training batches from that step
      on, always the same: `video` (b, t, h, w, 3) uint8, `label`, `mask`.
    eval_batches: (split, views) -> this host's batches of one pass over a split: `video`
      (b, v, t, h, w, 3) uint8, `label`, `mask`, `id`.
  """

  class_names: tuple[str, ...]
  num_train: int
  train_batches: Callable[[int, int], Batches]
  eval_batches: Callable[[str, str], Batches]


def log(message: str) -> None:
  """Prints a line on the first host's terminal."""
  if jax.process_index() == 0:
    print(message, flush=True)


class Run:
  """What the stages of a run share: config, networks, compiled functions, checkpoints, output.

  Args:
    config: as in `configs/sthv2.py`.
    workdir: the run's folder.
    data: see `Data`.
    write_scalars: takes a step, counted through all stages, and scalars by name.
    config_name: for the summary.

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
  ):
    self.config, self.workdir, self.data = config, workdir, data
    self.write_scalars = write_scalars
    self.config_name = config_name
    self.mesh = sharding.data_mesh()
    self.pixels = {key: tuple(config.model[key]) for key in PIXEL_FIELDS}
    self.stages = schedule(config)
    num_classes = len(data.class_names)
    # What a checkpoint has to agree with, in words of JSON.
    described = json.loads(json.dumps({**model_fields(config), "control": config.control}))
    self.checkpoints = Checkpoints(
      workdir / "checkpoints", STAGES, {"num_classes": num_classes, **described}
    )
    self.model = build_model(config, num_classes)
    self.tx = optimizer.sgd(config.optimizer.momentum, config.optimizer.weight_decay)
    self.views = {}  # compiled evaluation by (one-pass or not, views)

  def total_steps(self, stage: Stage) -> int:
    """Steps of a stage: its epochs' examples over the batch size, at least one."""
    return max(1, round(stage.epochs * self.data.num_train / self.config.batch_size))

  def begin(self, stage: Stage) -> Callable[[TrainState | None], TrainState]:
    """A jit-able function that makes the stage's first state from the state before."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), self.stages.index(stage))
    # Parameters do not depend on the size of the frames.
    shape = (1, self.config.data.num_frames, 32, 32, 3)
    return lambda previous: state_lib.begin(self.model, stage, self.tx, key, shape, previous)

  def scores(self, stage: Stage, state: TrainState, views: str) -> dict[str, np.ndarray]:
    """Scores of the validation split."""
    key = (stage.one_pass, views)
    if key not in self.views:
      step = steps.make_eval_step(
        self.model,
        stage,
        mirror_columns=evaluate.mirror_columns(
          views, self.model.num_classes, tuple(self.config.data.flip_label_map)
        ),
        **self.pixels,
      )
      self.views[key] = evaluate.compile_eval(step, self.mesh)
    batches = self.data.eval_batches(VALIDATION_SPLIT, views)
    return evaluate.score(self.views[key], state, batches, self.mesh)

  def write_scores(self, name: str, scores: dict[str, np.ndarray]) -> None:
    if jax.process_index() == 0:
      evaluate.write_scores(self.scores_path(name), scores)

  def scores_path(self, name: str) -> pathlib.Path:
    return self.workdir / "scores" / f"{name}.npz"


def train(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  data: Data,
  write_scalars: WriteScalars,
  config_name: str,
) -> None:
  """Trains all stages and evaluates, from wherever `workdir` left off.

  Args:
    config: as in `configs/sthv2.py`.
    workdir: checkpoints, scores, `config.json` and `summary.json` go there.
    data: see `Data`.
    write_scalars: takes a step, counted through all stages, and scalars by name.
    config_name: for the summary.

  Raises:
    ValueError: a config that cannot work, or one that is not the one of the run in `workdir`.
    FloatingPointError: a loss or gradient is not finite; the last good checkpoint stays.
  """
  check(config, workdir)
  sync("config_checked")
  if jax.process_index() == 0:
    evaluate.write_json(workdir / "config.json", jsonable(config))
  run = Run(config, workdir, data, write_scalars, config_name)
  latest = run.checkpoints.latest()
  last = run.stages[-1]
  if latest == (last.name, run.total_steps(last)) and (workdir / "summary.json").exists():
    log(f"{workdir}: this run is finished, see {workdir / 'summary.json'}; nothing to do")
    return
  sync("summary_read")
  if jax.process_index() == 0:
    # One of an evaluation half-way must not pass for the end's.
    (workdir / "summary.json").unlink(missing_ok=True)
  state, record, done = None, None, -1
  if latest:
    state, record = restore(run, *latest)
    done = STAGES.index(latest[0])
    log(f"going on at stage {latest[0]}, step {latest[1]}, from {workdir / 'checkpoints'}")
  for index, stage in enumerate(run.stages):
    if index < done:
      continue
    if index > done:
      similarity = None if stage.one_pass or index != 1 else category_similarity(run, state)
      begin = jax.jit(run.begin(stage), out_shardings=sharding.replicated(run.mesh))
      state, record = begin(state), {"plateau": dataclasses.asdict(optimizer.Plateau())}
      if similarity is not None:
        state = state.replace(csm=similarity)
      # At once: the CSM is computed once and never again.
      run.checkpoints.save(stage.name, 0, state, record)
    state = run_stage(run, index, state, optimizer.Plateau(**record["plateau"]))
    if index == 0 and not run.scores_path(ONE_PASS).exists():
      score_one_pass(run, state)
  finish(run, last, state)
  run.checkpoints.close()


def evaluate_latest(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  data: Data,
  write_scalars: WriteScalars,
  config_name: str,
) -> None:
  """Evaluates the newest checkpoint and the one-pass model with `config.eval`; trains nothing.

  Args and raises as `train`; ValueError also where there is no checkpoint.
  """
  check(config, workdir)
  run = Run(config, workdir, data, write_scalars, config_name)
  latest = run.checkpoints.latest()
  if not latest:
    raise ValueError(f"{workdir / 'checkpoints'}: no checkpoint to evaluate; train first")
  if latest[0] != "universal":
    # The table compares the two, so both are seen in the same views.
    one_pass, _ = restore(run, "universal", run.checkpoints.last_step("universal"))
    score_one_pass(run, one_pass)
  state, _ = restore(run, *latest)
  finish(run, run.stages[STAGES.index(latest[0])], state)
  run.checkpoints.close()


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
      run.model, stage, run.tx, regularizer_weight=config.regularizer_weight, **run.pixels
    ),
    donate_argnums=0,
    out_shardings=(replicated, replicated),
  )
  log(f"stage {stage.name}: {stage.epochs:g} epochs, {total} steps of {config.batch_size} clips")
  offset = sum(run.total_steps(before) for before in run.stages[:index])
  batches = run.data.train_batches(index, first)
  waiting, started, counted = [], time.monotonic(), first
  for step in range(first + 1, total + 1):
    batch = sharding.global_batch(next(batches), run.mesh)
    seen = (step - 1) * config.batch_size / num_train
    rate = optimizer.learning_rate(stage, seen, plateau)
    state, scalars = train_step(state, batch, rate)
    waiting.append(scalars)
    if step == first + 1:
      jax.block_until_ready(scalars)  # compilation is no part of the speed
      started, counted = time.monotonic(), step
    # The first step at or behind an epoch's last example; the stage's last step always is one.
    epoch_done = step == total or (
      math.floor(step * config.batch_size / num_train) > math.floor(seen)
    )
    save = step == total or step % config.checkpoint_every_steps == 0
    if epoch_done or save or step % config.log_every_steps == 0:
      means = mean_metrics(stage, step, waiting)
      waiting = []
      speed = (step - counted) * config.batch_size / max(time.monotonic() - started, 1e-9)
      means |= {"learning_rate": rate}
      if step > counted:
        means["clips_per_second"] = speed
      run.write_scalars(
        offset + step, {f"{stage.name}/{name}": value for name, value in means.items()}
      )
      epoch = step * config.batch_size / num_train
      log(progress(stage, step, total, epoch, config.batch_size, means))
    if epoch_done:
      results = validate(run, stage, state)
      run.write_scalars(
        offset + step, {f"{stage.name}/validation_{k}": v for k, v in results.items()}
      )
      if stage.decay == "plateau":
        plateau.update(1 - results[max(results, key=len)] / 100, stage.patience)
      # Evaluation is no part of the training speed.
      started, counted = time.monotonic(), step
    if save:
      record = {"plateau": dataclasses.asdict(plateau)}
      run.checkpoints.save(stage.name, step, state, record)
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
      raise FloatingPointError(
        f"stage {stage.name}, step {step}: {name} is {value}; stopped, the last good checkpoint"
        f" stays; lower {stage.name}.learning_rate"
      )
  return means


def progress(
  stage: Stage, step: int, total: int, epoch: float, batch_size: int, means: dict[str, float]
) -> str:
  """A line for the terminal; ETA is the stage's end."""
  accuracies = "  ".join(
    f"{name.removeprefix('accuracy_')} {100 * value:.1f} %"
    for name, value in means.items()
    if name.startswith("accuracy_")
  )
  line = (
    f"  {stage.name} epoch {epoch:.1f}/{stage.epochs:g} step {step}/{total}"
    f"  loss {means['loss']:.3f}  {accuracies}  lr {means['learning_rate']:.2g}"
  )
  if "clips_per_second" in means:
    left = datetime.timedelta(
      seconds=round((total - step) * batch_size / means["clips_per_second"])
    )
    line += f"  {means['clips_per_second']:.0f} clips/s  ETA {left}"
  return line


def validate(run: Run, stage: Stage, state: TrainState) -> dict[str, float]:
  """Top-1 in percent of every prediction and of their mean, on the centre view."""
  scores = run.scores(stage, state, "center")
  results = {
    name: 100 * metrics.top_k_accuracy(values, scores["label"], 1)
    for name, values in evaluate.predictions(scores).items()
  }
  if len(results) > 1:
    results["merged"] = 100 * metrics.top_k_accuracy(evaluate.merged(scores), scores["label"], 1)
  log("  validation top-1: " + "  ".join(f"{k} {v:.1f} %" for k, v in results.items()))
  return results


def category_similarity(run: Run, state: TrainState) -> CategorySimilarity:
  """The CSM of the one-pass model (Section III-A): sparsity over the training set, N from top-N.

  N is read off the validation scores: the paper does not say whose, and on the training set the
  network's accuracy is that of what it has learned by heart.
  """
  log("category similarity matrix: one pass over the training set")
  step = steps.make_sparsity_step(run.model, **run.pixels)

  def accumulate(sums, state, batch):
    return jax.tree.map(jnp.add, sums, step(state, batch))

  replicated = sharding.replicated(run.mesh)
  accumulate = jax.jit(accumulate, out_shardings=replicated, donate_argnums=0)
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
  scores = evaluate.read_scores(run.scores_path(ONE_PASS))
  curve = metrics.top_n_curve(scores["universal"], scores["label"])
  n = csm_lib.confusing_count(curve, run.config.csm.target_accuracy)
  sparsity = csm_lib.class_sparsity(zeros, responses)
  similarity = csm_lib.similarity_matrix(sparsity, run.config.csm.distance)
  alpha = csm_lib.threshold(similarity, n)
  matrix = csm_lib.binarize(similarity, alpha)
  average = (matrix.sum() - len(matrix)) / len(matrix)
  log(
    f"  N = {n} (top-{n} accuracy {100 * curve[n - 1]:.1f} %), alpha = {alpha:.4f},"
    f" {average:.2f} confusing classes a class"
  )
  result = CategorySimilarity(
    matrix=matrix,
    similarity=similarity.astype(np.float32),
    topn_accuracy=curve.astype(np.float32),
    alpha=np.float32(alpha),
    n=np.int32(n),
  )
  return jax.device_put(result, replicated)


def score_one_pass(run: Run, state: TrainState) -> None:
  """Scores of the model after stage 1, in the configured views."""
  log(f"evaluating the one-pass model, views: {run.config.eval.views}")
  run.write_scores(ONE_PASS, run.scores(run.stages[0], state, run.config.eval.views))
  sync("one_pass_scores")


def finish(run: Run, stage: Stage, state: TrainState) -> None:
  """Final evaluation: scores, the table of fusions, `summary.json`."""
  log(f"evaluating, views: {run.config.eval.views}")
  final = run.scores(stage, state, run.config.eval.views)
  run.write_scores(VALIDATION_SPLIT, final)
  if stage.name == "universal":
    run.write_scores(ONE_PASS, final)
  sync("scores")
  if jax.process_index() == 0:
    summary = evaluate.summarize(
      evaluate.read_scores(run.scores_path(ONE_PASS)), final, state, run.config_name
    )
    evaluate.write_json(run.workdir / "summary.json", summary)
    log(fusion.table(summary["one_pass"], summary["predictions"]))
    log(f"written: {run.workdir / 'summary.json'}")


def schedule(config: ml_collections.ConfigDict) -> tuple[Stage, Stage, Stage]:
  """The stages that a config asks for."""
  return stages.schedule(
    {name: config[name].to_dict() for name in STAGES},
    attention=config.model.attention,
    specific_init=config.model.specific_init,
    control=config.control,
  )


def model_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields of the config's `model` section that are arguments of `U2S`."""
  others = (*PIXEL_FIELDS, "specific_init")
  return {key: value for key, value in config.model.to_dict().items() if key not in others}


def build_model(config: ml_collections.ConfigDict, num_classes: int) -> U2S:
  """The networks that a config asks for."""
  fields = model_fields(config)
  if fields["dtype"] not in DTYPES:
    raise ValueError(f"model.dtype: {fields['dtype']!r} is not one of {', '.join(DTYPES)}")
  return U2S(num_classes, **{**fields, "dtype": jnp.dtype(fields["dtype"])})


def check(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Finds what is wrong with a config before any data is prepared, which can take hours.

  Raises:
    ValueError: a config that cannot work, or not the one that the run in `workdir` began with; the
      first such field.
  """
  sharding.check_batch_size("batch_size", config.batch_size)
  sharding.check_batch_size("eval.batch_size", config.eval.batch_size)
  schedule(config)
  build_model(config, num_classes=1)
  evaluate.mirror_columns(config.eval.views, 0, ())
  path = workdir / "config.json"
  if not path.exists():
    return
  before, now = flatten(json.loads(path.read_text())), flatten(jsonable(config))
  for field in sorted(before.keys() | now.keys()):
    free = any(field == name or field.startswith(f"{name}.") for name in FREE_FIELDS)
    if not free and before.get(field) != now.get(field):
      raise ValueError(
        f"{path}: this run began with {field} = {before.get(field)}, not {now.get(field)};"
        " set it back or take another --workdir"
      )


def jsonable(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """A config as JSON gives it back: tuples are lists."""
  return json.loads(config.to_json_best_effort())


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts to one, keys joined by dots."""
  flat = {}
  for key, value in tree.items():
    flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat


def sync(name: str) -> None:
  """Waits for all hosts: what the first one wrote is there for all."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
