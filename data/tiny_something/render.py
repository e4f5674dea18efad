"""The files: VP9 videos and the label files of Something-Something V2, so everything after it takes
the path that the real data takes.
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
from collections.abc import Callable
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from data import workers
from data.tiny_something import actions
from data.tiny_something.actions import CLASSES
from data.workers import Skipped
from u2s_jax.errors import UserError

VIDEO_FOLDER = "20bn-something-something-v2"
FRAME_RATE = 12
VERSION = 2  # raised whenever the same seed gives other pixels: old folders must not pass for new
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is rendered.

  Attributes:
    num_train: clips in the training split; classes take turns, so they differ by one at most.
    num_validation: clips in the validation split.
    num_test: clips in the test split.
    height: pixels of every clip.
    difficulty: from 0 to 1, see `actions.render_clip`.
    clutter: from 0 to 1, likewise.
    seed: of the whole data set.

  Raises:
    UserError: a value out of range.
  """

  num_train: int
  num_validation: int
  num_test: int
  height: int = 64
  difficulty: float = 0.5
  clutter: float = 0.0
  seed: int = 0

  def __post_init__(self):
    counts = (self.num_train, self.num_validation, self.num_test)
    if min(counts) < 0:
      raise UserError(f"clip counts must not be negative: {counts}")
    actions.check(self.height, self.difficulty, self.clutter)


class Clip(NamedTuple):
  """One clip to render: its split, id, class and seed."""

  split: str
  id: str
  class_index: int
  seed: tuple[int, int, int]


def render(root: os.PathLike | str, settings: Settings, *, num_workers: int = 2) -> None:
  """Writes a data set in Something-Something V2's layout, or returns at once where it stands.

  Everything is made in a folder beside `root` that takes its name at the end: an interrupted run
  leaves no half-made data set.

  Args:
    root: the data set's folder.
    settings: what is rendered.
    num_workers: processes; the pixels do not depend on it.

  Raises:
    UserError: an argument is out of range, `root` holds something else, or a clip could not be
      written.
  """
  if num_workers < 1:
    raise UserError(f"num_workers must be at least 1: {num_workers}")
  root = pathlib.Path(os.path.abspath(root))
  fields = {"version": VERSION, **dataclasses.asdict(settings)}
  for name in ("difficulty", "clutter"):
    fields[name] = float(fields[name])
  if _already_made(root, fields):
    return
  root.parent.mkdir(parents=True, exist_ok=True)
  partial = root.parent / f".{root.name}.partial-{uuid.uuid4().hex[:8]}"
  try:
    (partial / VIDEO_FOLDER).mkdir(parents=True)
    names = _render_all(partial, settings, num_workers)
    _write_labels(partial, settings, names)
    (partial / "settings.json").write_text(json.dumps(fields, indent=2) + "\n")
    try:
      os.rename(partial, root)
    except OSError:
      # Another process may have finished the same data set meanwhile; anything else is an error.
      if not _already_made(root, fields):
        raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _already_made(root: pathlib.Path, fields: dict[str, Any]) -> bool:
  """Tells whether `root` is this very data set; an error where it is anything else but empty."""
  if not root.exists():
    return False
  if not root.is_dir():
    raise UserError(f"{root} is not a folder")
  if not any(root.iterdir()):
    return False
  try:
    known = json.loads((root / "settings.json").read_text())
  except (OSError, ValueError):
    known = None
  if not isinstance(known, dict):
    raise UserError(f"{root} was not made by this renderer: it has no readable settings.json")
  for field, value in fields.items():
    if known.get(field) != value:
      raise UserError(
        f"{root} was rendered with {field}={known.get(field)!r}, not {value!r}: "
        "remove it or choose another folder"
      )
  return True


