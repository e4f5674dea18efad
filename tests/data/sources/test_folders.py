"""A user's own videos and images: class folders and CSV files."""

import hashlib
import os
import unicodedata

import pytest

from data.sources import folders, listing
from u2s_jax.errors import UserError


def _touch(root, *paths):
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()


def _ids(found, split):
  return [clip.id for clip in found.splits[split]]


def _labels(found, split):
  return {clip.id: found.names[clip.label] for clip in found.splits[split]}


def _fails(source, *parts, kind=UserError, read=folders.videos):
  with pytest.raises(kind) as caught:
    read(source)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def _in_order(ids):
  """Ids in the order of the SHA-256 of a line break and the id."""
  return sorted(ids, key=lambda name: hashlib.sha256(f"\n{name}".encode()).hexdigest())


def test_about_a_fifth_of_each_class_validates(tmp_path):
  _touch(tmp_path, *(f"run/{i:02}.mp4" for i in range(1, 12)))
  _touch(tmp_path, "jump/b.mp4", "jump/a.mp4", "sit/a.mp4")
  found = folders.videos(tmp_path)
  assert list(found.names) == ["jump", "run", "sit"] and not found.images
  # The first 2 of 11 (2.2), one of two, none of one.
  runs = _in_order(f"run/{i:02}.mp4" for i in range(1, 12))[:2]
  jump = _in_order(["jump/a.mp4", "jump/b.mp4"])[:1]
  assert _ids(found, "validation") == [*jump, *sorted(runs)]
  assert len(_ids(found, "train")) == 11 and "sit/a.mp4" in _ids(found, "train")
  assert set(found.splits) == {"train", "validation"} and not found.official
  assert len(found.notes) == 1 and "3 of 14" in found.notes[0]
  first = _ids(found, "train")[0]
  assert found.splits["train"][0].path == str(tmp_path / first) and first.startswith("jump/")


@pytest.mark.parametrize(
  ("train", "others"),
  [
    ("training", {"testing": "validation"}),
    ("Training", {"Validation": "validation", "EVAL": "test"}),
    ("train", {"dev": "validation"}),
    ("train_256", {"val_256": "validation", "test_256": "test"}),
    ("training_set", {"test_set": "validation"}),
    ("TRAIN videos", {"dev": "validation", "evaluation": "test"}),
  ],
)
def test_usual_names_of_splits(tmp_path, train, others):
  for folder in (train, *others):
    _touch(tmp_path, f"{folder}/run/1.mp4", f"{folder}/walk/2.mp4")
  found = folders.videos(tmp_path)
  assert list(found.names) == ["run", "walk"]
  assert _ids(found, "train") == [f"{train}/run/1.mp4", f"{train}/walk/2.mp4"]
  for folder, split in others.items():
    assert _ids(found, split) == [f"{folder}/run/1.mp4", f"{folder}/walk/2.mp4"]


def test_names_of_splits_beside_other_folders_are_classes(tmp_path):
  _touch(tmp_path, "training/a/1.mp4", "training/b.mp4", "running/1.mp4", "testing/1.mp4")
  assert list(folders.videos(tmp_path).names) == ["running", "testing", "training"]


@pytest.mark.parametrize(
  ("names", "parts"),
  [
    (["train", "holdout"], ["'validation'", "'train'", "'holdout'", "dev"]),
    (["val", "test"], ["'train'", "'test', 'val'"]),
    (["testing", "dev"], ["'train'", "'dev', 'testing'", "called train or training"]),
    (["dev"], ["'train'", "'dev'"]),
  ],
)
def test_a_split_that_is_missing_is_named(tmp_path, names, parts):
  _touch(tmp_path, *(f"{name}/{label}/1.mp4" for name in names for label in "xy"))
  _fails(tmp_path, *parts)


