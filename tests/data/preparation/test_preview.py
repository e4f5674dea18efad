"""Regions from the command line or a CSV file to the data set, and the sheet of frames."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from data.input import store
from data.preparation import prepare, preview
from tests.video.test_decode import QUADRANTS
from u2s_jax.runtime.errors import UserError
from u2s_jax.serving.model import Model
from u2s_jax.video import clip_views, clips
from u2s_jax.video.decode import Storage
from u2s_jax.video.listing import Clip, Listing

RED, WHITE = "2,2,20,12", "26,18,20,12"


@pytest.fixture(scope="module")
def source(tmp_path_factory, write_video):
  folder = tmp_path_factory.mktemp("source")
  for name in ("one", "two", "Träge 体"):
    (folder / name).mkdir()
    for k in range(4):
      write_video(folder / name / f"{k}.webm", [QUADRANTS] * (6 + k))
  return folder


def run(source, out, *more):
  arguments = ["--dataset=videos", f"--source={source}", f"--out={out}", "--short_edge=24"]
  prepare.main([*arguments, "--workers=1", *more])


def read_frames(out):
  """Returns the first stored frame of each training clip by id."""
  records = store.open_dataset(out).split("train").records
  parsed = [store.parse_record(records[i]) for i in range(len(records))]
  return {
    name.decode(): np.asarray(Image.open(io.BytesIO(frames[0]))) for name, _, frames in parsed
  }


def test_crop_is_kept_with_the_data_set(source, tmp_path):
  run(source, tmp_path / "out", f"--crop={RED}")
  for frame in read_frames(tmp_path / "out").values():
    assert frame.shape == (24, 40, 3)
    assert np.abs(frame.astype(int) - (255, 0, 0)).max() < 40
  settings = store.open_dataset(tmp_path / "out").storage_settings()
  assert settings["crop"] == RED
  # Prediction cuts the same region and has the pixels of the data set.
  storage, clip = Storage(**settings), clips.ClipSpec(2, 24, 24)
  frames = clip_views.read_views(str(source / "one/0.webm"), clip, storage, "center")
  assert frames.shape == (1, 2, 24, 24, 3)
  assert np.abs(frames.astype(int) - (255, 0, 0)).max() < 40
  with pytest.raises(SystemExit) as stopped:
    run(source, tmp_path / "out", f"--crop={WHITE}")
  assert "was started with crop = 2,2,20,12" in str(stopped.value)


@pytest.mark.parametrize("same", [True, False])
def test_regions_of_a_csv_file(source, tmp_path, same):
  rows = [
    f"{source}/{name}/{k}.webm,{name},{RED if same or k % 2 else WHITE}"
    for name in ("one", "two")
    for k in range(4)
  ]
  (tmp_path / "list.csv").write_text("\n".join(["path,label,x,y,width,height", *rows]))
  run(tmp_path / "list.csv", tmp_path / "out")
  for name, frame in read_frames(tmp_path / "out").items():
    assert frame.shape == (24, 40, 3)
    expected = (255, 0, 0) if name.endswith(RED) else (255, 255, 255)
    assert np.abs(frame.astype(int) - expected).max() < 40
  settings = store.open_dataset(tmp_path / "out").storage_settings()
  assert settings["crop"] == (RED if same else "by clip")


@pytest.mark.parametrize(
  ("crop", "message"),
  [("0,0,49,32", "exceeds the frame of 48 x 32 pixels"), ("1,2", "--crop: '1,2' is not a region")],
)
def test_rejects_a_region_outside_the_frame(source, tmp_path, crop, message):
  with pytest.raises(SystemExit) as stopped:
    run(source, tmp_path / "out", f"--crop={crop}")
  assert message in str(stopped.value)
  assert not (tmp_path / "out/dataset_info.json").exists()


def test_sheet_shows_the_classes_and_the_region(source, tmp_path, capsys):
  path = tmp_path / "sheet.jpg"
  run(source, tmp_path / "out", f"--crop={RED}", f"--preview={path}")
  assert not (tmp_path / "out").exists() and "without --preview" in capsys.readouterr().out
  with Image.open(path) as sheet:
    pixels = np.asarray(sheet).astype(int)
  rows = pixels.shape[0] // (preview.EDGE + preview.MARGIN)
  assert rows == 9  # three clips of each class
  middle = preview.TEXT_WIDTH + (40 * preview.EDGE // 24) // 2
  for row in range(rows):
    y = row * (preview.EDGE + preview.MARGIN) + preview.EDGE // 2
    assert np.abs(pixels[y, middle] - (255, 0, 0)).max() < 40
    # Outside of the centre crop frames are dark.
    dark = pixels[y, preview.TEXT_WIDTH + 8]
    assert 60 < dark[0] < 130 and dark[1:].max() < 30
  run(source, tmp_path / "out", f"--preview={path}")  # a sheet is replaced
  (tmp_path / "photo.jpg").write_bytes((source / "one/0.webm").read_bytes())
  with pytest.raises(SystemExit, match="already exists"):
    run(source, tmp_path / "out", f"--preview={tmp_path}/photo.jpg")


def test_sheet_names_clips_that_cannot_be_read(tmp_path, capsys):
  (tmp_path / "bad.webm").write_bytes(b"not a video")
  splits = {"train": [Clip("a", 0, str(tmp_path / "bad.webm"))]}
  preview.write_preview(str(tmp_path / "a.jpg"), Listing(["a"], splits), Storage(), 1)
  with Image.open(tmp_path / "a.jpg") as sheet:
    assert sheet.size == (preview.TEXT_WIDTH, preview.EDGE + preview.MARGIN)
  assert f"skipped {tmp_path}/bad.webm: cannot be decoded" in capsys.readouterr().err


def test_sheet_has_clips_of_all_classes():
  clips_of = {k: [Clip(f"{k}-{i}", k, "") for i in range(9)] for k in range(30)}
  listing = Listing([str(k) for k in range(30)], {"train": sum(clips_of.values(), [])})
  chosen = preview.choose_clips(listing)
  assert len(chosen) == 15 and len({clip.label for clip in chosen}) == 15
  few = Listing(["0", "1"], {"train": clips_of[0] + clips_of[1][:2]})
  assert [clip.id for clip in preview.choose_clips(few)] == ["0-0", "0-3", "0-6", "1-0", "1-1"]


def test_model_takes_another_region(trained_run, source):
  def run_of(crop):
    return dataclasses.replace(trained_run, stored={**trained_run.stored, "crop": crop})

  path = source / "one/0.webm"
  red = Model(run_of(RED))._read_views(path, "center")
  assert np.abs(red.astype(int) - (255, 0, 0)).max() < 40
  white = Model(run_of("by clip"), crop=WHITE)._read_views(path, "center")
  assert np.abs(white.astype(int) - 255).max() < 40
  with pytest.raises(UserError, match="the training clips have different regions; name one with"):
    Model(run_of("by clip")).predict(path)
  with pytest.raises(UserError, match="crop: 'x' is not a region"):
    Model(run_of(None), crop="x")


@pytest.fixture
def trained_run(finished):
  from u2s_jax.run.workdir import Workdir
  from u2s_jax.serving import predict

  return predict.load(Workdir.open(finished[0]))
