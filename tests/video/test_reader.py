"""Streams, durations, time stamps and damage, of videos written by the tests."""

import contextlib
import itertools
import math

import av
import numpy as np
import pytest
from av.stream import Disposition

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import decode, reader, stream
from u2s_jax.video.decode import Storage
from u2s_jax.video.stream import Gap

SMALL = Storage("rgb", 32, 90)
RATE = 12


def make_moving_noise(count, seed=0, size=(32, 48)):
  """Returns frames that move, so that a missing one is noticed."""
  image = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
  return [np.roll(image, k, axis=1) for k in range(count)]


def write(path, frames, *, codec="libx264", seconds_of_sound=0.0, start=0, b_frames=0, gop=12):
  """Writes a video, with sound that may last longer."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream(codec, rate=RATE)
    stream.height, stream.width = frames[0].shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.gop_size, stream.codec_context.max_b_frames = gop, b_frames
    sound = container.add_stream("aac", rate=8000) if seconds_of_sound else None
    for k, image in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      frame.pts = start + k
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    for k in range(round(seconds_of_sound * 8000 / 1024)):
      silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
      silence.sample_rate, silence.pts = 8000, 1024 * k
      container.mux(sound.encode(silence))
    if sound:
      container.mux(sound.encode(None))
  return str(path)


def read(path, **options):
  return list(reader.decode_frames(str(path), 32, "gray", **options))


def windows(file, length=1.0, stride=0.5):
  """Returns the windows of a file, its gaps, and the message of the error at its end."""
  found, gaps, message = [], [], ""
  spans = ((k * stride, k * stride + length) for k in itertools.count())
  try:
    for segment in decode.decode_segments(file, SMALL, spans):
      (gaps if segment.reason else found).append(segment)
  except UserError as error:
    message = str(error)
  return found, gaps, message


def covered(parts, seconds):
  """Returns which twelfths of a second are in a window."""
  times = (np.arange(round(RATE * seconds)) + 0.5) / RATE
  return np.array([any(part.start <= time < part.end for part in parts) for time in times])


def make_unlike_frames(count):
  """Returns frames that have nothing in common, so that each takes many bytes."""
  return list(np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), np.uint8))


def damage(path, at=0.4, size=40):
  """Overwrites bytes in the middle of a file."""
  with open(path, "r+b") as file:
    content = bytearray(file.read())
    begin = round(at * len(content))
    content[begin : begin + size] = np.random.default_rng(0).bytes(size)
    file.seek(0)
    file.write(content)
  return path


# --- the stream ---


def two_streams(path, dispositions, sizes=((32, 48), (32, 48))):
  """Writes a dark stream and a bright one."""
  with av.open(str(path), "w") as container:
    streams = []
    for disposition, size in zip(dispositions, sizes, strict=True):
      stream = container.add_stream("ffv1" if path.suffix == ".mkv" else "libx264", rate=RATE)
      stream.height, stream.width = size
      stream.pix_fmt, stream.disposition = "yuv420p", disposition
      streams.append(stream)
    for stream, grey, size in zip(streams, (10, 200), sizes, strict=True):
      for _ in range(3):
        image = np.full((*size, 3), grey, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
      container.mux(stream.encode(None))
  return path


DEFAULT, NONE = Disposition.default, Disposition(0)


@pytest.mark.parametrize(
  ("dispositions", "sizes", "is_second"),
  [
    ((NONE, DEFAULT), ((32, 48), (32, 48)), True),
    ((DEFAULT, NONE), ((32, 48), (64, 96)), False),
    ((DEFAULT, DEFAULT), ((32, 48), (64, 96)), True),  # a preview first
    ((DEFAULT, DEFAULT), ((32, 48), (32, 48)), False),
    ((Disposition.attached_pic, DEFAULT), ((64, 96), (32, 48)), True),
    ((DEFAULT | Disposition.visual_impaired, NONE), ((32, 48), (32, 48)), True),
  ],
)
def test_chooses_the_stream_of_a_player(tmp_path, dispositions, sizes, is_second):
  (first, *_) = read(two_streams(tmp_path / "a.mkv", dispositions, sizes))
  assert (first.image.mean() > 100) == is_second


# --- durations ---


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "mov", "flv", "ts"])
def test_sound_may_last_longer(tmp_path, suffix):
  path = write(tmp_path / f"a.{suffix}", make_moving_noise(24), seconds_of_sound=9)
  assert len(read(path)) == 24


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
def test_detects_an_incomplete_video_with_sound(tmp_path, suffix):
  path = tmp_path / f"a.{suffix}"
  write(path, make_moving_noise(120), seconds_of_sound=10)
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 10])
  with pytest.raises(UserError, match="ends after .* of 10|cannot be decoded"):
    read(path)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "flv"])
def test_accepts_a_video_that_starts_after_its_sound(tmp_path, suffix):
  path = write(
    tmp_path / f"a.{suffix}", make_moving_noise(24), start=10 * RATE, seconds_of_sound=14
  )
  times = [frame.seconds for frame in read(path)]
  assert len(times) == 24 and times[-1] - times[0] == pytest.approx(23 / RATE, abs=2e-3)


# --- times ---


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_b_frames_in_avi_keep_their_times(tmp_path, codec):
  """AVI has no presentation times."""
  path = write(tmp_path / "a.avi", make_moving_noise(36), codec=codec, b_frames=2)
  assert [frame.seconds for frame in read(path)] == pytest.approx(np.arange(36) / RATE)
  frames = decode.decode_file(path, SMALL)
  segments = list(decode.decode_segments(path, SMALL, [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]))
  assert [frame for segment in segments for frame in segment.frames] == frames


def concatenate(path, *lengths, starts=None, suffix="ts", **options):
  """Concatenates recordings, as `cat` does."""
  content = b""
  for k, length in enumerate(lengths):
    one = path.with_name(f"one.{suffix}")
    start = starts[k] * RATE if starts else 0
    write(one, make_moving_noise(length * RATE, seed=k), start=start, **options)
    content += one.read_bytes()
  path.write_bytes(content)
  return str(path)


@pytest.mark.parametrize(
  ("lengths", "starts", "places"),
  [
    ((3, 2), None, [3]),
    ((2, 3), None, [2]),
    ((2, 2, 2), None, [2, 4]),
    ((2, 2), (0, 3600), [2]),  # an hour ahead
    ((2, 2), (50, 0), [2]),
    ((2, 2), (0, 12), []),  # may be ten seconds without frames
  ],
)
def test_concatenated_recordings_follow_each_other(tmp_path, lengths, starts, places):
  path = concatenate(tmp_path / "a.ts", *lengths, starts=starts)
  frames = decode.decode_file(path, SMALL)
  assert len(frames) == RATE * sum(lengths)
  found, gaps, message = windows(path, length=0.5)
  assert [frame for part in found for frame in part.frames] == frames and not message
  jumps = [gap for gap in gaps if gap.start == gap.end]
  assert [gap.start for gap in jumps] == pytest.approx(places)
  assert all("the clock jumps" in gap.reason for gap in jumps)
  if not places:
    ((start, end),) = [(gap.start, gap.end) for gap in gaps]
    assert (start, end) == pytest.approx((2, 12))


def test_concatenated_program_streams(tmp_path):
  path = concatenate(tmp_path / "a.mpg", 2, 3, suffix="mpg", codec="mpeg2video")
  found, (gap,), _ = windows(path, length=0.5)
  assert gap.start == gap.end == pytest.approx(2)
  assert sum(len(part.frames) for part in found) == 5 * RATE


def test_time_stamps_of_a_transport_stream_may_wrap_around(tmp_path):
  """They have 33 bits at 90 kHz: 95443.7 s."""
  path = tmp_path / "a.ts"
  with av.open(str(path), "w", options={"output_ts_offset": "95440"}) as container:
    stream = container.add_stream("libx264", rate=RATE)
    stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
    for image in make_moving_noise(8 * RATE):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(stream.encode(None))
  with av.open(str(path)) as container:
    assert container.start_time < 0  # FFmpeg subtracts the wrap
  assert [frame.seconds for frame in read(path)] == pytest.approx(np.arange(8 * RATE) / RATE)
  assert not windows(str(path))[1]


def test_frames_without_a_time_stamp_follow_the_last_one(tmp_path, monkeypatch):
  path = write(tmp_path / "a.mkv", make_moving_noise(36))
  original = stream.StreamDecoder._decode

  def without_stamps(self, strict):
    for k, coded in enumerate(original(self, strict)):
      yield coded._replace(stamp=None) if k in (0, 7, 8, 20) else coded

  expected = decode.decode_file(path, SMALL)
  monkeypatch.setattr(stream.StreamDecoder, "_decode", without_stamps)
  found, gaps, message = windows(path, length=0.5)
  assert [frame for part in found for frame in part.frames] == expected and not gaps and not message


def test_a_segment_of_interlaced_video_has_the_same_bits_after_a_seek(tmp_path):
  path = str(tmp_path / "a.mp4")
  with av.open(path, "w") as container:
    stream = container.add_stream("libx264", rate=RATE, options={"x264-params": "tff=1"})
    stream.height, stream.width, stream.pix_fmt, stream.gop_size = 32, 48, "yuv420p", RATE
    for image in make_moving_noise(20 * RATE):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(stream.encode(None))
  (segment,) = decode.decode_segments(path, SMALL, [(15.0, 16.0)])
  assert segment.frames == decode.decode_file(path, SMALL)[15 * RATE : 16 * RATE]


def test_finds_a_segment_long_after_a_jump_of_the_clock(tmp_path):
  path = concatenate(tmp_path / "a.ts", 8, 8)
  frames = decode.decode_file(path, SMALL)
  (segment,) = decode.decode_segments(path, SMALL, [(13.0, 14.0)])
  assert segment.frames == frames[13 * RATE : 14 * RATE]
  single = concatenate(tmp_path / "b.ts", 16)  # reached by a seek
  (segment,) = decode.decode_segments(single, SMALL, [(13.0, 14.0)])
  assert segment.frames == decode.decode_file(single, SMALL)[13 * RATE : 14 * RATE]


def as_camera(monkeypatch, path):
  """Returns a camera that streams a file."""
  original = reader._open
  monkeypatch.setattr(reader, "_open", lambda _: original(path))
  return reader.Camera("rtsp://camera")


def test_continues_after_the_clock_of_a_camera_restarts(tmp_path, monkeypatch):
  camera = as_camera(monkeypatch, concatenate(tmp_path / "a.ts", 3, 4, starts=(500, 0)))
  found, (jump,), message = windows(camera)
  assert found[-1].end == pytest.approx(7) and not message
  assert jump.start == jump.end == pytest.approx(3)


def test_reports_a_time_without_frames_from_a_camera(tmp_path, monkeypatch):
  path = concatenate(tmp_path / "a.ts", 4, 4, starts=(0, 9))
  found, (gap,), _ = windows(as_camera(monkeypatch, path))
  assert (gap.start, gap.end, gap.reason) == (pytest.approx(4), pytest.approx(9), "no frames")
  assert covered(found, 13).tolist() == [True] * 48 + [False] * 60 + [True] * 48


# --- damage ---

KINDS = {
  "a.mp4": "libx264",
  "b.mp4": "mpeg4",
  "c.mkv": "libx264",
  "d.ts": "mpeg2video",
  "e.flv": "libx264",
  "f.avi": "mpeg4",
}


@pytest.mark.parametrize("name", KINDS)
def test_continues_after_damage_and_reports_it(tmp_path, name):
  path = write(tmp_path / name, make_unlike_frames(120), codec=KINDS[name])
  damage(path, size=9000)
  if name != "e.flv":  # FFmpeg skips damaged packets of FLV silently
    with pytest.raises(UserError):
      decode.decode_file(path, SMALL)
  found, gaps, message = windows(path)
  assert found[-1].end == pytest.approx(10, abs=0.1) and not message and gaps
  assert all(2.5 < gap.start < gap.end < 7 and gap.reason for gap in gaps)
  for gap in gaps:
    assert not any(part.start < gap.end and gap.start < part.end for part in found)
  missing = (gaps[-1].end - gaps[0].start) + 1  # and what is shorter than a window
  assert covered(found, 10).sum() >= RATE * (10 - missing)


def test_damaged_last_time_stamp_does_not_make_an_endless_gap(tmp_path):
  path = tmp_path / "a.ivf"
  write(path, make_unlike_frames(24), codec="libvpx")
  content, places, at = bytearray(path.read_bytes()), [], 32  # bytes of the file's header
  while at < len(content):  # each frame: size, 4 bytes; time stamp, 8 bytes; data
    places.append(at)
    at += 12 + int.from_bytes(content[at : at + 4], "little")
  content[places[-1] + 4 : places[-1] + 12] = (10**15).to_bytes(8, "little")
  content[places[-1] + 12 :] = bytes(len(content) - places[-1] - 12)
  path.write_bytes(content)
  found, gaps, message = windows(str(path))
  assert covered(found, 2).sum() >= 22 and found[-1].end < 2.1 and not message
  assert len(gaps) <= 1 and all(gap.end < 20_000 for gap in gaps)


def test_windows_end_at_a_gap_and_start_after_it(monkeypatch):
  """By hand: a frame a second, windows of 4 s every 3 s; 4.5 to 5.25 is damaged."""

  def encode_frames(*_, **__):
    for k in (0, 1, 2, 3, 4, Gap(4.5, 5.25, "damaged"), 6, 7, 8, 9, 10):
      yield k if isinstance(k, Gap) else decode.EncodedFrame(k, k, min(k + 1, 10.5), (b"%d" % k,))

  monkeypatch.setattr(decode, "encode_frames", encode_frames)
  spans = ((3.0 * k, 3.0 * k + 4) for k in itertools.count())
  found = [
    (p.start, p.end, p.reason, b"".join(p.frames)) for p in decode.decode_segments("", SMALL, spans)
  ]
  assert found == [
    (0, 4, "", b"0123"),
    (3, 4.5, "", b"34"),
    (4.5, 5.25, "damaged", b""),
    (5.25, 7, "", b"6"),  # the rest of the window from 3 to 7
    (6, 10, "", b"6789"),
    (9, 10.5, "", b"9" + b"10"),
  ]


def test_time_without_frames_is_a_gap_if_a_window_has_none(monkeypatch):
  """By hand: frames of half a second every second, windows of 1 s; none from 3.5 to 7."""
  shown = [0.0, 1.0, 2.0, 3.0, 7.0, 8.0]

  def encode_frames(*_, **__):
    for time in shown:
      yield decode.EncodedFrame(time, time, time + 0.5, (b"x",))

  monkeypatch.setattr(decode, "encode_frames", encode_frames)
  spans = [(float(k), k + 1.0) for k in range(9)]
  found = [(p.start, p.end, p.reason) for p in decode.decode_segments("", SMALL, spans)]
  complete = [(float(k), k + 1.0, "") for k in (0, 1, 2)]
  assert found == [*complete, (3, 3.5, ""), (3.5, 7, "no frames"), (7, 8, ""), (8, 8.5, "")]
  assert [p.start for p in decode.decode_segments("", SMALL, spans, strict=True)] == list(range(9))


def test_a_frame_that_is_shown_for_seconds_is_no_gap(tmp_path, write_video):
  """Slides of four seconds: the file declares how long each is shown."""
  slides = [np.full((32, 48, 3), 50 * k, np.uint8) for k in range(4)]
  path = str(write_video(tmp_path / "a.mp4", slides, codec="libx264", times=[0, 48, 96, 144]))
  assert not windows(path)[1]


@pytest.mark.parametrize("suffix", ["mkv", "flv", "mp4"])
def test_yields_the_windows_of_an_incomplete_file_before_the_error(tmp_path, suffix):
  path = tmp_path / f"a.{suffix}"
  with av.open(
    str(path), "w", options={"movflags": "faststart"} if suffix == "mp4" else {}
  ) as file:
    stream = file.add_stream("libx264", rate=RATE)
    stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
    for image in make_moving_noise(120):
      file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    file.mux(stream.encode(None))
  path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
  found, _, message = windows(str(path))
  assert "ends after" in message or "cannot be decoded" in message
  assert 4 < found[-1].end < 7 and covered(found, found[-1].end).all()


def test_no_pair_of_flow_spans_a_gap(tmp_path):
  path = damage(write(tmp_path / "a.mkv", make_unlike_frames(120)), size=9000)
  flow = Storage("flow", 32, 95, "dis")
  found = list(decode.encode_frames(path, flow, strict=False))
  gaps = [item for item in found if isinstance(item, Gap)]
  assert gaps
  for gap in gaps:
    pairs = [item for item in found if not isinstance(item, Gap)]
    assert not any(pair.start < gap.start and gap.end <= pair.seconds for pair in pairs)


def test_rejects_files_that_are_not_videos_even_if_not_strict(tmp_path):
  path = tmp_path / "a.mp4"
  for content in (b"", b"no video", np.random.default_rng(0).bytes(50_000)):
    path.write_bytes(content)
    found, _, message = windows(str(path))
    assert not found and message


def test_yields_gaps_only_if_not_strict(tmp_path):
  path = concatenate(tmp_path / "a.ts", 2, 2)
  assert not any(isinstance(frame, Gap) for frame in read(path))
  assert any(isinstance(frame, Gap) for frame in read(path, strict=False))
  assert not any(math.isnan(frame.end) for frame in read(path))
  with contextlib.closing(reader.decode_frames(path, 32, "rgb24")) as frames:
    seconds, end, image = next(frames)
  assert (seconds, end) == pytest.approx((0, 1 / RATE)) and image.shape == (32, 48, 3)