def test_a_test_split_alone(tmp_path):
  _touch(tmp_path, "f/testing/a/1.mp4", "f/testing/b/2.mp4")
  (tmp_path / "f/testing/c").mkdir()  # a class of the runs, of which there is no clip here
  found = folders.videos(tmp_path / "f")
  assert list(found.names) == ["a", "b", "c"] and [*found.splits] == ["test"]
  assert _labels(found, "test") == {"testing/a/1.mp4": "a", "testing/b/2.mp4": "b"}
  listing.check_classes(found, "f")
  _touch(tmp_path, "one/test/a/1.mp4")  # some of a run's classes may be enough to test it
  listing.check_classes(folders.videos(tmp_path / "one"), "one")
  found = folders.videos(_csv(tmp_path, "path,label,split\n1,2,test\n2,10,eval\n3,,test\n"))
  assert list(found.names) == ["2", "10"]
  assert [clip.label for clip in found.splits["test"]] == [0, 1, -1]
  with pytest.raises(UserError, match="no clip has a class"):
    listing.check_classes(folders.videos(_csv(tmp_path, "path,label,split\n1,,test\n")), "x")


@pytest.mark.parametrize(
  ("one", "other", "words"),
  [
    ("Jump", "jump", "case"),
    ("caf\u00e9", "cafe\u0301", "accents"),
    ("\u00dcben", unicodedata.normalize("NFD", "\u00fcben"), "case"),
    ("STRASSE", "stra\u00dfe", "case"),
    ("\ud55c", unicodedata.normalize("NFD", "\ud55c"), "accents"),
  ],
)
def test_classes_that_look_the_same(tmp_path, one, other, words):
  rows = f"a,{one},train\nb,{other},train\nc,{one},val\n"
  _fails(_csv(tmp_path, f"path,label,split\n{rows}"), repr(one), repr(other), ascii(other), words)
  apart = f"a,{one},train\nb,other,train\nc,{other},val\n"
  _fails(_csv(tmp_path, f"path,label,split\n{apart}"), repr(one), repr(other), words)
  _touch(tmp_path, f"in/{one}/1.mp4", f"in/{other}/1.mp4", f"in/{one}/2.mp4")
  _fails(tmp_path / "in", repr(one), repr(other), words)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path, name):
  _touch(tmp_path, "train/b/1.mp4", "train/a/deep/er/1.MP4", f"{name}/a/1.mp4", "test/b/1.webm")
  found = folders.videos(tmp_path)
  assert list(found.names) == ["a", "b"] and not found.notes
  # The same file name in several splits: the ids differ.
  assert _labels(found, "train") == {"train/a/deep/er/1.MP4": "a", "train/b/1.mp4": "b"}
  assert _labels(found, "validation") == {f"{name}/a/1.mp4": "a"}
  assert _labels(found, "test") == {"test/b/1.webm": "b"}


def test_a_test_folder_alone_stands_in_for_validation(tmp_path):
  _touch(tmp_path, "train/a/1.mp4", "test/a/1.mp4", "test/a/2.mp4", "docs/a/1.mp4")
  found = folders.videos(tmp_path)
  assert _ids(found, "validation") == ["test/a/1.mp4", "test/a/2.mp4"]
  assert set(found.splits) == {"train", "validation"}
  assert any("test split, 2 videos, stands in" in note for note in found.notes)
  assert any("'docs'" in note for note in found.notes)


def test_a_class_may_be_called_train(tmp_path):
  _touch(tmp_path, "train/1.mp4", "train/2.mp4", "bus/1.mp4", "bus/2.mp4")
  assert list(folders.videos(tmp_path).names) == ["bus", "train"]


