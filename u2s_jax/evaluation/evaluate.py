"""An evaluation, at a run's end or of its newest checkpoint: scores, tables, files."""

import contextlib
import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import ml_collections
import numpy as np

from u2s_jax import checkpoint, devices, metrics, saved_config, settings, workdir
from u2s_jax.console import log
from u2s_jax.errors import UserError
from u2s_jax.evaluation import analysis, inference, results, scores
from u2s_jax.evaluation.scores import Scores
from u2s_jax.files import Path
from u2s_jax.run import VALIDATION_SPLIT, Run, Source, open_run
from u2s_jax.stages import STAGES
from u2s_jax.state import TrainState
from u2s_jax.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What an evaluation found, and where it belongs.

  Attributes:
    run: the run.
    folder: of its files: the run's, or one below `eval/`.
    split: of the data set.
    state: the networks.
    one_pass: scores of the model after stage 1.
    final: scores of `state`.
    replace: whether files that exist are replaced: at a run's end, whose earlier attempt may have
      been killed here. Looking at a finished run changes nothing that exists.
  """

  run: Run
  folder: Workdir
  split: str
  state: TrainState
  one_pass: Scores
  final: Scores
  replace: bool = False

  def wants(self, path: Path) -> bool:
    """Returns whether to write a file: any if `replace`, otherwise a missing or damaged one."""
    if self.replace or not path.exists():
      return True
    try:
      if path.suffix == ".npz":
        workdir.read_npz(path)
    except UserError:
      log(f"{path}: damaged; written again")
      return True
    return False


def score(run: Run, state: TrainState, views: str, split: str) -> Scores:
  """Returns the scores of a split; on all hosts.

  Args:
    run: the run.
    state: the networks.
    views: of `views.VIEWS`.
    split: of the data set.

  Raises:
    UserError: labels are to guide the masks and a clip has none, or a score is not finite.
  """
  step = inference.score_step(run.network, run.mirrors(views))
  batches = run.source.eval_batches(split, views)
  result = inference.score(step, state, batches, run.source.class_names)
  result = dataclasses.replace(result, data_digest=run.source.digest)
  if run.network.guide == "label" and "specific" in state.params and result.num_unknown:
    raise UserError(f"csm.guide: 'label', but clips of the split {split!r} have no label")
  for name, values in result.predictions.items():
    if not np.isfinite(values).all():
      raise UserError(
        f"split {split!r}: scores of the {name} network are not finite; stopped, the last good"
        " checkpoint stays; take a lower learning rate in another workdir"
      )
  return result


def score_one_pass(run: Run, state: TrainState) -> None:
  """Scores the model after stage 1 in the run's own views, and writes its scores."""
  log(f"evaluating the one-pass model, views: {run.config.eval.views}")
  one_pass = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  if jax.process_index() == 0:
    scores.write(run.workdir.one_pass_scores(VALIDATION_SPLIT), one_pass)


def final_evaluation(run: Run, state: TrainState) -> None:
  """Evaluates a run's last state in the run's own views, and writes all results of the run."""
  log(f"evaluating, views: {run.config.eval.views}")
  final = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  evaluation = Evaluation(
    run, run.workdir, VALIDATION_SPLIT, state, one_pass_scores(run), final, replace=True
  )
  analyse(evaluation)
  more = score_further(evaluation)
  if jax.process_index() == 0:
    write_results(evaluation, more)


def score_further(evaluation: Evaluation) -> dict[str, Any]:
  """Returns what a summary says besides `results.summarize`: `best` of the best checkpoint.

  And, where labels select the masks, `results.PREDICTION_GUIDED`: accuracies without their help.
  """
  run = evaluation.run
  more = {
    "best": score_best(run) if evaluation.folder == run.workdir else None,
    results.PREDICTION_GUIDED: score_guided(run, evaluation.state, evaluation.split),
  }
  return {name: value for name, value in more.items() if value is not None}


def is_upper_bound(run: Run, state: TrainState) -> bool:
  """Tells whether labels select the masks: accuracies are then upper bounds (Table III f)."""
  return run.network.guide == "label" and "specific" in state.params


def score_guided(run: Run, state: TrainState, split: str) -> dict[str, dict[str, float]] | None:
  """Returns the fusions' accuracies with the masks of the predicted classes.

  Args:
    run: the run.
    state: the networks.
    split: of the data set.

  Returns:
    As `scores.fusions`; None where predictions select the run's own masks.
  """
  if not is_upper_bound(run, state):
    return None
  log("evaluating with the masks of the predicted classes, as a clip without a label has them")
  network = dataclasses.replace(run.network, guide="prediction")
  guided = dataclasses.replace(run, network=network)
  return scores.fusions(score(guided, state, run.config.eval.views, split))


