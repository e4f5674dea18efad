"""`main.py` as a user starts it: video files, killed processes, bad input."""

import contextlib
import csv
import dataclasses
import fcntl
import html
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

import av
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import main
import u2s_jax
from data.preparation import prepare
from u2s_jax.evaluation import control as results_control
from u2s_jax.pretrained import adapt, read
from u2s_jax.pretrained.names import Pixels
from u2s_jax.report import page
from u2s_jax.report import run as report_run
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime.errors import INTERRUPTED, UserError
from u2s_jax.serving import card as model_card
from u2s_jax.serving import predict, predict_exported, preprocess
from u2s_jax.serving.intervals import Gap
from u2s_jax.stages import STAGES
from u2s_jax.video import clip_views, clips, decode
from u2s_jax.video.decode import Storage

ROOT = pathlib.Path(__file__).resolve().parent.parent
PREDICTIONS = {
  "universal",
  "bridge",
  "specific",
  "universal+bridge",
  "bridge+specific",
  "universal+specific",
  "universal+bridge+specific",
}


def command(workdir, *arguments, config="tests/config.py"):
  return [
    sys.executable, "main.py", f"--config={config}", f"--workdir={workdir}", *arguments,
  ]  # fmt: skip


def environment(**more):
  """Returns the environment of a child process with one device."""
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")
  return os.environ | {"XLA_FLAGS": flags} | more


def start(workdir, *arguments):
  """Runs `main.py` in another process."""
  return subprocess.run(
    command(workdir, *arguments),
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )


def call(*arguments, monkeypatch):
  """Runs `main.py` in this process; returns its output and its exit message or status."""
  printed, status = io.StringIO(), 0
  monkeypatch.chdir(ROOT)
  with (
    contextlib.redirect_stdout(printed),
    warnings.catch_warnings(action="ignore", category=DeprecationWarning),  # ml_collections'
  ):
    try:
      main.main([*map(str, arguments)])
    except SystemExit as exit:
      status = exit.code
  return printed.getvalue(), status


def read_parameters(workdir):
  """Returns all arrays of the last checkpoint, by path."""
  folder = workdir / "checkpoints/joint"
  step = max(int(path.name) for path in folder.iterdir())
  tree = ocp.StandardCheckpointer().restore(folder / str(step) / "state")
  flat = {}

  def walk(node, path):
    if isinstance(node, dict):
      for key, value in node.items():
        walk(value, (*path, key))
    elif isinstance(node, (list, tuple)):
      for key, value in enumerate(node):
        walk(value, (*path, key))
    elif node is not None:
      flat[path] = np.asarray(node)

  walk(tree, ())
  return flat


@pytest.fixture(scope="module")
def shared(tmp_path_factory, worker_id):
  """A directory that all workers share."""
  base = tmp_path_factory.getbasetemp()
  folder = (base if worker_id == "master" else base.parent) / "main"
  folder.mkdir(exist_ok=True)
  return folder


@pytest.fixture(scope="module")
def data(shared):
  """Overrides with the directories of videos that are rendered and prepared once."""
  return (
    f"--config.data.render.dir={shared}/source",
    f"--config.data.dir={shared}/prepared",
  )