def test_which_files_are_taken(tmp_path):
  names = (
    "1.AVI",
    "2 x \u00fc.mkv",
    "3.gif",
    "._4.mp4",
    ".DS_Store",
    "n.txt",
    "o.txt",
    "p",
    "i.png",
  )
  _touch(tmp_path, *(f"a b/{name}" for name in names))
  _touch(tmp_path, "stray.mp4", "README.txt", ".git/x.mp4", "a b/.cache/x.mp4", "a b/4.mp4")
  found = folders.videos(tmp_path)
  ids = {*_ids(found, "train"), *_ids(found, "validation")}
  assert ids == {"a b/1.AVI", "a b/2 x \u00fc.mkv", "a b/3.gif", "a b/4.mp4"}
  assert (
    f"ignored 1 videos that lie in no class folder, such as {tmp_path}/stray.mp4" in found.notes
  )
  assert (
    "ignored 5 files that are no videos by their extension: .txt 3, no extension 1, .png 1"
    in found.notes
  )


def test_images(tmp_path):
  _touch(tmp_path, "train/a/1.JPEG", "train/a/2.tiff", "val/a/1.webp", "val/a/1.mp4")
  found = folders.images(tmp_path)
  assert found.images and _ids(found, "train") == ["train/a/1.JPEG", "train/a/2.tiff"]
  assert found.notes == ["ignored 1 files that are no images by their extension: .mp4 1"]


def test_links_are_followed(tmp_path):
  _touch(tmp_path, "elsewhere/x/1.mp4", "elsewhere/2.mp4", "3.mp4", "4.mp4")
  (tmp_path / "source/b").mkdir(parents=True)
  (tmp_path / "source/a").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "source/b/3.mp4").symlink_to(tmp_path / "3.mp4")
  (tmp_path / "source/b/4.mp4").symlink_to(tmp_path / "4.mp4")
  found = folders.videos(tmp_path / "source")
  pairs = ["a/2.mp4", "a/x/1.mp4"], ["b/3.mp4", "b/4.mp4"]
  assert _ids(found, "validation") == [_in_order(pair)[0] for pair in pairs]
  assert _ids(found, "train") == [_in_order(pair)[1] for pair in pairs]
  (tmp_path / "elsewhere/x/again").symlink_to(tmp_path / "elsewhere")
  _fails(tmp_path / "source", "source/a/x/again", "link")


def test_files_to_predict_are_those_that_are_prepared(tmp_path):
  _touch(tmp_path, "far/c.MTS", "far/deep/d.vob", "new/b/a.mp4", "new/b/._a.mp4", "new/.git/x.mp4")
  _touch(tmp_path, "new/b/a.png", "new/b/a.srt", "new/b/a.wav", "new/z.mov", "new/b/z.mp4.part")
  (tmp_path / "new/linked").symlink_to(tmp_path / "far")
  (tmp_path / "new/b/file.mp4").symlink_to(tmp_path / "other.mp4")
  names = ["b/a.mp4", "b/a.png", "b/file.mp4", "linked/c.MTS", "linked/deep/d.vob", "z.mov"]
  found = folders.find_files(str(tmp_path / "new"))
  assert [os.path.relpath(file, tmp_path / "new") for file in found] == names
  listed = folders.videos(tmp_path / "new")
  prepared = [clip.id for clips in listed.splits.values() for clip in clips]
  assert sorted(prepared) == [name for name in names if name.count("/") and "png" not in name]
  assert any(
    "no videos by their extension: .part 1, .png 1, .srt 1, .wav 1" in n for n in listed.notes
  )
  (tmp_path / "far/deep/up").symlink_to(tmp_path / "new")
  for list_all in (folders.find_files, lambda folder: folders.videos(tmp_path / folder)):
    with pytest.raises(UserError, match="the link leads to a folder"):
      list_all(str(tmp_path / "new"))
  assert folders.find_files(str(tmp_path / "new/b/._a.mp4"))  # named by itself


