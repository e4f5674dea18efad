"""`<workdir>/report/`: every figure as PNG and SVG, and `index.html`, one page that holds them all.

The page opens from disk and asks the network for nothing.
"""

import base64
import dataclasses
import io
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from u2s_jax import overlay
from u2s_jax.console import log
from u2s_jax.errors import UserError
from u2s_jax.evaluation import control as control_lib
from u2s_jax.evaluation import results
from u2s_jax.files import Path, filled
from u2s_jax.report import figures
from u2s_jax.report.run import RunFiles, differences, read
from u2s_jax.workdir import Workdir

PAGE = "index.html"
FEW = 20  # training clips of a class, below which it is named
WORST_PAIRS = 100  # rows of the table of confused pairs


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of the page: columns are names and whether they hold numbers; None is 'unknown'."""

  caption: str
  columns: Sequence[tuple[str, bool]]
  rows: Sequence[Sequence[Any]]
  sortable: bool = False


@dataclasses.dataclass(frozen=True)
class Chart:
  """A figure of the page, as SVG, and the same for narrow screens."""

  name: str
  caption: str
  svg: str
  narrow: str


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip with its mask; pictures are data URIs."""

  id: str
  title: str
  caption: str
  alt: str
  loop: str
  still: str
  width: int
  height: int
  strip: str
  strip_alt: str


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A clip that was not recognised; the still is a data URI, the link empty for no file."""

  id: str
  link: str
  still: str
  label: str
  said: str
  score: float
  of_label: float


@dataclasses.dataclass
class Section:
  """A section of the page."""

  name: str
  title: str
  texts: list[str] = dataclasses.field(default_factory=list)
  tables: list[Table] = dataclasses.field(default_factory=list)
  figures: list[Chart] = dataclasses.field(default_factory=list)
  clips: list[Clip] = dataclasses.field(default_factory=list)
  mistakes: list[Mistake] = dataclasses.field(default_factory=list)


def write(workdir: Path, compare: Sequence[Path] = (), control: Path | None = None) -> Path:
  """Writes the report of a finished run.

  Args:
    workdir: the run's; the report goes to `<workdir>/report`.
    compare: workdirs of other runs to put beside it.
    control: workdir of the run's control, which the headline needs to speak of a gain.

  Returns:
    The page's path.

  Raises:
    FileNotFoundError: a run is not finished, or none.
    UserError: a run to compare has other classes, or `control` is no control of the run.
  """
  run, *others = [read(folder) for folder in (workdir, *compare)]
  for folder, other in zip(compare, others, strict=True):
    if other.class_names != run.class_names:
      raise UserError(
        f"{folder}: classes differ from those of {workdir}; compare runs of one data set"
      )
  runs = dict(
    zip(_unique([run.name, *(other.name for other in others)]), [run, *others], strict=True)
  )
  said = headline(run, control and control_lib.read(Workdir(control), Workdir(workdir)))
  if missing := figures.missing_characters([*run.class_names, *runs]):
    log(
      f"report: no installed font has {missing[:20]}, so the figures show boxes; install a font for"
      " this script, such as Noto Sans, and write the report again"
    )
  with filled(Workdir(workdir).report) as folder:
    (folder / PAGE).write_text(_page(runs, said, folder), encoding="utf-8")
  return Workdir(workdir).report / PAGE


def headline(run: RunFiles, control: control_lib.Control | None) -> str:
  """Returns what the page says first: a gain is one over the control alone.

  Args:
    run: the page's.
    control: its control; None: there is none beside it.
  """
  one_pass, final, what = _one_pass(run), _merged(run), "all predictions merged"
  bound = ""
  if results.is_upper_bound(run.config):
    bound = f" An upper bound, no result: {final['top1']:.2f} %, where the labels select the masks."
    final = results.prediction_guided(run.summary)
    what += ", masks of the predicted classes"
  reached = f"{final['top1']:.2f} % ({what})" if final else f"not evaluated ({what})"
  said = (
    f"Top-1 of {len(run.final.labels)} clips of {len(run.class_names)} classes: {reached};"
    f" after stage 1 {one_pass['top1']:.2f} %.{bound}"
  )
  if control is None:
    return f"{said} {control_lib.NONE}"
  top1 = control.accuracies["top1"]
  gain = f", so U2S makes {final['top1'] - top1:+.2f} points" if final else ""
  rates = f" Its rates are others: {control.rates}." if control.rates else ""
  return f"{said} The control, trained as long: {top1:.2f} %{gain}.{rates}"


def _page(runs: dict[str, RunFiles], said: str, folder: pathlib.Path) -> str:
  """Writes the figures of a run, the first, beside others into a folder; returns the page."""
  run = next(iter(runs.values()))

  def chart(name: str, caption: str, figure: Figure) -> Chart:
    figures.save(figure, folder / name)
    wide = inline((folder / f"{name}.svg").read_text(encoding="utf-8"))
    figures.stack(figure)
    return Chart(name, caption, wide, inline(figures.svg(figure, f"{name}_narrow")))

  sections = [
    _summary(runs),
    _mistakes(run),
    _training(runs, chart),
    _confusion(run, chart),
    _classes(run, chart),
    _similarity(run, chart),
    _masks(run, folder),
    _pairs(run, chart),
    _weights(runs, chart),
    _sweep(runs, chart),
  ]
  sections = [section for section in sections if section]
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("u2s_jax.report", "."),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
  )
  return environment.get_template("template.html").render(
    title=run.name, headline=said, sections=sections, files=", ".join(runs)
  )


def inline(svg: str) -> str:
  """An SVG file as part of a page: in the page's text colour, without names that occur twice."""
  svg = svg[svg.index("<svg") :].replace(figures.INK, "currentColor")
  svg = re.sub(r'<g id="[^"]*"', "<g", svg)
  return re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)


