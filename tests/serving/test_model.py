"""The Python API: what can be scored, and the accuracy of labelled clips."""

import numpy as np
import pytest
from PIL import Image

from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import UserError
from u2s_jax.serving import predict
from u2s_jax.serving.model import Model


@pytest.fixture(scope="module")
def model(finished):
  return Model(predict.load(Workdir.open(finished[0])))


def frames_of(channel, count=5, size=(40, 48)):
  frames = np.random.default_rng(channel).integers(0, 100, (count, *size, 3)).astype(np.uint8)
  frames[..., channel] += 100
  return frames


def test_array_is_scored_as_a_folder_of_its_frames(model, tmp_path):
  frames = frames_of(1)
  for k, frame in enumerate(frames):
    Image.fromarray(frame).save(tmp_path / f"{k}.png")
  for name, scores in model.predict(frames).scores.items():
    np.testing.assert_array_equal(scores, model.predict(tmp_path).scores[name])


def test_list_has_a_prediction_for_each_clip(model, tmp_path, write_video):
  path = write_video(tmp_path / "a.webm", [*frames_of(0)])
  one, two = model.predict([path, frames_of(2)])
  np.testing.assert_array_equal(one.merged, model.predict(path).merged)
  np.testing.assert_array_equal(two.merged, model.predict(frames_of(2)).merged)
  assert model.predict([]) == []
  with pytest.raises(OSError, match="missing"):
    model.predict([path, tmp_path / "missing.mp4"])


def test_region_of_an_array(model):
  frames = np.concatenate([frames_of(0), frames_of(2)], axis=2)
  left = Model(model.trained, crop="0,0,0.5,1").predict(frames)
  np.testing.assert_array_equal(left.merged, model.predict(frames_of(0)).merged)


def test_evaluates_labelled_clips(model):
  videos = [frames_of(k % 3, count=4 + k) for k in range(6)]
  guesses = [model.predict(video).label for video in videos]
  names = model.class_names
  labels = [*guesses[:4], *(names[names.index(g) - 1] for g in guesses[4:])]  # two are wrong
  batches = [
    (videos[:3], labels[:3], ["0", "1", "2"]),
    (videos[3:], [names.index(label) for label in labels[3:]], ["3", "4", "5"]),
  ]
  result = model.evaluate(batches)
  assert result["clips"] == 6 and result["top1"] == pytest.approx(400 / 6)
  assert result["low"] < result["top1"] < result["high"]
  assert [*result["predictions"]] == list("012345")
  assert result["predictions"]["5"].label == guesses[5]
  with pytest.raises(UserError, match="b: 'x' is not one of the run's classes"):
    model.evaluate([(videos[:2], [names[0], "x"], ["a", "b"])])
  with pytest.raises(UserError, match="a: occurs twice"):
    model.evaluate([(videos[:2], [names[0], names[0]], ["a", "a"])])
  with pytest.raises(UserError, match="no clips"):
    model.evaluate([])


def test_repr_says_what_the_model_is(model):
  assert repr(model) == (
    "<u2s_jax model: preact_resnet, U2S; 3 classes; 2 frames of 32 pixels; views center>"
  )


@pytest.mark.parametrize(
  "frames",
  [
    np.zeros((2, 40, 40, 3), np.float32),
    np.zeros((40, 40, 3), np.uint8),
    np.zeros((2, 40, 40, 1), np.uint8),
    np.zeros((0, 40, 40, 3), np.uint8),
  ],
)
def test_rejects_other_arrays(model, frames):
  with pytest.raises(UserError, match=r"must be uint8 \(t, h, w, 3\), RGB"):
    model.predict(frames)