def test_endings(tmp_path):
  videos = ".mts .M2TS .vob .asf .3g2 .f4v .mxf .ogm .divx .dv .y4m .m2v .qt .rmvb .mpe .trp .265"
  _touch(tmp_path, *(f"{'ab'[k % 2]}/{k}{ending}" for k, ending in enumerate(videos.split())))
  found = folders.videos(tmp_path)
  assert sum(map(len, found.splits.values())) == 17 and len(found.notes) == 1
  others = {
    ".avif",
    ".heic",
    ".m4a",
    ".ogg",
    ".mka",
    ".mks",
    ".mp3",
    ".wav",
    ".srt",
    ".txt",
    ".m3u8",
  }
  assert not others & {*folders.VIDEO_EXTENSIONS}
  _touch(tmp_path, "new/c/1.braw", "new/c/2.r3d", "new/c/3.braw", "new/a/1.mp4")
  _fails(tmp_path / "new", "new/c", "holds no videos by the extension, but .braw 2, .r3d 1")
  with pytest.raises(FileNotFoundError, match="no video or image by the extension, but .braw 2"):
    folders.find_files(str(tmp_path / "new/c"))


def test_class_names_that_are_numbers(tmp_path):
  _touch(tmp_path, *(f"{name}/{i}.mp4" for name in (0, 1, 2, 10) for i in range(2)))
  assert list(folders.videos(tmp_path).names) == ["0", "1", "2", "10"]


def test_bad_folders(tmp_path):
  _fails(tmp_path / "nowhere", "nowhere", kind=FileNotFoundError)
  _fails(tmp_path, "no class folders with videos")
  _touch(tmp_path, "videos.tar")
  _fails(tmp_path / "videos.tar", "videos.tar", "neither a folder nor a .csv")
  _touch(tmp_path, "flat/1.mp4", "flat/2.mp4")
  _fails(tmp_path / "flat", "no class folders with videos")
  _touch(tmp_path, "empty/a/1.mp4", "empty/b/notes.txt")
  _fails(tmp_path / "empty", "empty/b", "no videos")
  _fails(tmp_path / "empty", "empty/a", "no images", read=folders.images)
  _touch(tmp_path, "levels/train/1.mp4", "levels/val/1.mp4")
  _fails(tmp_path / "levels", "no class folders with videos")
  _touch(tmp_path, "other/train/a/1.mp4", "other/val/a/1.mp4", "other/test/b/1.mp4")
  _fails(tmp_path / "other", "other/test/b", "'b' has no training clip")
  _touch(tmp_path, "twice/train/a/1.mp4", "twice/val/a/1.mp4", "twice/valid/a/1.mp4")
  _fails(tmp_path / "twice", "val and valid")
  _touch(tmp_path, "one/train/a/1.mp4")
  _fails(tmp_path / "one", "'validation'")
  _touch(tmp_path, "bytes/a/1.mp4", os.fsdecode(b"bytes/a/\xff.mp4"))
  _fails(tmp_path / "bytes", "\\udcff.mp4", "not UTF-8")


def _csv(folder, text, encoding="utf-8"):
  path = folder / "list.csv"
  path.write_bytes(text.encode(encoding))
  return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv(tmp_path, encoding):
  text = (
    "split,label,path,seconds\r\n"
    'train,"run, fast",v/1.mp4,3\r\n'
    "\r\n"
    "Train,jump \u00fc,/abs/2 \u00fc.mp4,4\r\n"
    "valid,jump \u00fc,3.unknown,5\r\n"
    "test,,4.mp4,6\r\n"
    'test,"run, fast",5.mp4,6\r\n'
  )
  found = folders.videos(_csv(tmp_path, text, encoding))
  assert list(found.names) == ["jump \u00fc", "run, fast"]
  assert [(clip.id, clip.label, clip.path) for clip in found.splits["train"]] == [
    ("v/1.mp4", 1, str(tmp_path / "v/1.mp4")),
    ("/abs/2 \u00fc.mp4", 0, "/abs/2 \u00fc.mp4"),
  ]
  assert _ids(found, "validation") == ["3.unknown"]
  assert [(clip.id, clip.label) for clip in found.splits["test"]] == [("4.mp4", -1), ("5.mp4", 1)]
  assert found.notes == [f"{tmp_path}/list.csv: columns that are not used: 'seconds'"]
  assert not found.images
  assert folders.images(tmp_path / "list.csv").images


