"""Prepared data sets on disk: ArrayRecord shards of JPEG frames that TFDS opens.

  clips-<split>.array_record-<shard>-of-<shards>   appear one by one, each complete
  features.json, metadata.json, label.labels.txt   how to read them
  dataset_info.json                                last: without it nothing opens

A record holds `id`, `label` (-1 where unknown), `num_frames` and `frames`. RGB: one JPEG a frame;
an image is a clip of one frame. Optical flow: two grey JPEGs for each pair of neighbouring frames,
first x, then y, as `flow.quantize` codes them; `num_frames` counts pairs.
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

from u2s_jax import files
from u2s_jax.errors import UserError

NAME = "clips"
BLOCK = 16  # records that are read at once to see whether they are whole
# What ArrayRecord says of a damaged file, in a RuntimeError.
DAMAGE = re.compile("(Corrupted|Invalid) Riegeli|ArrayRecord file should be")
LABELS = "labels_{}.npy"  # by split
PATHS = "paths_{}.json"
STATES = "states_{}.npy"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


def features(names: Sequence[str]) -> tfds.features.FeaturesDict:
  """Returns what a record holds.

  Args:
    names: class names in the order of the labels.
  """
  return tfds.features.FeaturesDict(
    {
      "id": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=names),
      "num_frames": tfds.features.Scalar(tf.int32),
      # One tensor of strings, not a Sequence of Images: TFDS then runs no code for single frames,
      # and a reader decodes only those it uses.
      "frames": tfds.features.Tensor(shape=(None,), dtype=tf.string),
    }
  )


def write_shard(
  folder: pathlib.Path,
  split: str,
  shard: int,
  num_shards: int,
  examples: Iterable[Mapping[str, Any]],
  names: Sequence[str],
) -> tuple[int, int]:
  """Writes one shard; the file appears complete or not at all.

  Args:
    folder: of the data set.
    split: the split's name.
    shard: from 0.
    num_shards: of this split.
    examples: `id`, `label`, `num_frames`, `frames`.
    names: class names.

  Returns:
    How many examples there were, and their size in bytes.
  """
  spec, count, size = features(names), 0, 0
  # Groups of one record: training reads single clips at random. JPEG does not compress any further.
  options = "group_size:1,uncompressed"
  with files.whole_path(shard_path(folder, split, shard, num_shards)) as partial:
    writer = array_record_module.ArrayRecordWriter(os.fspath(partial), options)
    try:
      for example in examples:
        record = spec.serialize_example(spec.encode_example(example))
        writer.write(record)
        count, size = count + 1, size + len(record)
    finally:
      writer.close()
  return count, size


def shard_path(folder: pathlib.Path, split: str, shard: int, num_shards: int) -> pathlib.Path:
  """Returns where a shard lies.

  Args:
    folder: of the data set.
    split: the split's name.
    shard: from 0.
    num_shards: of this split.
  """
  template = _template(folder, split)
  return pathlib.Path(template.sharded_filepath(shard_index=shard, num_shards=num_shards))


def finish(
  folder: pathlib.Path,
  names: Sequence[str],
  shards: Mapping[str, Sequence[tuple[int, int]]],
  metadata: Mapping[str, Any],
  description: str,
) -> None:
  """Writes what makes the shards a data set.

  Args:
    folder: holds all shards.
    names: class names.
    shards: for each split what `write_shard` returned, in the order of the shards.
    metadata: `modality` ('rgb' or 'flow') and `short_edge` (pixels) at least; of JSON's types.
    description: one line.
  """
  infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[count for count, _ in written],
      num_bytes=sum(size for _, size in written),
      filename_template=_template(folder, split),
    )
    for split, written in shards.items()
  ]
  # What `tfds.folder_dataset.write_metadata` does, but into a folder of its own: there it needs the
  # shards beside it, here the last file has to appear at once and last.
  info = tfds.core.DatasetInfo(
    builder=dataset_info.DatasetIdentity(
      name=NAME, version=tfds.core.Version("1.0.0"), data_dir=os.fspath(folder), module_name=""
    ),
    features=features(names),
    description=description,
    metadata=tfds.core.MetadataDict(metadata),
  )
  info.set_file_format("array_record")
  info.set_splits(tfds.core.splits.SplitDict(infos))
  with tempfile.TemporaryDirectory(dir=folder, prefix=".metadata-") as partial:
    info.write_to_directory(partial)
    last = "dataset_info.json"
    for path in sorted(pathlib.Path(partial).iterdir(), key=lambda path: path.name == last):
      files.sync(path)
      os.replace(path, folder / path.name)
  files.sync(folder)


def write_labels(folder: pathlib.Path, split: str, labels: Sequence[int]) -> None:
  """Writes the labels of a split in the order of its records, which alone are too slow to read."""
  with files.whole_file(folder / LABELS.format(split), "wb") as file:
    np.save(file, np.asarray(labels, np.int32))


def write_paths(folder: pathlib.Path, split: str, paths: Mapping[str, str]) -> None:
  """Writes where the files of a split lay when it was prepared, by the clips' ids."""
  with files.whole_file(folder / PATHS.format(split)) as file:
    json.dump(paths, file, indent=0)  # in ASCII: a path may be no Unicode


