"""Stanford Cars and Stanford Dogs, from TFDS or from class folders.

<source>/cars196/2.1.0/..., <source>/stanford_dogs/0.2.0/...   a `data_dir` of TFDS
<source>/<class>/... and what else `folders.images` reads      where there is no such folder
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from data.sources import folders
from data.sources.listing import Clip, Listing, check
from u2s_jax.errors import UserError

ID_FEATURES = {"cars196": "id", "stanford_dogs": "image/filename"}
NUM_CLASSES = {"cars196": 196, "stanford_dogs": 120}
OFFICIAL = {
  "cars196": {"train": 8144, "validation": 8041},
  "stanford_dogs": {"train": 12_000, "validation": 8580},
}


def listing(source: pathlib.Path, name: str) -> Listing:
  """Lists one of the two data sets.

  Args:
    source: see the module's docstring.
    name: 'cars196' or 'stanford_dogs'.

  Returns:
    The images; `validation` is the owner's test list. From TFDS, their files stay in its records
    and are read one by one when they are asked for.

  Raises:
    FileNotFoundError: `source` is missing, or TFDS has not prepared the data set there; one line.
    UserError: the data set cannot be read; one line, names it.
  """
  if (source / name).exists():
    result = _from_tfds(source, name)
  else:
    result = folders.images(source)
  notes = list(result.notes)
  if len(result.names) != NUM_CLASSES[name]:
    notes.append(f"{source} has {len(result.names)} classes; {name} has {NUM_CLASSES[name]}")
  result = dataclasses.replace(result, official=OFFICIAL[name], notes=notes)
  check(result, str(source))
  return result


def _from_tfds(source: pathlib.Path, name: str) -> Listing:
  infos = (source / name).glob("*/dataset_info.json")
  versions = [info.parent for info in infos if tfds.core.Version.is_valid(info.parent.name)]
  if not versions:
    if name == "cars196":  # Advice to build it would lead nowhere.
      advice = "its download links are dead, so copy the folder from where it was prepared"
    else:
      # Not `tfds build`: that needs apache_beam, whatever the data set (seen in TFDS 4.9.10).
      advice = (
        'run `pip install importlib_resources scipy` and `python -c "import tensorflow_datasets as '
        f"tfds; tfds.builder({name!r}, data_dir={str(source)!r})"
        '.download_and_prepare()"`'
      )
    raise FileNotFoundError(
      f"{source / name}: TFDS has not prepared it: {advice}, or move it away and put class folders "
      f"with the images into {source}"
    )
  folder = max(versions, key=lambda version: tfds.core.Version(version.name))
  builder = tfds.builder_from_directory(folder)
  features = builder.info.features
  if not {"image", "label", ID_FEATURES[name]} <= set(features):
    raise UserError(
      f"{folder} has no feature {ID_FEATURES[name]!r}: it is too old a version, or no {name}"
    )
  if not {"train", "test"} <= set(builder.info.splits):
    raise UserError(f"{folder} has no train and test split: prepare it again")
  splits = {}
  for split, tfds_split in (("train", "train"), ("validation", "test")):
    splits[split] = []
    for read in _readers(builder, tfds_split):
      example = _example(builder, read)
      # The ids of the cars start from 1 in both splits.
      clip_id = f"{tfds_split}/{example[ID_FEATURES[name]].decode()}"
      load = functools.partial(_image, builder, read)
      splits[split].append(Clip(clip_id, int(example["label"]), f"{folder}: {clip_id}", load))
  return Listing(names=features["label"].names, splits=splits, images=True)


def _readers(builder: tfds.core.DatasetBuilder, split: str) -> list[Callable[[], bytes]]:
  """A function for each record of a split that reads it."""
  if builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
    source = builder.as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    return [functools.partial(source.__getitem__, i) for i in range(len(source))]
  if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
    raise UserError(
      f"{builder.data_dir} is stored as {builder.info.file_format.value}: prepare it with "
      "file_format='array_record' or 'tfrecord'"
    )
  # TFDS reads TFRecord from the front only. Before the content of each record stand its length, 8
  # bytes, and the length's checksum, 4; behind it stands its own checksum, 4.
  readers = []
  for path in builder.info.splits[split].filepaths:
    with open(path, "rb") as file:
      while header := file.read(12):
        length = int.from_bytes(header[:8], "little")
        readers.append(functools.partial(_read, path, file.tell(), length))
        file.seek(length + 4, os.SEEK_CUR)
  return readers


def _read(path: str | os.PathLike[str], offset: int, length: int) -> bytes:
  with open(path, "rb") as file:
    file.seek(offset)
    return file.read(length)


def _example(builder: tfds.core.DatasetBuilder, read: Callable[[], bytes]) -> dict[str, Any]:
  """The example of a record, with the image's file in place of its pixels."""
  return builder.info.features.deserialize_example_np(
    read(), decoders={"image": tfds.decode.SkipDecoding()}
  )


def _image(builder: tfds.core.DatasetBuilder, read: Callable[[], bytes]) -> bytes:
  """The file of an image as it was when TFDS took it in."""
  return _example(builder, read)["image"]
