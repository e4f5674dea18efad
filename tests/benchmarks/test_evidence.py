"""Intervals, verdicts and records of a study; no run is trained."""

import json
import re

import numpy as np
import pytest

from benchmarks import effects, evidence
from benchmarks import study as study_lib
from benchmarks.study import Records, Study, packed, read_study, unpacked
from u2s_jax.errors import UserError


def study(**fields):
  known = {
    "name": "x",
    "config": "configs/demo.py",
    "seeds": (0, 1),
    "overrides": {"batch_size": 4},
    "variants": {"u2s": {}, "control": {"control": True}},
    "comparisons": [
      {"name": "gain", "of": "u2s/merged", "over": "control/universal", "paper": 2.0},
      {"name": "lost", "of": "u2s/merged", "over": "control/universal", "measure": "top5"},
    ],
  }
  return Study(**known | fields)


def entry(variant, seed, hits, **fields):
  bits = {name: packed(np.array(value, bool)) for name, value in hits.items()}
  known = {
    "variant": variant,
    "seed": seed,
    "overrides": study().fields(variant),
    "digest": "d",
    "clips": 12,
    "top1": bits,
    "top5": {name: packed(np.ones(12, bool)) for name in hits},
    "parameters": 10,
    "flops": 1e12,
    "minutes": 1.0,
    "similarity": {},
  }
  return known | fields


@pytest.fixture
def records(tmp_path, monkeypatch):
  monkeypatch.setattr(study_lib, "DOCS", tmp_path)
  made = Records(study())
  for seed in (0, 1):
    made.add(entry("u2s", seed, {"one-pass": [0] * 12, "merged": [1] * 9 + [0] * 3}))
    control = [1] * (6 + seed) + [0] * (6 - seed)
    made.add(
      entry("control", seed, {"one-pass": [0] * 12, "universal": control, "merged": control})
    )
  return made


def test_bits_survive_as_text():
  bits = np.random.default_rng(0).random(37) < 0.5
  np.testing.assert_array_equal(unpacked(packed(bits), 37), bits)


def test_a_hit_is_a_label_among_the_highest_scores():
  scores, labels = np.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]), np.array([1, 0])
  assert evidence.right(scores, labels, 1).tolist() == [False, False]
  assert evidence.right(scores, labels, 2).tolist() == [True, False]


def test_an_interval_covers_as_often_as_it_says():
  # One seed: clips alone. The normal approximation of a mean of -1, 0, 1.
  difference = np.repeat([1.0, 0.0, -1.0], [300, 500, 200])
  mean, low, high = effects.interval([difference])
  error = 1.96 * np.sqrt((0.5 - 0.1**2) / 1000)
  assert mean == pytest.approx(10)
  assert low == pytest.approx(10 - 100 * error, abs=0.5)
  assert high == pytest.approx(10 + 100 * error, abs=0.5)


def test_seeds_that_differ_widen_an_interval():
  clips = np.repeat([1.0, 0.0], [200, 800])
  alike = effects.interval([clips, clips, clips])
  apart = effects.interval([clips, 1 - clips, clips])
  assert apart[2] - apart[1] > 3 * (alike[2] - alike[1])


def test_of_folds_both_folds_and_clips_are_drawn():
  mean, low, high = effects.interval([np.ones(4), np.zeros(12)], same_clips=False)
  assert mean == 25 and (low, high) == (0, 100)  # either fold is drawn twice once in four
  # Folds that are alike: the clips' error alone, by the normal approximation.
  folds = [np.repeat([1.0, 0.0], [100, 300])] * 3
  mean, low, high = effects.interval(folds, same_clips=False)
  error = 196 * np.sqrt(0.25 * 0.75 / 1200)
  assert mean == 25 and high - low == pytest.approx(2 * error, rel=0.1)


@pytest.mark.parametrize(
  ("low", "high", "paper", "said"),
  [
    (0.1, 2, 1.5, "reproduced"),
    (-3, -1, -1.7, "reproduced"),
    (-3, -1, 1, "not reproduced"),
    (-0.5, 0.5, 1, "not reproduced"),
    (-0.5, 1.5, 1, "undecided"),
    (0.0, 0.0, 1, "undecided"),  # no clip differs
    (0.1, 1, None, "positive"),
    (-1, 1, None, "undecided"),
  ],
)
def test_what_an_interval_means(low, high, paper, said):
  assert effects.verdict(low, high, paper) == said