def _one_pass(run: RunFiles) -> dict[str, float]:
  return run.summary["one_pass"]


def _merged(run: RunFiles) -> dict[str, float]:
  return results.merged(run.summary)


def _summary(runs: dict[str, RunFiles]) -> Section:
  run, *others = runs.values()
  base = _one_pass(run)
  rows = [["one-pass", base["top1"], None, base["top5"], base["mean_class"]]]
  rows += [
    [name.replace("+", " + "), a["top1"], a["top1"] - base["top1"], a["top5"], a["mean_class"]]
    for name, a in run.fusions().items()
  ]
  columns = [
    ("Prediction", False),
    ("Top-1 (%)", True),
    ("Over one-pass", True),
    ("Top-5 (%)", True),
  ]
  columns.append(("Mean class (%)", True))
  section = Section("summary", "Accuracy")
  caption = "Table I: every fusion of the predictions"
  if results.is_upper_bound(run.config):
    caption += f"; {results.UPPER_BOUND}"
  section.tables.append(Table(caption, columns, rows))
  count = run.summary["parameters"]
  section.texts.append(
    f"Parameters: {count['one_pass'] / 2**20:.2f} x 2^20 one-pass,"
    f" {count['u2s'] / 2**20:.2f} x 2^20 U2S. Config: {run.summary['config']}."
  )
  if others:
    rows = []
    for name, other in runs.items():
      before, after = _one_pass(other), _merged(other)
      if results.is_upper_bound(other.config):
        name += " (upper bound)"
      rows.append(
        [name, before["top1"], after["top1"], after["top1"] - before["top1"], after["top5"]]
      )
    columns = [("Run", False), ("One-pass (%)", True), ("Merged (%)", True), ("Gain", True)]
    section.tables.append(Table("Runs side by side", [*columns, ("Top-5 (%)", True)], rows))
    changed = differences(list(runs.values()))
    section.tables.append(
      Table(
        "What their configs differ in",
        [("Field", False), *((name, False) for name in runs)],
        [[name, *map(str, values)] for name, values in changed.items()],
      )
    )
  return section


