"""The command that data.prepare suggests."""

import shlex

import jax
import pytest

from configs import custom
from data.preparation import suggestion

FOLDER = "/data/my clips"


def commands(lines):
  return [shlex.split(line) for line in lines if "python main.py" in line]


@pytest.mark.parametrize(
  ("backend", "sizes", "starts"),
  [
    ("cpu", (20, 20), ["small", "i3d"]),
    ("cpu", (500, 900), ["small"]),
    ("gpu", (20, 20), ["i3d"]),
    ("gpu", (500, 900), ["tsm"]),
  ],
)
def test_start_follows_from_clips_and_device(monkeypatch, backend, sizes, starts):
  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  found = commands(suggestion.format_commands(FOLDER, "rgb", sizes, 40))
  assert [words[2].partition(":")[2] for words in found] == starts
  for words in found:
    assert "--config.data.dir=/data/my clips" in words  # quoted for the shell


@pytest.mark.parametrize(("length", "frames"), [(11, 8), (25, 12), (300, 16), (2, 8)])
def test_frames_follow_from_the_length(monkeypatch, length, frames):
  monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
  words = commands(suggestion.format_commands(FOLDER, "rgb", (20, 20), length))[0]
  assert f"--config.data.num_frames={frames}" in words


def test_minutes_follow_from_the_clips(monkeypatch):
  monkeypatch.setattr(suggestion.os, "cpu_count", lambda: 2)
  one, ten = (
    int(suggestion._estimate_minutes("small", clips, 8).split("about ")[1].split()[0])
    for clips in (1000, 10_000)
  )
  startup = suggestion.STARTUP_MINUTES["small"]
  assert (ten - startup) == pytest.approx(10 * (one - startup), abs=6)


def test_epochs_are_those_of_the_configs():
  for start, epochs in suggestion.EPOCHS.items():
    config = custom.get_config(start)
    total = config.universal.epochs + config.specific.epochs + config.joint.epochs
    assert total == epochs


def test_images_and_flow():
  (words,) = commands(suggestion.format_commands(FOLDER, "rgb", (9, 9), 1))
  assert words[2] == "--config=configs/cars.py"
  (words,) = commands(suggestion.format_commands(FOLDER, "flow", (9, 9), 40))
  assert "--config.data.modality=flow" in words
