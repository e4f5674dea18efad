"""Prepared data sets on disk: ArrayRecord shards of JPEG frames, in a layout that TFDS reads.

  clips-<split>.array_record-<shard>-of-<shards>   written one by one, atomically
  features.json, metadata.json, label.labels.txt   the format of the records
  dataset_info.json                                written last, marks the data set as finished

A record holds `id`, `label` (-1 if unknown), `num_frames` and `frames`. RGB: one JPEG per frame; an
image is a clip of one frame. Optical flow: two grey JPEGs per pair of successive frames, x then y,
quantized by `flow.quantize`; `num_frames` counts pairs.
"""

import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from jaxtyping import Int
from tensorflow_datasets.core import dataset_info

from u2s_jax.runtime import files
from u2s_jax.runtime.errors import UserError

NAME = "clips"
BLOCK_SIZE = 16  # records that are read at a time to check a shard
# Matches the RuntimeError that ArrayRecord raises for a damaged file.
DAMAGE = re.compile("(Corrupted|Invalid) Riegeli|ArrayRecord file should be")
ADVICE = "rerun the command that prepared the data set to restore it"
LABELS = "labels_{}.npy"  # of a split
PATHS = "paths_{}.json"
STATES = "states_{}.npy"
SETTINGS = "preparation.json"  # settings of the preparation and a digest of the clips
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def make_features(names: Sequence[str]) -> tfds.features.FeaturesDict:
  """Returns the features of a record; `names` are the class names in the order of the labels."""
  return tfds.features.FeaturesDict(
    {
      "id": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=names),
      "num_frames": tfds.features.Scalar(tf.int32),
      # One string tensor instead of a Sequence of Images, for which TFDS runs code per frame; a
      # reader decodes only the frames it uses.
      "frames": tfds.features.Tensor(shape=(None,), dtype=tf.string),
    }
  )


def write_shard(
  path: pathlib.Path, examples: Iterable[Mapping[str, Any]], names: Sequence[str]
) -> tuple[int, int]:
  """Writes a shard atomically; returns the number of examples and their size in bytes."""
  spec, count, size = make_features(names), 0, 0
  # One record per group, as training reads single clips at random. JPEG files do not compress.
  options = "group_size:1,uncompressed"
  with files.atomic_path(path) as temp_path:
    writer = array_record_module.ArrayRecordWriter(os.fspath(temp_path), options)
    try:
      for example in examples:
        record = spec.serialize_example(spec.encode_example(example))
        writer.write(record)
        count, size = count + 1, size + len(record)
    finally:
      writer.close()
  return count, size


def shard_path(folder: pathlib.Path, split: str, shard: int, num_shards: int) -> pathlib.Path:
  """Returns the path of a shard; `shard` counts from 0."""
  template = _make_template(folder, split)
  return pathlib.Path(template.sharded_filepath(shard_index=shard, num_shards=num_shards))


def write_metadata(
  folder: pathlib.Path,
  names: Sequence[str],
  shards: Mapping[str, Sequence[tuple[int, int]]],
  metadata: Mapping[str, Any],
  description: str,
) -> None:
  """Writes the metadata, which turns a folder of shards into a finished data set.

  `shards` are the results of `write_shard` by split, in the order of the shards. `metadata` is
  JSON-serializable and includes `modality` ('rgb' or 'flow') and `short_edge` (pixels).
  """
  infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[count for count, _ in sizes],
      num_bytes=sum(size for _, size in sizes),
      filename_template=_make_template(folder, split),
    )
    for split, sizes in shards.items()
  ]
  # Like `tfds.folder_dataset.write_metadata`, which writes in place, but into a temporary folder: a
  # data set counts as finished when dataset_info.json exists, so that file is moved last.
  info = tfds.core.DatasetInfo(
    builder=dataset_info.DatasetIdentity(
      name=NAME, version=tfds.core.Version("1.0.0"), data_dir=os.fspath(folder), module_name=""
    ),
    features=make_features(names),
    description=description,
    metadata=tfds.core.MetadataDict(metadata),
  )
  info.set_file_format("array_record")
  info.set_splits(tfds.core.splits.SplitDict(infos))
  with tempfile.TemporaryDirectory(dir=folder, prefix=".metadata-") as temp_dir:
    info.write_to_directory(temp_dir)
    last = "dataset_info.json"
    for path in sorted(pathlib.Path(temp_dir).iterdir(), key=lambda path: path.name == last):
      files.sync(path)
      os.replace(path, folder / path.name)
  files.sync(folder)


