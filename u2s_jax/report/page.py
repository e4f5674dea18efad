"""Writes `<workdir>/report/`: all figures as PNG and SVG, and `index.html`, which contains them.

The page opens from disk and makes no network requests.
"""

import dataclasses
import io
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import numpy as np
import threadpoolctl
from matplotlib.figure import Figure
from PIL import Image

from u2s_jax.evaluation import control as control_lib
from u2s_jax.evaluation import metrics, overlay, results, scores
from u2s_jax.report import figures
from u2s_jax.report.mistakes import Mistake, list_mistakes
from u2s_jax.report.run import RunFiles, differences, read
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.console import log, log_live
from u2s_jax.runtime.errors import UserError
from u2s_jax.runtime.files import Path, output_dir
from u2s_jax.video.listing import FEW_CLIPS

PAGE = "index.html"
MAX_CONFUSIONS = 100  # rows of the table of confused classes
MIN_CLIPS = 4  # clips of a pair that t-SNE needs
MAX_CLASSES_WITHOUT_TOP5 = 10  # with so few classes top-5 says nothing

Fields = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of the page.

  Attributes:
    rows: cells, strings in columns of text; None is a missing number, shown as a dash.
    sortable: whether a click on a column's name sorts the rows.
    marked: index of the row to highlight, None if there is none.
  """

  caption: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  sortable: bool = False
  marked: int | None = None


@dataclasses.dataclass
class Section:
  """A section of the page; figures and clips have the fields that the template reads."""

  name: str
  title: str
  texts: list[str] = dataclasses.field(default_factory=list)
  tables: list[Table] = dataclasses.field(default_factory=list)
  figures: list[Fields] = dataclasses.field(default_factory=list)
  clips: list[Fields] = dataclasses.field(default_factory=list)
  mistakes: list[Mistake] = dataclasses.field(default_factory=list)


# (name, caption, figure) -> the chart, whose files are written to the report's folder.
Draw = Callable[[str, str, Figure], Fields]


def write_report(
  workdir: Path,
  compare: Sequence[Path] = (),
  control: Path | None = None,
  folds: Sequence[Path] = (),
) -> Path:
  """Writes the report of a finished run to `<workdir>/report` and returns the page's path.

  Args:
    workdir: the run's workdir.
    compare: workdirs of runs to show next to it.
    control: workdir of the run's control; without one the headline states no gain.
    folds: workdirs of runs that validate on other clips of the same data; their mistakes are listed
      with those of the run.

  Raises:
    FileNotFoundError: if a run is not finished or does not exist.
    UserError: if a run to compare or a fold has other classes, folds share clips, or `control` is
      no control of the run.
  """
  run, *others = [read(folder) for folder in (workdir, *compare, *folds)]
  for folder, other in zip((*compare, *folds), others, strict=True):
    if other.class_names != run.class_names:
      raise UserError(
        f"{folder}: classes differ from those of {workdir}; choose runs on one data set"
      )
  others, fold_runs = others[: len(compare)], [run, *others[len(compare) :]]
  seen = set(run.final.ids.tolist())
  for folder, fold in zip(folds, fold_runs[1:], strict=True):
    if not seen.isdisjoint(fold.final.ids.tolist()):
      raise UserError(f"{folder}: has clips of another fold; choose one run for each fold")
    seen.update(fold.final.ids.tolist())
  names = _number_duplicates([run.name, *(other.name for other in others)])
  runs = dict(zip(names, [run, *others], strict=True))
  message = make_headline(run, control and control_lib.read(Workdir(control), Workdir(workdir)))
  if missing := figures.missing_characters([*run.class_names, *runs]):
    log(
      f"report: no installed font has {missing[:20]}, so the figures show boxes; install a font for"
      " this script, such as Noto Sans, and write the report again"
    )
  with output_dir(Workdir(workdir).report) as folder:
    (folder / PAGE).write_text(_render_page(runs, fold_runs, message, folder), encoding="utf-8")
  return Workdir(workdir).report / PAGE


def make_headline(run: RunFiles, control: control_lib.Control | None) -> str:
  """Returns the first sentence of the page; it states a gain only over the run's control."""
  one_pass, final = run.summary["one_pass"], results.get_merged_accuracies(run.summary)
  prediction, bound = "all predictions merged", ""
  if results.is_upper_bound(run.config):
    bound = f" Upper bound, not a result: {final['top1']:.2f} %, with masks selected by the labels."
    final = results.get_guided_accuracies(run.summary)
    prediction += ", masks of the predicted classes"
  reached = f"{final['top1']:.2f} % ({prediction})" if final else f"not evaluated ({prediction})"
  if final:
    reached += f", 95 % interval {_format_interval(final['top1'], len(run.final.labels))}"
  chance = 100 * metrics.chance_level(run.final.labels)
  message = (
    f"Top-1 of {len(run.final.labels)} clips of {len(run.class_names)} classes: {reached};"
    f" after stage 1 {one_pass['top1']:.2f} %; chance {chance:.2f} %.{bound}"
  )
  if control is None:
    return f"{message} {control_lib.NO_CONTROL}"
  top1 = control.accuracies["top1"]
  gain = f", so U2S adds {final['top1'] - top1:+.2f} points" if final else ""
  rates = f" Its learning rates differ: {control.rates}." if control.rates else ""
  return f"{message} The control, trained for as many epochs, reaches {top1:.2f} %{gain}.{rates}"


