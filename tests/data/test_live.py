"""A live stream from GStreamer's RTSP server on the loopback address; a file with such a name."""

import os
import shutil
import subprocess

import pytest

from data.preparation import decoding
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import decode, reader
from u2s_jax.video.decode import Storage

# Streams 60 frames of a moving ball at 12 fps; runs in the system's Python, which has `gi`.
SERVER = """
import sys, gi
gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
  "( videotestsrc pattern=ball num-buffers=60 is-live=true"
  " ! video/x-raw,width=64,height=48,framerate=12/1"
  " ! x264enc tune=zerolatency key-int-max=6 ! rtph264pay name=pay0 pt=96 )"
)
server.get_mount_points().add_factory("/live", factory)
server.attach(None)
print("ready", flush=True)
GLib.MainLoop().run()
"""
SMALL = Storage("rgb", 32, 90)


@pytest.fixture
def camera(free_port):
  python, port = shutil.which("python3", path="/usr/bin") or "python3", free_port()
  process = subprocess.Popen(
    [python, "-c", SERVER, str(port)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
  )
  with process.stdout as answers:
    if answers.readline() != "ready\n":
      process.wait()
      pytest.skip("no GStreamer with its RTSP server")
    yield f"rtsp://127.0.0.1:{port}/live"
    process.kill()
    process.wait()


def test_decodes_windows_of_live_stream(camera):
  spans = [(k / 2, k / 2 + 1) for k in range(20)]
  segments = list(decode.decode_segments(reader.parse_camera(camera), SMALL, spans))
  assert [segment.start for segment in segments[:6]] == [0, 0.5, 1, 1.5, 2, 2.5]
  assert all(11 <= len(segment.frames) <= 13 for segment in segments[:6])
  assert 3.5 < segments[-1].end <= 5.1  # when the stream ends
  assert segments[0].frames != segments[4].frames


def test_unreachable_camera_is_an_error(free_port):
  with pytest.raises(UserError, match="^the camera does not respond"):
    list(
      decode.decode_segments(
        reader.parse_camera(f"rtsp://127.0.0.1:{free_port()}/live"), SMALL, [(0.0, 1.0)]
      )
    )


def test_parse_camera(tmp_path, monkeypatch):
  assert reader.parse_camera("a.mp4") is None and reader.parse_camera("http://host/a.mp4") is None
  assert reader.parse_camera("/dev/video0") == reader.Camera("/dev/video0")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError):  # an absolute path, as in a list of files, is no address
    decoding.decode_spans(os.path.abspath("rtsp://127.0.0.1:9/live"), SMALL, [(0.0, 1.0)])