def write_labels(folder: pathlib.Path, split: str, labels: Sequence[int]) -> None:
  """Writes the labels of a split in the order of its records; reading all records is slow."""
  with files.atomic_open(folder / LABELS.format(split), "wb") as file:
    np.save(file, np.asarray(labels, np.int32))


def write_paths(folder: pathlib.Path, split: str, paths: Mapping[str, str]) -> None:
  """Writes the paths of a split's source files by clip id."""
  with files.atomic_open(folder / PATHS.format(split)) as file:
    json.dump(paths, file, indent=0)  # escaped as ASCII, since a path may not be valid Unicode


def write_states(folder: pathlib.Path, split: str, states: Sequence[Sequence[int] | None]) -> None:
  """Writes the states of a split's source files before they were decoded.

  A state is two numbers >= 0; None if the clip was skipped.
  """
  with files.atomic_open(folder / STATES.format(split), "wb") as file:
    np.save(file, np.array([state or (-1, -1) for state in states], np.int64))


def read_states(folder: pathlib.Path, split: str) -> list[tuple[int, int] | None]:
  """Reads the result of `write_states`; empty for data of an earlier version."""
  path = folder / STATES.format(split)
  rows = np.load(path).tolist() if path.exists() else []
  return [tuple(row) if row[0] >= 0 else None for row in rows]


def read_paths(folder: pathlib.Path, split: str) -> dict[str, str]:
  """Reads the result of `write_paths`; empty for data of an earlier version."""
  path = folder / PATHS.format(split)
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def parse_record(record: bytes) -> tuple[bytes, int, Sequence[bytes]]:
  """Returns a record's id, label and JPEG frames; faster than TFDS, which copies every frame."""
  fields = tf.train.Example.FromString(record).features.feature
  clip_id, label = fields["id"].bytes_list.value[0], fields["label"].int64_list.value[0]
  return clip_id, label, fields["frames"].bytes_list.value


def is_finished(folder: pathlib.Path) -> bool:
  """Returns whether a folder holds a finished data set."""
  return (folder / "dataset_info.json").is_file()


class Split:
  """One split of a prepared data set.

  Attributes:
    name: a split or a part of one, as `train[:100]`.
    records: the serialized clips, at least 1, with random access; see `parse_record`.
    shards: number of records by file.
  """

  def __init__(self, dataset: "PreparedDataset", name: str, records: Sequence[Any]):
    self.name, self.records = name, records
    info = dataset.info.splits[name.split("[")[0]]
    self.shards = dict(zip(map(pathlib.Path, info.filepaths), info.shard_lengths, strict=True))
    self.class_names, self.short_edge = dataset.class_names, dataset.short_edge
    self._labels = dataset.folder / LABELS.format(name)

  def labels(self) -> Int[np.ndarray, " n"]:
    """Returns the labels of all records.

    Raises:
      UserError: if an earlier version prepared the data, without a file of labels.
    """
    if not self._labels.exists():
      raise UserError(
        f"{self._labels}: missing, as in data of an earlier version; prepare the data set again"
      )
    return np.load(self._labels)