def write_states(folder: pathlib.Path, split: str, states: Sequence[Sequence[int] | None]) -> None:
  """Writes what the files of a split were like before they were decoded.

  Args:
    folder: of the data set.
    split: the split's name.
    states: two numbers, at least 0, for each clip that the split was to have; None where it is not
      in the data.
  """
  with files.whole_file(folder / STATES.format(split), "wb") as file:
    np.save(file, np.array([state or (-1, -1) for state in states], np.int64))


def read_states(folder: pathlib.Path, split: str) -> list[tuple[int, int] | None]:
  """Reads what `write_states` wrote; empty for data of an earlier version."""
  path = folder / STATES.format(split)
  rows = np.load(path).tolist() if path.exists() else []
  return [tuple(row) if row[0] >= 0 else None for row in rows]


def read_paths(folder: pathlib.Path, split: str) -> dict[str, str]:
  """Reads what `write_paths` wrote; empty for data of an earlier version."""
  path = folder / PATHS.format(split)
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def parse(record: bytes) -> tuple[bytes, int, Sequence[bytes]]:
  """Takes a record apart; faster than TFDS, which copies every frame.

  Args:
    record: as an ArrayRecord file holds it, a serialized `tf.train.Example`.

  Returns:
    id, label, JPEG frames.
  """
  fields = tf.train.Example.FromString(record).features.feature
  return (
    fields["id"].bytes_list.value[0],
    fields["label"].int64_list.value[0],
    fields["frames"].bytes_list.value,
  )


def is_finished(folder: pathlib.Path) -> bool:
  """Tells whether `finish` came to its end there."""
  return (folder / "dataset_info.json").is_file()


class Split:
  """One split of a prepared data set.

  Attributes:
    name: the split's, or of a part of one as `train[:100]`.
    records: the serialized clips, to be read at random and taken apart by `parse`; at least 1.
    shards: their files, and how many records each has.
    class_names: in the order of the labels.
    modality: 'rgb' or 'flow'.
    short_edge: of the stored frames, pixels.
  """

  def __init__(self, dataset: "PreparedDataset", name: str, records: Sequence[Any]):
    self.name, self.records = name, records
    whole = dataset.info.splits[name.split("[")[0]]
    self.shards = dict(zip(map(pathlib.Path, whole.filepaths), whole.shard_lengths, strict=True))
    self.class_names, self.modality = dataset.class_names, dataset.modality
    self.short_edge = dataset.short_edge
    self._labels = dataset.folder / LABELS.format(name)

  def labels(self) -> Int[np.ndarray, " n"]:
    """Returns the labels of all records.

    Raises:
      UserError: they were not kept apart, by an earlier version.
    """
    if not self._labels.exists():
      raise UserError(
        f"{self._labels}: missing, an earlier version prepared the data; prepare anew"
      )
    return np.load(self._labels)


