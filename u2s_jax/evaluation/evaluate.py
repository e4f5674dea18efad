"""An evaluation, at a run's end or of its newest checkpoint: scores, tables, files."""

import contextlib
import math
from typing import Any

import jax
import ml_collections
import numpy as np

from u2s_jax import devices, metrics, saved_config, settings, workdir
from u2s_jax.console import log
from u2s_jax.errors import UserError
from u2s_jax.evaluation import analysis, inference, results, scores
from u2s_jax.evaluation.scores import Scores
from u2s_jax.run import VALIDATION_SPLIT, Run, Source, open_run
from u2s_jax.stages import STAGES
from u2s_jax.state import TrainState
from u2s_jax.workdir import Workdir


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
  if run.network.guide == "label" and "specific" in state.params and result.num_unknown:
    raise UserError(f"csm.guide: 'label', but clips of the split {split!r} have no label")
  for name, values in result.predictions.items():
    if not np.isfinite(values).all():
      raise UserError(
        f"split {split!r}: scores of the {name} network are not finite; stopped, the last good"
        " checkpoint stays; take a lower learning rate in another --workdir"
      )
  return result


def score_one_pass(run: Run, state: TrainState) -> None:
  """Scores the model after stage 1 in the run's own views, and writes its scores."""
  log(f"evaluating the one-pass model, views: {run.config.eval.views}")
  one_pass = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  if jax.process_index() == 0:
    scores.write(run.workdir.one_pass_scores(VALIDATION_SPLIT), one_pass)


def finish(run: Run, state: TrainState) -> None:
  """Evaluates a run's last state in the run's own views, and writes all that is said of the run."""
  log(f"evaluating, views: {run.config.eval.views}")
  final = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  one_pass = one_pass_scores(run)
  analyse(run, run.workdir, state, one_pass, final, VALIDATION_SPLIT)
  best = score_best(run)
  if jax.process_index() == 0:
    conclude(run, run.workdir, state, one_pass, final, VALIDATION_SPLIT, best)