def test_csv_without_splits(tmp_path):
  rows = [f"{i}.mp4,10" for i in (5, 4, 3, 2, 1)] + ["b.mp4,9", "a.mp4,9"]
  found = folders.videos(_csv(tmp_path, "\n".join(["path,label", *rows])))
  assert list(found.names) == ["9", "10"]  # as numbers
  one, other = _in_order(f"{i}.mp4" for i in range(1, 6))[0], _in_order(["a.mp4", "b.mp4"])[0]
  assert _labels(found, "validation") == {one: "10", other: "9"}
  assert "2 of 7" in found.notes[0]


def test_csv_with_a_test_split_only(tmp_path):
  found = folders.videos(_csv(tmp_path, "path,label,split\na,x,train\nb,x,test\n"))
  assert _ids(found, "validation") == ["b"] and len(found.notes) == 1
  _fails(_csv(tmp_path, "path,label,split\na,x,train\nb,,test\n"), "list.csv, line 3", "no label")


def test_parts_of_videos(tmp_path):
  text = (
    "path,start,end,label,score\n"
    "b.mp4,00:01:02.5,1:03,x,0.9\n"
    "a.mp4,2,2.5,y,0.9\n"
    "b.mp4,0,1.25,y,0.9\n"
    "c.mp4,,,x,0.9\n"
    "d.mp4,3.0,4,x,0.9\n"
  )
  found = folders.videos(_csv(tmp_path, text))
  clips = {clip.id: clip for clips in found.splits.values() for clip in clips}
  # One video's parts are neighbours, in the order of their starts.
  assert {*clips} == {"b.mp4#0-1.25", "b.mp4#62.5-63", "a.mp4#2-2.5", "c.mp4", "d.mp4#3-4"}
  assert clips["b.mp4#62.5-63"].span == (62.5, 63) and clips["c.mp4"].span is None
  assert clips["b.mp4#62.5-63"].file == clips["b.mp4#0-1.25"].file == str(tmp_path / "b.mp4")
  assert clips["b.mp4#0-1.25"].path == f"{tmp_path}/b.mp4#0-1.25"
  for ids in (_ids(found, "train"), _ids(found, "validation")):
    assert len([name for name in ids if name.startswith("b.mp4")]) in (0, 2)
  assert "4 groups none is in both" in found.notes[0]


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
def test_a_misspelt_column(tmp_path, column, meant):
  rest = "x,train\nb,y,train\nc,x,val"
  _fails(
    _csv(tmp_path, f"path,label,{column}\na,{rest}\n"),
    "line 1",
    f"the column {column.lower()!r} is not known",
    f"no {meant!r}",
  )


def test_columns_that_are_not_used_are_named(tmp_path):
  names = ["fps", "state", "person", "width", "notes", "date", "groups"]
  rows = [f"{k}.mp4,{'xy'[k % 2]},p{k // 2}" + 7 * ",1" for k in range(8)]
  found = folders.videos(_csv(tmp_path, "\n".join([f"path,label,group,{','.join(names)}", *rows])))
  assert found.notes[0].endswith("columns that are not used: " + ", ".join(map(repr, names)))
  scored = _csv(tmp_path, "path,label,score,split\na,x,.5,train\nb,y,.5,train\nc,x,.5,val\n")
  assert not folders.videos(scored).notes


