"""Something-Something V2 as a TFDS data set of JPEG frames in ArrayRecord files.

The folder is as the data set's owner hands it out:

  <source_dir>/20bn-something-something-v2/<id>.webm
  <source_dir>/labels/{labels,train,validation,test}.json and labels/test-answers.csv
  or, the older names, <source_dir>/something-something-v2-{labels,train,validation,test}.json

A user's own videos work as well when they come in that shape.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import pickle
import queue
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from data import decode

VIDEO_FOLDER = "20bn-something-something-v2"
MAX_ID_BYTES = 64  # scores are gathered from all hosts with ids of this size


@dataclasses.dataclass(eq=False)
class SomethingSomethingConfig(tfds.core.BuilderConfig):
  """What one prepared copy is made of.

  Attributes:
    names: class names in index order.
    splits: name of a split to its clips, (id, label or -1, video file).
    short_edge: of the stored frames, pixels.
    jpeg_quality: of the stored frames, 1 to 100.
    num_workers: processes that decode; changes nothing in the result.
  """

  names: Sequence[str] = ()
  splits: dict[str, list[tuple[str, int, pathlib.Path]]] = dataclasses.field(default_factory=dict)
  short_edge: int = 240
  jpeg_quality: int = 95
  num_workers: int = 1


class SomethingSomething(tfds.core.GeneratorBasedBuilder):
  """Something-Something V2; made by `prepare`, which checks the source and fills the config."""

  VERSION = tfds.core.Version("1.0.0")
  # TFDS looks for download checksums beside the code, of which there are none, and needs for that a
  # package, importlib_resources, that it does not install (seen in 4.9.10).
  code_path = None

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(
        {
          "id": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=self.builder_config.names),
          "num_frames": tfds.features.Scalar(tf.int32),
          # One tensor of strings, not a Sequence of Images: TFDS then runs no code for single
          # frames, and a reader decodes only those it uses.
          "frames": tfds.features.Tensor(shape=(None,), dtype=tf.string),
        }
      ),
      metadata=tfds.core.MetadataDict(
        short_edge=self.builder_config.short_edge, jpeg_quality=self.builder_config.jpeg_quality
      ),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    del dl_manager  # The data set's licence has to be accepted by hand: nothing to download.
    return {split: self._generate_examples(split) for split in self.builder_config.splits}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    config = self.builder_config
    clips = config.splits[split]
    videos = _decode_in_order(
      [path for _, _, path in clips], config.short_edge, config.jpeg_quality, config.num_workers
    )
    reported = time.monotonic()
    for done, ((clip_id, label, _), frames) in enumerate(zip(clips, videos, strict=True)):
      yield clip_id, {"id": clip_id, "label": label, "num_frames": len(frames), "frames": frames}
      if time.monotonic() - reported > 10:
        reported = time.monotonic()
        print(f"preparing {split}: {done + 1} of {len(clips)} clips", file=sys.stderr, flush=True)


def prepare(
  source_dir: str | os.PathLike[str],
  data_dir: str | os.PathLike[str],
  *,
  short_edge: int,
  jpeg_quality: int = 95,
  num_workers: int,
) -> tfds.core.DatasetBuilder:
  """Turns the videos into ArrayRecord files of JPEG frames, unless that was done before.

  The result lies in a folder named after the short edge, the quality and a hash of the label files,
  and appears there only when it is complete. The videos themselves are not hashed: after replacing
  videos under unchanged labels, delete the folder. On several hosts, one has to prepare first.

  Args:
    source_dir: folder of the videos and the label files, see the module's docstring.
    data_dir: folder to keep prepared data sets in, made if missing.
    short_edge: pixels; every frame is resized to it, the long edge keeps the aspect and is even.
    jpeg_quality: 1 to 100.
    num_workers: processes that decode videos, at least 1.

  Returns:
    The prepared builder, with the splits `train`, `validation` and, if there is one, `test`; the
    label is -1 where the test split has no answer.

  Raises:
    FileNotFoundError: `source_dir`, a label file or a video is missing; one line, names it.
    ValueError: a setting, a label file or a video is not valid; one line, names it.
  """
  if short_edge < 1:
    raise ValueError(f"short_edge is {short_edge}; it must be at least 1 pixel")
  if not 1 <= jpeg_quality <= 100:
    raise ValueError(f"jpeg_quality is {jpeg_quality}; it must be from 1 to 100")
  if num_workers < 1:
    raise ValueError(f"num_workers is {num_workers}; it must be at least 1")
  source = pathlib.Path(source_dir)
  files = _label_files(source)
  names = _class_names(files["labels"])
  digest = hashlib.sha256()
  for name, path in files.items():
    digest.update(f"{name} {path.stat().st_size} ".encode())
    digest.update(path.read_bytes())
  rendered = source / "settings.json"  # of `tiny_something`: other pixels, the same label files
  if rendered.is_file():
    digest.update(rendered.read_bytes())
  config = SomethingSomethingConfig(
    name=f"short{short_edge}_q{jpeg_quality}_{digest.hexdigest()[:12]}",
    description=f"{len(names)} classes, frames of short edge {short_edge}, JPEG {jpeg_quality}",
    names=names,
    short_edge=short_edge,
    jpeg_quality=jpeg_quality,
    num_workers=num_workers,
  )
  with _quiet():
    builder = SomethingSomething(
      data_dir=os.fspath(data_dir), config=config, file_format="array_record"
    )
    prepared = builder.is_prepared()
  if prepared:
    return builder
  # All that can be known without decoding is checked first: hours may follow.
  config.splits = _read_splits(source, files, names)
  with _quiet():
    builder.download_and_prepare()
  return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps TFDS from the terminal: it warns of every new config and prints of 0 byte downloads."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def _label_files(source: pathlib.Path) -> dict[str, pathlib.Path]:
  """Finds the label files; `test` and `answers` only where they exist."""
  if not source.is_dir():
    raise FileNotFoundError(f"source_dir {source} is not a folder: download the data set into it")
  if not any(source.iterdir()):
    raise FileNotFoundError(f"source_dir {source} is empty: download the data set into it")
  names = ("labels", "train", "validation", "test")
  older = {name: source / f"something-something-v2-{name}.json" for name in names}
  if (source / "labels").is_dir() or not any(path.is_file() for path in older.values()):
    files = {name: source / "labels" / f"{name}.json" for name in names}
  else:
    files = older
  for name in ("labels", "train", "validation"):
    if not files[name].is_file():
      raise FileNotFoundError(
        f"{files[name]}: the label file is missing: source_dir needs labels/{name}.json "
        f"or something-something-v2-{name}.json"
      )
  files["answers"] = files["labels"].parent / "test-answers.csv"
  return {name: path for name, path in files.items() if path.is_file()}


def _read_json(path: pathlib.Path, kind: type) -> Any:
  """Reads a JSON file whose outermost value is a `kind`."""
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path}: not a valid JSON file ({error}): download it again") from error
  if not isinstance(value, kind):
    raise ValueError(f"{path}: a JSON {kind.__name__} is expected, not a {type(value).__name__}")
  return value


def _class_names(path: pathlib.Path) -> list[str]:
  """Reads labels.json, a template without brackets to its index as a string."""
  indices = _read_json(path, dict)
  by_index = {str(index): name for name, index in indices.items()}
  names = [by_index.get(str(index)) for index in range(len(indices))]
  if not names or None in names:
    missing = names.index(None) if names else 0
    raise ValueError(f"{path}: no class has the index {missing}: indices must be 0, 1, 2, ...")
  return names


def _read_splits(
  source: pathlib.Path, files: dict[str, pathlib.Path], names: Sequence[str]
) -> dict[str, list[tuple[str, int, pathlib.Path]]]:
  """Reads the clips of every split, (id, label, video file), and checks that the videos exist."""
  index = {name: i for i, name in enumerate(names)}
  folder = source / VIDEO_FOLDER
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder}: the folder of the videos is missing from source_dir")
  present = set(os.listdir(folder))  # One listing: 220,000 single look-ups take minutes on NFS.

  def label(template: Any, path: pathlib.Path, clip_id: str) -> int:
    if not isinstance(template, str):
      raise ValueError(f"{path}: the template of entry {clip_id} is {template!r}, not a text")
    name = template.replace("[", "").replace("]", "")
    if name not in index:
      raise ValueError(
        f"{path}: the class {name!r} of entry {clip_id} is not in {files['labels']}: "
        "the two files must be of one data set"
      )
    return index[name]

  answers = {}
  if "answers" in files:
    for line in files["answers"].read_text(encoding="utf-8").splitlines():
      if line.strip():
        clip_id, _, name = line.partition(";")
        answers[clip_id.strip()] = label(name.strip(), files["answers"], clip_id.strip())

  splits = {}
  for split in ("train", "validation", "test"):
    if split not in files:
      continue
    path = files[split]
    clips = {}
    for position, entry in enumerate(_read_json(path, list)):
      if not isinstance(entry, dict) or "id" not in entry:
        raise ValueError(f'{path}: entry {position} has no "id"')
      clip_id = str(entry["id"])
      if len(clip_id.encode()) > MAX_ID_BYTES:
        raise ValueError(f"{path}: the id {clip_id} is longer than {MAX_ID_BYTES} bytes")
      if clip_id in clips:
        raise ValueError(f"{path}: the id {clip_id} occurs twice: delete one of the entries")
      if "template" in entry:
        number = label(entry["template"], path, clip_id)
      elif split == "test":
        number = answers.get(clip_id, -1)
      else:
        raise ValueError(f'{path}: entry {clip_id} has no "template"')
      clips[clip_id] = (clip_id, number, folder / f"{clip_id}.webm")
    missing = [video for _, _, video in clips.values() if video.name not in present]
    if missing:
      raise FileNotFoundError(
        f"{missing[0]}: the video is missing ({len(missing)} of the {len(clips)} of {path.name}): "
        "add the files or delete their entries"
      )
    if clips:
      splits[split] = list(clips.values())
    elif split != "test":
      raise ValueError(f"{path}: the file has no entries")
    unseen = set(range(len(names))) - {number for _, number, _ in clips.values()}
    if split == "train" and unseen:
      raise ValueError(
        f"{path}: no entry is of the class {names[min(unseen)]!r}: add clips of it, or take it out"
        f" of {files['labels']}"
      )
  return splits


def _decode_in_order(
  paths: Sequence[pathlib.Path], short_edge: int, jpeg_quality: int, num_workers: int
) -> Iterator[list[bytes]]:
  """Yields the JPEG frames of each video in the order of `paths`, a few ahead of the reader."""
  command = [sys.executable, "-P", decode.__file__, str(short_edge), str(jpeg_quality)]
  # A session of their own keeps Ctrl-C from them; they end when their input is closed.
  workers = [
    subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    for _ in range(min(num_workers, len(paths)))
  ]
  idle = queue.SimpleQueue()
  for worker in workers:
    idle.put(worker)

  def decode_one(path: pathlib.Path) -> list[bytes]:
    worker = idle.get()  # Never waits: there are as many threads as workers.
    try:
      worker.stdin.write(f"{path}\n".encode())
      worker.stdin.flush()
      answer = pickle.load(worker.stdout)
    except (OSError, EOFError) as error:
      raise ValueError(f"{path}: the process that decodes it died (out of memory?)") from error
    finally:
      idle.put(worker)
    if isinstance(answer, str):
      raise ValueError(answer)
    return answer

  threads = concurrent.futures.ThreadPoolExecutor(len(workers))
  pending = collections.deque()
  try:
    for path in paths:
      pending.append(threads.submit(decode_one, path))
      if len(pending) > 4 * len(workers):  # Bounds the memory when the writer is the slower one.
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    threads.shutdown(cancel_futures=True)
    for worker in workers:
      worker.stdin.close()
      worker.stdout.close()
      worker.wait()