def _render_page(
  runs: dict[str, RunFiles], folds: Sequence[RunFiles], message: str, folder: pathlib.Path
) -> str:
  """Writes the figures into `folder` and returns the page; the first run is the page's."""
  run = next(iter(runs.values()))

  def draw(name: str, caption: str, figure: Figure) -> Fields:
    figures.save(figure, folder / name)
    wide = inline((folder / f"{name}.svg").read_text(encoding="utf-8"))
    figures.stack(figure)
    narrow = inline(figures.render_svg(figure, f"{name}_narrow"))
    return dict(name=name, caption=caption, svg=wide, narrow=narrow)

  parts = {
    "accuracy": lambda: _summary(runs),
    "mistakes": lambda: _mistakes(folds),
    "training": lambda: _training(runs, draw),
    "confusion": lambda: _confusion(run, draw),
    "classes": lambda: _classes(run, draw),
    "similarity": lambda: _similarity(run, draw),
    "masks": lambda: _masks(run, folder),
    "embeddings (t-SNE)": lambda: _pairs(run, draw),
    "weights": lambda: _weights(runs, draw),
    "number of confusing classes": lambda: _sweep(runs, draw),
  }
  sections = []
  # Small matrices: more threads would only wait for each other, and for those of other programs.
  with threadpoolctl.threadpool_limits(1):
    for number, (name, make_section) in enumerate(parts.items(), 1):
      log_live(f"report: {name}, {number} of {len(parts)}")
      sections.append(make_section())
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("u2s_jax.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
  )
  return environment.get_template("template.html").render(
    title=run.name,
    headline=message,
    sections=[section for section in sections if section],
    class_names=run.class_names,
    files=", ".join(runs),
  )


def inline(svg: str) -> str:
  """Returns an SVG file as part of a page: in the page's text colour, without repeated ids."""
  svg = svg[svg.index("<svg") :].replace(figures.INK, "currentColor")
  svg = re.sub(r'<g id="[^"]*"', "<g", svg)
  return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _summary(runs: dict[str, RunFiles]) -> Section:
  run = next(iter(runs.values()))
  count = run.summary["parameters"]
  section = Section("summary", "Accuracy", tables=[_fusions_table(run)])
  section.texts.append(
    "95 % intervals: Wilson's for accuracies, a paired bootstrap over the clips for differences."
    " Chance: always the most frequent class. Parameters:"
    f" {count['one_pass'] / 1e6:.2f} million one-pass, {count['u2s'] / 1e6:.2f} million U2S."
    f" Config: {run.summary['config']}."
  )
  if calibration := run.summary.get("calibration"):
    text = f"Expected calibration error of the merged scores: {calibration['error']:.1f} %"
    if "temperature" in calibration:
      text += (
        f"; {calibration['calibrated_error']:.1f} % with a temperature fitted on the other half of"
        f" the clips. Predictions use the temperature {calibration['temperature']:.3g}"
      )
    section.texts.append(f"{text}.")
  if len(runs) > 1:
    changed = differences(list(runs.values()))
    rows = [[name, *map(str, values)] for name, values in changed.items()]
    differing = Table("Differences of their configs", ["Field", *runs], rows)
    section.tables += [_runs_table(runs), differing]
  return section