@contextlib.contextmanager
def lock_once(shared, name):
  """Yields True in the first worker; the others wait until it is done."""
  done = shared / f"{name}.done"
  with open(shared / f"{name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield not done.exists()
    done.touch()


@pytest.fixture(scope="module")
def finished(shared, data):
  """Directory and output of a finished run."""
  workdir, output = shared / "run", shared / "output.txt"
  with lock_once(shared, "run") as is_first:
    if is_first:
      result = start(workdir, *data)
      assert result.returncode == 0, result.stderr
      output.write_text(result.stdout)
  return workdir, output.read_text()


def test_run_from_videos_to_table(finished):
  workdir, printed = finished
  assert "Top-1 (%)" in printed and "One-pass" in printed
  for stage in STAGES:
    assert f"stage {stage}:" in printed
  summary = json.loads((workdir / "summary.json").read_text())
  assert set(summary["predictions"]) == PREDICTIONS
  assert set(summary["csm"]) == {"alpha", "n", "average_confusing"}
  assert set(summary["parameters"]) == {"one_pass", "u2s"}
  assert summary["config"] == "tests/config.py"
  assert {path.name for path in workdir.iterdir()} >= {"checkpoints", "scores", "config.json"}
  assert list(workdir.glob("events.out.tfevents*"))
  scores = np.load(workdir / "scores/validation.npz")
  assert len(scores["ids"]) == 35 and len(set(scores["ids"])) == 35


def test_finished_run_does_nothing(finished, data, monkeypatch):
  printed, status = call(*command(finished[0], *data)[2:], monkeypatch=monkeypatch)
  assert status == 0 and "this run is finished" in printed


def test_evaluation_in_other_views_writes_another_folder(finished, data, monkeypatch):
  workdir = finished[0]
  before = {path: path.read_bytes() for path in (workdir / "scores").iterdir()}
  printed, status = call_mode(
    "eval", workdir, "--config.eval.views=10crop", monkeypatch=monkeypatch
  )
  assert status == 0
  digest = json.loads((workdir / "summary.json").read_text())["data"]["digest"]
  (folder,) = (workdir / "eval").glob(f"*-{digest[:8]}-10crop")
  assert f"writing the results to {folder}" in printed
  assert set(json.loads((folder / "summary.json").read_text())["predictions"]) == PREDICTIONS
  for path, content in before.items():
    assert path.read_bytes() == content
    old, new = np.load(path), np.load(folder / "scores" / path.name)
    np.testing.assert_array_equal(old["ids"], new["ids"])
    assert np.any(old["universal"] != new["universal"])


def test_evaluation_on_a_subset_of_the_classes(finished, data, tmp_path, monkeypatch):
  workdir = finished[0]
  own = dict(np.load(workdir / "scores/validation.npz"))
  rows = [0, 3, 20]
  for row in rows:
    folder = tmp_path / "source/test" / str(own["class_names"][own["labels"][row]])
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(find_video(data, own["ids"][row]), folder / f"{row}.webm")
  out = tmp_path / "others"
  prepare.main(
    ["--dataset=videos", f"--source={tmp_path / 'source'}", f"--out={out}", "--short_edge=36"]
  )
  before = {path: path.read_bytes() for path in workdir.glob("*.*") if path.is_file()}
  arguments = (f"--config.data.dir={out}", "--config.eval.split=test")
  printed, status = call_mode("eval", workdir, *arguments, monkeypatch=monkeypatch)
  assert status == 0 and "the data set (others) differs from the training run's" in printed
  (folder,) = (workdir / "eval").glob("others_test-????????-center")
  found = np.load(folder / "scores/test.npz")
  for i, name in enumerate(found["ids"]):
    row = int(pathlib.Path(str(name)).stem)
    assert found["labels"][i] == own["labels"][row]
    np.testing.assert_allclose(found["universal"][i], own["universal"][row], atol=1e-5)
  assert len(found["ids"]) == 3 and found["class_names"].tolist() == own["class_names"].tolist()
  assert {path: path.read_bytes() for path in before} == before


def test_predict_prints_one_row_per_video(finished, data, monkeypatch):
  ids = np.load(finished[0] / "scores/validation.npz")["ids"]
  files = [str(find_video(data, ids[row])) for row in (0, 5)]
  arguments = [f"--video={file}" for file in (*files, files[0])]
  printed, status = call_mode("predict", finished[0], *arguments, "--csv", monkeypatch=monkeypatch)
  rows = list(csv.DictReader(printed.splitlines()))
  assert status == 0 and [row["path"] for row in rows] == files


def find_video(data, number):
  """Returns the video file of a clip."""
  folder = pathlib.Path(data[0].partition("=")[2])
  return next(folder.rglob(f"{number}.webm"))


def fuse_scores(scores, names, row):
  return np.mean([scores[name][row] for name in names.split("+")], axis=0)


def call_mode(mode, workdir, *arguments, monkeypatch):
  """Runs a mode that reads everything from the workdir."""
  return call(f"--mode={mode}", f"--workdir={workdir}", *arguments, monkeypatch=monkeypatch)


def test_predict_agrees_with_the_evaluation(finished, data, tmp_path, monkeypatch):
  workdir = finished[0]
  scores = np.load(workdir / "scores/validation.npz")
  for row in (0, 5):
    shutil.copy(find_video(data, scores["ids"][row]), tmp_path / f"{row}.webm")
  (tmp_path / "broken.mp4").write_bytes(b"no video")
  arguments = (f"--video={tmp_path}", "--json", "--details")
  printed, status = call_mode("predict", workdir, *arguments, monkeypatch=monkeypatch)
  assert status == 1
  answers = [json.loads(line) for line in printed.splitlines()]
  answers = {pathlib.Path(answer["path"]).name: answer for answer in answers}
  assert answers.keys() == {"0.webm", "5.webm", "broken.mp4"}
  assert "decode" in answers["broken.mp4"]["error"]
  for row in (0, 5):
    found = answers[f"{row}.webm"]["predictions"]
    assert found.keys() == PREDICTIONS
    assert answers[f"{row}.webm"]["best"] == found["universal+bridge+specific"]
    for names, best in found.items():
      expected = fuse_scores(scores, names, row)
      order = np.argsort(-expected, kind="stable")[:5]
      assert [guess["class"] for guess in best] == [scores["class_names"][j] for j in order]
      np.testing.assert_allclose([g["score"] for g in best], expected[order], atol=1e-5)


def test_predict_prints_text_and_writes_an_overlay(finished, data, tmp_path, monkeypatch):
  workdir = finished[0]
  clip_id = np.load(workdir / "scores/validation.npz")["ids"][0]
  video, overlay = find_video(data, clip_id), tmp_path / "overlay.mp4"
  arguments = (f"--video={video}", f"--overlay={overlay}")
  printed, status = call_mode("predict", workdir, *arguments, monkeypatch=monkeypatch)
  assert status == 0
  assert printed.startswith(str(video)) and printed.count(" %  ") == 5
  with av.open(str(overlay)) as container:
    frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
  assert len(frames) == 4 and min(frames[0].shape[:2]) >= 224
  for arguments, words in (
    (("--video=/none/*.mp4",), "/none/*.mp4: no video"),
    ((f"--video={video}", f"--overlay={overlay}"), "already exists"),
    ((), "--video"),
  ):
    _, status = call_mode("predict", workdir, *arguments, monkeypatch=monkeypatch)
    assert status.startswith("error: ") and words in status


@pytest.fixture(scope="module")
def model(finished):
  """The finished run, loaded in Python."""
  return u2s_jax.load(str(finished[0]))


def test_model_pickles(model, finished, data):
  """Programs are compiled again and give the same bits."""
  again = pickle.loads(pickle.dumps(model))
  video = str(find_video(data, np.load(finished[0] / "scores/validation.npz")["ids"][0]))
  expected, got = model.predict(video), again.predict(video)
  for name, values in expected.scores.items():
    np.testing.assert_array_equal(got.scores[name], values)
  assert got.label == expected.label and again.class_names == model.class_names
  np.testing.assert_array_equal(again.features(video), model.features(video))
  np.testing.assert_array_equal(again.masked(video), model.masked(video))


@pytest.fixture
def long_video(finished, data, tmp_path, write_video):
  """A lossless video of eight clips, 4 s long, and a function that cuts frames out of it."""
  ids = np.load(finished[0] / "scores/validation.npz")["ids"][:8]
  frames = []
  for clip_id in ids:
    with av.open(str(find_video(data, clip_id))) as container:
      decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames += [frame[:36, :36] for frame in decoded[:6]]  # their widths differ

  def cut(first, last):
    path = tmp_path / f"{first}_{last}.mkv"
    return str(write_video(path, frames[first:last], codec="ffv1", pixel_format="bgr0"))

  return cut(0, 48), cut


WITHOUT_TENSORFLOW = """
import json, sys
sys.modules.update(dict.fromkeys(("tensorflow", "tensorflow_datasets")))  # their import fails
import numpy as np
import u2s_jax
model = u2s_jax.load(sys.argv[1])
import configs, data
assert configs.OWNER == data.OWNER == "somebody else"
answers = list(model.predict_each(sys.argv[2:-1]))
windows = list(model.windows(sys.argv[-1], window=0.5, stride=0.5))
print(json.dumps([{name: s.tolist() for name, s in answer.scores.items()} for answer in answers]))
print(len(windows), model.features(sys.argv[2]).shape[0])
"""


def test_predict_in_a_foreign_project_without_tensorflow(finished, data, long_video, tmp_path):
  """The scores are those of the evaluation, which decodes inside TensorFlow's pipeline."""
  for package in ("configs", "data"):
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("OWNER = 'somebody else'\n")
  scores = np.load(finished[0] / "scores/validation.npz")
  files = [str(find_video(data, clip_id)) for clip_id in scores["ids"][:3]]
  command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(finished[0]), *files, long_video[0]]
  project = {"cwd": tmp_path, "env": environment(PYTHONPATH=str(ROOT))}
  result = subprocess.run(command, **project, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  answers, counts = result.stdout.splitlines()
  for row, answer in enumerate(json.loads(answers)):
    for name in ("universal", "bridge", "specific"):
      np.testing.assert_allclose(answer[name], scores[name][row], atol=1e-6)
  assert counts.split()[0] == "8"


@pytest.mark.parametrize("clips", [1, 2, 4])
def test_scores_do_not_depend_on_the_batch(finished, model, data, tmp_path, monkeypatch, clips):
  ids = np.load(finished[0] / "scores/validation.npz")["ids"][:4]
  files = [str(find_video(data, clip_id)) for clip_id in ids]
  (tmp_path / "damaged.mp4").write_bytes(b"no video")
  asked = [str(tmp_path / "missing.mp4"), *files[:3], str(tmp_path / "damaged.mp4"), files[3]]
  monkeypatch.setattr(model._score, "clips", clips)
  found = list(model.predict_each(asked))
  assert len(found) == len(asked)
  assert isinstance(found[0], FileNotFoundError) and isinstance(found[4], UserError)
  for file, together in zip(files, [*found[1:4], found[5]], strict=True):
    for name, alone in model.predict(file).scores.items():
      np.testing.assert_array_equal(together.scores[name], alone)
  assert [*model.predict_each([])] == []


def test_window_has_the_scores_of_a_file_cut_there(model, long_video):
  path, cut = long_video
  windows = list(model.windows(path, window=0.5, stride=0.25))
  # 12 frames a second: a window of 6 frames each 3; the last one has half a window left.
  assert [window.start for window in windows] == [k / 4 for k in range(len(windows))]
  assert len(windows) == 16 and windows[-1].end == pytest.approx(4, abs=2e-3)
  for k, window in enumerate(windows):
    alone = model.predict(cut(3 * k, 3 * k + 6))
    assert alone.scores.keys() == window.prediction.scores.keys() and alone.label
    for name, scores in alone.scores.items():
      np.testing.assert_array_equal(scores, window.prediction.scores[name])


def test_damaged_video_has_a_gap_in_every_format(
  finished, model, tmp_path, write_video, monkeypatch
):
  frames = np.random.default_rng(0).integers(0, 256, (96, 36, 36, 3), np.uint8)
  path = write_video(tmp_path / "a.mkv", list(frames), codec="libx264")
  content = bytearray(path.read_bytes())
  begin = len(content) // 2
  content[begin : begin + 9000] = bytes(9000)
  path.write_bytes(content)
  parts = list(model.intervals(str(path), 0.5, 0.25))
  (gap,) = [part for part in parts if isinstance(part, Gap)]
  assert 3 < gap.start < gap.end < 6 and gap.reason and gap.label is None
  assert parts[0].start == 0 and parts[-1].end == pytest.approx(8, abs=2e-3)
  for part in parts:
    assert part is gap or part.end <= gap.start or gap.end <= part.start
  arguments = (f"--video={path}", "--window=0.5", "--stride=0.25")
  start, end = f"{gap.start:.3f}", f"{gap.end:.3f}"
  for form, line in (
    ((), f"00:00:0{start} --> 00:00:0{end}           ({gap.reason})"),
    (("--json",), f'"gap": "{gap.reason}"'),
    (("--csv",), f"{path},{start},{end},,"),
    (("--vtt",), f"NOTE 00:00:0{start} to 00:00:0{end}: {gap.reason}"),
  ):
    printed, status = call_mode("predict", finished[0], *arguments, *form, monkeypatch=monkeypatch)
    assert status == 0 and line in printed


def test_intervals_as_csv_and_vtt(finished, model, long_video, monkeypatch):
  arguments = (f"--video={long_video[0]}", "--window=0.5", "--stride=0.25")
  printed, status = call_mode("predict", finished[0], *arguments, "--csv", monkeypatch=monkeypatch)
  rows = list(csv.DictReader(io.StringIO(printed)))
  assert status == 0 and [*rows[0]] == ["path", "start", "end", "label", "score", "group"]
  expected = list(model.intervals(long_video[0], 0.5, 0.25))
  assert [row["label"] for row in rows] == [interval.label for interval in expected]
  assert float(rows[0]["start"]) == 0 and all(row["path"] == long_video[0] for row in rows)
  printed, status = call_mode("predict", finished[0], *arguments, "--vtt", monkeypatch=monkeypatch)
  assert status == 0 and printed.startswith("WEBVTT\n\n00:00:00.000 --> ")
  printed, status = call_mode("predict", finished[0], *arguments[:2], monkeypatch=monkeypatch)
  assert status == 0 and "00:00:00.000 -->" in printed  # the stride has a default
  for wrong, words in (
    (("--csv", "--json"), "choose one"),
    (("--window=0",), "must be seconds"),
    (("--threshold=2",), "must be in [0, 1]"),
    (("--shortest=-1",), "must be seconds"),
    (("--overlay=a.mp4",), "--overlay: not available with --window"),
    (("--views=9crop",), "eval.views"),
  ):
    flags_of = {argument.partition("=")[0] for argument in wrong}
    others = [argument for argument in arguments if argument.partition("=")[0] not in flags_of]
    _, status = call_mode("predict", finished[0], *others, *wrong, monkeypatch=monkeypatch)
    assert status.startswith("error: ") and words in status


def test_features_agree_with_the_analysis(finished, model, data, tmp_path, monkeypatch):
  arrays = np.load(finished[0] / "analysis/validation.npz")
  scores = np.load(finished[0] / "scores/validation.npz")
  (row,) = np.flatnonzero(scores["labels"] == arrays["label"][0])  # one clip a class
  video = str(find_video(data, scores["ids"][row]))
  names = np.array(model.feature_names())
  vector = model.features(video)
  assert vector.shape == names.shape and {*names} == {"universal", "specific"}
  for name in ("universal", "specific"):
    np.testing.assert_allclose(
      vector[names == name], arrays[f"pooled_{name}"][0], rtol=1e-4, atol=1e-5
    )
  file = tmp_path / "features.npz"
  unwritable = (f"--video={video}", "--features=/none/a.npz")
  _, status = call_mode("predict", finished[0], *unwritable, monkeypatch=monkeypatch)
  assert status == "error: --features /none/a.npz: no directory /none"
  arguments = (f"--video={video}", f"--features={file}")
  assert call_mode("predict", finished[0], *arguments, monkeypatch=monkeypatch)[1] == 0
  written = np.load(file)
  np.testing.assert_array_equal(written["vectors"], vector[None])
  assert written["ids"].tolist() == [video]


@pytest.fixture(scope="module")
def exported(finished, shared):
  """The directory that `--mode=export` wrote."""
  with lock_once(shared, "export") as is_first, pytest.MonkeyPatch.context() as patch:
    if is_first:
      assert call_mode("export", finished[0], monkeypatch=patch)[1] == 0
  return finished[0] / "export"


def current_umask():
  umask = os.umask(0)
  os.umask(umask)
  return umask


def test_exported_model_requires_only_jax(finished, data, exported, tmp_path):
  workdir = finished[0]
  folder = tmp_path / "elsewhere"
  shutil.copytree(exported, folder)
  facts = json.loads((folder / "model.json").read_text())
  scores = np.load(workdir / "scores/validation.npz")
  stored = facts["clip"].pop("stored")
  clip, storage = clips.ClipSpec(**facts["clip"]), Storage(**stored)
  videos = [
    clip_views.read_views(str(find_video(data, clip_id)), clip, storage, "center")[0]
    for clip_id in scores["ids"][:3]
  ]
  np.save(folder / "clips.npy", np.stack(videos))
  # All packages except NumPy and JAX with its dependencies are hidden.
  code = (
    "import sys, runpy\n"
    "sys.modules.update(dict.fromkeys(('flax', 'u2s_jax', 'tensorflow', 'orbax', 'data')))\n"
    "sys.argv = ['predict_exported.py', 'clips.npy']\n"
    "runpy.run_path('predict_exported.py', run_name='__main__')"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  for row, line in enumerate(result.stdout.splitlines()):
    assert line.startswith(f"clip {row}: ")
    best = fuse_scores(scores, "universal+bridge+specific", row).argmax()
    assert line.split(": ", 1)[1].startswith(str(scores["class_names"][best]))
  missing = code.replace("('flax',", "('flatbuffers', 'flax',")
  result = subprocess.run(
    [sys.executable, "-c", missing], cwd=folder, env=environment(), capture_output=True, text=True
  )
  expected = "error: flatbuffers: not installed; run `pip install flatbuffers`\n"
  assert (result.returncode, result.stderr) == (1, expected)
  assert facts["versions"]["jax"] == jax.__version__
  assert facts["versions"]["calling_convention"] >= 9 and "6 months after" in facts["read_by"]
  modes = {path.name: oct(path.stat().st_mode & 0o777) for path in exported.iterdir()}
  assert set(modes.values()) == {oct(0o666 & ~current_umask())}, modes
  program, class_names = predict_exported.load(folder)
  assert class_names == list(scores["class_names"])
  for count in (1, 3):  # any number of clips
    outputs = program(np.stack(videos[:count]))
    for name in ("universal", "bridge", "specific"):
      np.testing.assert_allclose(outputs[name], scores[name][:count], atol=1e-5)


def test_exported_example(finished, exported):
  example = dict(np.load(exported / "example.npz"))
  frames, clips = example.pop("frames"), example.pop("clips")
  model = u2s_jax.load(finished[0], views="center")
  prediction = model.predict(frames)
  program, _ = predict_exported.load(exported)
  outputs = program(clips)
  assert set(outputs) == set(example) == {"universal", "bridge", "specific", "mask"}
  for name, values in example.items():
    np.testing.assert_allclose(outputs[name], values, atol=1e-5)
    if name != "mask":
      np.testing.assert_allclose(prediction.scores[name], values[0], atol=1e-5)


def test_preprocess_requires_only_numpy_and_pillow(exported, tmp_path):
  shutil.copytree(exported, tmp_path / "export")
  example = np.load(exported / "example.npz")
  (tmp_path / "frames").mkdir()
  for k, frame in enumerate(example["frames"]):
    Image.fromarray(frame).save(tmp_path / f"frames/{k:06d}.png")
  code = (
    "import sys, runpy\n"
    "sys.modules.update(dict.fromkeys(('jax', 'u2s_jax', 'cv2', 'av', 'tensorflow')))\n"
    "sys.argv = ['preprocess.py', 'frames', 'clips.npy']\n"
    "runpy.run_path('export/preprocess.py', run_name='__main__')"
  )
  subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
  np.testing.assert_array_equal(np.load(tmp_path / "clips.npy"), example["clips"])


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ({"modality": "flow"}, "optical flow"),
    ({"stored": {"crop": "by clip"}}, "different regions"),
    ({"stored": {"crop": "10,0,50,40"}}, "is not inside the frame"),
    ({"stored": {"crop": "0.1,0.1,0.001,0.5"}}, "is not inside the frame"),
  ],
)
def test_preprocess_rejects(exported, spec, message):
  clip = json.loads((exported / "model.json").read_text())["clip"]
  spec = {**clip, **spec, "stored": {**clip["stored"], **spec.get("stored", {})}}
  with pytest.raises(ValueError, match=message):
    preprocess.make_clip([Image.new("RGB", (48, 40))], spec)


