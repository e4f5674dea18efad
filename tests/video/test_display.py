"""Frames as a player shows them: turned, mirrored, with square pixels, deinterlaced."""

import shutil
import subprocess
from fractions import Fraction

import av
import numpy as np
import pytest

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import display, reader

IDENTITY = (1, 0, 0, 1)
# a, b, c, d of the display matrix, and what it does to an image.
ORIENTATIONS = {
  "upright": (IDENTITY, lambda x: x),
  "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
  "flipped": ((1, 0, 0, -1), lambda x: x[::-1]),
  "180": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
  "90": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
  "270": ((0, -1, 1, 0), lambda x: np.rot90(x)),
  "transposed": ((0, 1, 1, 0), lambda x: x.transpose(1, 0, 2)),
  "antitransposed": ((0, -1, -1, 0), lambda x: np.rot90(x, 2).transpose(1, 0, 2)),
}


def smooth(height, width, count=2):
  """Returns frames without fine detail, so that resizers agree, and without symmetry."""
  y, x = np.mgrid[:height, :width] / max(height, width)
  frame = np.stack([255 * x, 255 * y, 128 + 100 * np.sin(9 * x + 4 * y)], axis=-1)
  return [np.clip(frame + 5 * k, 0, 255).astype(np.uint8) for k in range(count)]


def write(path, frames, *, matrix=IDENTITY, pixel_aspect=None, interlaced=False, codec="libx264"):
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv420p"
    if codec == "libx264":
      stream.options = {"crf": "8"} | ({"x264-params": "tff=1"} if interlaced else {})
    if pixel_aspect:
      stream.codec_context.sample_aspect_ratio = pixel_aspect
    if matrix != IDENTITY:
      a, b, c, d = (round(value * 2**16) for value in matrix)
      stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 2**30))
    for image in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(stream.encode(None))
  return str(path)


def read(path, short_edge=48):
  return np.stack([frame.image for frame in reader.decode_frames(path, short_edge, "rgb24")])


