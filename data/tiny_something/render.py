"""Writes VP9 videos and label files in the layout of Something-Something V2.

The rendered data set then takes the same path through preparation and training as the real one.
"""

import contextlib
import dataclasses
import fractions
import functools
import json
import os
import pathlib
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from data.preparation import workers
from data.preparation.workers import Skipped
from data.sources.something_something import VIDEO_FOLDER
from data.tiny_something import actions
from data.tiny_something.actions import CLASSES
from u2s_jax.runtime import signals
from u2s_jax.runtime.errors import UserError
from u2s_jax.video.listing import SPLITS

FRAME_RATE = 12
VERSION = 2  # incremented when the same seed gives other pixels, so that old folders are refused


@dataclasses.dataclass(frozen=True)
class Settings:
  """Settings of the rendered data set; raises UserError if one is out of range."""

  num_train: int  # clips; class sizes differ by one at most
  num_validation: int
  num_test: int
  height: int = 64  # pixels, even and at least 16
  difficulty: float = 0.5  # 0 to 1, see `actions.render_clip`
  clutter: float = 0.0  # 0 to 1
  seed: int = 0

  def __post_init__(self):
    counts = (self.num_train, self.num_validation, self.num_test)
    if min(counts) < 0:
      raise UserError(f"clip counts: {counts} must be >= 0")
    if self.height < 16 or self.height % 2:
      raise UserError(f"height: {self.height} must be even and >= 16")
    for name, value in (("difficulty", self.difficulty), ("clutter", self.clutter)):
      if not 0 <= value <= 1:
        raise UserError(f"{name}: {value} must be in [0, 1]")


class RenderedClip(NamedTuple):
  split: str
  id: str
  class_index: int
  seed: tuple[int, int, int]


def render(root: os.PathLike | str, settings: Settings, *, num_workers: int = 2) -> None:
  """Renders a data set into `root`; returns at once if `root` holds the same data set.

  Files are written to a temporary folder that is renamed at the end, so an interrupted process
  leaves no incomplete data set. The pixels do not depend on `num_workers`.

  Raises:
    UserError: if `root` holds something else, or a clip cannot be written.
  """
  if num_workers < 1:
    raise UserError(f"num_workers: {num_workers} must be >= 1")
  root = pathlib.Path(os.path.abspath(root))
  fields = {"version": VERSION, **dataclasses.asdict(settings)}
  if _is_rendered(root, fields):
    return
  root.parent.mkdir(parents=True, exist_ok=True)
  partial = root.parent / f".{root.name}.partial-{uuid.uuid4().hex[:8]}"
  try:
    (partial / VIDEO_FOLDER).mkdir(parents=True)
    clips = _list_clips(settings)
    names = _render_all(partial, clips, settings, num_workers)
    _write_labels(partial, clips, names)
    (partial / "settings.json").write_text(json.dumps(fields, indent=2) + "\n")
    try:
      os.rename(partial, root)
    except OSError:
      # Another process may have finished the same data set in the meantime.
      if not _is_rendered(root, fields):
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _is_rendered(root: pathlib.Path, fields: dict[str, Any]) -> bool:
  """Returns whether `root` holds this data set.

  Raises:
    UserError: if it holds anything else.
  """
  if root.exists() and not root.is_dir():
    raise UserError(f"{root}: not a folder; choose another path")
  if not root.exists() or not any(root.iterdir()):
    return False
  try:
    saved = json.loads((root / "settings.json").read_text())
  except (OSError, ValueError):
    saved = None
  if not isinstance(saved, dict):
    raise UserError(
      f"{root}: not a rendered data set, as it has no valid settings.json; choose another folder"
    )
  for field, value in fields.items():
    if saved.get(field) != value:
      raise UserError(
        f"{root}: was rendered with {field}={saved.get(field)!r}, not {value!r}; "
        "delete it or choose another folder"
      )
  return True


