"""A model card: what a stranger has to know before trusting a run's networks."""

import json
import pathlib
import re
import subprocess

from u2s_jax import settings
from u2s_jax.errors import printable, printable_line
from u2s_jax.evaluation import control as control_lib
from u2s_jax.evaluation import results
from u2s_jax.serving.predict import Trained
from u2s_jax.workdir import Workdir

CLASSES_SHOWN = 50


def text(trained: Trained, workdir: Workdir, control: Workdir | None = None) -> str:
  """Returns the card of a run, in Markdown.

  Args:
    trained: from `predict.load`.
    workdir: the run's folder.
    control: of the run's control, `control=True`, that trained as long; None: the card says that
      there was none.

  Raises:
    UserError: `control` is no finished control of the run.
  """
  config, data = trained.config, trained.config.data
  shown = [f"- {_markdown(name)}" for name in trained.class_names[:CLASSES_SHOWN]]
  if len(trained.class_names) > CLASSES_SHOWN:
    shown.append(f"- and {len(trained.class_names) - CLASSES_SHOWN} more, see `model.json`")
  kind = "images" if data.num_frames == 1 else f"clips of {data.num_frames} frames"
  if data.modality == "flow":
    kind += f" of optical flow, {data.flow_pairs} pairs each"
  weights = settings.pretrained_weights(config)
  start = (
    f"Started from `{printable(weights)}`; its licence holds for these weights too, look it up"
    " where you had them from."
    if weights
    else "Started from random weights."
  )
  lines = [
    f"# {printable(workdir.root.name)}",
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
    f"{kind[0].upper()}{kind[1:]}: the short edge resized to {data.short_edge} pixels, of which"
    f" {data.crop_size} x {data.crop_size} are cut out; a frame from the middle of each of"
    f" {data.num_frames} equal parts. Stored before as: `{json.dumps(dict(trained.stored))}`.",
    f"Pixels / 255 minus {tuple(config.model.pixel_mean)}, over"
    f" {tuple(config.model.pixel_std)}; the program does that.",
    "",
    "## Training",
    "",
    f"Data set: `{printable(data.dir) or 'rendered'}`. Backbone: {config.model.backbone.name}.",
    f"{start} The whole config is the run's `config.json`.",
    "",
    "## Limits",
    "",
    "- Every input gets one of the classes below, also one that shows none of them.",
    "- A score is no probability that the answer is right: it was never calibrated.",
    "- Nothing is known of people, places, cameras or rates of frames that the data did not have.",
    "",
    f"## Classes ({len(trained.class_names)})",
    "",
    *shown,
  ]
  return "\n".join(lines) + "\n"


def _markdown(text: str) -> str:
  """Returns text as Markdown shows it: on one line, no character with a meaning of its own."""
  return re.sub(r"([\\`*_{}\[\]<>()#+.!|~$&-])", r"\\\1", printable_line(text))


def _accuracy(trained: Trained, workdir: Workdir, control: Workdir | None) -> list[str]:
  if not workdir.summary.exists():
    return ["The run is not finished: nothing is known."]
  summary = json.loads(workdir.summary.read_text())
  reached = summary["best"] if trained.best else results.merged(summary)
  rows, notes = {"one-pass (after stage 1)": summary["one_pass"]}, []
  if results.is_upper_bound(trained.config.to_dict()):
    rows["upper bound, no result: the labels select the masks"] = reached
    reached = results.prediction_guided(summary["best"] if trained.best else summary)
    notes = ["", "The exported program selects the masks by its own prediction."]
    if reached is None:
      notes[-1] += (
        " How well it does was not evaluated: delete summary.json and evaluate the run again."
      )
  if reached is not None:
    rows["all predictions"] = reached
  if control is not None:
    read = control_lib.read(control, workdir)
    rows["control (the one-pass model, trained as long)"] = read.accuracies
    if read.rates:
      notes += ["", f"The control's rates are others: {read.rates}."]
  lines = [
    f"Percent of the validation split, views: {trained.config.eval.views}.",
    "",
    "| | top-1 | top-5 | mean class |",
    "|---|---|---|---|",
    *(
      f"| {name} | {row['top1']:.2f} | {row['top5']:.2f} | {row['mean_class']:.2f} |"
      for name, row in rows.items()
    ),
  ]
  lines += notes
  if trained.best:
    lines += ["", "They are of the step that did best on this very split: expect less elsewhere."]
  if control is None:
    lines += ["", control_lib.NONE]
  return lines


def _commit() -> str:
  """Returns which commit of this repository it is, empty where git does not know."""
  root = pathlib.Path(__file__).resolve().parents[2]
  command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
  try:
    found = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return ""
  return f", commit {found.stdout.strip()}"
