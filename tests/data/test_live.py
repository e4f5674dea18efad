"""A camera, of GStreamer's RTSP server on the loopback address; a file called like one."""

import os
import shutil
import subprocess

import pytest

from data import decode, footage
from data.decode import Storage
from u2s_jax.errors import UserError

# Sixty frames of a moving ball, twelve a second; a program of the system's Python, which has `gi`.
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


def test_windows_of_a_camera(camera):
  spans = [(k / 2, k / 2 + 1) for k in range(20)]
  found = list(decode.parts(footage.live(camera), SMALL, spans))
  assert [part.start for part in found[:6]] == [0, 0.5, 1, 1.5, 2, 2.5]
  assert all(11 <= len(part.frames) <= 13 for part in found[:6])
  assert 3.5 < found[-1].end <= 5.1  # it ends when the stream does
  assert found[0].frames != found[4].frames


def test_a_camera_that_is_not_there_is_a_line(free_port):
  with pytest.raises(UserError, match="^the camera does not answer"):
    list(decode.parts(footage.live(f"rtsp://127.0.0.1:{free_port()}/live"), SMALL, [(0.0, 1.0)]))


def test_only_who_names_a_camera_gets_one(tmp_path, monkeypatch):
  assert footage.live("a.mp4") is None and footage.live("http://host/a.mp4") is None
  assert footage.live("/dev/video0") == footage.Live("/dev/video0")
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError):  # as a list of files has it
    decode.parts_of(os.path.abspath("rtsp://127.0.0.1:9/live"), SMALL, [(0.0, 1.0)])
