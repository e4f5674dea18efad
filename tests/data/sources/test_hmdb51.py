"""HMDB51 in its official layout; listing requires no video files."""

import pytest

from data.sources import hmdb51
from u2s_jax.runtime.errors import UserError

LISTS = {
  "wave": ["20060723_w_nm_np1_fr_med_0.avi 1 ", "b_w_nm.avi 2 ", "c_w_nm.avi 0 "],
  "brush_hair": ["#20_Rhythm_clap_u_nm_np1.avi 1 ", "April_09_[x];_h..m_1.avi 2 "],
}


@pytest.fixture
def source(tmp_path):
  _write_layout(tmp_path, "", "testTrainMulti_7030_splits")
  return tmp_path


def _write_layout(source, videos, lists):
  (source / lists).mkdir(parents=True, exist_ok=True)
  for name, lines in LISTS.items():
    (source / videos / name).mkdir(parents=True)
    for split in (1, 2, 3):
      text = "\n".join(lines) + "\n"
      (source / lists / f"{name}_test_split{split}.txt").write_text(text)


def test_lists_clips(source):
  (source / "__skip").touch()
  (source / ".hidden").mkdir()
  found = hmdb51.list_clips(source, 1)
  assert list(found.names) == ["brush_hair", "wave"]
  assert [(clip.id, clip.label, clip.path) for clip in found.splits["train"]] == [
    (
      "brush_hair/#20_Rhythm_clap_u_nm_np1",
      0,
      str(source / "brush_hair/#20_Rhythm_clap_u_nm_np1.avi"),
    ),
    (
      "wave/20060723_w_nm_np1_fr_med_0",
      1,
      str(source / "wave/20060723_w_nm_np1_fr_med_0.avi"),
    ),
  ]
  assert [(clip.id, clip.label) for clip in found.splits["validation"]] == [
    ("brush_hair/April_09_[x];_h..m_1", 0),
    ("wave/b_w_nm", 1),
  ]
  assert found.official == {"train": 3570, "validation": 1530}


@pytest.mark.parametrize(
  "videos, lists", [("videos", "splits"), ("hmdb51_org", ""), ("", ""), ("", "splits")]
)
def test_other_folders(tmp_path, videos, lists):
  _write_layout(tmp_path, videos, lists)
  found = hmdb51.list_clips(tmp_path, 3)
  assert list(found.names) == ["brush_hair", "wave"]
  assert found.splits["train"][0].path.startswith(str(tmp_path / videos / "brush_hair"))


def test_second_split(source):
  path = source / "testTrainMulti_7030_splits/wave_test_split2.txt"
  path.write_text("b_w_nm.avi 1 \r\nc_w_nm.avi 2 \r\n\r\n")
  found = hmdb51.list_clips(source, 2)
  assert [clip.id for clip in found.splits["train"]][1:] == ["wave/b_w_nm"]
  assert [clip.id for clip in found.splits["validation"]][1:] == ["wave/c_w_nm"]


def _fails(source, kind, *parts, split=1):
  with pytest.raises(kind) as caught:
    hmdb51.list_clips(source, split)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def test_missing_files_are_errors(source):
  _fails(source, UserError, "--split: 0 must be", split=0)
  _fails(source / "nowhere", FileNotFoundError, "nowhere", "not a folder")
  (source / "clap").mkdir()
  _fails(source, FileNotFoundError, "clap_test_split1.txt", str(source / "clap"))
  (source / "clap").rmdir()
  (source / "wave").rmdir()
  _fails(source, FileNotFoundError, str(source / "wave"), "wave_test_split1.txt", "wave.rar")
  (source / "brush_hair").rmdir()
  _fails(source, FileNotFoundError, "no class folders", "hmdb51_org.rar")


@pytest.mark.parametrize("line", ["d.avi 3 ", "d.avi", "d.avi -1", "1"])
def test_invalid_lines_are_errors(source, line):
  path = source / "testTrainMulti_7030_splits/wave_test_split1.txt"
  path.write_text("\n".join([*LISTS["wave"], line]))
  _fails(source, UserError, f"{path}, line 4", repr(line.strip()))


def test_invalid_listings_are_errors(source):
  path = source / "testTrainMulti_7030_splits/wave_test_split1.txt"
  path.write_text("a.avi 1 \na.avi 2 \n")
  _fails(source, UserError, "wave/a occurs twice")
  path.write_text("a.avi 2 \n")
  _fails(source, UserError, "'wave'", "no training clip")