def _fusions_table(run: RunFiles) -> Table:
  base, labels = run.summary["one_pass"], run.final.labels
  top5 = len(run.class_names) > MAX_CLASSES_WITHOUT_TOP5
  columns = ["Prediction", "Top-1 (%)", "95 % interval", "Over one-pass", "Its 95 % interval"]
  columns += [*["Top-5 (%)"] * top5, "Mean class (%)"]

  def make_row(name: str, accuracies: dict[str, float], difference: list[Any]) -> list[Any]:
    interval = _format_interval(accuracies["top1"], len(labels))
    row = [name, accuracies["top1"], interval, *difference]
    return [*row, *[accuracies["top5"]] * top5, accuracies["mean_class"]]

  base_hits = run.one_pass.predictions["universal"].argmax(1) == labels
  rows = []
  for name, values in scores.fuse_all(run.final).items():
    accuracies = metrics.summarize(values, labels)
    low, high = metrics.bootstrap_difference(values.argmax(1) == labels, base_hits)
    difference = [accuracies["top1"] - base["top1"], f"{100 * low:+.1f} to {100 * high:+.1f}"]
    rows.insert(0, make_row(name.replace("+", " + "), accuracies, difference))
  rows.append(make_row("one-pass", base, [None, ""]))
  caption, marked = "Table I: every fusion of the predictions; the headline's is marked", 0
  if results.is_upper_bound(run.config):  # the headline has the masks of the predicted classes
    caption, marked = f"Table I: every fusion of the predictions; {results.UPPER_BOUND}", None
  return Table(caption, columns, rows, marked=marked)


def _format_interval(top1: float, count: int) -> str:
  low, high = metrics.wilson_interval(top1 / 100, count)
  return f"{100 * low:.1f} to {100 * high:.1f}"


def _runs_table(runs: dict[str, RunFiles]) -> Table:
  rows = []
  for name, run in runs.items():
    before, after = run.summary["one_pass"], results.get_merged_accuracies(run.summary)
    if results.is_upper_bound(run.config):
      name += " (upper bound)"
    gain = after["top1"] - before["top1"]
    rows.append([name, before["top1"], after["top1"], gain, after["top5"]])
  columns = ("Run", "One-pass (%)", "Merged (%)", "Gain", "Top-5 (%)")
  return Table("Comparison of runs", columns, rows)


def _mistakes(runs: Sequence[RunFiles]) -> Section | None:
  found = list_mistakes(runs)
  if not found:
    return None
  section = Section("mistakes", "Mistakes, and labels to correct", mistakes=found)
  section.texts.append(
    "Clips that the merged prediction gets wrong. The label of the first ones is most likely wrong."
    " Each name links to the file that the data set was prepared from. Choose what is right:"
    " another class, keep, or drop. The button saves the choices as corrections.csv. Prepare the"
    " data again with --corrections=corrections.csv and another --out."
  )
  if len(runs) > 1:
    section.texts.append(
      f"The clips are from {len(runs)} folds: {', '.join(run.name for run in runs)}. Each was"
      " scored by the networks of its fold, which were not trained on it."
    )
  return section


def _training(runs: dict[str, RunFiles], draw: Draw) -> Section | None:
  history = {name: run.history for name, run in runs.items() if run.history}
  if not history:
    return None
  caption = (
    "Losses and accuracies over the steps of all stages; vertical lines: a stage begins. The total"
    " loss jumps there, since every stage adds up other terms (second): universal alone; specific,"
    " bridge and the weighted regularizer; all of them."
  )
  figure = draw("training", caption, figures.plot_training_curves(history))
  return Section("training", "Training", figures=[figure])


def _confusion(run: RunFiles, draw: Draw) -> Section:
  counts, names = results.confusion_matrix(run.final), run.class_names
  clips = counts.sum(1)
  wrong = counts - np.diag(np.diag(counts))
  rows = [
    [names[i], names[j], int(wrong[i, j]), int(clips[i]), 100 * float(wrong[i, j] / clips[i])]
    for i, j in zip(*np.nonzero(wrong), strict=True)
  ]
  rows.sort(key=lambda row: (-row[2], -row[4], row[0]))
  table = Table(
    "Confused classes, the most frequent confusions first"
    + (f" ({MAX_CONFUSIONS} of {len(rows)})" if len(rows) > MAX_CONFUSIONS else ""),
    ("Class", "Predicted", "Clips", "Of", "Share (%)"),
    rows[:MAX_CONFUSIONS],
    sortable=True,
  )
  caption = (
    "Confusion matrix of the merged prediction: the share of each class's clips (row) that are"
    " predicted as each class (column)."
  )
  figure = draw("confusion", caption, figures.plot_confusion(counts, names))
  return Section("confusion", "Confusion", tables=[table], figures=[figure])


