"""CSV files that list clips."""

import pytest

from tests.video.sources import check_error, get_ids, get_labels, sort_by_hash, write_csv
from u2s_jax.video import folders


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_reads_csv(tmp_path, encoding):
  text = (
    "split,label,path,seconds\r\n"
    'train,"run, fast",v/1.mp4,3\r\n'
    "\r\n"
    "Train,jump \u00fc,/abs/2 \u00fc.mp4,4\r\n"
    "valid,jump \u00fc,3.unknown,5\r\n"
    "test,,4.mp4,6\r\n"
    'test,"run, fast",5.mp4,6\r\n'
  )
  found = folders.list_videos(write_csv(tmp_path, text, encoding))
  assert list(found.names) == ["jump \u00fc", "run, fast"]
  assert [(clip.id, clip.label, clip.path) for clip in found.splits["train"]] == [
    ("v/1.mp4", 1, str(tmp_path / "v/1.mp4")),
    ("/abs/2 \u00fc.mp4", 0, "/abs/2 \u00fc.mp4"),
  ]
  assert get_ids(found, "validation") == ["3.unknown"]
  assert [(clip.id, clip.label) for clip in found.splits["test"]] == [("4.mp4", -1), ("5.mp4", 1)]
  assert found.notes == [f"{tmp_path}/list.csv: unused columns: 'seconds'"]
  assert not found.images
  assert folders.list_images(tmp_path / "list.csv").images


def test_holds_out_clips_of_a_csv_without_splits(tmp_path):
  rows = [f"{i}.mp4,10" for i in (5, 4, 3, 2, 1)] + ["b.mp4,9", "a.mp4,9"]
  found = folders.list_videos(write_csv(tmp_path, "\n".join(["path,label", *rows])))
  assert list(found.names) == ["9", "10"]  # as numbers
  one, other = sort_by_hash(f"{i}.mp4" for i in range(1, 6))[0], sort_by_hash(["a.mp4", "b.mp4"])[0]
  assert get_labels(found, "validation") == {one: "10", other: "9"}
  assert "2 of 7" in found.notes[0]


def test_uses_the_test_split_for_validation_if_there_is_no_other(tmp_path):
  found = folders.list_videos(write_csv(tmp_path, "path,label,split\na,x,train\nb,x,test\n"))
  assert get_ids(found, "validation") == ["b"] and len(found.notes) == 1
  check_error(
    write_csv(tmp_path, "path,label,split\na,x,train\nb,,test\n"),
    "list.csv, line 3",
    "the label is missing",
  )


def test_reads_segments(tmp_path):
  text = (
    "path,start,end,label,score\n"
    "b.mp4,00:01:02.5,1:03,x,0.9\n"
    "a.mp4,2,2.5,y,0.9\n"
    "b.mp4,0,1.25,y,0.9\n"
    "c.mp4,,,x,0.9\n"
    "d.mp4,3.0,4,x,0.9\n"
  )
  found = folders.list_videos(write_csv(tmp_path, text))
  clips = {clip.id: clip for clips in found.splits.values() for clip in clips}
  assert {*clips} == {"b.mp4#0-1.25", "b.mp4#62.5-63", "a.mp4#2-2.5", "c.mp4", "d.mp4#3-4"}
  assert clips["b.mp4#62.5-63"].span == (62.5, 63) and clips["c.mp4"].span is None
  assert clips["b.mp4#62.5-63"].file == clips["b.mp4#0-1.25"].file == str(tmp_path / "b.mp4")
  assert clips["b.mp4#0-1.25"].path == f"{tmp_path}/b.mp4#0-1.25"
  for ids in (get_ids(found, "train"), get_ids(found, "validation")):
    assert len([name for name in ids if name.startswith("b.mp4")]) in (0, 2)
  assert "none of the 4 groups is in both" in found.notes[0]


@pytest.mark.parametrize(
  ("column", "meant"),
  [
    ("gruop", "group"),
    ("groups", "group"),
    ("goup", "group"),
    ("group_id", "group"),
    ("Group (person)", "group"),
    ("spilt", "split"),
    ("splits", "split"),
    ("strat", "start"),
    ("start_time", "start"),
    ("edn", "end"),
    ("end [s]", "end"),
  ],
)
def test_rejects_misspelt_columns(tmp_path, column, meant):
  rest = "x,train\nb,y,train\nc,x,val"
  check_error(
    write_csv(tmp_path, f"path,label,{column}\na,{rest}\n"),
    "line 1",
    f"unknown column {column.lower()!r}",
    f"rename it to {meant!r}",
  )