def _mistakes(run: RunFiles) -> Section | None:
  arrays, scores = run.analysis or {}, run.final
  if "mistake_id" not in arrays:
    return None
  section = Section("mistakes", "What to look at")
  section.texts.append(
    "The clips that the merged prediction gets wrong, the most confident first: where it is right,"
    " mend the label. A name leads to the file as it lay when the data were prepared."
  )
  kept = {str(name): k for k, name in enumerate(arrays["mistake_id"])}
  merged = scores.merged
  for row in results.confident_mistakes(scores, len(kept)):
    name, label = str(scores.ids[row]), int(scores.labels[row])
    if name not in kept:
      continue
    said, k = int(merged[row].argmax()), kept[name]
    still = overlay.frames_of(arrays["mistake_still"][k][None])[0]
    path = str(arrays["mistake_path"][k])
    section.mistakes.append(
      Mistake(
        id=name,
        link=pathlib.Path(path).as_uri() if path else "",
        still=_uri(_jpeg(overlay.strip([still[None]])), "jpeg"),
        label=run.class_names[label],
        said=run.class_names[said],
        score=100 * float(merged[row, said]),
        of_label=100 * float(merged[row, label]),
      )
    )
  return section


def _training(runs: dict[str, RunFiles], chart: Callable[..., Chart]) -> Section | None:
  history = {name: run.history for name, run in runs.items() if run.history}
  if not history:
    return None
  caption = "Losses and accuracies over the steps of all stages; vertical lines: a stage begins."
  figure = chart("training", caption, figures.training_curves(history))
  return Section("training", "Training", figures=[figure])


def _confusion(run: RunFiles, chart: Callable[..., Chart]) -> Section:
  counts, names = results.confusion(run.final), run.class_names
  clips = counts.sum(1)
  wrong = counts - np.diag(np.diag(counts))
  rows = [
    [names[i], names[j], int(wrong[i, j]), int(clips[i]), 100 * float(wrong[i, j] / clips[i])]
    for i, j in zip(*np.nonzero(wrong), strict=True)
  ]
  rows.sort(key=lambda row: (-row[2], -row[4], row[0]))
  columns = [("Class", False), ("Taken for", False), ("Clips", True), ("Of", True)]
  table = Table(
    "Confused classes, the worst first"
    + (f" ({WORST_PAIRS} of {len(rows)})" if len(rows) > WORST_PAIRS else ""),
    [*columns, ("Share (%)", True)],
    rows[:WORST_PAIRS],
    sortable=True,
  )
  caption = (
    "Confusion matrix of the merged prediction: of each class's clips (row) the share taken for"
    " each class (column)."
  )
  figure = chart("confusion", caption, figures.confusion(counts, names))
  return Section("confusion", "Confusion", tables=[table], figures=[figure])


def _classes(run: RunFiles, chart: Callable[..., Chart]) -> Section:
  rows = run.rows()
  columns = [("Class", False), ("Clips", True), ("One-pass (%)", True), ("U2S (%)", True)]
  columns += [("Gain", True)]
  table = Table(
    "Top-1 accuracy of every class",
    [*columns, ("Most confused with", False)],
    [
      [*_accuracy_cells(row), row["confused_with"]]
      for row in sorted(rows, key=lambda r: -(r["gain"] or 0))
    ],
    sortable=True,
  )
  section = Section("classes", "Classes", tables=[table])
  if run.analysis is not None and len(run.analysis["pairs"]):
    ordered = [rows[i] for pair in run.analysis["pairs"] for i in pair]
    caption = "Table IV: the most similar pairs of classes, one pair after the other"
    section.tables.insert(0, Table(caption, columns, [_accuracy_cells(row) for row in ordered]))
  caption = (
    "Top-1 accuracy of each class before and after U2S, from the largest gain to the largest loss."
  )
  section.figures.append(chart("classes", caption, figures.class_accuracy(rows)))
  sizes = run.summary.get("training_clips", ())
  if len(set(sizes)) > 1:
    caption = "Top-1 accuracy of each class against its training clips."
    section.figures.append(
      chart("class_sizes", caption, figures.accuracy_against_size(sizes, rows))
    )
  few = [f"{row['class']} ({n})" for n, row in zip(sizes, rows, strict=False) if n < FEW]
  if few:
    section.texts.append(f"Classes of fewer than {FEW} training clips: {', '.join(few)}.")
  return section