def decode_with_ffmpeg(path, shape, filters=""):
  """Returns the frames that the program `ffmpeg` decodes; it turns them too."""
  if not shutil.which("ffmpeg"):
    pytest.skip("requires the program ffmpeg")
  count, height, width, _ = shape
  chain = f"{filters}scale={width}:{height}:flags=area"
  options = ["-vf", chain, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"]
  command = ["ffmpeg", "-v", "error", "-i", path, *options]
  raw = subprocess.run(command, capture_output=True, check=True).stdout
  return np.frombuffer(raw, np.uint8).reshape(count, height, width, 3)


def distance(one, other):
  assert one.shape == other.shape
  return np.abs(one.astype(int) - other).mean()


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_display_matrix_turns_and_mirrors(tmp_path, name):
  matrix, shown = ORIENTATIONS[name]
  plain = read(write(tmp_path / "a.mp4", smooth(48, 64)))
  turned = read(write(tmp_path / "b.mp4", smooth(48, 64), matrix=matrix))
  np.testing.assert_array_equal(turned, [shown(frame) for frame in plain])


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_turned_frames_with_oblong_pixels_are_those_of_ffmpeg(tmp_path, name):
  frames = smooth(48, 64)
  path = write(
    tmp_path / "a.mp4", frames, matrix=ORIENTATIONS[name][0], pixel_aspect=Fraction(3, 2)
  )
  seen = read(path)
  assert sorted(seen.shape[1:3]) == [48, 96]
  # Versions of its scaler differ by 3; another orientation by more than 40.
  assert distance(seen, decode_with_ffmpeg(path, seen.shape)) < 5


def test_rounds_a_slanted_matrix_to_a_right_angle(tmp_path):
  cos, sin = np.cos(np.radians(80)), np.sin(np.radians(80))
  matrix = (cos, sin, -sin, cos)
  slanted = read(write(tmp_path / "a.mp4", smooth(48, 64), matrix=matrix))
  np.testing.assert_array_equal(
    slanted, read(write(tmp_path / "b.mp4", smooth(48, 64), matrix=ORIENTATIONS["90"][0]))
  )


@pytest.mark.parametrize(
  ("width", "height", "pixel_aspect", "expected"),
  [
    (1440, 1080, Fraction(4, 3), (426, 240)),  # HDV: 1920 x 1080
    (720, 576, Fraction(16, 15), (320, 240)),  # PAL 4:3: 768 x 576
    (720, 576, Fraction(64, 45), (426, 240)),  # PAL 16:9: 1024 x 576
    (720, 480, Fraction(8, 9), (320, 240)),  # NTSC 4:3: 640 x 480
    (704, 288, Fraction(6, 11), (320, 240)),  # a field: 384 x 288
    (960, 1080, Fraction(2, 1), (426, 240)),  # half the width: 1920 x 1080
    (640, 480, Fraction(1, 2), (240, 360)),  # portrait because of its pixels
    (640, 480, None, (320, 240)),
    (640, 480, Fraction(0, 1), (320, 240)),  # unknown
    (640, 480, Fraction(1000, 1), (320, 240)),  # an error
    (640, 480, Fraction(1, 65535), (320, 240)),
  ],
)
def test_computes_sizes_with_square_pixels(width, height, pixel_aspect, expected):
  assert display.compute_size(width, height, pixel_aspect, 240) == expected


def test_limits_the_long_edge():
  with pytest.raises(UserError, match="JPEG's maximum"):
    display.compute_size(16000, 16, None, 240)


@pytest.mark.parametrize(
  ("suffix", "codec"), [("mkv", "libx264"), ("mp4", "mpeg4"), ("ts", "libx264")]
)
def test_reads_the_pixel_aspect_of_containers_and_codecs(tmp_path, suffix, codec):
  frames = smooth(48, 64)
  path = write(tmp_path / f"a.{suffix}", frames, pixel_aspect=Fraction(3, 2), codec=codec)
  assert read(path).shape == (2, 48, 96, 3)
  assert read(path, 24).shape == (2, 24, 48, 3)


def make_combed_frames(count=6):
  """Returns interlaced frames of a bar that moves by four pixels a field."""
  frames = []
  for k in range(count):
    frame = np.full((48, 96, 3), 40, np.uint8)
    for field in (0, 1):
      left = 8 + 8 * k + 4 * field
      frame[field::2, left : left + 16] = 220
    frames.append(frame)
  return frames


def measure_combing(frames):
  """Measures how much rows differ from both neighbours in the same direction."""
  rows = frames.astype(int)
  inner = 2 * rows[:, 1:-1] - rows[:, :-2] - rows[:, 2:]
  alternating = np.minimum(np.abs(inner[:, :-1]), np.abs(inner[:, 1:]))
  return (alternating * (inner[:, :-1] * inner[:, 1:] < 0)).mean()


def test_deinterlaces_each_frame_to_one_frame(tmp_path):
  progressive = write(tmp_path / "a.mp4", make_combed_frames())
  interlaced = write(tmp_path / "b.mp4", make_combed_frames(), interlaced=True)
  seen = read(interlaced)
  assert len(seen) == 6 and measure_combing(seen) < 0.1 * measure_combing(read(progressive))
  times = [
    [(frame.seconds, frame.end) for frame in reader.decode_frames(path, 48, "gray")]
    for path in (progressive, interlaced)
  ]
  assert times[0] == times[1]
  bwdif = "bwdif=mode=send_frame:parity=auto:deint=interlaced,"
  assert distance(seen, decode_with_ffmpeg(interlaced, seen.shape, bwdif)) < 1


def test_turns_interlaced_video_with_oblong_pixels(tmp_path):
  path = write(
    tmp_path / "a.mp4",
    make_combed_frames(),
    interlaced=True,
    matrix=ORIENTATIONS["90"][0],
    pixel_aspect=Fraction(4, 3),
  )
  seen = read(path)
  assert seen.shape == (6, 128, 48, 3)
  bar = seen[2].mean(axis=(1, 2)) > 130  # rows that show it
  # Columns 24 to 40 and 28 to 44 of 96, by field, are shown 4/3 times as wide.
  assert (np.flatnonzero(bar)[[0, -1]] == pytest.approx([32, 58], abs=6)) and bar.sum() < 30