def test_parts_that_overlap_with_another_label(tmp_path):
  head = "path,start,end,label,group\n"
  apart = "a,0,2,x,1\na,2,4,y,2\na,5,7,x,3\na,6,8,x,4\nb,0,9,y,5\nc,,,x,6\n"
  found = folders.videos(_csv(tmp_path, head + apart))
  assert len(found.notes) == 1  # on the split
  over = "a,1.5,2.5,y,7\nb,3,4,x,8\nb,8.9,10,x,9\nc,1,2,y,6\n"
  note = folders.videos(_csv(tmp_path, head + apart + over)).notes[0]
  assert note.startswith("4 parts of videos overlap") and "a#0-2 (x) and a#1.5-2.5 (y)" in note


def test_no_group_is_on_both_sides_of_a_split(tmp_path):
  rows = [f"{label}{k}.mp4,{label},p{k % 6}" for k in range(12) for label in "xy"]
  found = folders.videos(_csv(tmp_path, "\n".join(["path,label,group", *rows])))
  persons = [{int(name[1:-4]) % 6 for name in _ids(found, split)} for split in found.splits]
  assert not persons[0] & persons[1] and len(persons[0] | persons[1]) == 6
  labels = [*_labels(found, "validation").values()]
  assert labels.count("x") == labels.count("y") in (2, 4)
  _fails(_csv(tmp_path, "path,label,group\na,x,p\nb,x,p\n"), "one group (p)")
  both = "path,label,split,group\na,x,train,p\nb,x,val,p\n"
  _fails(_csv(tmp_path, both), "line 3", "a of the same group (p) in train")
  parts = "path,start,end,label,split\na,0,1,x,train\na,2,3,x,val\n"
  _fails(_csv(tmp_path, parts), "line 3", "same group (a)")
  apart = "path,start,end,label,split,group\na,0,1,x,train,1\na,2,3,x,val,2\n"
  assert _ids(folders.videos(_csv(tmp_path, apart)), "validation") == ["a#2-3"]
  whole = "path,start,end,label,split\na,0,1,x,train\na,,,x,val\n"
  _fails(_csv(tmp_path, whole), "one file")


def test_a_video_is_one_group_however_it_is_spelled(tmp_path):
  (tmp_path / "b.mp4").symlink_to("a.mp4")
  spelled = ("a.mp4", f"{tmp_path}/a.mp4", "./a.mp4", "b.mp4")
  rows = [f"{name},{k},{k + 1},x,{'train' if k else 'val'}" for k, name in enumerate(spelled)]
  head = "path,start,end,label,split"
  for row in rows[1:]:
    _fails(_csv(tmp_path, "\n".join([head, rows[0], row])), "line 3", "same group (a.mp4)")
  empty = f"{head},group\na.mp4,0,1,x,train,\na.mp4,2,3,x,val,\n"
  _fails(_csv(tmp_path, empty), "same group (a.mp4)")
  whole = "path,start,end,label\n" + "".join(f"{k}.mp4,,,x\n{k}.mp4,0,1,x\n" for k in range(5))
  found = folders.videos(_csv(tmp_path, whole))
  files = [{name.partition("#")[0] for name in _ids(found, split)} for split in found.splits]
  assert not files[0] & files[1]
  _fails(_csv(tmp_path, "path,label,group\na,x,p\nb,y,q\n"), "no class has two clips")


def test_groups_are_held_out_that_leave_every_class_some_clips(tmp_path):
  # Every class is one person's, but for a clip of each that is of one more; of 'e' there is none.
  rows = [f"{label}{k}.mp4,{label},{label}" for label in "abcde" for k in range(4)]
  rows += [f"z{label}.mp4,{label},z" for label in "abcd"]
  for seed_of_order in range(5):
    turned = rows[seed_of_order:] + rows[:seed_of_order]
    found = folders.videos(_csv(tmp_path, "\n".join(["path,label,group", *turned])))
    assert {*_labels(found, "train").values()} == {*"abcde"}


def test_a_label_of_a_predicted_row_is_the_class(tmp_path):
  found = folders.videos(_csv(tmp_path, "path,label,split\na.mp4,'-none,train\nb.mp4,-none,val\n"))
  assert found.names == ["-none"]


