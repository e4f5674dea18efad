"""Predictions of a trained run for single files, with nothing but its workdir at hand."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, UInt8

from u2s_jax import checkpoint, compiling, fusion, settings
from u2s_jax import csm as csm_lib
from u2s_jax.models.u2s import U2S
from u2s_jax.report import overlay
from u2s_jax.steps import PREDICTIONS, normalize

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

  def clip(self) -> dict[str, Any]:
    """What a clip has to be, in the words of `data.pipeline.file_clip`."""
    fields = ("num_frames", "crop_size", "short_edge", "modality", "flow_pairs")
    return {field: self.config.data[field] for field in fields} | {"stored": self.stored}


def load(workdir: pathlib.Path) -> Trained:
  """Reads a run's newest checkpoint.

  Raises:
    ValueError: there is no run, or none that has trained.
  """
  config = settings.config_of_run(workdir)
  found = checkpoint.read_networks(workdir / "checkpoints", settings.STAGES) if config else None
  if not found:
    raise ValueError(f"--workdir {workdir}: no run that has trained; train first")
  _, tree, record = found
  class_names = tuple(record["model"]["class_names"])
  model = settings.build_model(config, len(class_names))
  variables = {key: tree[key] for key in ("params", "batch_stats")}
  csm = csm_lib.selection(
    jnp.asarray(tree["csm"]["matrix"]),
    jnp.asarray(tree["csm"]["similarity"]),
    config.csm.selection,
  )
  pixels = [tuple(config.model[field]) for field in settings.PIXEL_FIELDS]

  on_device = jax.tree.map(jnp.asarray, variables)

  def outputs(video):
    clips = normalize(video, *pixels)
    if "specific" in variables["params"]:
      found = model.apply(on_device, clips, csm)
    else:
      found = model.apply(on_device, clips, method=U2S.one_pass)
    result = {name: jax.nn.softmax(found[name]) for name in PREDICTIONS if name in found}
    if "mask" in found:
      result["mask"] = found["mask"][..., 0].astype(jnp.float32)
    return result

  return Trained(config, class_names, record["stored"], variables, outputs)


def predict(
  trained: Trained,
  files: Iterable[str],
  read_clip: ReadClip,
  overlay_path: pathlib.Path | None = None,
) -> Iterable[dict[str, Any]]:
  """Scores of files, one after the other, on their centre view.

  The universal network's prediction selects the masks, also where `csm.guide` was the label.

  Args:
    trained: from `load`.
    files: videos or images.
    read_clip: reads one as the networks take it, (t, h, w, c) uint8; ValueError or OSError for one
      that it cannot read.
    overlay_path: .mp4 file for the last clip with its mask over it, see `overlay.blend`.

  Yields:
    For each file `file` and either `error`, the reason in one line, or `predictions`: for each
    fusion of Table I, such as 'universal+specific', the five best `{"class", "score"}`, the best
    first.

  Raises:
    ValueError: an overlay is asked for, but the run has no mask.
  """
  run = jax.jit(trained.outputs, compiler_options=compiling.options())
  for file in files:
    try:
      clip = read_clip(file)
    except (ValueError, OSError) as error:
      reason = getattr(error, "strerror", None) or " ".join(str(error).split())
      yield {"file": file, "error": reason}
      continue
    found = {name: np.asarray(values)[0] for name, values in run(clip[None]).items()}
    mask = found.pop("mask", None)
    if overlay_path:
      if mask is None:
        raise ValueError("--overlay: this run has no mask network's masks")
      write_video(overlay_path, overlay.blend(clip, mask))
    yield {"file": file, "predictions": top_classes(found, trained.class_names)}


def top_classes(
  scores: Mapping[str, Float[np.ndarray, " m"]], class_names: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
  """The best five classes of every fusion of one clip's scores, the best first."""
  best = {}
  for names in fusion.FUSIONS:
    if all(name in scores for name in names):
      fused = fusion.fuse({name: scores[name][None] for name in names}, names)[0]
      order = np.argsort(-fused, kind="stable")[:TOP]
      best["+".join(names)] = [{"class": class_names[i], "score": float(fused[i])} for i in order]
  return best


def write_video(path: pathlib.Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
  """Writes an H.264 video of five frames a second; small frames are enlarged."""
  import av  # no other module of this package needs it

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
  """One of `predict`'s answers for a terminal."""
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
  """Prints what `predict` yields, as text or one JSON list; whether all files could be read.

  Raises:
    ValueError: an overlay of several files, or one that would overwrite something.
  """
  if overlay_path and len(files) > 1:
    raise ValueError(f"--overlay {overlay_path}: for one file only, and --video names {len(files)}")
  if overlay_path and overlay_path.suffix != ".mp4":
    raise ValueError(f"--overlay {overlay_path}: name an .mp4 file")
  if overlay_path and overlay_path.exists():
    raise ValueError(f"--overlay {overlay_path}: it is there already; name another file")
  answers = []
  for found in predict(trained, files, read_clip, overlay_path):
    answers.append(found)
    if not as_json:
      print(text(found), file=sys.stderr if "error" in found else sys.stdout, flush=True)
  if as_json:
    print(json.dumps(answers, indent=2, ensure_ascii=False))
  return not any("error" in found for found in answers)