@pytest.mark.parametrize("crop", [None, "0.25,0.1,0.5,0.7", "3,5,40,33"])
def test_preprocess_makes_the_pixels_of_a_prediction(exported, crop):
  spec = json.loads((exported / "model.json").read_text())["clip"]
  spec["stored"]["crop"] = crop
  frames = np.random.default_rng(0).integers(0, 256, (7, 50, 61, 3), np.uint8)
  made = preprocess.make_clip([Image.fromarray(frame) for frame in frames], spec)
  clip = clips.ClipSpec(**{name: spec[name] for name in spec if name != "stored"})
  storage = Storage(**spec["stored"])
  jpegs = decode.encode_array(frames, storage)
  expected = clip_views.make_views(jpegs, clip, storage.short_edge, "center")[0]
  np.testing.assert_array_equal(made, expected)


@pytest.fixture(scope="module")
def control(finished, shared):
  """A copy of the run whose config has control=True."""
  with lock_once(shared, "control") as is_first:
    if is_first:
      left_out = shutil.ignore_patterns("checkpoints", "compiled", "eval", "export", "report")
      shutil.copytree(finished[0], shared / "control", ignore=left_out)
      file = shared / "control/config.json"
      file.write_text(json.dumps(json.loads(file.read_text()) | {"control": True}))
  return shared / "control"


