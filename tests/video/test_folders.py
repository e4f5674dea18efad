"""Folders of videos and images."""

import os
import unicodedata

import pytest

from tests.video.sources import check_error, get_ids, get_labels, sort_by_hash, touch, write_csv
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import folders, listing


def test_holds_out_a_fifth_of_each_class(tmp_path):
  touch(tmp_path, *(f"run/{i:02}.mp4" for i in range(1, 12)))
  touch(tmp_path, "jump/b.mp4", "jump/a.mp4", "sit/a.mp4")
  found = folders.list_videos(tmp_path)
  assert list(found.names) == ["jump", "run", "sit"] and not found.images
  # The first 2 of 11 (2.2), one of two, none of one.
  runs = sort_by_hash(f"run/{i:02}.mp4" for i in range(1, 12))[:2]
  jump = sort_by_hash(["jump/a.mp4", "jump/b.mp4"])[:1]
  assert get_ids(found, "validation") == [*jump, *sorted(runs)]
  assert len(get_ids(found, "train")) == 11 and "sit/a.mp4" in get_ids(found, "train")
  assert set(found.splits) == {"train", "validation"} and not found.official
  assert len(found.notes) == 1 and "3 of 14" in found.notes[0]
  first = get_ids(found, "train")[0]
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
def test_recognizes_usual_split_names(tmp_path, train, others):
  for folder in (train, *others):
    touch(tmp_path, f"{folder}/run/1.mp4", f"{folder}/walk/2.mp4")
  found = folders.list_videos(tmp_path)
  assert list(found.names) == ["run", "walk"]
  assert get_ids(found, "train") == [f"{train}/run/1.mp4", f"{train}/walk/2.mp4"]
  for folder, split in others.items():
    assert get_ids(found, split) == [f"{folder}/run/1.mp4", f"{folder}/walk/2.mp4"]


def test_split_names_next_to_other_folders_are_classes(tmp_path):
  touch(tmp_path, "training/a/1.mp4", "training/b.mp4", "running/1.mp4", "testing/1.mp4")
  assert list(folders.list_videos(tmp_path).names) == ["running", "testing", "training"]


@pytest.mark.parametrize(
  ("names", "parts"),
  [
    (["train", "holdout"], ["'validation'", "'train'", "'holdout'", "dev"]),
    (["val", "test"], ["'train'", "'test', 'val'"]),
    (["testing", "dev"], ["'train'", "'dev', 'testing'", "called train or training"]),
    (["dev"], ["'train'", "'dev'"]),
  ],
)
def test_names_the_missing_split(tmp_path, names, parts):
  touch(tmp_path, *(f"{name}/{label}/1.mp4" for name in names for label in "xy"))
  check_error(tmp_path, *parts)


def test_allows_a_test_split_only(tmp_path):
  touch(tmp_path, "f/testing/a/1.mp4", "f/testing/b/2.mp4")
  (tmp_path / "f/testing/c").mkdir()  # a class of the runs without a clip
  found = folders.list_videos(tmp_path / "f")
  assert list(found.names) == ["a", "b", "c"] and [*found.splits] == ["test"]
  assert get_labels(found, "test") == {"testing/a/1.mp4": "a", "testing/b/2.mp4": "b"}
  listing.check_trainable_classes(found, "f")
  touch(tmp_path, "one/test/a/1.mp4")  # some of a run's classes may be enough to test it
  listing.check_trainable_classes(folders.list_videos(tmp_path / "one"), "one")
  found = folders.list_videos(
    write_csv(tmp_path, "path,label,split\n1,2,test\n2,10,eval\n3,,test\n")
  )
  assert list(found.names) == ["2", "10"]
  assert [clip.label for clip in found.splits["test"]] == [0, 1, -1]
  with pytest.raises(UserError, match="no clip has a class"):
    listing.check_trainable_classes(
      folders.list_videos(write_csv(tmp_path, "path,label,split\n1,,test\n")), "x"
    )


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
def test_rejects_class_names_that_look_the_same(tmp_path, one, other, words):
  rows = f"a,{one},train\nb,{other},train\nc,{one},val\n"
  check_error(
    write_csv(tmp_path, f"path,label,split\n{rows}"), repr(one), repr(other), ascii(other), words
  )
  apart = f"a,{one},train\nb,other,train\nc,{other},val\n"
  check_error(write_csv(tmp_path, f"path,label,split\n{apart}"), repr(one), repr(other), words)
  touch(tmp_path, f"in/{one}/1.mp4", f"in/{other}/1.mp4", f"in/{one}/2.mp4")
  check_error(tmp_path / "in", repr(one), repr(other), words)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
