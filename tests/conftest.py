"""Eight simulated devices, programs compiled once for all tests and their subprocesses, videos.

Environment variables, because they have to be there before JAX is imported, here and there.
"""

import atexit
import os
import shutil
import tempfile

import av
import numpy as np
import pytest

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

# New for every session, so that no test passes on a program of an earlier version.
_CACHE = tempfile.mkdtemp(prefix="u2s_jax_tests_")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

LOSSLESS = {
  "libvpx-vp9": {"lossless": "1", "deadline": "realtime", "cpu-used": "8"},
  "libx264": {"qp": "0", "preset": "ultrafast"},
  "ffv1": {},
}


@pytest.fixture(scope="session")
def write_video():
  """Writes a video; by default lossless VP9 whose frame k has the grey level 16 k."""

  def write(path, frames, *, codec="libvpx-vp9", pixel_format="yuv420p", times=None):
    if isinstance(frames, int):
      frames = [np.full((32, 48, 3), 16 * k, np.uint8) for k in range(frames)]
    with av.open(str(path), "w") as container:
      stream = container.add_stream(codec, rate=12)
      stream.height, stream.width = frames[0].shape[:2]
      stream.pix_fmt = pixel_format
      stream.options = LOSSLESS[codec]
      for k, image in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        if times is not None:
          frame.pts = times[k]
        container.mux(stream.encode(frame))
      container.mux(stream.encode(None))
    return path

  return write
