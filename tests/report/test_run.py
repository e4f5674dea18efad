"""The numbers that a run has logged."""

import json

from u2s_jax.report import run


def write(path, *lines):
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return path


def test_the_last_value_of_a_step_counts(tmp_path):
  path = write(
    tmp_path / "metrics.jsonl",
    {"step": 5, "a/loss": 3.0},
    {"step": 10, "a/loss": 2.0, "a/validation": 40.0},
    {"step": 15, "a/loss": 1.5},
    # After a crash.
    {"step": 10, "a/loss": 2.5, "a/validation": 50.0},
    {"step": 15, "a/loss": 1.0},
  )
  history = run.read_metrics(path, log_every_steps=5)
  assert {tag: (steps.tolist(), values.tolist()) for tag, (steps, values) in history.items()} == {
    "a/loss": ([5, 10, 15], [3.0, 2.5, 1.0]),
    "a/validation": ([10], [50.0]),
  }


def test_a_file_that_begins_late_is_not_used(tmp_path):
  path = write(tmp_path / "metrics.jsonl", {"step": 30, "a/loss": 3.0})
  assert not run.read_metrics(path, log_every_steps=20)
  assert not run.read_metrics(tmp_path / "missing.jsonl", log_every_steps=20)


def test_a_line_that_was_cut_off_is_skipped(tmp_path):
  path = write(tmp_path / "metrics.jsonl", {"step": 5, "a/loss": 3.0})
  with open(path, "a") as file:
    file.write('{"step": 10, "a/lo')
  steps, values = run.read_metrics(path, log_every_steps=5)["a/loss"]
  assert steps.tolist() == [5] and values.tolist() == [3.0]