def _list_clips(settings: Settings) -> list[RenderedClip]:
  """Returns all clips, a pure function of the settings."""
  counts = [getattr(settings, f"num_{split}") for split in SPLITS]
  # Ids are shuffled over all splits, as in the real data, so they reveal neither split nor class.
  order = np.random.default_rng((settings.seed, len(SPLITS))).permutation(sum(counts))
  ids = iter(order.tolist())
  return [
    RenderedClip(split, str(next(ids) + 1), number % len(CLASSES), (settings.seed, k, number))
    for k, (split, count) in enumerate(zip(SPLITS, counts, strict=True))
    for number in range(count)
  ]


def _render_all(
  folder: pathlib.Path, clips: Sequence[RenderedClip], settings: Settings, num_workers: int
) -> dict[str, list[str]]:
  """Writes the videos and returns the names of their objects by id."""
  scene = {name: getattr(settings, name) for name in ("height", "difficulty", "clutter")}
  fields = {"folder": str(folder), **scene}
  requests = (functools.partial(tuple, clip) for clip in clips)
  answers = workers.process_requests(
    "data.tiny_something.render:make_renderer", fields, requests, num_workers
  )
  names = {}
  with contextlib.closing(answers):
    for clip, answer in zip(clips, answers, strict=True):
      if isinstance(answer, Skipped):
        raise UserError(f"{folder}: clip {clip.id} could not be rendered ({answer.reason})")
      names[clip.id] = answer
      signals.raise_if_requested()
  return names


def make_renderer(
  folder: str, height: int, difficulty: float, clutter: float
) -> Callable[[list[Any]], list[str] | Skipped]:
  """Returns the function of a worker process, which writes a clip and returns its object names."""
  videos = pathlib.Path(folder) / VIDEO_FOLDER

  def render_video(fields):
    clip = RenderedClip(*fields)
    rng = np.random.default_rng(clip.seed)
    frames, names = actions.render_clip(
      clip.class_index, rng, height=height, difficulty=difficulty, clutter=clutter
    )
    try:
      _encode(videos / f"{clip.id}.webm", frames)
    except OSError as error:
      return Skipped(f"{error.filename or videos}: {error.strerror or error}")
    return names

  return render_video


def _encode(path: pathlib.Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
  with av.open(str(path), "w", format="webm") as container:
    stream = container.add_stream("libvpx-vp9", rate=fractions.Fraction(FRAME_RATE))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    # With a bit rate of 0, `crf` alone determines the quality. One thread, as there is a worker for
    # every core.
    stream.bit_rate = 0
    stream.codec_context.thread_count = 1
    stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "28", "lag-in-frames": "0"}
    # One converter for all frames: the stream would create one per frame, which takes as long as
    # encoding it.
    converter = VideoReformatter()
    for frame in frames:
      frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
      container.mux(stream.encode(converter.reformat(frame, format="yuv420p", threads=1)))
    container.mux(stream.encode())


def _write_labels(
  folder: pathlib.Path, clips: Sequence[RenderedClip], names: dict[str, list[str]]
) -> None:
  """Writes the label files, sorted by id."""
  (folder / "labels").mkdir()
  plain = [template.replace("[", "").replace("]", "") for template in CLASSES]
  contents = {"labels": {label: str(index) for index, label in enumerate(plain)}}
  contents |= {split: [] for split in SPLITS}
  answers = []
  for split, video_id, class_index, _ in sorted(clips, key=lambda clip: int(clip.id)):
    if split == "test":
      contents[split].append({"id": video_id})
      answers.append(f"{video_id};{plain[class_index]}\n")
      continue
    template, placeholders = CLASSES[class_index], names[video_id]
    label = re.sub(r"\[[^]]*\]", "{}", template).format(*placeholders)
    entry = {"id": video_id, "label": label[0].lower() + label[1:], "template": template}
    contents[split].append(entry | {"placeholders": placeholders})
  for name, content in contents.items():
    (folder / "labels" / f"{name}.json").write_text(json.dumps(content, indent=0) + "\n")
  (folder / "labels" / "test-answers.csv").write_text("".join(answers))