def score_best(run: Run) -> dict[str, Any] | None:
  """Returns what the summary says of the checkpoint that `eval.keep_best` chose, None for none."""
  kept = run.restore_best()
  if kept is None:
    return None
  step, state = kept
  log(f"evaluating the best checkpoint, step {step}, views: {run.config.eval.views}")
  scored = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  accuracies = metrics.summarize(scored.merged, scored.labels)
  guided = score_guided(run, state, VALIDATION_SPLIT)
  guided = {} if guided is None else {results.PREDICTION_GUIDED: guided}
  return {"stage": STAGES[-1], "step": step, "chosen_on": VALIDATION_SPLIT, **accuracies, **guided}


def one_pass_scores(run: Run) -> Scores:
  """Reads the scores of the model after stage 1; makes them anew where they are gone or damaged."""
  path, read = run.workdir.one_pass_scores(VALIDATION_SPLIT), None
  with contextlib.suppress(UserError, FileNotFoundError):
    read = scores.read(path)
  if devices.on_any_process(read is None):
    log(f"{path}: gone or damaged; made anew from the last checkpoint of stage 1")
    score_one_pass(run, run.restore_one_pass())
    devices.wait_for_host0("one_pass_scores", hours=1)
    read = scores.read(path)
  return read


def evaluate_latest(
  config: ml_collections.ConfigDict, root: Workdir, source: Source, config_name: str
) -> None:
  """Evaluates the newest checkpoint and the one-pass model with `config.eval`; trains nothing.

  Results of a finished run on its own validation data, in its own views and with its own masks
  belong to the run's folder, where only missing files are written. All others go to
  `<workdir>/eval/<name>-<digest>-<views>`, see `_folder`.

  Args:
    config: see `configs/default.py`.
    root: the run's folder.
    source: of the batches; it may be of another data set with the run's classes, or some of them.
    config_name: for the summary.

  Raises:
    UserError: a config that cannot work or is not the run's, no checkpoint, or other classes.
  """
  settings.check(config, root, settings.FREE_IN_EVALUATION)
  record = checkpoint.read_record(root.checkpoints, STAGES)
  if record is None:
    raise UserError(f"{root.checkpoints}: no checkpoint to evaluate; train first")
  trained_on = record["model"]
  source = source.with_classes_of(trained_on["class_names"])
  # The schedule is that of the run's training clips, whatever is evaluated.
  run = open_run(
    config, root, dataclasses.replace(source, num_train=trained_on["num_train"]), config_name
  )
  with contextlib.closing(run.checkpoints):
    stage_name, step = run.latest()
    split, views = config.eval.split, config.eval.views
    state, _ = run.restore(stage_name, step)
    log(f"evaluating stage {stage_name}, step {step}, split: {split}, views: {views}")
    final = one_pass = score(run, state, views, split)
    if stage_name != STAGES[0]:
      log(f"evaluating the one-pass model, views: {views}")
      one_pass = score(run, run.restore_one_pass(), views, split)
    # By host 0's word: others' views of a shared folder may be old.
    is_own = bool(devices.broadcast_from_host0(_is_own_data(run, final, record.get("data_digest"))))
    if not is_own:  # its training clips are not those that the networks have seen
      run = dataclasses.replace(run, source=dataclasses.replace(run.source, class_sizes=()))
    folder = _folder(run, stage_name, step, is_own, final)
    evaluation = Evaluation(run, folder, split, state, one_pass, final)
    if folder != root:
      what = (
        "evaluation (its views, split, masks or checkpoint)"
        if is_own
        else f"data set ({run.source.name})"
      )
      log(f"this {what} is not that of the run's own results; writing to {folder.root}")
    _compare(evaluation)
    analyse(evaluation)
    more = score_further(evaluation)
    if jax.process_index() == 0:
      path = folder.one_pass_scores(split)
      if evaluation.wants(path):
        scores.write(path, one_pass)
      write_results(evaluation, more)


def _is_own_data(run: Run, final: Scores, digest: str | None) -> bool:
  """Tells whether the evaluated data set is the one that the run was trained on.

  Args:
    run: the run, with the evaluated source.
    final: scores of the evaluated split.
    digest: of the training data; empty or None for runs that did not keep it: then ids and labels
      are compared with the run's scores, and without such scores the data count as its own.
  """
  if digest and run.source.digest:
    return digest == run.source.digest
  path = run.workdir.scores(run.config.eval.split)
  if not path.exists():
    path = run.workdir.one_pass_scores(run.config.eval.split)
  if not path.exists():
    return True
  try:
    known = scores.read(path)
  except UserError:  # damaged: to be written again
    return True
  return np.array_equal(known.ids, final.ids) and np.array_equal(known.labels, final.labels)


def _folder(run: Run, stage_name: str, step: int, is_own: bool, final: Scores) -> Workdir:
  """Returns where results go: the run's folder, or `eval/<name>-<digest>-<views>`.

  The name is the data set's, followed by what else differs from the run's own evaluation: a split
  other than validation, the checkpoint of an unfinished run, masks (`csm.selection`, `csm.guide`).
  The digest is the data set's, eight digits.
  """
  config, saved = run.config, saved_config.read(run.workdir) or run.config
  split, views = config.eval.split, config.eval.views
  finished = (stage_name, step) == (STAGES[-1], run.total_steps(run.stages[-1]))
  differs = [] if split == VALIDATION_SPLIT else [split]
  differs += [] if finished else [stage_name, str(step)]
  differs += [config.csm[key] for key in settings.MASK_FIELDS if config.csm[key] != saved.csm[key]]
  if is_own and not differs and views == saved.eval.views:
    return run.workdir
  name = "_".join([run.source.name, *differs])
  return run.workdir.evaluation(f"{name}-{_digest(run.source, final)}-{views}")


