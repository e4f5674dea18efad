"""The region of a frame that is cut out, of videos, images and folders of frames."""

import dataclasses
import io
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from data.preparation import decoding
from tests.video.sources import check_error, get_ids, write_csv
from tests.video.test_decode import QUADRANTS
from tests.video.test_display import ORIENTATIONS, write
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import decode, folders, region
from u2s_jax.video.decode import Storage
from u2s_jax.video.region import Region, parse_region

# The blue quadrant of a frame of 48 x 32 pixels, without its outermost pixels.
BLUE = "2,18,20,12"


def _decode(path, crop, short_edge=24, *, is_image=False, modality="rgb"):
  algorithm = "dis" if modality == "flow" else None
  storage = Storage(modality, short_edge, 100, algorithm, crop)
  jpegs = decode.decode_file(str(path), storage, is_image=is_image)
  return [np.asarray(Image.open(io.BytesIO(jpeg))).astype(int) for jpeg in jpegs]


def _is_color(image, *color):
  return np.abs(image - color).max() < 40


@pytest.mark.parametrize(
  ("text", "size", "box"),
  [
    ("2,3,4,5", (10, 10), (2, 3, 6, 8)),
    ("0,0,1,1", (640, 360), (0, 0, 640, 360)),
    ("0.25, 0.5, 0.5, 0.5", (640, 360), (160, 180, 480, 360)),
    ("0.3,0.1,0.7,0.9", (333, 77), (100, 8, 333, 77)),  # 0.3 + 0.7 rounds to the edge
    ("0,0,10,10", (10, 10), (0, 0, 10, 10)),
    ("1,1,1,1", (3, 3), None),  # shares: begins at the right edge
    ("0.5,0.5,0.001,0.5", (100, 100), None),
    ("5,0,6,10", (10, 10), None),
    ("0,0.5,0.5,0.6", (10, 10), None),
  ],
)
def test_box_in_pixels(text, size, box):
  if box is None:
    with pytest.raises(UserError, match="^the region "):
      parse_region(text).to_box(*size)
  else:
    assert parse_region(text).to_box(*size) == box


@pytest.mark.parametrize(
  "text", ["", "1,2,3", "1,2,3,4,5", "a,0,1,1", "-1,0,5,5", "0,0,0,5", "nan,0,1,1", "0,0,inf,1"]
)
def test_rejects_other_texts(text):
  with pytest.raises(UserError, match="is not a region"):
    parse_region(text)


def test_text_of_a_region_is_parsed_to_the_same_one():
  for values in ((1, 2, 3, 4), (0.1, 0.25, 1 / 3, 0.5), (0, 0, 1920, 1080)):
    assert parse_region(str(Region(*values))) == pytest.approx(values, abs=1e-9)


@pytest.mark.parametrize("crop", [BLUE, "0.05,0.55,0.4,0.4"])
def test_cuts_the_region_of_a_video_before_the_resize(tmp_path, crop, write_video):
  path = write_video(tmp_path / "a.webm", [QUADRANTS] * 3)
  frames = _decode(path, crop)
  assert len(frames) == 3
  for frame in frames:
    assert min(frame.shape[:2]) == 24 and _is_color(frame, 0, 0, 255)
  assert frames[0].shape == (24, 40, 3)  # of 20 x 12 pixels


def test_region_is_of_the_frame_as_displayed(tmp_path):
  """A phone's video: coded on its side, and with oblong pixels."""
  path = tmp_path / "a.mp4"
  coded = np.repeat(np.repeat(QUADRANTS, 4, 0), 4, 1)  # 192 x 128
  write(path, [coded] * 3, matrix=ORIENTATIONS["90"][0], pixel_aspect=Fraction(2))
  whole = _decode(path, None, short_edge=128)[0]
  assert whole.shape == (384, 128, 3)  # 192 x 2 high after the turn
  for x, y in ((0, 0), (64, 0), (0, 192), (64, 192)):
    cut = _decode(path, f"{x + 8},{y + 8},48,176", short_edge=24)[0]
    expected = whole[y + 96, x + 32]
    assert cut.shape == (88, 24, 3) and _is_color(cut, *expected)