def _classes(run: RunFiles, draw: Draw) -> Section:
  rows = run.rows()
  columns = ("Class", "Clips", "One-pass (%)", "U2S (%)", "Gain")
  table = Table(
    "Top-1 accuracy of every class",
    (*columns, "Most confused with"),
    [
      [*_accuracy_cells(row), row["confused_with"]]
      for row in sorted(rows, key=lambda r: -(r["gain"] or 0))
    ],
    sortable=True,
  )
  section = Section("classes", "Classes", tables=[table])
  if len(run.analysis.get("pairs", ())):
    ordered = [rows[i] for pair in run.analysis["pairs"] for i in pair]
    caption = "Table IV: the most similar pairs of classes, one pair after the other"
    section.tables.insert(0, Table(caption, columns, [_accuracy_cells(row) for row in ordered]))
  caption = (
    "Top-1 accuracy of each class before and after U2S, from the largest gain to the largest loss."
  )
  section.figures.append(draw("classes", caption, figures.plot_class_accuracy(rows)))
  sizes = run.summary.get("training_clips", ())
  if len(set(sizes)) > 1:
    caption = "Top-1 accuracy of each class against its number of training clips."
    figure = figures.plot_accuracy_against_size(sizes, rows)
    section.figures.append(draw("class_sizes", caption, figure))
  few = [f"{row['class']} ({n})" for n, row in zip(sizes, rows, strict=False) if n < FEW_CLIPS]
  if few:
    section.texts.append(f"Classes with fewer than {FEW_CLIPS} training clips: {', '.join(few)}.")
  return section


def _accuracy_cells(row: dict[str, Any]) -> list[Any]:
  return [row[key] for key in ("class", "clips", "one_pass", "merged", "gain")]


def _similarity(run: RunFiles, draw: Draw) -> Section | None:
  similarities, accuracies = run.similarities(), run.accuracies()
  if not similarities:
    return None
  section = Section("similarity", "Category similarity")
  names = [run.class_names[i] for i in run.known_classes()]
  caption = (
    "Fig. 1: similarity of the classes by the sparsity of the one-pass features (first); accuracy"
    " of each class against its mean similarity with the others (second), with the correlation r."
  )
  one_pass = similarities["one-pass"], accuracies["one-pass"]
  figure = figures.plot_similarity_and_accuracy(*one_pass, names)
  section.figures.append(draw("fig1", caption, figure))
  caption = (
    "Fig. 4: accuracy of each class against its mean similarity with the others, by kind of"
    " features (first); histogram of the mean similarities (second). All kinds share one scale."
  )
  figure = figures.plot_similarity_by_features(similarities, accuracies)
  section.figures.append(draw("fig4", caption, figure))
  if "topn_accuracy" in run.analysis:
    csm = run.summary["csm"]
    section.texts.append(
      f"The category similarity matrix has N = {csm['n']}: alpha = {csm['alpha']:.4f}, with"
      f" {csm['average_confusing']:.2f} confusing classes per class."
    )
    caption = "Top-N accuracy of the one-pass model, from which N was chosen."
    figure = figures.plot_top_n(run.analysis["topn_accuracy"], csm["n"])
    section.figures.append(draw("top_n", caption, figure))
  return section


def _masks(run: RunFiles, folder: pathlib.Path) -> Section | None:
  if "class_masks" not in run.analysis:
    return None
  section = Section("masks", "Masks")
  section.texts.append(
    "Fig. 5: the combined mask of the classes that are confused with the universal network's"
    " prediction, over the network's input. A mask with negative values is orange where it is"
    " positive and blue where it is negative; a mask without negative values is bright where it is"
    " high. Each mask has its own scale, given in parentheses. Below, as in Fig. 6: the masks of"
    " single classes for the same clips."
  )
  examples = range(len(run.analysis["example_id"]))
  section.clips += [_draw_masked_clip(run, i, folder) for i in examples]
  return section