def test_model_card(finished, exported, control):
  card = (exported / "model_card.md").read_text()
  summary = json.loads((finished[0] / "summary.json").read_text())
  merged = summary["predictions"]["universal+bridge+specific"]
  for words in (
    f"| all predictions | {merged['top1']:.2f} | {merged['top5']:.2f} |",
    "No control was given",
    "## Classes (35)\n\n- ",
    "the short edge resized to 36 pixels, then cropped to 32 x 32",
    "Trained from scratch.",
    "never calibrated",
  ):
    assert words in card
  trained = predict.load(Workdir(finished[0]))
  text = model_card.format_card(trained, Workdir(finished[0]), Workdir(control))
  assert "No control" not in text
  assert f"trained as long) | {merged['top1']:.2f} |" in text


@pytest.mark.parametrize("mode", ["report", "export"])
def test_invalid_control_raises(finished, tmp_path, monkeypatch, mode):
  for where, words in (
    (finished[0], "trained with control=True"),
    (tmp_path, "not a finished run"),
  ):
    _, status = call_mode(mode, finished[0], f"--control={where}", monkeypatch=monkeypatch)
    assert status.startswith(f"error: control {where}") and words in status


def test_headline_claims_a_gain_only_over_a_control(finished, control):
  run = report_run.read(finished[0])
  alone = page.make_headline(run, None)
  assert "No control was given" in alone and "points" not in alone
  read = results_control.read(Workdir(control), Workdir(finished[0]))
  assert page.make_headline(run, read).endswith("so U2S adds +0.00 points.")