def score_best(run: Run) -> dict[str, Any] | None:
  """Returns what the summary says of the checkpoint that `eval.keep_best` chose, None for none."""
  kept = run.restore_best()
  if kept is None:
    return None
  step, state = kept
  log(f"evaluating the best checkpoint, step {step}, views: {run.config.eval.views}")
  scored = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  accuracies = metrics.summarize(scored.merged, scored.labels)
  return {"stage": STAGES[-1], "step": step, "chosen_on": VALIDATION_SPLIT, **accuracies}


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

  The scores and the summary of a finished run are written anew. Those of a run half-way, or in
  other views than the run's own, go to `<workdir>/eval/<views>_<stage>_<step>`, with `<split>_` in
  front for another split than validation, and with the `csm.selection` and `csm.guide` behind that
  are not the run's own.

  Args:
    config: see `configs/default.py`.
    root: the run's folder.
    source: of the batches.
    config_name: for the summary.

  Raises:
    UserError: a config that cannot work or is not the run's, or no checkpoint.
  """
  settings.check(config, root, settings.FREE_IN_EVALUATION)
  run = open_run(config, root, source, config_name)
  with contextlib.closing(run.checkpoints):
    latest = run.latest()
    if not latest:
      raise UserError(f"{root.checkpoints}: no checkpoint to evaluate; train first")
    split, views = config.eval.split, config.eval.views
    folder = _folder(run, *latest)
    state, _ = run.restore(*latest)
    log(f"evaluating stage {latest[0]}, step {latest[1]}, split: {split}, views: {views}")
    final = one_pass = score(run, state, views, split)
    if latest[0] != STAGES[0]:
      log(f"evaluating the one-pass model, views: {views}")
      one_pass = score(run, run.restore_one_pass(), views, split)
    analyse(run, folder, state, one_pass, final, split)
    best = score_best(run) if folder == run.workdir else None
    if jax.process_index() == 0:
      scores.write(folder.one_pass_scores(split), one_pass)
      conclude(run, folder, state, one_pass, final, split, best)


def _folder(run: Run, stage_name: str, step: int) -> Workdir:
  """Returns where the evaluation of a checkpoint goes: the run's folder for the run's own way."""
  config, began = run.config, saved_config.read(run.workdir) or run.config
  split, views = config.eval.split, config.eval.views
  other = [config.csm[key] for key in settings.MASK_FIELDS if config.csm[key] != began.csm[key]]
  name = "_".join([views, stage_name, str(step), *other])
  if split != VALIDATION_SPLIT:
    return run.workdir.evaluation(f"{split}_{name}")
  finished = (stage_name, step) == (STAGES[-1], run.total_steps(run.stages[-1]))
  if not finished or other or views != began.eval.views:
    return run.workdir.evaluation(name)
  return run.workdir


def analyse(
  run: Run, folder: Workdir, state: TrainState, one_pass: Scores, final: Scores, split: str
) -> None:
  """Writes features and masks for the report, where labels are known; on all hosts.

  Args:
    run: the run.
    folder: of the evaluation.
    state: the networks.
    one_pass: scores of the model after stage 1.
    final: scores of `state`.
    split: of the data set.
  """
  count = min(run.config.eval.pairs, math.comb(len(np.unique(final.labels)), 2))
  if not run.config.eval.pairs or final.num_unknown:
    return
  log("features and masks, for the report")
  similarity = analysis.class_similarity(state.csm, one_pass)
  pairs = analysis.confusing_pairs(similarity, final.labels, count)
  step = inference.analysis_step(run.network)

  def collect(state, **ids):
    batches = run.source.eval_batches(split, "center")
    return analysis.collect(step, state, batches, classes=pairs.ravel().tolist(), **ids)

  examples = {
    name: analysis.shown_classes(label, pairs, similarity)
    for name, label in analysis.choose_examples(pairs, one_pass, final).items()
  }
  mistakes = final.ids[results.confident_mistakes(final, analysis.MISTAKES)]
  arrays = analysis.gather(
    collect(run.restore_one_pass()),
    collect(state, examples=examples, stills=mistakes.tolist()),
    pairs,
    state,
    run.source.class_names,
  )
  if jax.process_index() == 0:
    if "mistake_id" in arrays:
      paths = run.source.paths(split)
      arrays["mistake_path"] = np.array([paths.get(name, "") for name in arrays["mistake_id"]], str)
    workdir.write_npz(folder.analysis(split), arrays)


def conclude(
  run: Run,
  folder: Workdir,
  state: TrainState,
  one_pass: Scores,
  final: Scores,
  split: str,
  best: dict[str, Any] | None,
) -> None:
  """Writes scores and, where all labels are known, accuracies; prints them; on host 0 alone.

  Args:
    run: the run.
    folder: of the evaluation.
    state: the networks.
    one_pass: scores of the model after stage 1.
    final: scores of `state`.
    split: of the data set.
    best: of `score_best`.
  """
  scores.write(folder.scores(split), final)
  if final.num_unknown:
    log(f"{final.num_unknown} of {len(final.labels)} clips have no label: scores only")
    log(f"written: {folder.scores(split)}")
    return
  csm = jax.device_get(state.csm)
  parameters = {
    name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in state.params.items()
  }
  summary = results.summarize(one_pass, final, csm, parameters) | {"config": run.name}
  if run.source.class_sizes:
    summary["training_clips"] = list(run.source.class_sizes)
  log(results.fusions_table(summary["one_pass"], summary["predictions"]))
  if best:
    summary["best"] = best
    log(f"best checkpoint, chosen on this split: step {best['step']}, top-1 {best['top1']:.2f} %")
  rows = results.per_class(one_pass, final, csm.matrix)
  log(f"\n{results.per_class_table(rows)}")
  if run.config.eval.classes:
    log(f"\n{results.gains_table(rows, run.config.eval.classes)}\n")
  workdir.write_csv(folder.per_class, [results.printable(row) for row in rows])
  log(f"top-1 of all {len(rows)} classes: {folder.per_class}")
  workdir.write_json(folder.summary, summary)
  log(f"written: {folder.summary}")