def test_names_unused_columns(tmp_path):
  names = ["fps", "state", "person", "width", "notes", "date", "groups"]
  rows = [f"{k}.mp4,{'xy'[k % 2]},p{k // 2}" + 7 * ",1" for k in range(8)]
  found = folders.list_videos(
    write_csv(tmp_path, "\n".join([f"path,label,group,{','.join(names)}", *rows]))
  )
  assert found.notes[0].endswith("unused columns: " + ", ".join(map(repr, names)))
  scored = write_csv(tmp_path, "path,label,score,split\na,x,.5,train\nb,y,.5,train\nc,x,.5,val\n")
  assert not folders.list_videos(scored).notes


def test_notes_overlapping_segments_with_different_labels(tmp_path):
  head = "path,start,end,label,group\n"
  apart = "a,0,2,x,1\na,2,4,y,2\na,5,7,x,3\na,6,8,x,4\nb,0,9,y,5\nc,,,x,6\n"
  found = folders.list_videos(write_csv(tmp_path, head + apart))
  assert len(found.notes) == 1  # on the split
  over = "a,1.5,2.5,y,7\nb,3,4,x,8\nb,8.9,10,x,9\nc,1,2,y,6\n"
  note = folders.list_videos(write_csv(tmp_path, head + apart + over)).notes[0]
  assert note.startswith("4 segments overlap") and "a#0-2 (x) and a#1.5-2.5 (y)" in note


def test_keeps_each_group_in_one_split(tmp_path):
  rows = [f"{label}{k}.mp4,{label},p{k % 6}" for k in range(12) for label in "xy"]
  found = folders.list_videos(write_csv(tmp_path, "\n".join(["path,label,group", *rows])))
  persons = [{int(name[1:-4]) % 6 for name in get_ids(found, split)} for split in found.splits]
  assert not persons[0] & persons[1] and len(persons[0] | persons[1]) == 6
  labels = [*get_labels(found, "validation").values()]
  assert labels.count("x") == labels.count("y") in (2, 4)
  check_error(write_csv(tmp_path, "path,label,group\na,x,p\nb,x,p\n"), "of one group (p)")
  both = "path,label,split,group\na,x,train,p\nb,x,val,p\n"
  check_error(write_csv(tmp_path, both), "line 3", "a of the same group (p) is in train")
  parts = "path,start,end,label,split\na,0,1,x,train\na,2,3,x,val\n"
  check_error(write_csv(tmp_path, parts), "line 3", "same group (a)")
  in_two = "path,start,end,label,split,group\na,0,1,x,train,1\na,2,3,x,val,2\n"
  assert get_ids(folders.list_videos(write_csv(tmp_path, in_two)), "validation") == ["a#2-3"]
  whole = "path,start,end,label,split\na,0,1,x,train\na,,,x,val\n"
  check_error(write_csv(tmp_path, whole), "a is in validation and in train")


def test_groups_segments_of_a_video_however_its_path_is_spelled(tmp_path):
  (tmp_path / "b.mp4").symlink_to("a.mp4")
  spelled = ("a.mp4", f"{tmp_path}/a.mp4", "./a.mp4", "b.mp4")
  rows = [f"{name},{k},{k + 1},x,{'train' if k else 'val'}" for k, name in enumerate(spelled)]
  head = "path,start,end,label,split"
  for row in rows[1:]:
    check_error(
      write_csv(tmp_path, "\n".join([head, rows[0], row])), "line 3", "same group (a.mp4)"
    )
  empty = f"{head},group\na.mp4,0,1,x,train,\na.mp4,2,3,x,val,\n"
  check_error(write_csv(tmp_path, empty), "same group (a.mp4)")
  whole = "path,start,end,label\n" + "".join(f"{k}.mp4,,,x\n{k}.mp4,0,1,x\n" for k in range(5))
  found = folders.list_videos(write_csv(tmp_path, whole))
  files = [{name.partition("#")[0] for name in get_ids(found, split)} for split in found.splits]
  assert not files[0] & files[1]
  check_error(
    write_csv(tmp_path, "path,label,group\na,x,p\nb,y,q\n"),
    "list.csv: no class has two clips",
    "a column 'group'",
  )