def _digest(source: Source, final: Scores) -> str:
  """Returns eight digits that tell data sets apart; of one without a digest those of its clips."""
  if source.digest:
    return source.digest[:8]
  clips = [final.class_names.tolist(), final.ids.tolist(), final.labels.tolist()]
  return hashlib.sha256(json.dumps(clips).encode()).hexdigest()[:8]


def _compare(evaluation: Evaluation) -> None:
  """Logs how far existing scores, which stay, differ from those found now."""
  path = evaluation.folder.scores(evaluation.split)
  if evaluation.wants(path):
    return
  known, found = scores.read(path).predictions, evaluation.final.predictions
  same = known.keys() == found.keys() and all(
    np.array_equal(known[name], found[name]) for name in known
  )
  log(
    f"{path}: already exists with "
    + ("the same scores" if same else "other scores; it stays, delete it to write these")
  )


def analyse(evaluation: Evaluation) -> None:
  """Writes features and masks for the report, where labels are known; on all hosts."""
  run, final = evaluation.run, evaluation.final
  path = evaluation.folder.analysis(evaluation.split)
  count = min(run.config.eval.pairs, math.comb(len(np.unique(final.labels)), 2))
  if not run.config.eval.pairs or final.num_unknown:
    return
  if not devices.broadcast_from_host0(evaluation.wants(path)):
    return
  log("features and masks, for the report")
  similarity = analysis.class_similarity(evaluation.state.csm, evaluation.one_pass)
  pairs = analysis.confusing_pairs(similarity, final.labels, count)
  step = inference.analysis_step(run.network)

  def collect(state, **ids):
    batches = run.source.eval_batches(evaluation.split, "center")
    return analysis.collect(step, state, batches, classes=pairs.ravel().tolist(), **ids)

  examples = {
    name: analysis.shown_classes(label, pairs, similarity)
    for name, label in analysis.choose_examples(pairs, evaluation.one_pass, final).items()
  }
  mistakes = final.ids[results.confident_mistakes(final, analysis.MISTAKES)]
  arrays = analysis.gather(
    collect(run.restore_one_pass()),
    collect(evaluation.state, examples=examples, stills=mistakes.tolist()),
    pairs,
    evaluation.state,
    run.source.class_names,
  )
  if jax.process_index() == 0:
    if "mistake_id" in arrays:
      paths = run.source.paths(evaluation.split)
      arrays["mistake_path"] = np.array([paths.get(name, "") for name in arrays["mistake_id"]], str)
    workdir.write_npz(path, arrays)


def write_results(evaluation: Evaluation, more: dict[str, Any]) -> None:
  """Writes scores and, where all labels are known, accuracies; prints them; on host 0 alone.

  Args:
    evaluation: what was found.
    more: of `score_further`.
  """
  run, folder, final = evaluation.run, evaluation.folder, evaluation.final
  path = folder.scores(evaluation.split)
  if evaluation.wants(path):
    scores.write(path, final)
  if final.num_unknown:
    log(f"{final.num_unknown} of {len(final.labels)} clips have no label: scores only")
    log(f"written: {path}")
    return
  csm = jax.device_get(evaluation.state.csm)
  parameters = {
    name: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for name, tree in evaluation.state.params.items()
  }
  summary = results.summarize(evaluation.one_pass, final, csm, parameters) | {"config": run.name}
  if run.source.class_sizes:
    summary["training_clips"] = list(run.source.class_sizes)
  if run.source.digest:
    summary["data"] = {"name": run.source.name, "digest": run.source.digest}
  guided, best = more.get(results.PREDICTION_GUIDED), more.get("best")
  if guided:
    summary["upper_bound"] = results.UPPER_BOUND
    log(f"{results.UPPER_BOUND}:")
  log(results.fusions_table(summary["one_pass"], summary["predictions"]))
  if guided:
    log(f"with the masks of the predicted classes:\n{results.fusions_table(None, guided)}")
  summary |= more
  if best:
    log(f"best checkpoint, chosen on this split: step {best['step']}, top-1 {best['top1']:.2f} %")
  rows = results.per_class(evaluation.one_pass, final, csm.matrix)
  log(f"\n{results.per_class_table(rows)}")
  if run.config.eval.classes:
    log(f"\n{results.gains_table(rows, run.config.eval.classes)}\n")
  if evaluation.wants(folder.per_class):
    workdir.write_csv(folder.per_class, [results.printable(row) for row in rows])
  log(f"top-1 of all {len(rows)} classes: {folder.per_class}")
  if evaluation.wants(folder.summary):
    workdir.write_json(folder.summary, summary)
    log(f"written: {folder.summary}")
