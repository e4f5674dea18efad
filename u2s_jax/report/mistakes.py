"""The clips of the page whose labels are most likely wrong, for the user to correct."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from u2s_jax.evaluation import analysis, overlay, results
from u2s_jax.report.run import RunFiles
from u2s_jax.video.listing import parse_span

LOOP_HEIGHT = 112  # pixels


@dataclasses.dataclass(frozen=True)
class Mistake:
  """A misclassified clip; the template reads all attributes.

  Attributes:
    link: address of the file that the data set was prepared from, empty if it is unknown.
    still: middle frame, a `data:` URI.
    loop: the clip, a `data:` URI; empty for an image.
    predicted_score: of the merged prediction, in percent, as `label_score`.
  """

  id: str
  link: str
  still: str
  loop: str
  label: str
  predicted: str
  predicted_score: float
  label_score: float


def list_mistakes(runs: Sequence[RunFiles]) -> list[Mistake]:
  """Lists the mistakes of runs that stored some, those first whose label is most likely wrong.

  Args:
    runs: with the same classes and other clips each, such as the folds of a training split.
  """
  found = []  # score of the label, run, row, index of the stored frames
  for run in runs:
    stored = {str(name): k for k, name in enumerate(run.analysis.get("mistake_id", ()))}
    for row in results.likely_mislabelled(run.final, len(stored)).tolist():
      if (name := str(run.final.ids[row])) in stored:
        found.append((run.final.merged[row, run.final.labels[row]], run, row, stored[name]))
  found.sort(key=lambda item: item[0])
  return [_make(run, row, k) for _, run, row, k in found[: analysis.MAX_MISTAKES]]


def _make(run: RunFiles, row: int, k: int) -> Mistake:
  merged, label, name = run.final.merged[row], run.final.labels[row], str(run.final.ids[row])
  predicted, clip = merged.argmax(), _read_clip(run, k)
  return Mistake(
    id=name,
    link=_make_link(str(run.analysis["mistake_path"][k]), name),
    still=overlay.encode_jpeg(overlay.draw_strip([clip], count=1)),
    loop=_encode_loop(clip) if len(clip) > 1 else "",
    label=run.class_names[label],
    predicted=run.class_names[predicted],
    predicted_score=100 * float(merged[predicted]),
    label_score=100 * float(merged[label]),
  )


def _read_clip(run: RunFiles, k: int) -> UInt8[np.ndarray, "f h w 3"]:
  if "mistake_clip" in run.analysis:
    return run.analysis["mistake_clip"][k]
  return overlay.to_rgb(run.analysis["mistake_still"][k][None])  # runs of earlier versions


def _encode_loop(clip: UInt8[np.ndarray, "f h w 3"]) -> str:
  return overlay.encode_uri(overlay.loop(clip, height=LOOP_HEIGHT), "webp")


def _make_link(path: str, clip_id: str) -> str:
  """Returns the address of a file; the fragment lets a player show a segment only."""
  span = parse_span(clip_id)
  fragment = f"#t={span[0]},{span[1]}" if span else ""
  return pathlib.Path(path).as_uri() + fragment if path else ""