def _clips(settings: Settings) -> list[Clip]:
  """Returns all clips; a pure function of the settings."""
  counts = [getattr(settings, f"num_{split}") for split in SPLITS]
  # One shuffled id space over all splits, as in the real data: an id tells neither split nor class.
  order = np.random.default_rng((settings.seed, len(SPLITS))).permutation(sum(counts))
  ids = iter(order.tolist())
  return [
    Clip(split, str(next(ids) + 1), number % len(CLASSES), (settings.seed, k, number))
    for k, (split, count) in enumerate(zip(SPLITS, counts, strict=True))
    for number in range(count)
  ]


def _render_all(folder: pathlib.Path, settings: Settings, num_workers: int) -> dict[str, list[str]]:
  """Writes the videos; returns the names of their objects by id."""
  clips = _clips(settings)
  scene = {name: getattr(settings, name) for name in ("height", "difficulty", "clutter")}
  fields = {"folder": str(folder), **scene}
  requests = (functools.partial(lambda clip: clip, clip) for clip in clips)
  answers = workers.run("data.tiny_something.render:worker", fields, requests, num_workers)
  names = {}
  with contextlib.closing(answers):
    for clip, answer in zip(clips, answers, strict=True):
      if isinstance(answer, Skipped):
        raise UserError(f"{folder}: clip {clip.id} was not rendered: {answer.reason}")
      names[clip.id] = answer
  return names


def worker(
  folder: str, height: int, difficulty: float, clutter: float
) -> Callable[[list[Any]], list[str] | Skipped]:
  """Returns what a process of `workers` does with a `Clip`: writes its video, names its objects.

  Args:
    folder: where the data set is being made.
    height: see `Settings`.
    difficulty: see `Settings`.
    clutter: see `Settings`.
  """
  videos = pathlib.Path(folder) / VIDEO_FOLDER

  def write(fields):
    clip = Clip(*fields)
    rng = np.random.default_rng(clip.seed)
    frames, names = actions.render_clip(
      clip.class_index, rng, height=height, difficulty=difficulty, clutter=clutter
    )
    try:
      _encode(videos / f"{clip.id}.webm", frames)
    except OSError as error:
      return Skipped(f"{error.filename or videos}: {error.strerror or error}")
    return names

  return write


def _encode(path: pathlib.Path, frames: UInt8[np.ndarray, "t h w 3"]) -> None:
  with av.open(str(path), "w", format="webm") as container:
    stream = container.add_stream("libvpx-vp9", rate=fractions.Fraction(FRAME_RATE))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    # With no bit rate `crf` alone sets the quality; the workers already use every core.
    stream.bit_rate = 0
    stream.codec_context.thread_count = 1
    stream.options = {"deadline": "realtime", "cpu-used": "8", "crf": "28", "lag-in-frames": "0"}
    # One converter for all frames: the stream's own is set up anew for each, which takes as long
    # as coding it.
    converter = VideoReformatter()
    for frame in frames:
      frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
      container.mux(stream.encode(converter.reformat(frame, format="yuv420p", threads=1)))
    container.mux(stream.encode())


def _write_labels(folder: pathlib.Path, settings: Settings, names: dict[str, list[str]]) -> None:
  """Writes the label files, each in the order of its ids."""
  (folder / "labels").mkdir()
  plain = [template.replace("[", "").replace("]", "") for template in CLASSES]
  contents = {"labels": {label: str(index) for index, label in enumerate(plain)}}
  answers = []
  contents.update({split: [] for split in SPLITS})
  for split, video_id, class_index, _ in sorted(_clips(settings), key=lambda clip: int(clip[1])):
    if split == "test":
      contents[split].append({"id": video_id})
      answers.append(f"{video_id};{plain[class_index]}\n")
      continue
    template, things = CLASSES[class_index], names[video_id]
    rest = iter(things)
    label = re.sub(r"\[[^]]*\]", lambda _, rest=rest: next(rest), template)
    contents[split].append(
      {
        "id": video_id,
        "label": label[0].lower() + label[1:],
        "template": template,
        "placeholders": things,
      }
    )
  for name, content in contents.items():
    (folder / "labels" / f"{name}.json").write_text(json.dumps(content, indent=0) + "\n")
  (folder / "labels" / "test-answers.csv").write_text("".join(answers))
