"""Evaluates a run, at its end or from its newest checkpoint, and writes scores and tables."""

import contextlib
import dataclasses
import hashlib
import json
import math
from typing import Any

import jax
import ml_collections
import numpy as np
import optax

from u2s_jax.evaluation import analysis, calibration, inference, metrics, results, scores
from u2s_jax.evaluation.scores import Scores
from u2s_jax.run import checkpoint, saved_config, settings, workdir
from u2s_jax.run.run import VALIDATION_SPLIT, Run, Source, open_run
from u2s_jax.run.state import TrainState
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.files import Path
from u2s_jax.stages import STAGES


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """The results of an evaluation and where to write them.

  Attributes:
    folder: where the files are written: the run's workdir, or a folder below its `eval/`.
    state: the evaluated networks.
    one_pass: scores of the model after stage 1.
    final: scores of `state`.
    replace: whether existing files are replaced. True at the end of training, where they can only
      stem from an earlier attempt that was interrupted; evaluating a finished run changes no file.
  """

  run: Run
  folder: Workdir
  split: str
  state: TrainState
  one_pass: Scores
  final: Scores
  replace: bool = False

  def should_write(self, path: Path) -> bool:
    """Returns whether to write a file: any if `replace`, otherwise a missing or damaged one."""
    if self.replace or not path.exists():
      return True
    try:
      if path.suffix == ".npz":
        workdir.read_npz(path)
    except UserError:
      log(f"{path}: damaged; writing it again")
      return True
    return False


def score(run: Run, state: TrainState, views: str, split: str) -> Scores:
  """Returns the scores of a split with `views`, a key of `views.VIEWS`; called on all hosts.

  Raises:
    UserError: if labels guide the masks and a clip has none, or if a score is not finite.
  """
  step = inference.jit_score_step(run.network, run.make_mirror_maps(views))
  batches = run.source.scoring_batches(split, views)
  result = inference.score(step, state, batches, run.source.class_names)
  result = dataclasses.replace(result, data_digest=run.source.digest)
  if is_upper_bound(run, state) and result.num_unknown:
    raise UserError(
      f"csm.guide: 'label' requires labels, but {result.num_unknown} clips of the split {split!r}"
      " have none; set it to 'prediction'"
    )
  for name, values in result.predictions.items():
    if not np.isfinite(values).all():
      raise UserError(
        f"split {split!r}: scores of the {name} network are not finite; the last good checkpoint"
        " is kept, train again with a lower learning rate in another workdir"
      )
  return result


def is_upper_bound(run: Run, state: TrainState) -> bool:
  """Returns whether labels select the masks: accuracies are then upper bounds (Table III f)."""
  return run.network.guide == "label" and "specific" in state.params


def score_one_pass(run: Run, state: TrainState) -> None:
  """Scores the model after stage 1 with the views of `eval.views` and writes the scores."""
  log(f"evaluating the one-pass model, views: {run.config.eval.views}")
  one_pass = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  if jax.process_index() == 0:
    scores.write(run.workdir.one_pass_scores(VALIDATION_SPLIT), one_pass)


def final_evaluation(run: Run, state: TrainState) -> None:
  """Evaluates the state at the end of training and writes all results of the run."""
  log(f"evaluating, views: {run.config.eval.views}")
  final = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  one_pass = read_one_pass_scores(run)
  _write(Evaluation(run, run.workdir, VALIDATION_SPLIT, state, one_pass, final, replace=True))