def damage(shards: Mapping[pathlib.Path, int]) -> str | None:
  """Returns a line on the first shard that is missing or damaged, None where none is.

  Args:
    shards: their files, and how many records each has.

  Raises:
    Exception: a shard cannot be read for another reason.
  """
  anew = "the command that prepared the data set makes it anew"
  for path, count in shards.items():
    if not path.exists():
      return f"{path}: missing; {anew}"
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    found = reader.num_records()
    reason = None if found == count else f"{found} of {count} records"
    try:
      for first in range(0, found, BLOCK):
        reader.read(list(range(first, min(first + BLOCK, found))))
    except RuntimeError as error:
      if not DAMAGE.search(str(error)):
        raise
      reason = " ".join(str(error).split())[:200]
    if reason:
      return f"{path}: damaged ({reason}); delete it, and {anew}"
  return None


class PreparedDataset:
  """A prepared data set whose splits are opened once each and stay open.

  A reader holds every shard of its split open, and TensorFlow keeps alive what a stream reads from:
  with a reader for each stream, open files would grow with every evaluation.

  Attributes:
    folder: where it lies.
    info: of TFDS; `metadata` is what `finish` was given.
    class_names: in the order of the labels.
    modality: 'rgb' or 'flow'.
    short_edge: of the stored frames, pixels.
  """

  def __init__(self, folder: pathlib.Path, builder: tfds.core.DatasetBuilder):
    self.folder, self.info = folder, builder.info
    self.class_names = tuple(builder.info.features["label"].names)
    self.modality = builder.info.metadata["modality"]
    self.short_edge = builder.info.metadata["short_edge"]
    self._builder = builder
    self._splits: dict[str, Split] = {}

  def split(self, name: str) -> Split:
    """Returns a split, or a part of one as `train[:100]`.

    Raises:
      UserError: there is no such split, or it is empty.
    """
    if name not in self._splits:
      splits = self.info.splits
      if name.split("[")[0] not in splits:
        raise UserError(f"split {name!r} is not in {self.folder}, which has {', '.join(splits)}")
      if not splits[name].num_examples:
        raise UserError(f"split {name!r} of {self.folder} is empty")
      raw = tfds.decode.DeserializeMethod.RAW_BYTES
      records = self._builder.as_data_source(name, deserialize_method=raw)
      self._splits[name] = Split(self, name, records)
    return self._splits[name]

  def paths(self, split: str) -> dict[str, str]:
    """Returns where files lay when they were prepared, by the clips' ids; of some data none."""
    return read_paths(self.folder, split)

  def class_sizes(self) -> tuple[int, ...]:
    """Returns how many training clips each class has; empty for data of an earlier version."""
    try:
      labels = self.split("train").labels()
    except UserError:
      return ()
    return tuple(np.bincount(labels, minlength=len(self.class_names)).tolist())

  def how_stored(self) -> dict[str, Any]:
    """Returns what became of the frames when the data set was prepared, in JSON's types."""
    fields = ("short_edge", "jpeg_quality", "flow_algorithm")
    return {field: self.info.metadata.get(field) for field in fields}


def open_dataset(folder: str | os.PathLike[str]) -> PreparedDataset:
  """Opens a prepared data set.

  Args:
    folder: as `data.prepare` wrote it.

  Raises:
    FileNotFoundError: there is none, or none that is finished; one line.
    UserError: a data set, but none that `data.prepare` wrote; one line.
  """
  folder = pathlib.Path(folder)
  if not is_finished(folder):
    what = "is not a folder" if not folder.is_dir() else "holds no finished data set"
    raise FileNotFoundError(
      f"{folder} {what}: run `python -m data.prepare --dataset=... --source=... --out={folder}`"
    )
  builder = tfds.builder_from_directory(folder)
  if set(builder.info.features) != set(features(["a"])) or "modality" not in builder.info.metadata:
    raise UserError(f"{folder} is a data set, but none that `python -m data.prepare` wrote")
  return PreparedDataset(folder, builder)


def _template(folder: pathlib.Path, split: str) -> tfds.core.ShardedFileTemplate:
  return tfds.core.ShardedFileTemplate(
    data_dir=folder,
    dataset_name=NAME,
    split=split,
    filetype_suffix="array_record",
    template=TEMPLATE,
  )
