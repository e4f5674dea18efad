"""Stanford Cars and Stanford Dogs, from TFDS or from class folders.

<source>/cars196/2.1.0/..., <source>/stanford_dogs/0.2.0/...   a `data_dir` of TFDS
<source>/<class>/... or another layout of `folders.list_images`     otherwise
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import folders
from u2s_jax.video.listing import Clip, Listing, check_listing

ID_FEATURES = {"cars196": "id", "stanford_dogs": "image/filename"}
NUM_CLASSES = {"cars196": 196, "stanford_dogs": 120}
OFFICIAL = {
  "cars196": {"train": 8144, "validation": 8041},
  "stanford_dogs": {"train": 12_000, "validation": 8580},
}


def list_clips(source: pathlib.Path, name: str) -> Listing:
  """Lists the images of 'cars196' or 'stanford_dogs'; `validation` is the official test split.

  Images of TFDS stay in its records and are loaded one by one.

  Raises:
    FileNotFoundError: if `source` is missing or TFDS has not prepared the data set; one line.
    UserError: if the data set cannot be read; one line that names it.
  """
  is_tfds = (source / name).exists()
  result = _list_tfds(source, name) if is_tfds else folders.list_images(source)
  notes = list(result.notes)
  if len(result.names) != NUM_CLASSES[name]:
    notes.append(f"{source} has {len(result.names)} classes; {name} has {NUM_CLASSES[name]}")
  result = dataclasses.replace(result, official=OFFICIAL[name], notes=notes)
  check_listing(result, str(source))
  return result


def _list_tfds(source: pathlib.Path, name: str) -> Listing:
  infos = (source / name).glob("*/dataset_info.json")
  versions = [info.parent for info in infos if tfds.core.Version.is_valid(info.parent.name)]
  if not versions:
    if name == "cars196":  # building it fails
      advice = "its download links are dead, so copy the folder from where it was prepared"
    else:
      # Not `tfds build`, which requires apache_beam for any data set (as of TFDS 4.9.10).
      advice = (
        'run `pip install importlib_resources scipy` and `python -c "import tensorflow_datasets as '
        f"tfds; tfds.builder({name!r}, data_dir={str(source)!r})"
        '.download_and_prepare()"`'
      )
    raise FileNotFoundError(
      f"{source / name}: TFDS has not prepared it; {advice}, or move it away and put class folders "
      f"with the images into {source}"
    )
  folder = max(versions, key=lambda version: tfds.core.Version(version.name))
  builder = tfds.builder_from_directory(folder)
  features = builder.info.features
  if not {"image", "label", ID_FEATURES[name]} <= set(features):
    raise UserError(
      f"{folder}: has no feature {ID_FEATURES[name]!r}; it is an old version, or not {name}"
    )
  if not {"train", "test"} <= set(builder.info.splits):
    raise UserError(f"{folder}: has no train and test split; prepare it again")
  splits = {}
  for split, tfds_split in (("train", "train"), ("validation", "test")):
    splits[split] = []
    for read in _make_readers(builder, tfds_split):
      example = _parse_example(builder, read)
      # The ids of Stanford Cars start from 1 in both splits, so the split is part of the id.
      clip_id = f"{tfds_split}/{example[ID_FEATURES[name]].decode()}"
      load = functools.partial(lambda read: _parse_example(builder, read)["image"], read)
      splits[split].append(Clip(clip_id, int(example["label"]), f"{folder}: {clip_id}", load))
  return Listing(names=features["label"].names, splits=splits, images=True)


def _make_readers(builder: tfds.core.DatasetBuilder, split: str) -> list[Callable[[], bytes]]:
  """Returns a function for each record of a split that reads it."""
  if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    source = builder.as_data_source(split, deserialize_method=raw)
    return [functools.partial(source.__getitem__, i) for i in range(len(source))]
  if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
    raise UserError(
      f"{builder.data_dir}: is stored as {builder.info.file_format.value}; prepare it with "
      "file_format='array_record' or 'tfrecord'"
    )
  # TFDS reads TFRecord sequentially only, so the records' offsets are collected here. A record is 8
  # bytes of length, 4 of the length's checksum, the content, and 4 of the content's checksum.
  readers = []
  for path in builder.info.splits[split].filepaths:
    with open(path, "rb") as file:
      while header := file.read(12):
        length = int.from_bytes(header[:8], "little")
        readers.append(functools.partial(_read_bytes, path, file.tell(), length))
        file.seek(length + 4, os.SEEK_CUR)
  return readers


def _read_bytes(path: str | os.PathLike[str], offset: int, length: int) -> bytes:
  with open(path, "rb") as file:
    file.seek(offset)
    return file.read(length)


def _parse_example(builder: tfds.core.DatasetBuilder, read: Callable[[], bytes]) -> dict[str, Any]:
  """Returns the example of a record, with the encoded image file instead of pixels."""
  return builder.info.features.deserialize_example_np(
    read(), decoders={"image": tfds.decode.SkipDecoding()}
  )
