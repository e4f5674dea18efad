"""Extracted frames: lists of TSM and mmaction2, class folders, CSV."""

import av
import numpy as np
import pytest
from PIL import Image

from data.preparation import decoding, prepare
from data.sources import frame_lists
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import decode, images
from u2s_jax.video.decode import Storage


def extract_frames(video, folder, name="img_{:05d}.png"):
  folder.mkdir(parents=True)
  with av.open(str(video)) as container:
    for k, frame in enumerate(container.decode(video=0), 1):
      Image.fromarray(frame.to_ndarray(format="rgb24")).save(folder / name.format(k))


@pytest.fixture
def moving(tmp_path, write_video):
  noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
  return write_video(tmp_path / "a.webm", [np.roll(noise, k, axis=1) for k in range(12)])


def test_frame_folder_equals_video(moving, tmp_path):
  extract_frames(moving, tmp_path / "a", name="{}.png")  # 10 after 9
  (tmp_path / "a/flow_x_00001.jpg").write_bytes(b"")
  (tmp_path / "a/notes.txt").touch()
  for storage in (Storage("rgb", 32, 90), Storage("flow", 32, 90, "dis")):
    expected = decode.decode_file(str(moving), storage)
    found = decode.decode_file(str(tmp_path / "a"), storage)
    if storage.modality == "rgb":
      assert found == expected
    else:  # grey values have passed through a JPEG
      pixels = [
        [np.asarray(Image.open(decode.io.BytesIO(j)), int) for j in js] for js in (found, expected)
      ]
      assert len(found) == len(expected) == 22
      assert np.mean(np.abs(np.array(pixels[0]) - np.array(pixels[1]))) < 2
  (part,) = decoding.decode_spans(str(tmp_path / "a"), Storage("rgb", 32, 90), [(0.0, 1.0)])
  assert "no time stamps" in part.reason


def test_invalid_folders_are_errors(moving, tmp_path):
  extract_frames(moving, tmp_path / "a")
  Image.new("RGB", (32, 32)).save(tmp_path / "a/img_00013.png")
  with pytest.raises(UserError, match="img_00013.png: has .* after resizing"):
    list(images.encode_frame_folder(str(tmp_path / "a"), 32, 90))
  (tmp_path / "a/img_00001.png").write_bytes(b"no image")
  with pytest.raises(UserError, match="img_00001.png: cannot be decoded"):
    list(images.encode_frame_folder(str(tmp_path / "a"), 32, 90))
  (tmp_path / "a/1.jpg").touch()
  with pytest.raises(UserError, match="same number"):
    list(images.encode_frame_folder(str(tmp_path / "a"), 32, 90))
  (tmp_path / "a/1.jpg").unlink()
  (tmp_path / "a/first.png").touch()
  with pytest.raises(UserError, match="first.png: the name has no number"):
    list(images.encode_frame_folder(str(tmp_path / "a"), 32, 90))
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="contains no frames"):
    list(images.encode_frame_folder(str(tmp_path / "empty"), 32, 90))


@pytest.mark.parametrize(
  "names",
  [
    ("1305031102.843290", "1305031102.975202", "1305031103.011215", "1305031103.043227"),
    ("0.04", "0.08", "0.16", "0.2", "0.24", "1.0", "1.04", "12.5"),  # as Python prints seconds
    ("t0.5s", "t0.75s", "t1.0s", "t10.25s"),
    ("shot.8", "shot.9", "shot.10", "shot.100"),
    ("1.8", "1.9", "1.10", "1.11"),  # not decimal numbers, which would not end in zero
    ("9.5", "9.90000000", "10.7", "10.30000000"),  # seconds.nanoseconds, without leading zeros
    ("img_1", "img_2", "img_00010"),
    ("f1_320x240", "f2_320x240", "f10_320x240"),
    ("1_1", "1_2", "2_1", "10_1"),
    ("1403636579_963555500", "1403636580_013555500", "1403636580_63555500"),  # s and ns
    ("2024-01-31_23-59-58", "2024-01-31_23-59-59", "2024-02-01_00-00-00"),
  ],
)
def test_frames_are_sorted_by_number(names):
  files = [f"{name}.png" for name in names]
  assert images.sort_by_number(sorted(files, reverse=True)) == files


def test_frames_are_sorted_by_last_number():
  names = ["7_0001.jpg", "3_0002.jpg", "5_0003.jpg"]  # after the number of a track, for example
  assert images.sort_by_number(sorted(names)) == names


