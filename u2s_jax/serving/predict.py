"""Predictions of a trained run for single files, with nothing but its workdir at hand."""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import av
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, UInt8

from u2s_jax import checkpoint, devices, overlay, saved_config, settings
from u2s_jax.csm import CategorySimilarity
from u2s_jax.errors import UserError, printable
from u2s_jax.evaluation import inference
from u2s_jax.evaluation.scores import FUSIONS, fuse
from u2s_jax.stages import STAGES
from u2s_jax.state import TrainState
from u2s_jax.workdir import Workdir

TOP = 5
FRAMES_PER_SECOND = 5  # of an overlay
SHORT_EDGE = 224  # pixels that an overlay has at least

ReadClip = Callable[[str], UInt8[np.ndarray, "t h w c"]]


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a run has learned.

  Attributes:
    config: that it began with.
    class_names: in the order of the labels.
    stored: how the data set was prepared that it was trained on.
    variables: `params` and `batch_stats` by subnetwork, NumPy arrays.
    outputs: (video (n, t, h, w, c) uint8) -> softmax scores (n, m) for each prediction and, with a
      mask network, `mask` (n, t', h', w'); to be jitted.
  """

  config: ml_collections.ConfigDict
  class_names: tuple[str, ...]
  stored: dict[str, Any]
  variables: dict[str, Any]
  outputs: Callable[[UInt8[Array, "n t h w c"]], dict[str, Array]]


def load(workdir: Workdir) -> Trained:
  """Reads a run's newest checkpoint.

  Args:
    workdir: the run's folder.

  Raises:
    UserError: there is no run, or none that has trained.
  """
  config = saved_config.read(workdir)
  if config:
    try:
      settings.check_values(config)
    except UserError as error:
      raise UserError(f"{workdir.config}: {error}") from error
  newest = checkpoint.read_networks(workdir.checkpoints, STAGES) if config else None
  if not newest:
    raise UserError(f"--workdir {workdir.root}: no run that has trained; train first")
  _, tree, record = newest
  class_names = tuple(record["model"]["class_names"])
  # A file has no label that could guide.
  network = dataclasses.replace(
    settings.build_network(config, len(class_names)), guide="prediction"
  )
  variables = {key: tree[key] for key in ("params", "batch_stats")}
  csm = CategorySimilarity(**tree["csm"])
  state = TrainState(step=0, momentum=(), csm=csm, **variables)
  state = jax.tree.map(jnp.asarray, state)
  outputs = functools.partial(inference.make_predict_step(network), state)
  return Trained(config, class_names, record["stored"], variables, outputs)


def predict(
  trained: Trained,
  files: Iterable[str],
  read_clip: ReadClip,
  overlay_path: pathlib.Path | None = None,
) -> Iterable[dict[str, Any]]:
  """Scores files, one after the other, on their centre view.

  The universal network's prediction selects the masks, also where `csm.guide` was the label.

  Args:
    trained: from `load`.
    files: videos or images.
    read_clip: reads one as the networks take it, (t, h, w, c) uint8; UserError or OSError for one
      that it cannot read.
    overlay_path: .mp4 file for the last clip with its mask over it, see `overlay.blend`.

  Yields:
    For each file `file` and either `error`, the reason in one line, or `predictions`: for each
    fusion of Table I, such as 'universal+specific', the five best `{"class", "score"}`, the best
    first.

  Raises:
    UserError: an overlay is asked for, but the run has no mask.
  """
  outputs = jax.jit(trained.outputs, compiler_options=devices.compiler_options())
  for file in files:
    try:
      clip = read_clip(file)
    except (UserError, OSError) as error:
      reason = getattr(error, "strerror", None) or " ".join(str(error).split())
      yield {"file": file, "error": reason}
      continue
    scores = {name: np.asarray(values)[0] for name, values in outputs(clip[None]).items()}
    mask = scores.pop("mask", None)
    if overlay_path:
      if mask is None:
        raise UserError("--overlay: this run has no mask network's masks")
      write_video(overlay_path, overlay.blend(clip, mask))
    yield {"file": file, "predictions": top_classes(scores, trained.class_names)}


def top_classes(
  scores: Mapping[str, Float[np.ndarray, " m"]], class_names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
  """Returns the best five classes of every fusion of one clip's scores, the best first.

  Args:
    scores: by prediction.
    class_names: in the order of the labels.
  """
  best = {}
  for names in FUSIONS:
    if all(name in scores for name in names):
      fused = fuse({name: scores[name][None] for name in names}, names)[0]
      order = np.argsort(-fused, kind="stable")[:TOP]
      best["+".join(names)] = [{"class": class_names[i], "score": float(fused[i])} for i in order]
  return best


def as_text(answers: Sequence[dict[str, Any]]) -> str:
  """Returns answers as JSON: readable, or where a file's name is no Unicode, escaped."""
  readable = json.dumps(answers, indent=2, ensure_ascii=False)
  try:
    readable.encode()
  except UnicodeEncodeError:
    return json.dumps(answers, indent=2)
  return readable


def write_video(path: pathlib.Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
  """Writes an H.264 video of five frames a second; small frames are enlarged."""
  factor = max(1, -(-SHORT_EDGE // min(frames.shape[1:3])))
  frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
  frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=Fraction(FRAMES_PER_SECOND))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": "18"}
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())


def text(answer: dict[str, Any]) -> str:
  """Returns one of `predict`'s answers as text for a terminal."""
  if "error" in answer:
    return f"{answer['file']}: {answer['error']}"
  lines = [answer["file"]]
  for fused, best in answer["predictions"].items():
    lines.append(f"  {fused.replace('+', ' + ')}")
    lines += [f"    {100 * guess['score']:5.1f} %  {guess['class']}" for guess in best]
  return "\n".join(lines)


def answer(
  trained: Trained,
  files: Sequence[str],
  read_clip: ReadClip,
  *,
  as_json: bool,
  overlay_path: pathlib.Path | None,
) -> bool:
  """Prints what `predict` yields, as text or one JSON list.

  Args:
    trained: from `load`.
    files: see `predict`.
    read_clip: see `predict`.
    as_json: whether to print JSON.
    overlay_path: see `predict`.

  Returns:
    Whether all files could be read.

  Raises:
    UserError: an overlay of several files, or one that would overwrite something.
  """
  if overlay_path and len(files) > 1:
    raise UserError(f"--overlay {overlay_path}: for one file only, and --video names {len(files)}")
  if overlay_path and overlay_path.suffix != ".mp4":
    raise UserError(f"--overlay {overlay_path}: name an .mp4 file")
  if overlay_path and not overlay_path.parent.is_dir():
    raise UserError(f"--overlay {overlay_path}: no folder {overlay_path.parent}")
  if overlay_path and overlay_path.exists():
    raise UserError(f"--overlay {overlay_path}: it is there already; name another file")
  answers = []
  for result in predict(trained, files, read_clip, overlay_path):
    answers.append(result)
    if not as_json:
      print(
        printable(text(result)), file=sys.stderr if "error" in result else sys.stdout, flush=True
      )
  if as_json:
    print(as_text(answers))
  return not any("error" in result for result in answers)
