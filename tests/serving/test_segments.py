"""Rows of a CSV file are scored and compared with their labels."""

import json

import numpy as np
import pytest

from u2s_jax.run.workdir import Workdir
from u2s_jax.serving import accuracy, cli, predict
from u2s_jax.serving.model import Model
from u2s_jax.serving.predict import Prediction
from u2s_jax.video.listing import Entry
from u2s_jax.video.region import Region

LEFT, RIGHT = Region(0, 0, 0.5, 1), Region(0.5, 0, 0.5, 1)


@pytest.fixture
def model(finished):
  return Model(predict.load(Workdir.open(finished[0])))


@pytest.fixture
def video(tmp_path, write_video):
  """A second of red, one of green, one of blue: classes 0, 1, 2 of the run are their colours."""
  frames = []
  for channel in range(3):
    frame = np.full((32, 32, 3), 60, np.uint8)
    frame[..., channel] += 130
    frames += [frame] * 25
  return write_video(tmp_path / "colours.webm", frames)


def call(finished, path, *more, capsys):
  with pytest.raises(SystemExit) as stopped:
    cli.main([f"--workdir={finished[0]}", "--mode=predict", f"--segments={path}", *more])
  captured = capsys.readouterr()
  return stopped.value.code, captured.out, captured.err


def test_segments_have_the_scores_of_cut_files(model, video, tmp_path, write_video):
  entry = Entry("", "a", str(video), "class 1", None, span=(1.0, 2.0))
  (prediction,) = model.predict_entries([entry])
  frame = np.full((32, 32, 3), 60, np.uint8)
  frame[..., 1] += 130
  cut = model.predict(write_video(tmp_path / "cut.webm", [frame] * 25))
  for name, scores in prediction.scores.items():
    np.testing.assert_allclose(scores, cut.scores[name], atol=0.05)
  assert prediction.label == cut.label


@pytest.mark.parametrize("output_format", ["text", "json", "csv"])
def test_prints_rows_and_accuracy(finished, model, video, tmp_path, capsys, output_format):
  rows = ["path,label,start,end", *(f"colours.webm,class {k},{k},{k + 1}" for k in range(3))]
  rows += ["colours.webm,,0.5,1.5", "missing.webm,class 0,,"]
  (tmp_path / "list.csv").write_text("\n".join(rows))
  more = [] if output_format == "text" else [f"--{output_format}"]
  code, out, err = call(finished, tmp_path / "list.csv", *more, capsys=capsys)
  assert code == 1  # a file is missing
  entries = [Entry("", "", str(video), "", None, span=(float(k), k + 1.0)) for k in range(3)]
  hits = sum(p.label == f"class {k}" for k, p in enumerate(model.predict_entries(entries)))
  if output_format == "json":
    *lines, summary = map(json.loads, out.splitlines())
    assert [line.get("expected") for line in lines[:4]] == ["class 0", None, "class 1", "class 2"]
    assert "error" in lines[4] and summary["summary"]["clips"] == 3
    assert summary["summary"]["top1"] == pytest.approx(100 * hits / 3)
    assert summary["summary"]["low"] < 100 * hits / 3 + 1e-9
  else:
    text = out if output_format == "text" else err
    assert f"accuracy: {100 * hits / 3:.1f} % (95 % interval" in text and "of 3 clips" in text
    assert "Label \\ prediction" in text and "missing.webm: " in err
  if output_format == "csv":
    lines = out.splitlines()
    assert lines[0] == "path,start,end,x,y,width,height,label,score,expected" and len(lines) == 5
    assert lines[1].startswith(f"{video},0.0,1.0,,,,,class ") and lines[1].endswith(",class 0")


def test_region_of_a_row(model, tmp_path, write_video):
  left, right = (np.full((32, 32, 3), 60, np.uint8) for _ in range(2))
  left[..., 0] += 130
  right[..., 2] += 130
  path = write_video(tmp_path / "a.webm", [np.concatenate([left, right], 1)] * 5)
  both = model.predict_entries(
    [Entry("", "", str(path), "", None, region=region) for region in (LEFT, RIGHT)]
  )
  expected = [
    model.predict(write_video(tmp_path / f"{k}.webm", [frame] * 5))
    for k, frame in enumerate((left, right))
  ]
  for one, other in zip(both, expected, strict=True):
    np.testing.assert_allclose(one.merged, other.merged, atol=0.05)
  assert expected[0].merged.argmax() == 0 and not np.allclose(*(p.merged for p in expected))


def test_summary_by_hand():
  names = ("a", "b", "c")
  labels, predictions = [], []
  for label, guess, count in (("a", "a", 3), ("a", "b", 1), ("b", "b", 6)):
    scores = np.eye(3)[names.index(guess)]
    labels += [label] * count
    predictions += [Prediction({"universal": scores}, names)] * count
  summary = accuracy.summarize(labels, predictions)
  assert summary["top1"] == 90 and summary["clips"] == 10 and summary["mean_class"] == 87.5
  assert (round(summary["low"], 1), round(summary["high"], 1)) == (59.6, 98.2)  # Wilson's
  assert summary["confusion"] == {"a": {"a": 3, "b": 1}, "b": {"b": 6}}
  text = accuracy.format_summary(summary)
  assert text.splitlines()[0] == (
    "accuracy: 90.0 % (95 % interval 59.6 to 98.2) of 10 clips; mean over classes 87.5 %"
  )
  many = {f"c{k:02}": {f"c{(k + k % 2) % 20:02}": k + 1} for k in range(20)}
  text = accuracy.format_summary(summary | {"confusion": many})
  assert "20  c19 -> c00" in text and text.count("->") == 10


def test_rejects_labels_that_the_run_does_not_know(finished, tmp_path, video):
  (tmp_path / "list.csv").write_text("path,label\ncolours.webm,class 9\n")
  with pytest.raises(SystemExit, match="line 2: 'class 9' is not one of the run's classes"):
    cli.main([f"--workdir={finished[0]}", "--mode=predict", f"--segments={tmp_path}/list.csv"])
  with pytest.raises(SystemExit, match="--segments and --video: choose one"):
    cli.main([f"--workdir={finished[0]}", "--mode=predict", "--segments=a.csv", f"--video={video}"])


@pytest.mark.parametrize("output_format", ["text", "json", "csv"])
def test_details_of_windows(finished, model, video, capsys, output_format):
  more = [] if output_format == "text" else [f"--{output_format}"]
  with pytest.raises(SystemExit):
    cli.main(
      [f"--workdir={finished[0]}", "--mode=predict", f"--video={video}", "--window=1", "--details"]
      + ["--stride=0.5", *more]
    )
  lines = capsys.readouterr().out.splitlines()
  windows = list(model.windows(video, 1.0, 0.5))
  if output_format == "json":
    for line, window in zip(map(json.loads, lines), windows, strict=True):
      assert [*line["scores"].values()] == pytest.approx(window.prediction.merged, abs=1e-6)
      assert (line["start"], line["end"]) == (window.start, pytest.approx(window.end, abs=1e-3))
  elif output_format == "csv":
    assert lines[0] == "path,start,end,class 0,class 1,class 2"
    for line, window in zip(lines[1:], windows, strict=True):
      assert [float(x) for x in line.split(",")[3:]] == pytest.approx(
        window.prediction.merged, abs=1e-6
      )
  else:
    assert len(lines) == len(windows) + 1
    assert lines[1].startswith("  00:00:00.000 --> 00:00:01.000  class ")