def evaluate_latest(
  config: ml_collections.ConfigDict,
  root: Workdir,
  source: Source,
  config_name: str,
  tx: optax.GradientTransformation,
) -> None:
  """Evaluates the newest checkpoint and the one-pass model with `config.eval`; trains nothing.

  If data set, split, views and masks are those of a finished run, missing files of its workdir are
  written; existing ones stay. All other results go to `<workdir>/eval/<name>-<digest>-<views>`, see
  `_results_folder`.

  Args:
    config: checked by `validation.check`.
    source: any data set whose classes are some or all of the run's.
    config_name: name of the config's file, for the summary.
    tx: the optimizer, whose state is part of the checkpoint.

  Raises:
    UserError: if there is no checkpoint, or config or classes differ from the run's.
  """
  record = checkpoint.read_record(root.checkpoints, STAGES)
  if record is None:
    raise UserError(f"{root.checkpoints}: no checkpoint to evaluate; train first")
  trained_on = record["model"]
  source = source.map_labels_to(trained_on["class_names"])
  # The number of steps, and so whether the run is finished, follows from the training clips.
  source = dataclasses.replace(source, num_train=trained_on["num_train"])
  run = open_run(config, root, source, config_name, tx)
  regions = [
    stored.get("crop") or "the whole frame" for stored in (record["stored"], source.stored)
  ]
  if regions[0] != regions[1]:
    log(f"note: trained on the region {regions[0]} of frames, evaluated on {regions[1]}")
  with contextlib.closing(run.checkpoints):
    evaluation = _score_latest(run, record.get("data_digest"))
    _log_differences(evaluation)
    path = evaluation.folder.one_pass_scores(evaluation.split)
    if jax.process_index() == 0 and evaluation.should_write(path):
      scores.write(path, evaluation.one_pass)
    _write(evaluation)


def _score_latest(run: Run, trained_digest: str | None) -> Evaluation:
  """Scores the newest checkpoint and the one-pass model, and chooses the folder of the results."""
  stage_name, step = run.latest()
  split, views = run.config.eval.split, run.config.eval.views
  state, _ = run.restore(stage_name, step)
  log(f"evaluating stage {stage_name}, step {step}, split: {split}, views: {views}")
  final = one_pass = score(run, state, views, split)
  if stage_name != STAGES[0]:
    log(f"evaluating the one-pass model, views: {views}")
    one_pass = score(run, run.restore_one_pass(), views, split)
  # Host 0 decides: on a network disk other hosts may see an outdated folder.
  is_own = bool(devices.broadcast_from_host0(_is_own_data(run, final, trained_digest)))
  if not is_own:  # the counts are of training clips that these networks have not seen
    run = dataclasses.replace(run, source=dataclasses.replace(run.source, class_sizes=()))
  folder = _results_folder(run, stage_name, step, is_own, final)
  if folder != run.workdir:
    subject = (
      "evaluation (its views, split, masks or checkpoint)"
      if is_own
      else f"data set ({run.source.name})"
    )
    log(f"the {subject} differs from the training run's; writing the results to {folder.root}")
  return Evaluation(run, folder, split, state, one_pass, final)


def _is_own_data(run: Run, final: Scores, trained_digest: str | None) -> bool:
  """Returns whether the evaluated data set is the one that the run was trained on.

  Checkpoints of earlier versions have no digest: ids and labels are compared with the run's scores
  instead; without such scores the answer is True.
  """
  if trained_digest and run.source.digest:
    return trained_digest == run.source.digest
  path = run.workdir.scores(run.config.eval.split)
  if not path.exists():
    path = run.workdir.one_pass_scores(run.config.eval.split)
  try:
    known = scores.read(path)
  except (UserError, FileNotFoundError):  # if damaged, it is about to be replaced
    return True
  return np.array_equal(known.ids, final.ids) and np.array_equal(known.labels, final.labels)


def _results_folder(run: Run, stage_name: str, step: int, is_own: bool, final: Scores) -> Workdir:
  """Returns where results go: the run's workdir, or `eval/<name>-<digest>-<views>`.

  The name is the data set's, followed by what else differs from the run's own evaluation: a split
  other than validation, the checkpoint of an unfinished run, masks (`csm.selection`, `csm.guide`).
  The digest is the data set's, eight digits; if it has none, that of its clips.
  """
  config, saved = run.config, saved_config.read(run.workdir) or run.config
  split, views = config.eval.split, config.eval.views
  last = run.stages[-1]
  is_finished = (stage_name, step) == (last.name, run.count_steps(last))
  if last.stop_patience:  # the stage may have ended early; a finished run has its summary
    has_summary = devices.broadcast_from_host0(run.workdir.summary.exists())
    is_finished |= stage_name == last.name and bool(has_summary)
  differing = [] if split == VALIDATION_SPLIT else [split]
  differing += [] if is_finished else [stage_name, str(step)]
  differing += [
    config.csm[key] for key in settings.MASK_FIELDS if config.csm[key] != saved.csm[key]
  ]
  if is_own and not differing and views == saved.eval.views:
    return run.workdir
  name = "_".join([run.source.name, *differing])
  digest = run.source.digest
  if not digest:
    clips = [final.class_names.tolist(), final.ids.tolist(), final.labels.tolist()]
    digest = hashlib.sha256(json.dumps(clips).encode()).hexdigest()
  return run.workdir.evaluation(f"{name}-{digest[:8]}-{views}")


