"""Corrections of labels change, drop and keep clips, and nothing else."""

import pytest

from data.input import store
from data.preparation import corrections, prepare
from u2s_jax.runtime.errors import UserError
from u2s_jax.video.listing import Clip, Listing

LISTING = Listing(
  ["a", "b"],
  {
    "train": [Clip("1", 0, "1"), Clip("2", 0, "2"), Clip("3", 1, "3")],
    "validation": [Clip("4", 0, "4"), Clip("5", 1, "5")],
  },
)


def write(tmp_path, *rows, header="id,action,label"):
  path = tmp_path / "corrections.csv"
  path.write_text("\n".join([header, *rows]) + "\n")
  return path


def test_applies_corrections(tmp_path):
  path = write(tmp_path, '"1","relabel","b"', "4,relabel,b", "2,keep,", "5,drop,")
  corrected, applied = corrections.apply_corrections(
    Listing(["a", "b"], {**LISTING.splits, "train": [*LISTING.splits["train"], Clip("6", 0, "6")]}),
    path,
  )
  labels = {
    split: {clip.id: clip.label for clip in clips} for split, clips in corrected.splits.items()
  }
  assert labels == {"train": {"1": 1, "2": 0, "3": 1, "6": 0}, "validation": {"4": 1}}
  assert applied[0] == {"id": "1", "action": "relabel", "label": "b", "before": "a"}
  assert applied[3]["action"] == "drop"
  assert corrected.notes[0].endswith("4 corrections: 2 relabel, 1 drop, 1 keep")


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    (["9,keep,"], "line 2: no clip '9' in the source"),
    (["1,keep,", "1,drop,"], "line 3: '1' occurs twice"),
    (["1,move,"], "line 2: unknown action 'move'"),
    (["1,relabel,c"], "line 2: unknown class 'c'"),
    (["3,drop,"], "class 'b' has no training clip"),
    (["4,drop,", "5,drop,"], "no clips in the split 'validation'"),
  ],
)
def test_rejects_invalid_corrections(tmp_path, rows, message):
  with pytest.raises(UserError, match=message):
    corrections.apply_corrections(LISTING, write(tmp_path, *rows))


def test_rejects_other_columns(tmp_path):
  with pytest.raises(UserError, match="first line must be id,action,label"):
    corrections.apply_corrections(LISTING, write(tmp_path, header="path,label"))


def test_data_set_lists_its_corrections(tmp_path, write_video):
  for name in ("a", "b"):
    (tmp_path / "source" / name).mkdir(parents=True)
    for k in range(3):
      write_video(tmp_path / "source" / name / f"{k}.webm", 3)
  path = write(tmp_path, "a/0.webm,relabel,b")
  arguments = ["--dataset=videos", f"--source={tmp_path}/source", "--short_edge=32", "--workers=1"]
  prepare.main([*arguments, f"--out={tmp_path}/before"])
  prepare.main([*arguments, f"--out={tmp_path}/out", f"--corrections={path}"])
  before, after = (store.open_dataset(tmp_path / name) for name in ("before", "out"))
  labels = []
  for dataset in (before, after):
    found = {}
    for split in ("train", "validation"):
      records = dataset.split(split).records
      for i in range(len(records)):
        clip_id, label, _ = store.parse_record(records[i])
        found[clip_id.decode()] = (split, label)
    labels.append(found)
  changed = {name for name in labels[0] if labels[0][name] != labels[1][name]}
  assert changed == {"a/0.webm"} and labels[1]["a/0.webm"][1] == 1
  assert labels[0]["a/0.webm"][0] == labels[1]["a/0.webm"][0]
  origin = after.info.metadata["origin"]
  assert origin["corrections"][0]["before"] == "a"