def test_reads_split_folders(tmp_path, name):
  touch(tmp_path, "train/b/1.mp4", "train/a/deep/er/1.MP4", f"{name}/a/1.mp4", "test/b/1.webm")
  found = folders.list_videos(tmp_path)
  assert list(found.names) == ["a", "b"] and not found.notes
  # The same file name in several splits: the ids differ.
  assert get_labels(found, "train") == {"train/a/deep/er/1.MP4": "a", "train/b/1.mp4": "b"}
  assert get_labels(found, "validation") == {f"{name}/a/1.mp4": "a"}
  assert get_labels(found, "test") == {"test/b/1.webm": "b"}


def test_uses_the_test_folder_for_validation_if_there_is_no_other(tmp_path):
  touch(tmp_path, "train/a/1.mp4", "test/a/1.mp4", "test/a/2.mp4", "docs/a/1.mp4")
  found = folders.list_videos(tmp_path)
  assert get_ids(found, "validation") == ["test/a/1.mp4", "test/a/2.mp4"]
  assert set(found.splits) == {"train", "validation"}
  assert any("test split (2 videos) is used for validation" in note for note in found.notes)
  assert any("'docs'" in note for note in found.notes)


def test_a_class_may_be_called_train(tmp_path):
  touch(tmp_path, "train/1.mp4", "train/2.mp4", "bus/1.mp4", "bus/2.mp4")
  assert list(folders.list_videos(tmp_path).names) == ["bus", "train"]


def test_takes_files_by_extension_and_skips_hidden_ones(tmp_path):
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
  touch(tmp_path, *(f"a b/{name}" for name in names))
  touch(tmp_path, "stray.mp4", "README.txt", ".git/x.mp4", "a b/.cache/x.mp4", "a b/4.mp4")
  found = folders.list_videos(tmp_path)
  ids = {*get_ids(found, "train"), *get_ids(found, "validation")}
  assert ids == {"a b/1.AVI", "a b/2 x \u00fc.mkv", "a b/3.gif", "a b/4.mp4"}
  assert f"ignored videos outside the class folders: 1, such as {tmp_path}/stray.mp4" in found.notes
  assert "ignored files with other extensions: .txt 3, no extension 1, .png 1" in found.notes


def test_lists_images(tmp_path):
  touch(tmp_path, "train/a/1.JPEG", "train/a/2.tiff", "val/a/1.webp", "val/a/1.mp4")
  found = folders.list_images(tmp_path)
  assert found.images and get_ids(found, "train") == ["train/a/1.JPEG", "train/a/2.tiff"]
  assert found.notes == ["ignored files with other extensions: .mp4 1"]


def test_follows_links(tmp_path):
  touch(tmp_path, "elsewhere/x/1.mp4", "elsewhere/2.mp4", "3.mp4", "4.mp4")
  (tmp_path / "source/b").mkdir(parents=True)
  (tmp_path / "source/a").symlink_to(tmp_path / "elsewhere")
  (tmp_path / "source/b/3.mp4").symlink_to(tmp_path / "3.mp4")
  (tmp_path / "source/b/4.mp4").symlink_to(tmp_path / "4.mp4")
  found = folders.list_videos(tmp_path / "source")
  pairs = ["a/2.mp4", "a/x/1.mp4"], ["b/3.mp4", "b/4.mp4"]
  assert get_ids(found, "validation") == [sort_by_hash(pair)[0] for pair in pairs]
  assert get_ids(found, "train") == [sort_by_hash(pair)[1] for pair in pairs]
  (tmp_path / "elsewhere/x/again").symlink_to(tmp_path / "elsewhere")
  check_error(tmp_path / "source", "source/a/x/again", "link")


def test_find_files_and_list_videos_agree(tmp_path):
  touch(tmp_path, "far/c.MTS", "far/deep/d.vob", "new/b/a.mp4", "new/b/._a.mp4", "new/.git/x.mp4")
  touch(tmp_path, "new/b/a.png", "new/b/a.srt", "new/b/a.wav", "new/z.mov", "new/b/z.mp4.part")
  (tmp_path / "new/linked").symlink_to(tmp_path / "far")
  (tmp_path / "new/b/file.mp4").symlink_to(tmp_path / "other.mp4")
  names = ["b/a.mp4", "b/a.png", "b/file.mp4", "linked/c.MTS", "linked/deep/d.vob", "z.mov"]
  found = folders.find_files(str(tmp_path / "new"))
  assert [os.path.relpath(file, tmp_path / "new") for file in found] == names
  listed = folders.list_videos(tmp_path / "new")
  prepared = [clip.id for clips in listed.splits.values() for clip in clips]
  assert sorted(prepared) == [name for name in names if name.count("/") and "png" not in name]
  assert any("with other extensions: .part 1, .png 1, .srt 1, .wav 1" in n for n in listed.notes)
  (tmp_path / "far/deep/up").symlink_to(tmp_path / "new")
  for list_all in (folders.find_files, lambda folder: folders.list_videos(tmp_path / folder)):
    with pytest.raises(UserError, match="this link leads back to a folder"):
      list_all(str(tmp_path / "new"))
  assert folders.find_files(str(tmp_path / "new/b/._a.mp4"))  # named by itself


