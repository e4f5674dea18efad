"""Writes the model card of a run: accuracy, input, training data and limits."""

import json
import pathlib
import re
import subprocess

from u2s_jax.evaluation import control as control_lib
from u2s_jax.evaluation import results
from u2s_jax.run import settings
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import escape, escape_line
from u2s_jax.serving.predict import TrainedRun

CLASSES_SHOWN = 50


def format_card(trained: TrainedRun, workdir: Workdir, control: Workdir | None = None) -> str:
  """Returns the model card of a run, in Markdown.

  Args:
    control: workdir of the run's control (`control=True`), trained as long; None: the card states
      that there is none.

  Raises:
    UserError: if `control` is not a finished control of the run.
  """
  config, data = trained.config, trained.config.data
  shown = [f"- {_markdown(name)}" for name in trained.class_names[:CLASSES_SHOWN]]
  if len(trained.class_names) > CLASSES_SHOWN:
    shown.append(f"- and {len(trained.class_names) - CLASSES_SHOWN} more, see `model.json`")
  kind = "images" if data.num_frames == 1 else f"clips of {data.num_frames} frames"
  if data.modality == "flow":
    kind += f" of optical flow, {data.flow_pairs} pairs each"
  weights = settings.find_pretrained_weights(config)
  start = (
    f"Started from the pretrained weights `{escape(weights)}`. Their licence applies to these"
    " weights too; look it up at their source."
    if weights
    else "Trained from scratch."
  )
  lines = [
    f"# {escape(workdir.root.name)}",
    "",
    "Universal-to-specific (U2S) action recognition, written by `--mode=export` of u2s_jax"
    f"{_commit()}.",
    "",
    "## Accuracy",
    "",
    *_accuracy(trained, workdir, control),
    "",
    "## Input",
    "",
    f"{kind[0].upper()}{kind[1:]}, the middle frames of {data.num_frames} equal segments: the"
    f" short edge resized to {data.short_edge} pixels, then cropped to {data.crop_size} x"
    f" {data.crop_size}. Stored before as: `{json.dumps(dict(trained.stored))}`.",
    f"Pixels are divided by 255, reduced by {tuple(config.model.pixel_mean)} and divided by"
    f" {tuple(config.model.pixel_std)}; the exported program does this.",
    "",
    "## Training",
    "",
    f"Data set: `{escape(data.dir) or 'rendered'}`. Backbone: {config.model.backbone.name}.",
    f"{start} The full config is `config.json` in the workdir.",
    "",
    "## Limits",
    "",
    "- Every input gets one of the classes below, even if it shows none of them.",
    "- A score is not the probability that the prediction is correct: it was never calibrated."
    if trained.temperature == 1
    else f"- Merged scores p are calibrated by softmax(log(p) / {trained.temperature:.4g}), fitted"
    " on the validation clips. `model.jax` returns them without it.",
    "- Accuracy is unknown for people, places, cameras and frame rates that are not in the data.",
    "",
    f"## Classes ({len(trained.class_names)})",
    "",
    *shown,
  ]
  return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
  """Returns text on one line with the special characters of Markdown escaped."""
  return re.sub(r"([\\`*_{}\[\]<>()#+.!|~$&-])", r"\\\1", escape_line(text))


def _accuracy(trained: TrainedRun, workdir: Workdir, control: Workdir | None) -> list[str]:
  if not workdir.summary.exists():
    return ["Unknown: the run is not finished."]
  summary = json.loads(workdir.summary.read_text())
  accuracies = summary["best"] if trained.best else results.get_merged_accuracies(summary)
  rows, notes = {"one-pass (after stage 1)": summary["one_pass"]}, []
  if results.is_upper_bound(trained.config.to_dict()):
    rows["upper bound, no result: the labels select the masks"] = accuracies
    accuracies = results.get_guided_accuracies(summary["best"] if trained.best else summary)
    note = "The exported program selects the masks by its own prediction."
    if accuracies is None:
      note += " Its accuracy was not evaluated: delete summary.json and evaluate the run again."
    notes.append(note)
  if accuracies is not None:
    rows["all predictions"] = accuracies
  if control is not None:
    result = control_lib.read(control, workdir)
    rows["control (the one-pass model, trained as long)"] = result.accuracies
    if result.rates:
      notes.append(f"The control was trained with another learning rate schedule: {result.rates}.")
  if trained.best:
    notes.append(
      "The checkpoint was chosen by its accuracy on this split; expect less on other data."
    )
  if control is None:
    notes.append(control_lib.NO_CONTROL)
  return [
    f"Accuracy on the validation split in percent, views: {trained.config.eval.views}.",
    "",
    "| | top-1 | top-5 | mean class |",
    "|---|---|---|---|",
    *(f"| {' | '.join([name, *results.format_accuracies(row)])} |" for name, row in rows.items()),
    *(line for note in notes for line in ("", note)),
  ]


def _commit() -> str:
  """Returns the commit of this repository for the card, empty if git does not know it."""
  root = pathlib.Path(__file__).resolve().parents[2]
  command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
  try:
    found = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return ""
  return f", commit {found.stdout.strip()}"