def test_init_from_exported_parameters(finished, exported):
  trained = predict.load(Workdir(finished[0]))
  names = ("trunk", "universal")
  there = {
    key: {name: trained.variables[key][name] for name in names} for key in ("params", "batch_stats")
  }
  blank = jax.tree.map(np.zeros_like, there)
  file, backbone = exported / "model.safetensors", trained.config.model.backbone.to_dict()
  pixels = Pixels(trained.network.pixel_mean, trained.network.pixel_std)
  target = adapt.Target(backbone, trained.class_names, needs_classifier=False, pixels=pixels)
  params, batch_stats = adapt.load(file, **blank, target=target, log=print)
  jax.tree.map(np.testing.assert_array_equal, there, {"params": params, "batch_stats": batch_stats})
  others = [f"other {name}" for name in trained.class_names]
  with pytest.raises(UserError, match="trained jointly .*; name the run's workdir"):
    read.read(file, one_pass=True)
  other = dataclasses.replace(target, pixels=Pixels((0.5,), (0.5,)))
  with pytest.raises(UserError, match="trained with pixel mean .0.3, 0.3, 0.3. and deviation"):
    adapt.load(file, **blank, target=other, log=print)
  shifted = dataclasses.replace(target, backbone=backbone | {"name": "tsm_resnet"})
  with pytest.raises(UserError, match="has backbone.name = preact_resnet, not tsm_resnet"):
    adapt.load(file, **blank, target=shifted, log=print)
  target = dataclasses.replace(target, class_names=others)
  params, _ = adapt.load(file, **blank, target=target, log=print)
  assert not params["universal"]["head"]["kernel"].any() and params["trunk"]["stem"]["kernel"].any()


@pytest.fixture(scope="module")
def report(finished, shared):
  """The report of the run next to a copy with another N and regularizer weight."""
  with lock_once(shared, "report") as is_first, pytest.MonkeyPatch.context() as patch:
    if is_first:
      other = shared / "other"
      left_out = shutil.ignore_patterns("checkpoints", "compiled", "eval", "export")
      shutil.copytree(finished[0], other, ignore=left_out)
      for file, section, field, value in (
        ("summary.json", "csm", "n", 9),
        ("config.json", None, "regularizer_weight", 0.0),
      ):
        tree = json.loads((other / file).read_text())
        (tree[section] if section else tree)[field] = value
        (other / file).write_text(json.dumps(tree))
      _, status = call_mode("report", finished[0], f"--compare={other}", monkeypatch=patch)
      assert status == 0
  return finished[0] / "report"


def test_report_has_every_figure(report, finished):
  # Except t-SNE: there is only one clip per class.
  names = {path.stem for path in report.glob("*.svg")}
  assert names == {path.stem for path in report.glob("*.png")} - {
    path.stem for path in report.glob("masks_*.png")
  }
  assert names >= {
    "training", "confusion", "classes", "fig1", "fig4", "top_n", "fig7", "fig8",
  }  # fmt: skip
  page = (report / "index.html").read_text()
  assert page.count("<svg") == 2 * len(names)  # wide and narrow
  ids = np.load(finished[0] / "analysis/validation.npz")["mistake_id"]
  files = re.findall(r'<a href="(file://[^"]*)">(\w+)</a>', page)
  assert sorted(name for _, name in files) == sorted(ids) and len(ids)
  assert all(pathlib.Path(link.removeprefix("file://")).stem == name for link, name in files)
  assert all(pathlib.Path(link.removeprefix("file://")).is_file() for link, _ in files)
  summary = json.loads((finished[0] / "summary.json").read_text())
  for accuracies in (summary["one_pass"], *summary["predictions"].values()):
    assert f"{accuracies['top1']:.2f}" in page
  assert "regularizer_weight" in page and "(λ = 0)" in page


