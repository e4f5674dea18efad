"""A run of the tests' config on batches made in memory, without TensorFlow or data files."""

import contextlib
import dataclasses
import pathlib

import jax
import numpy as np

from tests import config as tests_config
from u2s_jax.evaluation import evaluate
from u2s_jax.run import settings, validation
from u2s_jax.run.run import Source, open_run
from u2s_jax.run.workdir import Workdir
from u2s_jax.training import steps
from u2s_jax.training import train as training

CLASSES, TRAIN, VALIDATION = 3, 24, 12
CLASS_NAMES = tuple(f"class {i}" for i in range(CLASSES))
NAME = "tests/config.py"


def make_config(**fields):
  """Returns the tests' config for these clips, with overrides by dotted name."""
  config = tests_config.get_config()
  config.batch_size = config.eval.batch_size = 8
  config.data.num_frames, config.data.crop_size = 2, 32
  config.data.flip_label_map = ()
  config.csm.target_accuracy = 0.6
  config.eval.pairs = 0
  with config.ignore_type():
    config.update_from_flattened_dict(fields)
  return config


def clips(split, numbers, channels=3):
  """Returns noisy clips of class `number % CLASSES`, whose colour shows the class."""
  labels = np.asarray(numbers, np.int32) % CLASSES
  video = np.stack(
    [
      np.random.default_rng((split == "train", int(n))).integers(
        0, 100, (2, 32, 32, channels), np.uint8
      )
      for n in numbers
    ]
  )
  video[np.arange(len(labels)), ..., labels] += 100
  return {"video": video, "label": labels}


@dataclasses.dataclass
class MemorySource:
  """A source of batches for one host that records which streams were started.

  Attributes:
    channels: channels of the frames.
    unknown: clips of the split `test` without a label.
    class_names: class names in the order of the labels.
    started: stage and first step of each training stream.
    digest: digest of the data set.
    ids: prefix of the clip ids.
  """

  channels: int = 3
  unknown: tuple[int, ...] = ()
  class_names: tuple[str, ...] = CLASS_NAMES
  started: list = dataclasses.field(default_factory=list)
  digest: str = ""
  ids: str = ""

  def train_batches(self, stage, first_step):
    self.started.append((stage, first_step))
    step = first_step
    while True:
      numbers = np.random.default_rng((stage, step)).integers(0, TRAIN, 8)
      yield clips("train", numbers, self.channels) | {"valid": np.ones(8, bool)}
      step += 1

  def eval_batches(self, split, views):
    assert views == "center"
    count = TRAIN if split == "train" else VALIDATION
    for start in range(0, count, 8):
      numbers = np.minimum(np.arange(start, start + 8), count - 1)
      batch = clips(split, numbers, self.channels)
      batch["video"] = batch["video"][:, None]
      if split == "test":
        batch["label"][np.isin(numbers, self.unknown)] = -1
      yield batch | {
        "valid": np.arange(start, start + 8) < count,
        "id": np.array([f"{self.ids}{n}".encode() for n in numbers], object),
      }

  def source(self):
    return Source(
      self.class_names, TRAIN, self.channels, self.train_batches, self.eval_batches, stored={},
      class_sizes=(9, 9, 6), paths=lambda split: {str(n): f"/videos/{n}" for n in range(TRAIN)},
      digest=self.digest,
    )  # fmt: skip


class MemoryWriter:
  """A metric writer that keeps scalars and images in memory."""

  def __init__(self):
    self.scalars, self.images = {}, {}

  def write_scalars(self, step, scalars):
    self.scalars.setdefault(step, {}).update(scalars)

  def write_images(self, step, images):
    self.images.setdefault(step, {}).update(images)


def train(config, folder: pathlib.Path, source=None, writer=None):
  """Checks a config and trains a run as `main.py` does."""
  source, writer = source or MemorySource(), writer or MemoryWriter()
  validation.check(config, Workdir(folder))
  training.train(config, Workdir(folder), source.source(), writer, NAME)


def open_memory_run(config, folder: pathlib.Path, source=None):
  """Opens a run; the caller must close its checkpoints."""
  source = (source or MemorySource()).source()
  return open_run(config, Workdir(folder), source, NAME, steps.sgd(**config.optimizer))


def evaluate_latest(config, folder: pathlib.Path, source=None):
  """Evaluates the newest checkpoint of a run."""
  validation.check(config, Workdir(folder), settings.EVALUATION_FIELDS)
  source, tx = (source or MemorySource()).source(), steps.sgd(**config.optimizer)
  evaluate.evaluate_latest(config, Workdir(folder), source, NAME, tx)


def restore_state(config, folder: pathlib.Path, source=None, stage=None, step=None):
  """Returns state and record of a checkpoint, by default the newest."""
  run = open_memory_run(config, folder, source)
  with contextlib.closing(run.checkpoints):
    latest = (stage, step) if stage else run.latest()
    state, record = run.restore(*latest)
  return jax.device_get(state), record
