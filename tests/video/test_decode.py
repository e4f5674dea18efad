"""Decoding of unusual videos and images, and the reasons why some cannot be read."""

import io
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import av
import numpy as np
import pytest
from PIL import Image

from data.preparation import decoding
from u2s_jax.runtime import watchdog
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import decode, images, stream
from u2s_jax.video.decode import Storage

# Quadrants: red, green, blue, white.
QUADRANTS = np.zeros((32, 48, 3), np.uint8)
QUADRANTS[:16, :24, 0] = QUADRANTS[:16, 24:, 1] = QUADRANTS[16:, :24, 2] = 255
QUADRANTS[16:, 24:] = 255


def _pixels(jpeg):
  return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def _video(path, short_edge=32):
  return [_pixels(jpeg) for jpeg in decode.decode_file(str(path), Storage("rgb", short_edge, 100))]


def _corners(image):
  """Returns the colours of the quadrants: top left, top right, bottom left, bottom right."""
  height, width = image.shape[:2]
  names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
  return "".join(
    names[tuple(image[height * y // 4, width * x // 4] // 128)] for y in (1, 3) for x in (1, 3)
  )


def _check_error(path, *words, decoder=_video):
  with pytest.raises(UserError) as caught:
    decoder(path)
  assert "\n" not in str(caught.value)
  for word in words:
    assert word in str(caught.value)


def test_decodes_every_frame_in_order(tmp_path, write_video):
  frames = _video(write_video(tmp_path / "a.webm", 9))
  assert [round(frame.mean() / 16) for frame in frames] == list(range(9))
  assert all(frame.shape == (32, 48, 3) for frame in frames)


@pytest.mark.parametrize(
  ("shape", "short_edge", "expected"),
  [
    ((50, 38), 19, (24, 19)),  # 25 made even
    ((32, 48), 64, (64, 96)),
    ((33, 47), 32, (32, 46)),  # odd edges: 45.6 rounded to even
    ((40, 40), 32, (32, 32)),
  ],
)
def test_resizes_the_short_edge(tmp_path, write_video, shape, short_edge, expected):
  path = write_video(tmp_path / "a.webm", [np.full((*shape, 3), 99, np.uint8)] * 2)
  assert _video(path, short_edge)[1].shape == (*expected, 3)


@pytest.mark.parametrize(
  ("degrees", "shape", "corners"),
  [(0, (32, 48), "rgbw"), (90, (48, 32), "brwg"), (180, (32, 48), "wbgr"), (270, (48, 32), "gwrb")],
)
def test_display_matrix_turns_frames(tmp_path, write_video, degrees, shape, corners):
  path = write_video(tmp_path / "a.mp4", [QUADRANTS] * 3, codec="libx264", pixel_format="yuv444p")
  content = bytearray(path.read_bytes())
  # The track header has a matrix of 9 numbers in 16.16 that turns clockwise by `degrees`.
  start = content.index(b"tkhd") + 4 + 4 + 8 + 4 + 4 + 4 + 8 + 8
  identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
  assert content[start : start + 36] == identity
  cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
  a, b = cos << 16, sin << 16
  content[start : start + 36] = struct.pack(">9i", a, b, 0, -b, a, 0, 0, 0, 1 << 30)
  path.write_bytes(content)
  frames = _video(path)
  assert [frame.shape for frame in frames] == [(*shape, 3)] * 3
  assert _corners(frames[0]) == corners


def test_variable_rate_neither_repeats_nor_drops_frames(tmp_path, write_video):
  times = [0, 1, 2, 30, 31, 32, 100, 101]
  frames = _video(write_video(tmp_path / "a.webm", 8, times=times))
  assert [round(frame.mean() / 16) for frame in frames] == list(range(8))


def test_grey_video(tmp_path, write_video):
  path = write_video(tmp_path / "a.mkv", 9, codec="ffv1", pixel_format="gray")
  frames = _video(path)
  assert [round(frame.mean() / 16) for frame in frames] == list(range(9))
  assert all(frame.shape == (32, 48, 3) for frame in frames)


def test_detects_the_format_by_content(tmp_path, write_video):
  write_video(tmp_path / "a.webm", 3).rename(tmp_path / "a.avi")
  assert len(_video(tmp_path / "a.avi")) == 3
  Image.fromarray(QUADRANTS).save(tmp_path / "a.png")
  (tmp_path / "a.png").rename(tmp_path / "photo.mp4")
  assert _corners(_video(tmp_path / "photo.mp4")[0]) == "rgbw"  # a video of one frame


def test_unusual_paths(tmp_path, write_video):
  folder = tmp_path / "träge Katzen %03d #1"
  folder.mkdir()
  path = write_video(tmp_path / "a.webm", 3).rename(folder / "日本 (1).webm")
  assert len(_video(path)) == 3


def test_ignores_tags_that_are_not_utf8(tmp_path, write_video):
  content = write_video(tmp_path / "a.avi", 3, codec="ffv1").read_bytes()
  assert b"Lavf" in content
  (tmp_path / "b.avi").write_bytes(content.replace(b"Lavf", b"L\xe9vf"))  # Latin-1
  for one, other in zip(_video(tmp_path / "a.avi"), _video(tmp_path / "b.avi"), strict=True):
    np.testing.assert_array_equal(one, other)


def test_rejects_unreadable_videos(tmp_path, write_video):
  path = tmp_path / "a.webm"
  path.write_bytes(b"")
  _check_error(path, "cannot be decoded")
  path.write_bytes(b"no video at all, but words")
  _check_error(path, "cannot be decoded")
  with pytest.raises(FileNotFoundError):
    _video(tmp_path / "none.webm")
  noise = np.random.default_rng(0).integers(0, 256, (60, 32, 48, 3), np.uint8)
  content = write_video(path, list(noise)).read_bytes()
  for share in (0.3, 0.7):
    path.write_bytes(content[: int(share * len(content))])
    _check_error(path, "ends after", "of 5.0 seconds")
  mp4 = write_video(tmp_path / "a.mp4", list(noise), codec="libx264").read_bytes()
  (tmp_path / "a.mp4").write_bytes(mp4[: len(mp4) // 3])  # the index was at the end
  _check_error(tmp_path / "a.mp4", "cannot be decoded")
  with av.open(str(path), "w", format="webm") as container:
    stream = container.add_stream("libvpx-vp9", rate=12)
    stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
    container.start_encoding()
  _check_error(path, "no frames")


def test_rejects_sound_files_also_with_a_cover_picture(tmp_path):
  def write(path, cover):
    with av.open(str(path), "w") as container:
      stream = container.add_stream("mp3", rate=48000)
      if cover:
        picture = container.add_stream("png")
        picture.width, picture.height, picture.pix_fmt = 48, 32, "rgb24"
        picture.disposition = av.stream.Disposition.attached_pic
        container.mux(picture.encode(av.VideoFrame.from_ndarray(QUADRANTS, format="rgb24")))
        container.mux(picture.encode(None))
      silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), "fltp", "mono")
      silence.sample_rate = 48000
      container.mux(stream.encode(silence))
      container.mux(stream.encode(None))

  for cover in (False, True):
    path = tmp_path / f"{cover}.mp3"
    write(path, cover)
    with av.open(str(path)) as container:
      assert bool(container.streams.video) == cover
    _check_error(path, "no video stream")


def test_rejects_videos_too_large_for_a_record(tmp_path, write_video, monkeypatch):
  path = write_video(tmp_path / "a.webm", 9)
  size = sum(map(len, decode.decode_file(str(path), Storage("rgb", 32, 100))))
  monkeypatch.setattr(decode, "MAX_CLIP_BYTES", size)
  assert len(_video(path)) == 9
  monkeypatch.setattr(decode, "MAX_CLIP_BYTES", size - 1)
  _check_error(path, "first 9 JPEG frames", "cut it into clips")


def _image(path, short_edge=32):
  return _pixels(images.encode_image(str(path), short_edge, 100))


def _rgb16(path):
  """Writes an image of 16 bits."""
  Image.fromarray(np.full((32, 48), 0xABCD, np.uint16)).save(path)


@pytest.mark.parametrize(
  ("name", "save", "expected"),
  [
    ("grey.png", lambda path: Image.fromarray(QUADRANTS).convert("L").save(path), 76),
    ("cmyk.jpg", lambda path: Image.fromarray(QUADRANTS).convert("CMYK").save(path), (255, 0, 0)),
    ("16.png", _rgb16, 0xAB),
    ("16.tif", _rgb16, 0xAB),
    ("16.pgm", _rgb16, 0xAB),
    ("palette.gif", lambda path: Image.fromarray(QUADRANTS).save(path), (255, 0, 0)),
    ("bits.png", lambda path: Image.new("1", (48, 32), 1).save(path), 255),
    ("clear.png", lambda path: Image.new("RGBA", (48, 32), (9, 9, 9, 0)).save(path), 255),
    ("half.webp", lambda path: Image.new("RGBA", (48, 32), (0, 0, 0, 128)).save(path), 127),
  ],
)
def test_converts_images_to_rgb(tmp_path, name, save, expected):
  save(tmp_path / name)
  image = _image(tmp_path / name)
  assert image.shape == (32, 48, 3)
  np.testing.assert_allclose(image[4, 4], np.broadcast_to(expected, 3), atol=3)


def test_exif_orientation_turns_images(tmp_path):
  path = tmp_path / "a.jpg"
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn clockwise by 90 degrees to see it upright.
  Image.fromarray(QUADRANTS).save(path, exif=exif)
  image = _image(path)
  assert image.shape == (48, 32, 3) and _corners(image) == "brwg"


def test_keeps_a_jpeg_of_the_right_size(tmp_path):
  path = tmp_path / "a.jpg"
  Image.fromarray(QUADRANTS).save(path, quality=40)
  assert images.encode_image(str(path), 32, 100) == path.read_bytes()
  assert images.encode_image(io.BytesIO(path.read_bytes()), 32, 100) == path.read_bytes()
  assert _image(path, 16).shape == (16, 24, 3)
  assert _image(path, 33).shape == (33, 50, 3)  # 49.5


def test_rejects_unreadable_images(tmp_path):
  path = tmp_path / "a.jpg"
  path.write_bytes(b"")
  _check_error(path, "unknown image format", decoder=_image)
  path.write_text("no image")
  _check_error(path, "unknown image format", decoder=_image)
  Image.fromarray(QUADRANTS).resize((480, 320)).save(path)
  path.write_bytes(path.read_bytes()[:-2000])
  _check_error(path, "truncated", decoder=_image)
  Image.fromarray(np.full((32, 48), 0.5, np.float32)).save(tmp_path / "a.tif")
  _check_error(tmp_path / "a.tif", "32 bits", decoder=_image)


def test_file_names_are_not_protocols(tmp_path, write_video, monkeypatch):
  monkeypatch.chdir(tmp_path)
  video = write_video(tmp_path / "a.webm", 3)
  for name in (
    "http:/127.0.0.1:9/a.mp4",
    "concat:a|b.mp4",
    "subfile,,start,0,end,9,,:a.mp4",
    "a:b",
  ):
    pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(video, name)
    assert len(_video(name)) == 3
  with pytest.raises(FileNotFoundError):
    _video("concat:a.webm")


def test_no_file_opens_another_one(tmp_path, write_video):
  video = write_video(tmp_path / "a.webm", 3)
  (tmp_path / "hls.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n")
  (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {video.name}\n")
  for name in ("hls.mp4", "concat.mp4"):
    _check_error(tmp_path / name, "cannot be decoded")


def test_rejects_pipes_and_devices(tmp_path):
  os.mkfifo(tmp_path / "f.mp4")
  for path in (tmp_path / "f.mp4", "/dev/zero"):
    _check_error(path, "not a regular file")
    _check_error(
      path, "not a regular file", decoder=lambda path: images.encode_image(str(path), 32, 90)
    )


def _gif(width, height):
  """Returns a GIF of a few bytes that declares any size."""
  return (
    b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    b"\x2c\0\0\0\0" + struct.pack("<HH", width, height) + b"\0\2\2\x44\1\0;"
  )


def test_limits_pixels_of_frames(tmp_path):
  (tmp_path / "large.gif").write_bytes(_gif(16000, 16000))
  _check_error(tmp_path / "large.gif", "16000 x 16000 pixels; the maximum is 67 million")

  def image(path):
    return images.encode_image(str(path), 32, 90)

  _check_error(tmp_path / "large.gif", "16000 x 16000 pixels", decoder=image)
  Image.new("L", (70000, 30)).save(tmp_path / "long.png")
  _check_error(tmp_path / "long.png", "74667 pixels; JPEG's maximum is 65500", decoder=image)


def test_limits_frames_of_clips(tmp_path, write_video, monkeypatch):
  monkeypatch.setattr(decode, "MAX_FRAMES", 4)
  _check_error(write_video(tmp_path / "a.webm", 6), "more than 4 frames; cut it into clips")


def test_damage_raises_at_most_one_line(tmp_path, write_video):
  """Random bytes in videos and images: either frames or a UserError of one line."""
  rng = np.random.default_rng(0)
  videos = [
    write_video(tmp_path / f"{codec}.mkv", 4, codec=codec).read_bytes()
    for codec in ("libx264", "libvpx-vp9", "ffv1")
  ]
  images = []
  for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
    file = io.BytesIO()
    Image.fromarray(QUADRANTS).save(file, kind)
    images.append(file.getvalue())
  for is_image, contents in ((False, videos), (True, images)):
    for content in contents:
      for _ in range(12):
        changed = bytearray(content)
        for place in rng.integers(0, len(changed), 1 + rng.integers(8)):
          changed[place] = rng.integers(256)
        try:
          decode.decode_file(
            io.BytesIO(bytes(changed)), decode.Storage(short_edge=32), is_image=is_image
          )
        except UserError as error:
          assert "\n" not in str(error)


def test_encodes_flow_of_pairs(tmp_path, write_video):
  """Of a blob that moves by (3, 1) pixels a frame."""
  y, x = np.mgrid[:64, :96]
  frames = []
  for k in range(3):
    blob = 128 + 100 * np.exp(-((x - 40 - 3 * k) ** 2 + (y - 30 - k) ** 2) / 60)
    frames.append(np.repeat(blob[..., None], 3, axis=-1).astype(np.uint8))
  path = write_video(tmp_path / "a.webm", frames)
  for algorithm in ("dis", "tvl1"):
    jpegs = decode.decode_file(str(path), Storage("flow", 64, 95, algorithm))
    assert len(jpegs) == 4  # x and y of 2 pairs
    codes = [_pixels(jpeg) for jpeg in jpegs]
    assert all(code.shape == (64, 96) for code in codes)
    # 128 + 127 / 20 v: 3 pixels to the right are 147, 1 pixel down is 134.
    at = slice(28, 33), slice(38, 43)
    np.testing.assert_allclose([code[at].mean() for code in codes[:2]], [147, 134], atol=3)
  _check_error(
    write_video(tmp_path / "one.webm", 1),
    "only one frame",
    decoder=lambda path: decode.decode_file(str(path), Storage("flow", 32, 95, "dis")),
  )


@pytest.fixture(scope="module")
def moving(tmp_path_factory, write_video):
  """Returns a video of 30 s with few key frames, its storage and its stored frames."""
  path = tmp_path_factory.mktemp("moving") / "a.webm"
  noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
  write_video(path, [np.roll(noise, k, axis=1) for k in range(360)])
  storage = Storage("rgb", 32, 100)
  return str(path), storage, decode.decode_file(str(path), storage)


def test_segments_have_the_frames_between_two_times(moving):
  path, storage, frames = moving
  # Twelve frames a second; the segments overlap, and one contains another.
  spans = [
    (0.0, 1.0),
    (0.5, 3.0),
    (0.5, 0.75),
    (2.0, 2.5),
    (29.0, 30.0),
    (29.5, 99.0),
    (40.0, 41.0),
  ]
  found = decoding.decode_spans(path, storage, spans)
  for (start, end), part in zip(spans[:5], found, strict=False):
    assert part.frames == frames[round(12 * start) : round(12 * end)]
  assert "ends there after 0.5 seconds" in found[5].reason
  assert found[6].reason == "the video has no frames there"


def test_the_last_segment_ends_with_the_last_frame(moving):
  path, storage, frames = moving
  (last,) = decode.decode_segments(path, storage, [(29.5, 99.0)])
  assert last.end == pytest.approx(len(frames) / 12, abs=1e-3)
  (again,) = decode.decode_segments(path, storage, [(last.start, last.end)])
  assert again.frames == last.frames and len(last.frames) == 6


def test_segments_require_time_stamps(tmp_path, write_video):
  path = str(write_video(tmp_path / "a.h264", 10, codec="libx264"))
  storage = Storage("rgb", 32, 100)
  assert len(decode.decode_file(path, storage)) == 10
  (part,) = decoding.decode_spans(path, storage, [(0.0, 0.5)])
  assert "no time stamps" in part.reason


def test_seeks_to_a_late_segment(moving, monkeypatch):
  path, storage, frames = moving
  decoded = []
  monkeypatch.setattr(watchdog, "report_progress", lambda: decoded.append(1))
  (part,) = decoding.decode_spans(path, storage, [(25.0, 26.0)])
  assert part.frames == frames[300:312] and len(decoded) < 200
  monkeypatch.setattr(stream, "SEEK_FROM", 1e9)
  decoded.clear()
  assert decoding.decode_spans(path, storage, [(25.0, 26.0)])[0].frames == part.frames
  assert len(decoded) > 300


def test_segments_go_by_time_not_by_frame_number(tmp_path, write_video):
  """Phones and cameras write frames at irregular times."""
  times = [0, 1, 2, 6, 7, 12, 13, 14, 18, 24]  # twelfths of a second
  path = str(write_video(tmp_path / "a.webm", 10, times=times))
  storage = Storage("rgb", 32, 100)
  frames = decode.decode_file(path, storage)
  early, late = decoding.decode_spans(path, storage, [(0.0, 0.5), (0.5, 1.5)])
  assert early.frames == frames[:3] and late.frames == frames[3:8]


def test_incomplete_video_has_the_segments_before_its_end(moving, tmp_path):
  path, storage, frames = moving
  half = tmp_path / "half.webm"
  half.write_bytes(pathlib.Path(path).read_bytes()[: os.path.getsize(path) // 2])
  first, last = decoding.decode_spans(str(half), storage, [(0.0, 1.0), (28.0, 29.0)])
  assert first.frames == frames[:12] and last.reason


def test_flow_of_a_segment_has_only_its_own_pairs(moving):
  path = moving[0]
  storage = Storage("flow", 32, 95, "dis")
  flow = decode.decode_file(path, storage)
  (part,) = decoding.decode_spans(path, storage, [(1.0, 2.0)])
  assert part.frames == flow[2 * 12 : 2 * 23]  # 12 frames are 11 pairs


def test_flow_of_a_segment_after_the_end(moving):
  (part,) = decoding.decode_spans(moving[0], Storage("flow", 32, 95, "dis"), [(99.0, 100.0)])
  assert part.reason == "the video has no frames there"


def test_decoding_imports_neither_tensorflow_nor_jax():
  root = pathlib.Path(decode.__file__).parents[2]
  code = (
    "import sys, u2s_jax.video.decode, u2s_jax.video.flow;"
    'assert not {"tensorflow", "jax"} & set(sys.modules)'
  )
  subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