BEFORE = """<head><script>
const problems = [];
addEventListener("error", (e) => problems.push("error: " + e.message), true);
addEventListener("securitypolicyviolation", (e) => problems.push("request: " + e.blockedURI));
console.error = console.warn = (...args) => problems.push("console: " + args);
</script>"""
AFTER = """<script>
document.querySelectorAll("details").forEach((x) => { x.open = true; });
document.querySelectorAll("img").forEach((x) => { x.loading = "eager"; });
addEventListener("load", () => setTimeout(() => {
  const sorted = [...document.querySelectorAll("table.sortable")].map((table) => {
    const rows = [...table.tBodies[0].rows];
    const kinds = (i) => new Set(rows.map((row) => row.cells[i].dataset.value)).size;
    const heads = [...table.tHead.rows[0].cells].filter((x) => x.className === "n");
    const head = heads.sort((a, b) => kinds(b.cellIndex) - kinds(a.cellIndex))[0];
    const column = head.cellIndex;
    return ["descending", "ascending"].map((order) => {
      head.firstElementChild.click();
      const cells = [...table.tBodies[0].rows].map((row) => row.cells[column]);
      const values = cells.map((cell) => Number(cell.dataset.value));
      return [order, head.getAttribute("aria-sort"), values];
    });
  });
  const result = {
    problems, sorted,
    resources: performance.getEntriesByType("resource").map((x) => x.name)
      .filter((x) => !x.startsWith("data:")),
    width: [document.documentElement.scrollWidth, innerWidth],
    broken: [...document.images].filter((x) => !x.naturalWidth).length,
    unnamed: [...document.querySelectorAll("img:not([alt]), [role=img]:not([aria-label])")].length,
    images: document.images.length,
  };
  parent.postMessage(JSON.stringify(result), "*");
}, 500));
</script></body>"""
# In a frame, because Chromium's windows cannot be as narrow as a phone.
FRAME = """<iframe src="page.html" style="width: {width}px; height: 900px; border: 0"></iframe>
<pre id="result"></pre>
<script>onmessage = (e) => {{ document.querySelector("pre").textContent = e.data; }};</script>"""