def _log_differences(evaluation: Evaluation) -> None:
  """Logs whether existing scores, which are kept, equal the new ones."""
  path = evaluation.folder.scores(evaluation.split)
  if evaluation.should_write(path):
    return
  known, new = scores.read(path).predictions, evaluation.final.predictions
  is_same = known.keys() == new.keys() and all(np.array_equal(known[k], new[k]) for k in known)
  which = "the same scores" if is_same else "other scores; delete it to write the new ones"
  log(f"{path}: already exists with {which}")


def read_one_pass_scores(run: Run) -> Scores:
  """Reads the scores of the model after stage 1; regenerates them if missing or damaged."""
  path, one_pass = run.workdir.one_pass_scores(VALIDATION_SPLIT), None
  with contextlib.suppress(UserError, FileNotFoundError):
    one_pass = scores.read(path)
  # Scoring is a computation of all hosts, so they score together as soon as one of them must.
  if devices.is_true_on_any_process(one_pass is None):
    log(f"{path}: missing or damaged; regenerating it from the last checkpoint of stage 1")
    score_one_pass(run, run.restore_one_pass())
    devices.wait_for_host0("one_pass_scores", hours=1)
    one_pass = scores.read(path)
  return one_pass


def _write(evaluation: Evaluation) -> None:
  """Computes and writes all results; to be called on all hosts."""
  run = evaluation.run
  write_analysis(evaluation)
  extras = _score_best(run) if evaluation.folder == run.workdir else {}
  extras |= _score_guided(run, evaluation.state, evaluation.split)
  if jax.process_index() == 0:
    write_results(evaluation, extras)


def _score_best(run: Run) -> dict[str, Any]:
  """Returns the entry `best` of a summary: of the checkpoint that `eval.keep_best` kept, if any."""
  best = run.restore_best()
  if best is None:
    return {}
  step, state = best
  log(f"evaluating the best checkpoint, step {step}, views: {run.config.eval.views}")
  best_scores = score(run, state, run.config.eval.views, VALIDATION_SPLIT)
  entry = {"stage": STAGES[-1], "step": step, "chosen_on": VALIDATION_SPLIT}
  entry |= metrics.summarize(best_scores.merged, best_scores.labels)
  return {"best": entry | _score_guided(run, state, VALIDATION_SPLIT)}


def _score_guided(run: Run, state: TrainState, split: str) -> dict[str, Any]:
  """Returns the entry `results.PREDICTION_GUIDED` of a summary if labels select the masks.

  It holds the accuracies with the masks of the predicted classes, which a clip without a label has.
  """
  if not is_upper_bound(run, state):
    return {}
  log("evaluating with the masks of the predicted classes, as for clips without a label")
  network = dataclasses.replace(run.network, guide="prediction")
  guided = score(dataclasses.replace(run, network=network), state, run.config.eval.views, split)
  return {results.PREDICTION_GUIDED: scores.fusions(guided)}