def test_recognizes_video_extensions(tmp_path):
  videos = ".mts .M2TS .vob .asf .3g2 .f4v .mxf .ogm .divx .dv .y4m .m2v .qt .rmvb .mpe .trp .265"
  touch(tmp_path, *(f"{'ab'[k % 2]}/{k}{ending}" for k, ending in enumerate(videos.split())))
  found = folders.list_videos(tmp_path)
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
  touch(tmp_path, "new/c/1.braw", "new/c/2.r3d", "new/c/3.braw", "new/a/1.mp4")
  check_error(
    tmp_path / "new", "new/c", "holds no videos, only files with other extensions (.braw 2, .r3d 1)"
  )
  with pytest.raises(FileNotFoundError, match=r"no videos or images, only .* \(.braw 2, .r3d 1\)"):
    folders.find_files(str(tmp_path / "new/c"))


def test_sorts_numeric_class_names_by_value(tmp_path):
  touch(tmp_path, *(f"{name}/{i}.mp4" for name in (0, 1, 2, 10) for i in range(2)))
  assert list(folders.list_videos(tmp_path).names) == ["0", "1", "2", "10"]


def test_rejects_invalid_folders(tmp_path):
  check_error(tmp_path / "nowhere", "nowhere", kind=FileNotFoundError)
  check_error(tmp_path, "no class folders with videos")
  touch(tmp_path, "videos.tar")
  check_error(tmp_path / "videos.tar", "videos.tar", "neither a folder nor a .csv")
  touch(tmp_path, "flat/1.mp4", "flat/2.mp4")
  check_error(tmp_path / "flat", "no class folders with videos")
  touch(tmp_path, "empty/a/1.mp4", "empty/b/notes.txt")
  check_error(tmp_path / "empty", "empty/b", "no videos")
  check_error(tmp_path / "empty", "empty/a", "no images", read=folders.list_images)
  touch(tmp_path, "levels/train/1.mp4", "levels/val/1.mp4")
  check_error(tmp_path / "levels", "no class folders with videos")
  touch(tmp_path, "other/train/a/1.mp4", "other/val/a/1.mp4", "other/test/b/1.mp4")
  check_error(tmp_path / "other", "other/test/b", "'b' has no training clip")
  touch(tmp_path, "twice/train/a/1.mp4", "twice/val/a/1.mp4", "twice/valid/a/1.mp4")
  check_error(tmp_path / "twice", "val and valid")
  touch(tmp_path, "one/train/a/1.mp4")
  check_error(tmp_path / "one", "'validation'")
  touch(tmp_path, "bytes/a/1.mp4", os.fsdecode(b"bytes/a/\xff.mp4"))
  check_error(tmp_path / "bytes", "\\udcff.mp4", "not UTF-8")


def test_groups_clips_of_a_folder_by_a_pattern(tmp_path):
  for label in "xy":
    for person in range(5):
      for k in range(2):
        path = tmp_path / label / f"person{person}_{k}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.touch()
  found = folders.list_videos(tmp_path, r"person(\d)")
  persons = [{name[8] for name in get_ids(found, split)} for split in found.splits]
  assert not persons[0] & persons[1] and len(persons[1]) == 1
  with pytest.raises(UserError, match="not a valid regular expression"):
    folders.list_videos(tmp_path, "(")


def test_rare_classes_spelt_almost_like_frequent_ones_are_questioned(tmp_path):
  touch(tmp_path, *(f"bikes/{k}.mp4" for k in range(20)), *(f"boats/{k}.mp4" for k in range(3)))
  assert len(folders.list_videos(tmp_path).notes) == 1
  touch(tmp_path, "bikess/0.mp4", "hiking/0.mp4", "boat/0.mp4")
  notes = [note for note in folders.list_videos(tmp_path).notes if "typing error" in note]
  assert notes == [
    "class 'bikess' (clips: 1) is spelt almost like 'bikes' (20); is that a typing error?"
  ]
  touch(tmp_path, *(f"class_01/{k}.mp4" for k in range(20)), "class_02/0.mp4")
  assert sum("typing error" in note for note in folders.list_videos(tmp_path).notes) == 1