@pytest.mark.parametrize("width", [390, 1440])
def test_report_in_a_browser(report, tmp_path, width):
  browser = shutil.which("chromium") or shutil.which("google-chrome")
  if not browser:
    pytest.skip("no Chromium to open the report in")
  page = (report / "index.html").read_text()
  page = page.replace("<head>", BEFORE, 1).replace("</body>", AFTER, 1)
  (tmp_path / "page.html").write_text(page)
  (tmp_path / "frame.html").write_text(FRAME.format(width=width))
  result = subprocess.run(
    [
      browser, "--headless", "--no-sandbox", "--disable-gpu",
      f"--user-data-dir={tmp_path}/chromium",
      "--window-size=1600,1000", "--virtual-time-budget=10000", "--dump-dom",
      (tmp_path / "frame.html").as_uri(),
    ],
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  found = re.search(r'<pre id="result">(.+?)</pre>', result.stdout, re.DOTALL)
  assert found, result.stderr[-2000:]
  found = json.loads(html.unescape(found[1]))
  assert found["problems"] == [] and found["resources"] == []
  assert found["broken"] == 0 and found["unnamed"] == 0 and found["images"] > 8
  assert found["width"][1] == width and found["width"][0] <= width
  assert len(found["sorted"]) == 2
  assert max(len(set(values)) for table in found["sorted"] for _, _, values in table) > 1
  for table in found["sorted"]:
    for order, aria_sort, values in table:
      assert aria_sort == order
      assert values == sorted(values, reverse=order == "descending")


def interrupt_run(workdir, data):
  """Resumes a run and sends it SIGTERM; no step may be lost."""
  process = subprocess.Popen(
    command(workdir, *data, "--config.checkpoint_every_steps=1000", "--config.eval.pairs=0"),
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  printed = ""
  while "resuming" not in printed:
    printed = process.stdout.readline()
    assert printed, process.stderr.read()
  process.send_signal(signal.SIGTERM)
  _, error = process.communicate(timeout=60)
  assert process.returncode == INTERRUPTED, error
  assert re.search(
    r"^interrupted \(SIGTERM\).*; rerun the same command to resume$", error, re.MULTILINE
  )
  saved = re.search(r"saved at stage (\w+), step (\d+)", error)
  if saved:  # otherwise it was evaluating
    assert (workdir / "checkpoints" / saved[1] / saved[2]).is_dir()


def test_resumes_after_sigkill_in_every_stage_with_the_same_bits(finished, data, tmp_path):
  workdir = tmp_path / "run"
  # No analysis for the report: only the last checkpoint is compared.
  frequent = ("--config.checkpoint_every_steps=1", "--config.eval.pairs=0")
  for stage in STAGES:
    process = subprocess.Popen(
      command(workdir, *data, *frequent), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    folder = workdir / "checkpoints" / stage
    # After the first step of the stage, at a random moment of writing files.
    until = time.monotonic() + 240
    while not any(path.name.isdecimal() and int(path.name) > 0 for path in folder.glob("*")):
      assert process.poll() is None and time.monotonic() < until
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "summary.json").exists()
  interrupt_run(workdir, data)
  result = start(workdir, *data, *frequent)
  assert result.returncode == 0, result.stderr
  assert "resuming at stage" in result.stdout
  expected, got = read_parameters(finished[0]), read_parameters(workdir)
  assert expected.keys() == got.keys() and len(got) > 100
  for path, values in expected.items():
    np.testing.assert_array_equal(got[path], values, err_msg=str(path))


def test_run_in_a_bucket_has_the_bits_of_one_on_a_disk(finished, data, bucket_server, tmp_path):
  address, folder = f"gs://bucket/{tmp_path.name}", bucket_server.bucket / tmp_path.name
  arguments = (*data, "--config.checkpoint_every_steps=4", "--config.eval.pairs=0")
  process = subprocess.Popen(
    command(address, *arguments),
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  until = time.monotonic() + 240
  while not (folder / "checkpoints/specific/4/commit_success.txt").exists():
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.01)
  # Until the upload is acknowledged: unlike Google's, this server forgets uploads.
  time.sleep(0.2)
  bucket_server.stop()
  time.sleep(3)  # the run continues until it requires the bucket, and then waits
  bucket_server.start()
  _, error = process.communicate(timeout=240)
  assert process.returncode == 0, error
  expected, got = read_parameters(finished[0]), read_parameters(folder)
  assert expected.keys() == got.keys() and len(got) > 100
  for path, values in expected.items():
    np.testing.assert_array_equal(got[path], values, err_msg=str(path))
  assert (folder / "summary.json").exists() and list(folder.glob("events.*"))


def start_two(port, workdir, *arguments):
  """Starts the two processes of a run."""
  return [
    subprocess.Popen(
      command(workdir, *arguments, "--distributed", "--config.dead_process_seconds=10"),
      cwd=ROOT,
      env=environment(
        JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}", JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i)
      ),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]


def test_two_processes_train_and_checkpoint_together(
  data, finished, tmp_path, free_port, monkeypatch
):
  folder = tmp_path / "checkpoints/universal"

  def newest():
    return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=0)

  # Process 0 is killed, and JAX aborts the other; `tests/runtime/test_distributed.py` has more.
  until = time.monotonic() + 240
  processes = start_two(free_port(), tmp_path, *data, "--config.checkpoint_every_steps=1")
  while not newest():
    assert all(p.poll() is None for p in processes) and time.monotonic() < until
    time.sleep(0.01)
  processes[0].kill()
  _, error = processes[1].communicate(timeout=60)
  assert processes[1].returncode not in (0, INTERRUPTED), error
  processes[0].communicate()
  processes = start_two(free_port(), tmp_path, *data)
  outputs = [process.communicate(timeout=300) for process in processes]
  assert [process.returncode for process in processes] == [0, 0], outputs
  assert "Top-1 (%)" in outputs[0][0] and "Top-1 (%)" not in outputs[1][0]
  joint = dict(np.load(tmp_path / "scores/validation.npz"))
  # One process with the same global batches has the same scores up to rounding.
  expected, got = (
    np.load(path / "scores/validation_one_pass.npz") for path in (finished[0], tmp_path)
  )
  np.testing.assert_array_equal(got["ids"], expected["ids"])
  np.testing.assert_allclose(got["universal"], expected["universal"], atol=1e-4)
  # The clips of the report come from both processes; process 0 has written all of them.
  shown = np.load(tmp_path / "analysis/validation.npz")
  assert len(shown["example_id"]) == len(set(shown["pairs"].ravel())) == len(shown["class_masks"])
  assert all(np.ptp(shown[name].astype(float)) > 0 for name in ("video", "mask", "class_masks"))
  # One process can restore their checkpoints.
  arguments = command(tmp_path, *data, "--mode=eval")[2:]
  assert call(*arguments, monkeypatch=monkeypatch)[1] == 0
  again = np.load(tmp_path / "scores/validation.npz")
  np.testing.assert_allclose(again["specific"], joint["specific"], atol=1e-4)


def test_bad_arguments_are_one_line_in_a_new_process(tmp_path):
  result = start(tmp_path / "none", "--mode=eval")
  assert result.returncode != 0
  # Without the log lines of libraries.
  lines = [line for line in result.stderr.splitlines() if not re.match(r"WARNING|[IW]\d{4} ", line)]
  assert len(lines) == 1 and lines[0].startswith("error: ") and "no such directory" in lines[0]


def test_bad_arguments_are_one_line(finished, data, tmp_path, monkeypatch, capsys):
  workdir = finished[0]
  file = tmp_path / "file"
  file.write_text("x")
  prepared = data[1].partition("=")[2]
  # Without directories that other workers may be writing.
  kept = [*workdir.glob("*.*"), *workdir.glob("checkpoints/**/*"), *workdir.glob("scores/*")]
  before = {path: path.stat().st_mtime_ns for path in kept}
  cases = [
    # The command, and words of its message.
    (command(file, *data), ("file", "File exists")),
    (
      command(tmp_path / "new", *data, config="configs/nope.py"),
      ("configs/nope.py: no such file", "cars, cars_mini, custom, demo"),
    ),
    (command(workdir, *data, "--config.seed=1"), ("config.json", "seed = 0, not 1")),
    (
      command(workdir, *data, "--config.model.backbone.width=4"),
      ("config.json", "model.backbone.width = 2, not 4"),
    ),
    (command(tmp_path / "new", *data, "--config.batchsize=4"), ("batchsize", "batch_size")),
    (command(tmp_path / "new", "--no_such_flag"), ("no_such_flag",)),
    (command(tmp_path / "new", *data, "--config.data.num_frames=0"), ("num_frames: must be >= 1",)),
    (command("s3://bucket/run", *data), ("s3://bucket/run", "choose one of these")),
    (["", "", f"--workdir={tmp_path / 'new'}"], ("--config", "see configs/")),
    (
      ["", "", "--mode=eval", f"--workdir={workdir}", "--config.seed=1", "--config.batch_size=24"],
      ("batch_size = 8, not 24; seed = 0, not 1",),
    ),
    (["", "", "--mode=eval", f"--workdir={workdir}", "--config.evil.views=center"], ("evil",)),
    (["", "", "--mode=eval", f"--workdir={tmp_path}"], ("no config.json; train first",)),
    (
      command(workdir, *data, "--config.seed=0", "--config.seed=0"),
      ("--config.seed: given twice",),
    ),
    (command(workdir, *data, f"--workdir={tmp_path}"), ("--workdir: given twice",)),
    (
      ["", "", "--mode=predict", f"--workdir={workdir}", "--video=a", "--csv", "--csv"],
      ("--csv: given twice",),
    ),
    (["", "", "--mode=eval", f"--workdir={tmp_path / 'a[1]'}"], ("no such directory",)),
    (
      ["", "", "--mode=eval", f"--workdir={workdir}", "--views=5crop"],
      ("--views: belongs to --mode=predict, not to --mode=eval",),
    ),
    (
      ["", "", "--mode=report", f"--workdir={workdir}", "--best"],
      ("--best: belongs to --mode=predict and --mode=export, not to --mode=report",),
    ),
    (
      command(workdir, "--mode=predict", "--video=a"),
      ("--config: belongs to --mode=train and eval, not to --mode=predict",),
    ),
    (
      ["", "", "--mode=predict", f"--workdir={workdir}", "--video=a", "--details", "--csv"],
      ("--details and --csv: choose one",),
    ),
    (
      ["", "", "--mode=evil", f"--workdir={workdir}"],
      ("--mode: 'evil' is not one of train, eval",),
    ),
    (["", "", "--mode=report"], ("--workdir: missing",)),
  ]
  for config, more, words in (
    ("configs/sthv2.py", (), ("data.dir: not set", "data.prepare")),
    ("configs/sthv2.py", (f"--config.data.dir={tmp_path}",), (str(tmp_path), "no finished data")),
    (
      "configs/sthv2_flow.py",
      (f"--config.data.dir={prepared}",),
      ("data.modality: 'flow'", "holds 'rgb'"),
    ),
  ):
    cases.append((command(tmp_path / "new", *more, config=config), words))
  for arguments, words in cases:
    capsys.readouterr()
    _, status = call(*arguments[2:], monkeypatch=monkeypatch)
    assert status == 1 or isinstance(status, str), status
    # Training and evaluation print the line themselves, see `distributed.exit_process`.
    line = status if isinstance(status, str) else capsys.readouterr().err.strip()
    assert line.startswith("error: ") and "\n" not in line, line
    assert all(word in line for word in words), line
  assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_bug_keeps_its_traceback(finished, monkeypatch):
  monkeypatch.setattr(
    predict, "load", lambda workdir, best, backbone: list(zip("a", "bc", strict=True))
  )
  with pytest.raises(ValueError, match="longer than argument 1"):
    call_mode("export", finished[0], monkeypatch=monkeypatch)


@pytest.fixture(scope="module")
def folder_of_videos(tmp_path_factory, write_video):
  """Two classes of 10 clips: a square that moves to the right or down."""
  folder = tmp_path_factory.mktemp("videos")
  for name, (dy, dx) in (("moving right", (0, 3)), ("moving down", (3, 0))):
    (folder / name).mkdir()
    for k in range(10):
      frames = np.full((7, 36, 44, 3), 40, np.uint8)
      for t, frame in enumerate(frames):
        y, x = k + dy * t, k + dx * t
        frame[y : y + 9, x : x + 9] = 220
      write_video(folder / name / f"{k}.webm", list(frames))
  return folder


def test_own_videos_in_both_streams(folder_of_videos, tmp_path, capsys, monkeypatch, write_video):
  """Prepares, trains and evaluates; the flow run starts from the RGB run.

  Then predicts, corrects, prepares and trains again. One-pass, which compiles fast.
  """
  small = (
    "--config=configs/custom.py",
    "--config.control=True",
    "--config.batch_size=8",
    "--config.eval.batch_size=8",
    "--config.data.num_frames=2",
    "--config.data.short_edge=36",
    "--config.data.crop_size=32",
    "--config.data.num_threads=2",
    "--config.data.flip=True",
    "--config.model.backbone.width=2",
    "--config.model.backbone.depth=14",
    *(f"--config.{stage}.epochs=1" for stage in STAGES),
    *(f"--config.{stage}.decay_epochs=()" for stage in STAGES),
  )
  flow = ("--config.data.modality=flow", "--config.eval.views=10crop")
  flow += ("--config.model.pixel_mean=(0.5,)", "--config.model.pixel_std=(0.2,)")
  for modality, more in (("rgb", ()), ("flow", (*flow, f"--config.init_from={tmp_path}/rgb_run"))):
    prepare.main(
      ["--dataset=videos", "--short_edge=36", f"--modality={modality}", "--flow_algorithm=dis"]
      + [f"--source={folder_of_videos}", f"--out={tmp_path}/{modality}"]
    )
    printed = capsys.readouterr().out
    assert "train: 16 clips" in printed and "moving down, moving right" in printed
    workdir = tmp_path / f"{modality}_run"
    arguments = (*small, *more, f"--config.data.dir={tmp_path}/{modality}", f"--workdir={workdir}")
    printed, status = call(*arguments, monkeypatch=monkeypatch)
    assert status == 0, status
    assert "moving right" in printed  # in the table of classes
    scores = np.load(workdir / "scores/validation.npz")
    assert scores["class_names"].tolist() == ["moving down", "moving right"]
    held_out = prepare.store.open_dataset(tmp_path / modality).paths("validation")
    assert sorted(scores["ids"]) == sorted(held_out) and len(held_out) == 4
  again = predict_and_correct(tmp_path, write_video, monkeypatch)
  prepare.main(
    ["--dataset=videos", "--short_edge=36", f"--source={again}", f"--out={tmp_path}/new"]
  )
  assert "none of the 4 groups is in both" in capsys.readouterr().out
  arguments = (*small, f"--config.data.dir={tmp_path}/new", f"--workdir={tmp_path}/new_run")
  printed, status = call(*arguments, monkeypatch=monkeypatch)
  assert status == 0 and "moving right" in printed


def predict_and_correct(folder, write_video, monkeypatch):
  """Predicts intervals of four long videos, and returns their CSV file with corrected labels."""
  for k in range(4):
    frames = np.full((48, 36, 44, 3), 40, np.uint8)
    for t, frame in enumerate(frames):  # 2 s to the right and 2 s down
      y, x = (k, t) if t < 24 else (t - 24, k)
      frame[y : y + 9, x : x + 9] = 220
    write_video(folder / f"long_{k}.webm", list(frames))
  arguments = (f"--video={folder}/long_*.webm", "--window=0.5", "--stride=0.25", "--csv")
  printed, status = call_mode("predict", folder / "rgb_run", *arguments, monkeypatch=monkeypatch)
  assert status == 0
  rows = list(csv.DictReader(io.StringIO(printed)))
  assert {pathlib.Path(row["path"]).name for row in rows} == {f"long_{k}.webm" for k in range(4)}
  corrected = []
  for path in sorted({row["path"] for row in rows}):
    parts = [row for row in rows if row["path"] == path]
    assert float(parts[0]["start"]) == 0 and 3.8 < float(parts[-1]["end"]) <= 4
    for name, start, end in (("moving right", 0, 2), ("moving down", 2, 4)):
      corrected.append(parts[0] | {"start": start, "end": end, "label": name})
  with open(folder / "corrected.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(corrected)
  return folder / "corrected.csv"