def test_ambiguous_order_is_an_error():
  seconds = [f"12-30-{k:02d}.jpg" for k in range(30, 60)] + [
    f"12-31-{k:02d}.jpg" for k in range(30)
  ]
  with pytest.raises(UserError, match="their first and last numbers order them differently"):
    images.sort_by_number(seconds)
  assert images.sort_by_number(sorted(seconds[1:], reverse=True)) == seconds[1:]


def test_lists_class_folders_and_csv_are_equivalent(moving, tmp_path, capsys):
  for k in range(4):
    extract_frames(moving, tmp_path / f"frames/rawframes/clip {k}")
  (tmp_path / "frames/some_train_list_rawframes.txt").write_text("clip 0 12 1\nclip 1 12 0\n")
  (tmp_path / "frames/some_val_list_rawframes.txt").write_text("clip 2 12 1\nclip 3 12 0\n\n")
  (tmp_path / "frames/category.txt").write_text("no\nyes\n")
  rows = [
    f"rawframes/clip {k},{'yes' if k in (0, 2) else 'no'},{'val' if k > 1 else 'train'}"
    for k in range(4)
  ]
  (tmp_path / "frames/all.csv").write_text("\n".join(["path,label,split", *rows]))
  for k in range(4):
    extract_frames(
      moving,
      tmp_path / f"folders/{'val' if k > 1 else 'train'}/{'yes' if k in (0, 2) else 'no'}/{k}",
    )
  found = []
  for dataset, source in (
    ("frames", "frames"),
    ("videos", "frames/all.csv"),
    ("frames", "folders"),
  ):
    out = tmp_path / f"out{len(found)}"
    arguments = [f"--dataset={dataset}", f"--source={tmp_path / source}", f"--out={out}"]
    prepare.main([*arguments, "--short_edge=32", "--workers=1"])
    data = prepare.store.open_dataset(out)
    records = [prepare.store.parse_record(data.split("validation").records[k]) for k in range(2)]
    assert data.class_names == ("no", "yes") and data.class_sizes() == (1, 1)
    found.append({label: list(frames) for _, label, frames in records})
  assert found[0] == found[1] == found[2] and len(found[0][0]) == 12


def test_retries_clip_after_a_frame_changed(moving, tmp_path, capsys):
  for k in range(6):
    extract_frames(moving, tmp_path / f"source/{'train' if k < 4 else 'val'}/{'ab'[k % 2]}/{k}")
  Image.new("RGB", (48, 32)).save(tmp_path / "source/val/a/5.png")  # next to the clips' folders
  frame = tmp_path / "source/train/a/0/img_00003.png"
  content = frame.read_bytes()
  frame.write_bytes(b"x" * len(content))
  arguments = ["--dataset=frames", f"--source={tmp_path}/source", f"--out={tmp_path}/out"]
  with pytest.raises(SystemExit, match="1 of 6 clips cannot be read"):
    prepare.main([*arguments, "--short_edge=32", "--workers=1"])
  assert "ignored images outside the clips' folders: 1" in capsys.readouterr().out
  with open(frame, "r+b") as file:
    file.write(content)
  prepare.main([*arguments, "--short_edge=32", "--workers=1"])
  assert prepare.store.open_dataset(tmp_path / "out").class_sizes() == (2, 2)


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"a_train.txt": "clip 12 0 x"}, "line 1: 'clip 12 0 x' must be '<folder> <frames> <label>'"),
    (
      {"a_train.txt": "clip 12 2", "classes.txt": "a\nb"},
      "label 2 must be < 2, the number",
    ),
    ({"a_train.txt": "clip 12 0\nclip 12 0"}, "line 2: clip occurs twice"),
    ({"a_train.txt": "clip 12 0", "b_train.txt": ""}, "a_train.txt is also a list of train"),
    ({"train_val.txt": "clip 12 0"}, "the name contains train and validation"),
    ({"a_train.txt": b"caf\xe9 12 0"}, "a_train.txt: the file is not UTF-8"),
    ({"a_train.txt": "clip 12 0"}, "validation"),
  ],
)
def test_invalid_lists_are_errors(tmp_path, files, message):
  for name, text in files.items():
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(UserError, match=message):
    frame_lists.list_clips(tmp_path)


def test_test_list_replaces_validation_and_numbers_replace_names(tmp_path):
  (tmp_path / "train.txt").write_text("a 1 0\nb 1 2\nc 1 1\n")
  (tmp_path / "test.txt").write_text("d 1 2\n")
  found = frame_lists.list_clips(tmp_path)
  assert found.names == ["0", "1", "2"] and [*found.splits] == ["train", "validation"]
  with pytest.raises(UserError, match="--group_pattern"):
    frame_lists.list_clips(tmp_path, "x")