def _accuracy_cells(row: dict[str, Any]) -> list[Any]:
  return [row[key] for key in ("class", "clips", "one_pass", "merged", "gain")]


def _similarity(run: RunFiles, chart: Callable[..., Chart]) -> Section | None:
  similarities, accuracies = run.similarities(), run.accuracies()
  if not similarities:
    return None
  section = Section("similarity", "Category similarity")
  names = [run.class_names[i] for i in run.known_classes()]
  caption = (
    "Fig. 1: similarity of the classes by the one-pass features' sparsity (first); accuracy of each"
    " class against its mean similarity with the others (second), with the correlation r."
  )
  section.figures.append(
    chart(
      "fig1",
      caption,
      figures.similarity_and_accuracy(similarities["one-pass"], accuracies["one-pass"], names),
    )
  )
  caption = (
    "Fig. 4: accuracy of each class against its mean similarity with the others, by kind of"
    " features (first); how many classes have which similarity (second). One scale for all kinds."
  )
  section.figures.append(
    chart("fig4", caption, figures.similarity_by_features(similarities, accuracies))
  )
  if "topn_accuracy" in run.analysis:
    csm = run.summary["csm"]
    section.texts.append(
      f"The category similarity matrix has N = {csm['n']}: alpha = {csm['alpha']:.4f}, with"
      f" {csm['average_confusing']:.2f} confusing classes a class."
    )
    caption = "Top-N accuracy of the one-pass model, by which N was chosen."
    section.figures.append(
      chart("top_n", caption, figures.top_n(run.analysis["topn_accuracy"], csm["n"]))
    )
  return section


def _masks(run: RunFiles, folder: pathlib.Path) -> Section | None:
  arrays = run.analysis or {}
  if "class_masks" not in arrays:
    return None
  section = Section("masks", "Masks")
  section.texts.append(
    "Fig. 5: the combined mask of the classes confused with the universal network's prediction,"
    " over the frames that the networks saw. A mask with negative values is orange where it is"
    " positive and blue where it is negative; one without is bright where it is high. Each is on"
    " its own scale, which stands beside it. Below, as in Fig. 6, single classes' masks of the same"
    " clips."
  )
  names = run.class_names
  for i, clip_id in enumerate(arrays["example_id"]):
    label, predicted = int(arrays["example_label"][i]), int(arrays["predicted"][i])
    video = arrays["video"][i]
    blended = overlay.blend(video, arrays["mask"][i])
    classes = [int(j) for j in arrays["mask_classes"][i]]
    rows = [overlay.frames_of(video), blended]
    rows += [overlay.blend(video, arrays["class_masks"][i][..., k]) for k in range(len(classes))]
    strip = overlay.strip(rows)
    strip.save(folder / f"masks_{i}.png")
    loop = overlay.loop(np.concatenate([rows[0], blended], axis=2))
    (folder / f"masks_{i}.webp").write_bytes(loop)
    said = (
      "the universal network says the same"
      if predicted == label
      else f"the universal network says “{names[predicted]}”"
    )
    with Image.open(io.BytesIO(loop)) as opened:
      width, height = opened.size
    section.clips.append(
      Clip(
        id=str(clip_id),
        title=names[label],
        caption=f"{clip_id}: frames and mask ({overlay.scale(arrays['mask'][i])}); {said}.",
        alt=f"Looping clip {clip_id} of “{names[label]}”, beside it the same under its mask.",
        loop=_uri(loop, "webp"),
        still=_uri(_jpeg(overlay.strip(rows[:2], count=4)), "jpeg"),
        width=width,
        height=height,
        strip=_uri(_jpeg(strip), "jpeg"),
        strip_alt="From top to bottom: frames, combined mask, masks of "
        + ", ".join(
          f"“{names[j]}” ({overlay.scale(arrays['class_masks'][i][..., k])})"
          for k, j in enumerate(classes)
        )
        + ".",
      )
    )
  return section