def _draw_masked_clip(run: RunFiles, i: int, folder: pathlib.Path) -> Fields:
  """Draws the masks of the i-th example and writes its strip and its loop into `folder`."""
  arrays, names = run.analysis, run.class_names
  clip_id, label = str(arrays["example_id"][i]), int(arrays["example_label"][i])
  video, mask = arrays["video"][i], arrays["mask"][i]
  class_masks = np.moveaxis(arrays["class_masks"][i], -1, 0)
  rows = [overlay.to_rgb(video), overlay.blend(video, mask)]
  rows += [overlay.blend(video, class_mask) for class_mask in class_masks]
  strip = overlay.draw_strip(rows)
  strip.save(folder / f"masks_{i}.png")
  loop = overlay.loop(np.concatenate(rows[:2], axis=2))
  (folder / f"masks_{i}.webp").write_bytes(loop)
  with Image.open(io.BytesIO(loop)) as image:
    width, height = image.size
  predicted = names[int(arrays["predicted"][i])]
  described = ", ".join(
    f"“{names[int(j)]}” ({overlay.scale(class_mask)})"
    for j, class_mask in zip(arrays["mask_classes"][i], class_masks, strict=True)
  )
  return dict(
    id=clip_id,
    title=names[label],
    caption=f"{clip_id}: frames and mask ({overlay.scale(mask)}); the universal network predicts"
    f" “{predicted}”.",
    alt=f"Looping clip {clip_id} of “{names[label]}”, next to it the same with its mask.",
    loop=overlay.encode_uri(loop, "webp"),
    still=overlay.encode_jpeg(overlay.draw_strip(rows[:2], count=4)),
    width=width,
    height=height,
    strip=overlay.encode_jpeg(strip),
    strip_alt=f"From top to bottom: frames, combined mask, masks of {described}.",
  )


def _pairs(run: RunFiles, draw: Draw) -> Section | None:
  arrays = run.analysis
  section = Section("embeddings", "Confusing pairs")
  after = [arrays[key] for key in ("pooled_universal", "pooled_specific") if key in arrays]
  for k, pair in enumerate(arrays.get("pairs", ())):
    is_of_pair = np.isin(arrays["label"], pair)
    if is_of_pair.sum() < MIN_CLIPS:
      continue
    names = {int(j): run.class_names[j] for j in pair}
    features = {
      "one-pass features": arrays["pooled_one_pass"][is_of_pair],
      "U2S features": np.concatenate(after, axis=1)[is_of_pair],
    }
    quoted = " and ".join(f"“{name}”" for name in names.values())
    caption = f"Fig. 6 f, g: t-SNE of the clips of {quoted}, without and with U2S."
    figure = figures.plot_embeddings(features, arrays["label"][is_of_pair], names)
    section.figures.append(draw(f"embedding_{k}", caption, figure))
  return section if section.figures else None


def _weights(runs: dict[str, RunFiles], draw: Draw) -> Section | None:
  similarities = {
    f"{name} (λ = {run.config['regularizer_weight']:g})": values
    for name, run in runs.items()
    if (values := run.weight_similarity()) is not None
  }
  if not similarities:
    return None
  class_names = next(iter(runs.values())).class_names
  caption = (
    "Fig. 7: similarity of the mask network's weights for each pair of classes, sorted by name, and"
    " its histogram over all pairs."
  )
  figure = figures.plot_weight_similarities(similarities, class_names)
  section = Section(
    "weights", "Weights of the mask network", figures=[draw("fig7", caption, figure)]
  )
  if len(similarities) == 1:
    section.texts.append(
      "Compare with a run without category regularization to see the effect of the regularizer."
    )
  return section


def _sweep(runs: dict[str, RunFiles], draw: Draw) -> Section | None:
  counts = [run.summary["csm"]["n"] for run in runs.values()]
  if len(set(counts)) < 2:
    return None
  merged = [results.get_merged_accuracies(run.summary) for run in runs.values()]
  base, keys = next(iter(runs.values())).summary["one_pass"], {"top-1": "top1", "top-5": "top5"}
  figure = figures.plot_accuracy_against_n(
    counts,
    {name: [accuracies[key] for accuracies in merged] for name, key in keys.items()},
    {name: base[key] for name, key in keys.items()},
  )
  caption = (
    "Fig. 8: accuracy of the merged prediction against N, the average number of confusing classes,"
    " over the compared runs."
  )
  return Section("sweep", "Number of confusing classes", figures=[draw("fig8", caption, figure)])


def _number_duplicates(names: Sequence[str]) -> list[str]:
  """Returns the names with a number after those that occur more than once."""
  return [
    name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
    for i, name in enumerate(names)
  ]
