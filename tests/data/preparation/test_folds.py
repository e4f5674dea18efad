"""Folds of the training clips: every clip is held out once, and groups stay together."""

import collections

import pytest

from data.preparation import folds
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import folders
from u2s_jax.video.listing import Clip, Listing


def make_listing(groups=None, num_train=12):
  clips = [
    Clip(str(k), k % 2, f"{k}.mp4", group=groups[k] if groups else "") for k in range(num_train)
  ]
  splits = {"train": clips, "validation": [Clip("v", 0, "v.mp4")], "test": [Clip("t", 0, "t.mp4")]}
  return Listing(["a", "b"], splits, official={"train": 12})


def test_every_training_clip_is_held_out_once():
  listing, held_out = make_listing(), []
  for k in range(1, 4):
    fold = folds.hold_out_fold(listing, f"{k}/3", "source")
    train, validation = fold.splits["train"], fold.splits["validation"]
    assert {*train, *validation} == {*listing.splits["train"]} and not {*train} & {*validation}
    assert collections.Counter(clip.label for clip in validation) == {0: 2, 1: 2}
    assert fold.splits["test"] == listing.splits["test"] and not fold.official
    held_out += validation
  assert sorted(int(clip.id) for clip in held_out) == [*range(12)]
  assert fold.notes == [
    "fold 3/3: 4 of 12 training clips are held out; the 1 validation clips of the source are left"
    " out"
  ]


def test_all_clips_take_part_if_the_source_has_no_splits(tmp_path):
  lines = [f"{k}.mp4,{'ab'[k % 2]},{k // 4}" for k in range(20)]
  (tmp_path / "list.csv").write_text("\n".join(["path,label,group", *lines]) + "\n")
  listing, held_out = folders.list_videos(tmp_path / "list.csv"), []
  for k in range(1, 6):
    fold = folds.hold_out_fold(listing, f"{k}/5", "source")
    assert {clip.group for clip in fold.splits["train"]}.isdisjoint(
      {clip.group for clip in fold.splits["validation"]}
    )
    held_out += fold.splits["validation"]
    assert fold.notes == [f"fold {k}/5: 4 of 20 training clips are held out"]
  assert len({clip.id for clip in held_out}) == len(held_out) == 20


def test_groups_stay_together():
  groups = [f"person {k // 4}" for k in range(12)]
  for k in range(1, 4):
    fold = folds.hold_out_fold(make_listing(groups), f"{k}/3", "source")
    assert len({clip.group for clip in fold.splits["validation"]}) == 1
    assert len(fold.splits["validation"]) == 4


@pytest.mark.parametrize("fold", ["", "1", "0/3", "4/3", "1/1", "a/b", "-1/3", "1/3/5"])
def test_rejects_invalid_folds(fold):
  with pytest.raises(UserError, match="must be K/N"):
    folds.hold_out_fold(make_listing(), fold, "source")


def test_rejects_classes_with_too_few_clips_or_groups():
  with pytest.raises(
    UserError, match="class 'a' has 6 training clips in 6 groups; 7 parts require"
  ):
    folds.hold_out_fold(make_listing(), "1/7", "source")
  # All clips of class 1 are of one group: every fold is refused, not only the one that has it.
  groups = ["y" if k % 2 else f"x{k}" for k in range(12)]
  for k in range(1, 4):
    with pytest.raises(UserError, match="class 'b' has 6 training clips in 1 groups"):
      folds.hold_out_fold(make_listing(groups), f"{k}/3", "source")


def test_parts_and_the_whole_of_a_video_stay_together():
  clips = []
  for k in range(12):
    file = f"{k // 2}.mp4"
    if k % 2:
      clips.append(Clip(f"{file}#0-1", k // 2 % 2, file, span=(0.0, 1.0), group=f"{k // 2}"))
    else:
      clips.append(Clip(file, k // 2 % 2, file))
  listing = Listing(["a", "b"], {"train": clips, "validation": [Clip("v", 0, "v.mp4")]})
  for k in range(1, 4):
    fold = folds.hold_out_fold(listing, f"{k}/3", "source")
    files = [{clip.file for clip in fold.splits[split]} for split in ("train", "validation")]
    assert files[0].isdisjoint(files[1]) and len(files[1]) == 2


def test_rejects_a_test_split_alone():
  listing = Listing(["a"], {"test": [Clip("t", 0, "t.mp4")]})
  with pytest.raises(UserError, match="class 'a' has 0 training clips in 0 groups"):
    folds.hold_out_fold(listing, "1/2", "source")