def test_holds_out_groups_that_leave_every_class_training_clips(tmp_path):
  # Each class is one person's, except for one clip of 'a' to 'd' that is of another person, 'z'.
  rows = [f"{label}{k}.mp4,{label},{label}" for label in "abcde" for k in range(4)]
  rows += [f"z{label}.mp4,{label},z" for label in "abcd"]
  for seed_of_order in range(5):
    turned = rows[seed_of_order:] + rows[:seed_of_order]
    found = folders.list_videos(write_csv(tmp_path, "\n".join(["path,label,group", *turned])))
    assert {*get_labels(found, "train").values()} == {*"abcde"}


def test_unescapes_labels_of_predicted_rows(tmp_path):
  found = folders.list_videos(
    write_csv(tmp_path, "path,label,split\na.mp4,'-none,train\nb.mp4,-none,val\n")
  )
  assert found.names == ["-none"]


def test_skips_gaps_of_predicted_videos(tmp_path):
  text = (
    "path,start,end,label,score\na,0.000,4.500,x,0.9000\na,4.500,5.250,,\na,6.000,6.000,,\n"
    "a,5.250,9.000,y,0.8000\nb,0.000,1.000,x,0.9000\nb,1.000,2.000,y,0.9000\n"
  )
  found = folders.list_videos(write_csv(tmp_path, text))
  spans = [clip.span for clips in found.splits.values() for clip in clips]
  assert sorted(spans) == [(0, 1), (0, 4.5), (1, 2), (5.25, 9)]


@pytest.mark.parametrize(
  "text, parts",
  [
    ("", ["no clips"]),
    ("path,label,split\n", ["no clips"]),
    ("path;label;split\na;x;train\n", ["line 1", "'path'", "commas"]),
    ("a.mp4,x,train\n", ["line 1", "'path'"]),
    ("path,split\na,train\n", ["line 1", "'label'"]),
    ("path,label,split\na,x,train\nb,x\n", ["line 3", "2 fields, but the header has 3 columns"]),
    ("path,label,split\na,x,train\nb,c,x,val\n", ["line 3", "double quotes"]),
    ("path,label,split\na,x,fold1\n", ["line 2", "'fold1'"]),
    ("path,label,split\na,x,dev\nb,y,test\n", ["no training split", "validation, test"]),
    ("path,label,split\na,x,\n", ["line 2", "''"]),
    ("path,label,split\n,x,train\n", ["line 2", "the path is missing"]),
    ("path,label,start\na,x,1\n", ["line 1", "the column 'start' requires a column 'end'"]),
    ("path,end,label\na,1,x\n", ["line 1", "the column 'end' requires a column 'start'"]),
    ("path,label,Label\na,x,y\n", ["line 1", "'label' occurs twice"]),
    ("path,lable\na,x\n", ["line 1", "missing column 'label', found 'path', 'lable'"]),
    ("path,label,start,end\na,x,1,\n", ["line 2", "end ''", "is not a time"]),
    ("path,label,start,end\na,x,1:2:3:4,5\n", ["line 2", "start '1:2:3:4'"]),
    ("path,label,start,end\na,x,-1,5\n", ["line 2", "start '-1'"]),
    ("path,label,start,end\na,x,2,2\n", ["line 2", "end 2 must be after start 2"]),
    ("path,label,split\na,x,train\n\nb,,val\n", ["line 4", "the label is missing"]),
    ("path,label,split\na,,train\nb,x,val\n", ["line 2", "the label is missing"]),
    ("path,label\na,x\nb,\n", ["line 3", "the label is missing"]),
    ("path,label,split\na,x,train\nb,x,val\na,x,val\n", ["line 4", "a is already in line 2"]),
    ("path,label,split\na,x,train\nb,y,val\n", ["line 3", "'y' has no training clip"]),
    ('path,label,split\na,x,train\n"b,x,val\n', ["line 3", "not valid CSV"]),
    ("path,label,split\na,x,train\n", ["'validation'"]),
  ],
)
def test_rejects_invalid_csv(tmp_path, text, parts):
  check_error(write_csv(tmp_path, text), "list.csv", *parts)


def test_rejects_other_encodings(tmp_path):
  path = write_csv(tmp_path, "path,label,split\na,x,train\nb,\u00fc,val\n", "latin-1")
  check_error(path, "list.csv, line 3", "UTF-8")