def write_analysis(evaluation: Evaluation) -> None:
  """Writes features and masks for the report; to be called on all hosts.

  Writes nothing if `eval.pairs` is 0, a clip has no label, or the file exists and is to stay.
  """
  run, state, final = evaluation.run, evaluation.state, evaluation.final
  path = evaluation.folder.analysis(evaluation.split)
  if not run.config.eval.pairs or final.num_unknown:
    return
  # Host 0 decides: the passes below are computations of all hosts.
  if not devices.broadcast_from_host0(evaluation.should_write(path)):
    return
  log("computing features and masks for the report")
  count = min(run.config.eval.pairs, math.comb(len(np.unique(final.labels)), 2))
  similarity = analysis.class_similarity(state.csm, evaluation.one_pass)
  pairs = analysis.confusing_pairs(similarity, final.labels, count)
  step = inference.jit_analysis_step(run.network)

  def collect(state, **ids):
    batches = run.source.eval_batches(evaluation.split, "center")
    return analysis.collect(step, state, batches, classes=pairs.ravel().tolist(), **ids)

  examples = {
    clip_id: analysis.select_mask_classes(label, pairs, similarity)
    for clip_id, label in analysis.choose_examples(pairs, evaluation.one_pass, final).items()
  }
  mistakes = final.ids[results.likely_mislabelled(final, analysis.MAX_MISTAKES)]
  one_pass = collect(run.restore_one_pass())
  arrays = {"class_names": np.array(run.source.class_names, str), "pairs": pairs}
  for kind in ("sparsity", "pooled"):
    arrays[f"{kind}_one_pass"] = one_pass[f"{kind}_universal"]
  arrays |= collect(state, examples=examples, mistakes=mistakes.tolist())
  if int(state.csm.n):
    arrays["csm"] = np.asarray(state.csm.matrix)
    arrays["similarity"] = np.asarray(state.csm.similarity)
    arrays["topn_accuracy"] = np.asarray(state.csm.topn_accuracy)
  if "mask" in state.params:
    arrays["mask_kernel"] = np.asarray(state.params["mask"]["kernel"])
  if jax.process_index() == 0:
    if "mistake_id" in arrays:
      paths = run.source.paths(evaluation.split)
      arrays["mistake_path"] = np.array([paths.get(name, "") for name in arrays["mistake_id"]], str)
    workdir.write_npz(path, arrays)


def write_results(evaluation: Evaluation, extras: dict[str, Any]) -> None:
  """Writes scores and, if all labels are known, accuracies; prints them. Only for host 0.

  Args:
    extras: further entries of the summary.
  """
  run, folder, final = evaluation.run, evaluation.folder, evaluation.final
  path = folder.scores(evaluation.split)
  if evaluation.should_write(path):
    scores.write(path, final)
  if final.num_unknown:
    log(f"{final.num_unknown} of {len(final.labels)} clips have no label: scores only")
    log(f"written: {path}")
    return
  csm = jax.device_get(evaluation.state.csm)
  summary = _summarize(evaluation, csm, extras)
  guided, best = summary.get(results.PREDICTION_GUIDED), summary.get("best")
  if guided:
    log(f"{results.UPPER_BOUND}:")
  log(results.format_fusions(summary["one_pass"], summary["predictions"]))
  if guided:
    log(f"with the masks of the predicted classes:\n{results.format_fusions(None, guided)}")
  if best:
    log(f"best checkpoint, chosen on this split: step {best['step']}, top-1 {best['top1']:.2f} %")
  rows = results.per_class(evaluation.one_pass, final, csm.matrix)
  log(f"\n{results.format_per_class(rows)}")
  if run.config.eval.classes:
    log(f"\n{results.format_gains(rows, run.config.eval.classes)}\n")
  if evaluation.should_write(folder.per_class):
    workdir.write_csv(folder.per_class, [results.format_row(row) for row in rows])
  log(f"top-1 of all {len(rows)} classes: {folder.per_class}")
  if evaluation.should_write(folder.summary):
    workdir.write_json(folder.summary, summary)
    log(f"written: {folder.summary}")


def _summarize(evaluation: Evaluation, csm: Any, extras: dict[str, Any]) -> dict[str, Any]:
  """Returns the contents of `summary.json`."""
  run = evaluation.run
  parameters = {
    name: sum(leaf.size for leaf in jax.tree.leaves(tree))
    for name, tree in evaluation.state.params.items()
  }
  summary = results.summarize(evaluation.one_pass, evaluation.final, csm, parameters)
  final = evaluation.final
  summary["calibration"] = calibration.summarize(
    final.merged, final.labels, run.config.eval.calibrate
  )
  summary["config"] = run.name
  if run.source.class_sizes:
    summary["training_clips"] = list(run.source.class_sizes)
  if run.source.digest:
    summary["data"] = {"name": run.source.name, "digest": run.source.digest}
  if results.PREDICTION_GUIDED in extras:
    summary["upper_bound"] = results.UPPER_BOUND
  return summary | extras