def test_a_gap_of_a_predicted_video_is_no_clip(tmp_path):
  text = (
    "path,start,end,label,score\na,0.000,4.500,x,0.9000\na,4.500,5.250,,\na,6.000,6.000,,\n"
    "a,5.250,9.000,y,0.8000\nb,0.000,1.000,x,0.9000\nb,1.000,2.000,y,0.9000\n"
  )
  found = folders.videos(_csv(tmp_path, text))
  spans = [clip.span for clips in found.splits.values() for clip in clips]
  assert sorted(spans) == [(0, 1), (0, 4.5), (1, 2), (5.25, 9)]


def test_a_pattern_finds_the_groups_of_a_folder(tmp_path):
  for label in "xy":
    for person in range(5):
      for k in range(2):
        path = tmp_path / label / f"person{person}_{k}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
  found = folders.videos(tmp_path, r"person(\d)")
  persons = [{name[8] for name in _ids(found, split)} for split in found.splits]
  assert not persons[0] & persons[1] and len(persons[1]) == 1
  with pytest.raises(UserError, match="no regular expression"):
    folders.videos(tmp_path, "(")


@pytest.mark.parametrize(
  "text, parts",
  [
    ("", ["no rows"]),
    ("path,label,split\n", ["no rows"]),
    ("path;label;split\na;x;train\n", ["line 1", "'path'", "commas"]),
    ("a.mp4,x,train\n", ["line 1", "'path'"]),
    ("path,split\na,train\n", ["line 1", "'label'"]),
    ("path,label,split\na,x,train\nb,x\n", ["line 3", "2 fields under 3 columns"]),
    ("path,label,split\na,x,train\nb,c,x,val\n", ["line 3", "double quotes"]),
    ("path,label,split\na,x,fold1\n", ["line 2", "'fold1'"]),
    ("path,label,split\na,x,dev\nb,y,test\n", ["no training split", "validation, test"]),
    ("path,label,split\na,x,\n", ["line 2", "''"]),
    ("path,label,split\n,x,train\n", ["line 2", "no path"]),
    ("path,label,start\na,x,1\n", ["line 1", "a column 'start', but no 'end'"]),
    ("path,end,label\na,1,x\n", ["line 1", "a column 'end', but no 'start'"]),
    ("path,label,Label\na,x,y\n", ["line 1", "'label' is there twice"]),
    ("path,lable\na,x\n", ["line 1", "no column 'label', but 'path', 'lable'"]),
    ("path,label,start,end\na,x,1,\n", ["line 2", "end ''", "no time"]),
    ("path,label,start,end\na,x,1:2:3:4,5\n", ["line 2", "start '1:2:3:4'"]),
    ("path,label,start,end\na,x,-1,5\n", ["line 2", "start '-1'"]),
    ("path,label,start,end\na,x,2,2\n", ["line 2", "not behind its start"]),
    ("path,label,split\na,x,train\n\nb,,val\n", ["line 4", "no label"]),
    ("path,label,split\na,,train\nb,x,val\n", ["line 2", "no label"]),
    ("path,label\na,x\nb,\n", ["line 3", "no label"]),
    ("path,label,split\na,x,train\nb,x,val\na,x,val\n", ["line 4", "a is in line 2"]),
    ("path,label,split\na,x,train\nb,y,val\n", ["line 3", "'y' has no training clip"]),
    ('path,label,split\na,x,train\n"b,x,val\n', ["line 3", "not valid CSV"]),
    ("path,label,split\na,x,train\n", ["'validation'"]),
  ],
)
def test_bad_csv(tmp_path, text, parts):
  _fails(_csv(tmp_path, text), "list.csv", *parts)


def test_csv_in_another_encoding(tmp_path):
  path = _csv(tmp_path, "path,label,split\na,x,train\nb,\u00fc,val\n", "latin-1")
  _fails(path, "list.csv, line 3", "UTF-8")
