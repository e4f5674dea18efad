"""The page that scores videos, in Chromium, with files that a user drops.

The tests in the browser require the packages `gradio` and `playwright` and the program `chromium`.
"""

import importlib.util
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

import u2s_jax
from u2s_jax.serving import app
from u2s_jax.serving.intervals import Gap, Interval


def test_timeline_escapes_names():
  shown = app.format_timeline(
    [Interval(0.0, 2.5, "<b>run</b>", 0.75), Gap(2.5, 3.0, "gone"), Interval(3.0, 4.0, "jump", 0.5)]
  )
  assert "<b>" not in shown and "&lt;b&gt;run&lt;/b&gt;" in shown
  assert "0.0 to 2.5 s" in shown and "75 %" in shown and "gone" in shown
  widths = [float(value) for value in re.findall(r"flex:([\d.]+)", shown)]
  assert widths == [2.5, 0.5, 1.0]
  assert len(set(re.findall(r"background:([^\"]+)", shown))) == 3


@pytest.fixture(scope="module")
def address(finished, tmp_path_factory):
  """Starts the command for a run called `my <run>`, and yields the page's address."""
  if importlib.util.find_spec("gradio") is None:
    pytest.skip("requires gradio")
  workdir = tmp_path_factory.mktemp("app") / "my <run>"
  shutil.copytree(finished[0], workdir)
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "u2s_jax.app", f"--workdir={workdir}", f"--port={port}"]
  with subprocess.Popen(
    [*command, "--max_seconds=8"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  ) as process:
    line = next((line for line in process.stdout if "local URL" in line), "")
    yield line.split()[-1]
    process.terminate()


def drop(tab, path):
  tab.locator("input[type=file]").first.set_input_files(path)


def test_dropped_videos_are_scored(finished, address, browser, tmp_path, write_video):
  assert address.startswith("http://127.0.0.1:")
  model = u2s_jax.load(finished[0])
  tab = browser.new_page(viewport={"width": 1440, "height": 900})
  tab.goto(address)
  tab.get_by_role("heading", name="my <run>").wait_for()
  rng = np.random.default_rng(0)
  frames = [rng.integers(0, 256, (32, 48, 3), np.uint8) for _ in range(72)]
  short, long = tmp_path / "secret name.webm", tmp_path / "long.webm"
  write_video(short, frames[:24])  # two seconds
  write_video(long, frames)  # six
  drop(tab, short)
  label, expected = tab.get_by_test_id("label-output-value"), model.predict(short)
  label.wait_for()
  assert label.inner_text().strip() == expected.label
  shown = tab.locator(f'img[alt="{app.MASK}"]')
  shown.wait_for()
  assert shown.evaluate("image => image.naturalWidth") > 0
  assert tab.locator("table").count() == 0

  tab.reload()
  drop(tab, long)
  tab.locator("table").wait_for()
  intervals = [*model.intervals(long)]
  rows = tab.locator("tbody tr")
  assert rows.count() == len(intervals)
  assert intervals[0].label in rows.first.inner_text()


def test_long_and_damaged_files_are_rejected(address, browser, tmp_path, write_video):
  tab = browser.new_page()
  tab.goto(address)
  write_video(tmp_path / "too long.webm", [np.zeros((32, 48, 3), np.uint8)] * 120)
  drop(tab, tmp_path / "too long.webm")
  tab.get_by_text("The video has 10 s; the maximum is 8 s").wait_for()

  tab.reload()
  (tmp_path / "damaged.mp4").write_bytes(b"no video" * 100)
  drop(tab, tmp_path / "damaged.mp4")
  tab.get_by_text("The file is not a video, is damaged").first.wait_for()
  assert str(tmp_path) not in tab.content() and "/gradio/" not in tab.inner_text("body")


def test_requires_gradio(finished, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(SystemExit, match="gradio: not installed; run `pip install"):
    app.main([f"--workdir={finished[0]}"])