def find_corrupt_shard(shards: Mapping[pathlib.Path, int], advice: str = ADVICE) -> str | None:
  """Returns a message about the first missing or damaged shard, or None.

  `shards` holds the number of records by file; `advice` says how to restore them.

  Raises:
    RuntimeError: if a shard cannot be read for another reason.
  """
  for path, count in shards.items():
    if not path.exists():
      return f"{path}: missing; {advice}"
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    num_records = reader.num_records()
    reason = None if num_records == count else f"{num_records} of {count} records"
    try:
      for first in range(0, num_records, BLOCK_SIZE):
        reader.read(list(range(first, min(first + BLOCK_SIZE, num_records))))
    except RuntimeError as error:
      if not DAMAGE.search(str(error)):
        raise
      reason = " ".join(str(error).split())[:200]
    if reason:
      return f"{path}: damaged ({reason}); delete it, then {advice}"
  return None


class PreparedDataset:
  """A prepared data set, whose splits are opened once each and stay open.

  A reader keeps every shard of its split open, and TensorFlow never releases the source of a
  stream: with one reader per stream the number of open files would grow with every evaluation.

  Its `info` is TFDS's; `info.metadata` is the argument of `write_metadata`.
  """

  def __init__(self, folder: pathlib.Path, builder: tfds.core.DatasetBuilder):
    self.folder, self.info = folder, builder.info
    self.class_names = tuple(builder.info.features["label"].names)
    self.modality = builder.info.metadata["modality"]
    self.short_edge = builder.info.metadata["short_edge"]
    self._builder = builder
    self._splits: dict[str, Split] = {}

  def split(self, name: str) -> Split:
    """Returns a split or a part of one, as `train[:100]`.

    Raises:
      UserError: if the split does not exist or is empty.
    """
    if name not in self._splits:
      splits = self.info.splits
      if name.split("[")[0] not in splits:
        raise UserError(f"split {name!r}: not in {self.folder}, which has {', '.join(splits)}")
      if not splits[name].num_examples:
        raise UserError(f"split {name!r} is empty in {self.folder}")
      raw = tfds.decode.DeserializeMethod.RAW_BYTES
      records = self._builder.as_data_source(name, deserialize_method=raw)
      self._splits[name] = Split(self, name, records)
    return self._splits[name]

  def paths(self, split: str) -> dict[str, str]:
    """Returns the paths of the source files by clip id; empty if unknown."""
    return read_paths(self.folder, split)

  def class_sizes(self) -> tuple[int, ...]:
    """Returns the number of training clips of each class; empty for data of an earlier version."""
    try:
      labels = self.split("train").labels()
    except UserError:
      return ()
    return tuple(np.bincount(labels, minlength=len(self.class_names)).tolist())

  def storage_settings(self) -> dict[str, Any]:
    """Returns how frames were resized and encoded, JSON-serializable."""
    metadata = self.info.metadata
    fields = {name: metadata.get(name) for name in ("short_edge", "jpeg_quality", "flow_algorithm")}
    # Left out, as by earlier versions, so that the digests of their data stay the same.
    return fields | ({"crop": metadata["crop"]} if metadata.get("crop") else {})


def open_dataset(folder: str | os.PathLike[str]) -> PreparedDataset:
  """Opens a data set written by `data.prepare`.

  Raises:
    FileNotFoundError: if there is none, or it is not finished; one line.
    UserError: if another tool wrote the data set; one line.
  """
  folder = pathlib.Path(folder)
  if not is_finished(folder):
    problem = "is not a folder" if not folder.is_dir() else "holds no finished data set"
    raise FileNotFoundError(
      f"{folder}: {problem}; run `python -m data.prepare --dataset=... --source=... --out={folder}`"
    )
  builder = tfds.builder_from_directory(folder)
  features, metadata = builder.info.features, builder.info.metadata
  if set(features) != set(make_features(["a"])) or "modality" not in metadata:
    raise UserError(
      f"{folder}: was not written by `python -m data.prepare`; prepare it with this command"
    )
  return PreparedDataset(folder, builder)


def _make_template(folder: pathlib.Path, split: str) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    data_dir=folder,
    dataset_name=NAME,
    split=split,
    filetype_suffix="array_record",
    template=TEMPLATE,
  )
