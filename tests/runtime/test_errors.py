"""Tests of escaping of untrusted text and of one-line error messages."""

import csv
import json

import jax
import pytest

from u2s_jax.run.workdir import write_csv
from u2s_jax.runtime.errors import UserError, describe_error, escape, escape_cell, parse_cell
from u2s_jax.serving import formatting


def test_escape_removes_control_sequences():
  name = "a\x1b[2Jb\r\u202ec\udcff\x00é 中\n"
  assert escape(name) == "a\\x1b[2Jb\\r\\u202ec\\udcff\\x00é 中\n"
  assert describe_error(UserError("bad \x1b[31m")) == "bad \\x1b[31m"
  assert describe_error(FileNotFoundError(2, "none", "x\x07")) == "x\\x07: none"


@pytest.mark.parametrize(
  ("value", "cell"),
  [
    ("=1+1", "'=1+1"),
    ("@SUM(A1)", "'@SUM(A1)"),
    ("-rf.mp4", "'-rf.mp4"),
    ("+12.50", "+12.50"),
    ("-3", "-3"),
    ("a=1", "a=1"),
    ("'-a", "''-a"),
    ("it's", "it's"),
    ("'", "'"),
    ("", ""),
    (-3.5, -3.5),
  ],
)
def test_escape_cell_prevents_formulas(value, cell, tmp_path):
  assert escape_cell(value) == cell
  assert parse_cell(str(cell)) == str(value)
  write_csv(tmp_path / "a.csv", [{"class": value}])
  with open(tmp_path / "a.csv", newline="") as file:
    assert next(csv.DictReader(file))["class"] == str(cell)


@pytest.mark.parametrize(
  "name", ["é.mp4", "a\udcff.mp4", "3.00\u202fPM.mov", "a\x9b2J.mp4", "a\xa0b"]
)
def test_json_is_utf8_for_any_file_name(name):
  line = formatting.format_error(name, "no video", "json")
  assert line.isprintable()
  assert json.loads(line.encode()) == {"path": name, "error": "no video"}


TENSORSTORE = (
  'RESOURCE_EXHAUSTED: Error writing "csm.alpha/0" in OCDBT database at local file'
  ' "/runs/a/checkpoints/joint/3.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp/ocdbt/": Failed'
  " to write 22047 bytes to file [OS error 28: ENOSPC No space left on device]"
)


@pytest.mark.parametrize(
  ("error", "line"),
  [
    (OSError(28, "No space left on device", "/runs/a.csv"), "/runs/a.csv: No space left on device"),
    (OSError(30, "Read-only file system"), "a disk: Read-only file system"),
    (ValueError(TENSORSTORE), "/runs/a/checkpoints/joint/3: No space left on device"),
    (
      RuntimeError("write() failed: No space left on device; writing /data/.a.partial; at byte 3"),
      "/data/.a.partial: No space left on device",
    ),
  ],
)
def test_disk_errors_are_one_line(error, line):
  assert describe_error(error) == f"{line}; fix this, then rerun the same command to resume"
  wrapped = RuntimeError("a thread failed")
  wrapped.__cause__ = error
  assert describe_error(wrapped) == describe_error(error)


class ResourceExhaustedError(Exception):
  """TensorFlow's exception has this name."""


CPU = "RESOURCE_EXHAUSTED: Out of memory allocating 219237722960 bytes."
GPU = """RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.
BufferAssignment OOM Debugging.
BufferAssignment stats:
             parameter allocation:  372.76MiB"""
TPU = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.95G of 15.48G hbm.
 Exceeded hbm capacity by 6.47G.

Total hbm usage >= 22.47G:
    reserved        530.00M
    program          21.95G"""  # fmt: skip # noqa: E501
TPU_STEP = (
  "RESOURCE_EXHAUSTED: Attempting to reserve 5.70G at the bottom of memory. That was not possible."
  " There are 4.50G free, 0B reserved, and 4.50G reservable."
)


@pytest.mark.parametrize(
  ("message", "sizes"),
  [
    (CPU, ": 204.2 GiB needed"),
    (GPU, ": 4.443 GiB needed"),
    (
      "RESOURCE_EXHAUSTED: Failed to allocate request for 2.99GiB (3206250496B) on device ordinal"
      " 0",
      ": 2.99 GiB needed",
    ),
    (TPU, ": 21.95 GiB needed, 15.48 GiB available"),
    (
      "RESOURCE_EXHAUSTED: Compilation failure: Ran out of memory in memory space hbm. Used 8.38G"
      " of 8.00G hbm. Exceeded hbm capacity by 385.25M.",
      ": 8.38 GiB needed, 8 GiB available",
    ),
    (TPU_STEP, ": 5.7 GiB needed, 4.5 GiB available"),
    (
      "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 512.00M. That was"
      " not possible. There are 256.00M free.; (0x0x0_HBM0)",
      ": 0.5 GiB needed, 0.25 GiB available",
    ),
    ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", ""),
  ],
)
def test_device_out_of_memory_is_one_line(message, sizes):
  error = jax.errors.JaxRuntimeError(message)
  line = describe_error(error)
  assert line.startswith(f"out of memory{sizes}; ") and "\n" not in line
  for field in ("batch_size", "accumulate_steps", "model.remat", "model.dtype", "docs/scaling.md"):
    assert field in line
  wrapped = RuntimeError("a thread failed")
  wrapped.__cause__ = error
  assert describe_error(wrapped) == line


def test_tensorflow_out_of_memory_is_one_line():
  error = ResourceExhaustedError("OOM when allocating tensor with shape[20,18,240,320,3]")
  assert describe_error(error).startswith("out of memory; ")
  error = ResourceExhaustedError("Failed to allocate memory for the batch of component 0")
  assert describe_error(error).startswith("out of memory; ")


@pytest.mark.parametrize(
  ("error", "sizes"),
  [
    (MemoryError(), ""),
    (MemoryError("std::bad_alloc"), ""),
    (MemoryError("Unable to allocate 4.00 TiB for an array with shape (1,)"), ": 4096 GiB needed"),
    (OSError(12, "Cannot allocate memory"), ""),
  ],
)
def test_host_out_of_memory_is_one_line(error, sizes):
  assert describe_error(error).startswith(f"out of memory on the host{sizes}; use fewer workers")


@pytest.mark.parametrize(
  "message",
  [
    "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 44.05M of 32.00M vmem.",
    "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Read requests'",
    "RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)",
    "INVALID_ARGUMENT: out of memory bounds",
  ],
)
def test_other_exhausted_resources_are_bugs(message):
  assert describe_error(jax.errors.JaxRuntimeError(message)) is None


def test_impossible_allocation_is_one_line():
  with pytest.raises(jax.errors.JaxRuntimeError) as caught:
    jax.jit(lambda: jax.numpy.zeros((1 << 20, 1 << 22)))().block_until_ready()
  assert describe_error(caught.value).startswith(
    "out of memory: 1.638e+04 GiB needed; lower batch_size"
  )


def test_other_library_errors_are_bugs():
  assert describe_error(ValueError("INVALID_ARGUMENT: no such /runs/a")) is None
  assert describe_error(RuntimeError("no space in this list")) is None
  bug = KeyError("x")
  bug.__context__ = OSError(28, "No space left on device", "/runs/a")
  assert describe_error(bug) is None  # an unrelated error, raised in the handler of the other
  assert describe_error(OSError(5, "Input/output error")) is None  # a terminal's, for example
