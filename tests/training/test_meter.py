"""The file of all scalars, one line a step."""

import json

from tests.memory_run import MemoryWriter
from u2s_jax.training.meter import MetricsFile


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_merges_the_scalars_of_a_step(tmp_path):
  path, inner = tmp_path / "metrics.jsonl", MemoryWriter()
  writer = MetricsFile(path, path, inner)
  writer.write_scalars(3, {"a": 1.0})
  writer.write_images(3, {})
  writer.write_scalars(3, {"b": 2.0})
  writer.write_scalars(6, {"a": 3.0})
  assert read(path) == [{"step": 3, "a": 1.0, "b": 2.0}]
  writer.close()
  assert read(path)[1:] == [{"step": 6, "a": 3.0}]
  assert inner.scalars == {3: {"a": 1.0, "b": 2.0}, 6: {"a": 3.0}} and inner.images == {3: {}}


def test_resumed_run_replaces_the_lines_that_it_repeats(tmp_path):
  """The run was killed while it wrote the line of step 9, and resumes from step 6."""
  path = tmp_path / "metrics.jsonl"
  lines = [{"step": 3, "a": 1.0}, {"step": 6, "a": 2.0}, {"step": 8, "a": 3.0}]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9, "a')
  for _ in range(2):  # repeating it once more changes nothing
    writer = MetricsFile(path, path, MemoryWriter())
    writer.write_scalars(6, {"validation": 4.0})
    writer.write_scalars(8, {"a": 5.0})
    writer.close()
    assert read(path) == [lines[0], {"step": 6, "a": 2.0, "validation": 4.0}, {"step": 8, "a": 5.0}]


def test_run_that_writes_nothing_keeps_the_file(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 3}\n')
  MetricsFile(path, path, MemoryWriter()).close()
  assert read(path) == [{"step": 3}]