def _pairs(run: RunFiles, chart: Callable[..., Chart]) -> Section | None:
  arrays = run.analysis or {}
  if not len(arrays.get("pairs", ())):
    return None
  section = Section("embeddings", "Confusing pairs")
  after = [arrays[key] for key in ("pooled_universal", "pooled_specific") if key in arrays]
  for k, pair in enumerate(arrays["pairs"]):
    chosen = np.isin(arrays["label"], pair)
    if chosen.sum() < 4:
      continue
    names = {int(j): run.class_names[j] for j in pair}
    figure = figures.embeddings(
      {
        "one-pass features": arrays["pooled_one_pass"][chosen],
        "U2S features": np.concatenate(after, axis=1)[chosen],
      },
      arrays["label"][chosen],
      names,
    )
    quoted = " and ".join(f"“{name}”" for name in names.values())
    caption = f"Fig. 6 f, g: t-SNE of the clips of {quoted}, without U2S and with it."
    section.figures.append(chart(f"embedding_{k}", caption, figure))
  return section if section.figures else None


def _weights(runs: dict[str, RunFiles], chart: Callable[..., Chart]) -> Section | None:
  by_run = {name: run.weight_similarity() for name, run in runs.items()}
  by_run = {name: values for name, values in by_run.items() if values is not None}
  if not by_run:
    return None
  weights = [runs[name].config["regularizer_weight"] for name in by_run]
  labels = [f"{name} (λ = {weight:g})" for name, weight in zip(by_run, weights, strict=True)]
  figure = figures.weight_similarities(
    dict(zip(labels, by_run.values(), strict=True)), next(iter(runs.values())).class_names
  )
  caption = (
    "Fig. 7: similarity of the mask network's weights of each two classes, sorted by name, and how"
    " many pairs of classes have which."
  )
  section = Section("weights", "Weights of the mask network")
  section.figures.append(chart("fig7", caption, figure))
  if len(by_run) == 1:
    section.texts.append(
      "Compare it with a run without category regularization to see what that does."
    )
  return section


def _sweep(runs: dict[str, RunFiles], chart: Callable[..., Chart]) -> Section | None:
  counts = {name: run.summary["csm"]["n"] for name, run in runs.items()}
  if len(set(counts.values())) < 2:
    return None
  merged = [_merged(run) for run in runs.values()]
  base = _one_pass(next(iter(runs.values())))
  figure = figures.accuracy_against_n(
    list(counts.values()),
    {"top-1": [m["top1"] for m in merged], "top-5": [m["top5"] for m in merged]},
    {"top-1": base["top1"], "top-5": base["top5"]},
  )
  caption = (
    "Fig. 8: accuracy of the merged prediction against N, the average number of confusing classes,"
    " of the runs compared."
  )
  return Section("sweep", "Number of confusing classes", figures=[chart("fig8", caption, figure)])


def _unique(names: Sequence[str]) -> list[str]:
  """Names of runs, numbered where two folders have the same."""
  return [
    name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})"
    for i, name in enumerate(names)
  ]


def _uri(content: bytes, kind: str) -> str:
  return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _jpeg(image: Image.Image) -> bytes:
  file = io.BytesIO()
  image.save(file, "JPEG", quality=80)
  return file.getvalue()