def test_effects_pair_clips_and_seeds(records):
  compared = gain, top5 = effects.compare(study(), records)
  assert gain["mean"] == pytest.approx(100 * (3 / 12 + 2 / 12) / 2) and gain["seeds"] == 2
  assert (top5["mean"], top5["low"], top5["high"]) == (0, 0, 0)
  text = effects.page(study(), records, compared)
  assert "| u2s | 2 | 0.0 |" in text and "| gain | 2 | +2.00 | +20.8 |" in text
  figure = records.path.with_suffix(".svg")
  effects.draw(compared, figure)
  drawn = figure.read_bytes()
  effects.draw(compared, figure)
  assert figure.read_bytes() == drawn  # no commit shows a change where there is none


def test_a_dose_response_is_a_curve(records, tmp_path):
  comparisons = [
    {"name": f"gain {dose}", "series": "gain", "dose": dose, "of": "u2s/merged", "over": over}
    for dose, over in ((0.0, "control/universal"), (0.5, "u2s/one-pass"))
  ]
  compared = effects.compare(study(comparisons=comparisons), records)
  effects.draw(compared, tmp_path / "doses.svg")
  assert "dose" in (tmp_path / "doses.svg").read_text()


def test_fusions_stand_beside_the_papers(records):
  assert effects.fusions(study(), records) == []  # the records have no bridge
  for seed in (0, 1):
    hits = {
      name: [1] * k + [0] * (12 - k)
      for k, name in enumerate(sorted(effects.PAPER_FUSIONS, key=effects.PAPER_FUSIONS.get), 1)
    }
    records.add(entry("u2s", seed, {"one-pass": [0] * 12, "merged": [0] * 12} | hits))
  lines = effects.fusions(study(), records)
  assert "rank correlation with the paper's 1.00" in lines[0]
  assert "| specific | 55.95 | 8.33 |" in lines


def test_records_are_read_again(records):
  again = Records(study())
  assert again.get("u2s", 1) == json.loads(json.dumps(records.get("u2s", 1)))
  assert again.get("u2s", 7) is None


def test_a_record_of_other_overrides_is_no_record(records):
  with pytest.raises(UserError, match="control ran with other overrides"):
    Records(study(variants={"u2s": {}, "control": {"control": True, "seed": 3}}))


def test_variants_that_saw_other_clips_are_not_compared(records):
  records.add(entry("control", 1, {"merged": [0] * 12, "universal": [0] * 12}, digest="e"))
  with pytest.raises(UserError, match="seed 1: the variants saw other clips"):
    effects.compare(study(), records)


def test_where_a_variant_starts():
  known = study(variants={"u2s": {}, "two": {"seed": 1}, "far": {"from": ""}, "g": {"from": "far"}})
  assert [known.start(name) for name in known.variants] == ["", "u2s", "", "far"]
  assert known.fields("g") == {"batch_size": 4}


def test_the_studies_at_hand_can_be_read():
  for path in (study_lib.ROOT / "benchmarks" / "studies").glob("*.toml"):
    known = read_study(path)
    sides = [c[key] for c in known.comparisons for key in ("of", "over")]
    assert {side.split("/")[0] for side in sides} <= known.variants.keys()


def test_a_study_takes_another_one_s_comparisons_as_far_as_it_has_the_variants(tmp_path):
  comparison = '[[comparisons]]\nname = "{0}"\nof = "{1}/merged"\nover = "{2}/merged"\n'
  first = (
    'config = "c.py"\nseeds = [0]\n[overrides]\n[variants]\nu2s = {}\nown = {}\ncontrol = {}\n'
  )
  first += comparison.format("a", "u2s", "control") + comparison.format("b", "u2s", "own")
  (tmp_path / "first.toml").write_text(first)
  second = 'config = "c.py"\ncomparisons_of = "first"\nseeds = [0]\n[overrides]\n[variants]\n'
  second += "u2s = {}\ncontrol = {}\n" + comparison.format("c", "control", "u2s")
  (tmp_path / "second.toml").write_text(second)
  names = [c["name"] for c in read_study(tmp_path / "second.toml").comparisons]
  assert names == ["a", "c"]


def test_the_claims_of_a_study_beside_another_one_without_runs(records):
  lines = effects.claims(study(), {"x": effects.compare(study(), records), "y": []}).splitlines()
  gain, lost = (line.split(" | ") for line in lines[-2:])
  assert gain[:2] == ["| gain", "+2.00"] and gain[3] == "not run |"
  assert re.fullmatch(r"\+20.8 \(.* to .*\): (reproduced|undecided), 2 seeds", gain[2])
  assert lost[1:] == ["", "+0.0 (+0.0 to +0.0): undecided, 2 seeds", "not run |"]