def test_cuts_images_and_folders_of_frames(tmp_path):
  folder = tmp_path / "frames"
  folder.mkdir()
  for k in range(2):
    Image.fromarray(QUADRANTS).save(folder / f"{k}.png")
  for frame in _decode(folder, BLUE):
    assert frame.shape == (24, 40, 3) and _is_color(frame, 0, 0, 255)
  picture = Image.fromarray(QUADRANTS)
  exif = picture.getexif()
  exif[0x0112] = 3  # stored upside down
  picture.save(tmp_path / "a.jpg", quality=100, subsampling=0, exif=exif)
  (frame,) = _decode(tmp_path / "a.jpg", BLUE, is_image=True)
  assert _is_color(frame, 0, 255, 0)  # of the upright image
  # A JPEG that would be stored unchanged is cut too.
  picture.save(tmp_path / "b.jpg", quality=100, subsampling=0)
  (frame,) = _decode(tmp_path / "b.jpg", BLUE, short_edge=32, is_image=True)
  assert _is_color(frame, 0, 0, 255)


def test_flow_is_that_of_the_region(tmp_path, write_video):
  """Only the lower half moves."""
  rng = np.random.default_rng(0)
  texture = rng.integers(0, 256, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
  frames = [np.concatenate([texture[:32], np.roll(texture[32:], k, 1)]) for k in range(0, 9, 2)]
  path = write_video(tmp_path / "a.webm", frames)
  still = _decode(path, "0,0,96,28", 28, modality="flow")
  moving = _decode(path, "0,36,96,28", 28, modality="flow")
  assert len(still) == len(moving) == 8
  assert abs(np.median(still[::2]) - 128) <= 1 < np.median(moving[::2]) - 128


def test_segments_have_the_region_of_their_clip(tmp_path, write_video):
  path = str(write_video(tmp_path / "a.webm", [QUADRANTS] * 30))
  storage = dataclasses.asdict(Storage("rgb", 24, 100, crop=decode.BY_CLIP))
  decoder = decoding.make_decoder(storage, is_image=False)
  (blue,) = decoder((path, None, [(0.0, 0.5)], BLUE))
  (whole,) = decoder((path, None, [(0.0, 0.5)], None))
  assert Image.open(io.BytesIO(blue.frames[0])).size == (40, 24)
  assert Image.open(io.BytesIO(whole.frames[0])).size == (36, 24)
  (outside,) = decoder((path, None, [(0.0, 0.5)], "0,0,49,32"))
  assert outside.reason.startswith(region.OUTSIDE) and "48 x 32" in outside.reason


def test_reads_regions_of_a_csv_file(tmp_path):
  text = (
    "path,label,x,y,width,height,start,end\n"
    "a.mp4,one,10,20,30,40,,\n"
    "a.mp4,two,0.5,0,0.5,1,,\n"
    "b.mp4,one,,,,,0,1\n"
    "b.mp4,two,1,2,3,4,0,1\n"
    "c.mp4,one,,,,,,\nd.mp4,two,,,,,,\n"
  )
  found = folders.list_videos(write_csv(tmp_path, text))
  clips = {clip.id: clip for clips in found.splits.values() for clip in clips}
  assert clips["a.mp4@10,20,30,40"].region == (10, 20, 30, 40)
  assert clips["a.mp4@0.5,0,0.5,1"].path == f"{tmp_path}/a.mp4@0.5,0,0.5,1"
  assert clips["b.mp4#0-1"].region is None and clips["b.mp4#0-1@1,2,3,4"].span == (0, 1)
  for ids in (get_ids(found, "train"), get_ids(found, "validation")):
    assert len([name for name in ids if name.startswith("a.mp4")]) in (0, 2)
  assert not any("overlap" in note for note in found.notes)  # two places of one frame


def test_size_of_the_video_is_not_a_region(tmp_path):
  text = "path,label,width,height,n\na,x,640,360,1\nb,x,640,360,1\nc,y,640,360,1\nd,y,640,360,1\n"
  found = folders.list_videos(write_csv(tmp_path, text))
  assert all(clip.region is None for clips in found.splits.values() for clip in clips)
  assert found.notes[0].endswith("unused columns: 'width', 'height', 'n'")


@pytest.mark.parametrize(
  ("header", "row", "words"),
  [
    ("path,label,x,y", "a,x,1,2", ("line 1", "'width'")),
    ("path,label,x,y,width,height", "a,x,1,2,3,", ("line 2", "is not a region")),
    ("path,label,x,y,width,height", "a,x,1,2,3,0", ("line 2", "is not a region")),
  ],
)
def test_rejects_incomplete_regions(tmp_path, header, row, words):
  check_error(write_csv(tmp_path, f"{header}\n{row}\n"), *words)
