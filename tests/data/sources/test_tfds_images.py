"""Stanford Cars and Dogs from small data sets that TFDS prepared, and from class folders."""

import io
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data.sources import tfds_images
from u2s_jax.runtime.errors import UserError


def _jpeg(value):
  file = io.BytesIO()
  Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(file, "JPEG")
  return file.getvalue()


class Cars196(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """As the real one, but for the images and two classes."""

  VERSION = tfds.core.Version("2.1.0")
  code_path = None  # else TFDS looks for checksums beside the code

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(),
          "label": tfds.features.ClassLabel(names=["AM General Hummer SUV 2000", "Acura RL"]),
          "bbox": tfds.features.BBoxFeature(),
          "id": tfds.features.Text(),
        }
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(3), "test": self._generate_examples(2)}

  def _generate_examples(self, count):
    for i in range(count):
      # The real ids are unique in their split only.
      yield (
        f"{i:05}",
        {
          "image": io.BytesIO(_jpeg(50 * i + count)),
          "label": i % 2,
          "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
          "id": f"{i:05}",
        },
      )


class StanfordDogs(Cars196, skip_registration=True):
  """As the real one, but for the images and two classes."""

  VERSION = tfds.core.Version("0.2.0")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(),
          "image/filename": tfds.features.Text(),
          "label": tfds.features.ClassLabel(names=["n02085620-chihuahua", "n02116738-dhole"]),
          "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
        }
      ),
    )

  def _generate_examples(self, count):
    for i in range(count):
      name = f"Images/n02085620-Chihuahua/n02085620_{count}{i}.jpg"
      yield (
        name,
        {
          "image": io.BytesIO(_jpeg(50 * i + count)),
          "image/filename": name,
          "label": i % 2,
          "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0)}] * (i + 1),
        },
      )


def _prepare(builder_class, folder, file_format="array_record"):
  builder = builder_class(data_dir=folder, file_format=file_format)
  tfds.disable_progress_bar()
  builder.download_and_prepare()
  return folder


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def cars(request, tmp_path_factory):
  return _prepare(Cars196, tmp_path_factory.mktemp("cars"), request.param)


def test_cars(cars):
  found = tfds_images.list_clips(cars, "cars196")
  assert found.images and found.official == {"train": 8144, "validation": 8041}
  assert list(found.names) == ["AM General Hummer SUV 2000", "Acura RL"]
  train, validation = found.splits["train"], found.splits["validation"]
  assert {(clip.id, clip.label) for clip in train} == {
    ("train/00000", 0),
    ("train/00001", 1),
    ("train/00002", 0),
  }
  assert {clip.id for clip in validation} == {"test/00000", "test/00001"}
  for clips, count in ((train, 3), (validation, 2)):
    for clip in clips:
      # The original file, not encoded again.
      assert clip.load() == _jpeg(50 * int(clip.id[-1]) + count)
      assert clip.id in clip.path and str(cars) in clip.path
  assert found.notes == [f"{cars} has 2 classes; cars196 has 196"]


def test_dogs(tmp_path):
  found = tfds_images.list_clips(_prepare(StanfordDogs, tmp_path), "stanford_dogs")
  assert found.official == {"train": 12_000, "validation": 8580}
  by_id = {clip.id: clip for clip in found.splits["train"]}
  clip = by_id["train/Images/n02085620-Chihuahua/n02085620_31.jpg"]
  assert clip.label == 1 and clip.load() == _jpeg(53)
  assert len(by_id) == 3 and len(found.splits["validation"]) == 2


def test_images_are_not_decoded(tmp_path, monkeypatch):
  monkeypatch.setattr(f"{__name__}._jpeg", lambda value: b"no image")
  found = tfds_images.list_clips(_prepare(Cars196, tmp_path), "cars196")
  assert found.splits["train"][0].load() == b"no image"


def _fails(source, name, kind, *parts):
  with pytest.raises(kind) as caught:
    tfds_images.list_clips(source, name)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_unsupported_file_format_is_an_error(tmp_path, cars):
  shutil.copytree(cars, tmp_path, dirs_exist_ok=True)
  info = tmp_path / "cars196/2.1.0/dataset_info.json"
  info.write_text(re.sub("array_record|tfrecord", "riegeli", info.read_text()))
  _fails(tmp_path, "cars196", UserError, "riegeli", "'array_record' or 'tfrecord'")


def test_unprepared_data_set_is_an_error(tmp_path):
  (tmp_path / "cars196/2.1.0").mkdir(parents=True)
  (tmp_path / "stanford_dogs/incomplete.0.2.0").mkdir(parents=True)
  (tmp_path / "stanford_dogs/incomplete.0.2.0/dataset_info.json").touch()
  _fails(tmp_path, "cars196", FileNotFoundError, "cars196", "links are dead", "class folders")
  _fails(tmp_path, "stanford_dogs", FileNotFoundError, "download_and_prepare()")


def test_other_data_set_of_that_name_is_an_error(tmp_path, cars):
  (tmp_path / "stanford_dogs").symlink_to(cars / "cars196")
  _fails(tmp_path, "stanford_dogs", UserError, "'image/filename'", "not stanford_dogs")


def test_class_folders(tmp_path):
  for path in ("train/a/1.jpg", "train/b/2.jpg", "test/a/3.JPG"):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).touch()
  found = tfds_images.list_clips(tmp_path, "stanford_dogs")
  assert found.images and found.official == {"train": 12_000, "validation": 8580}
  assert [clip.id for clip in found.splits["validation"]] == ["test/a/3.JPG"]
  assert len(found.notes) == 2  # test used as validation, and the number of classes
  assert found.notes[-1].endswith("has 2 classes; stanford_dogs has 120")
  _fails(tmp_path / "nowhere", "cars196", FileNotFoundError, "nowhere")
