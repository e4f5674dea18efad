"""Intervals, verdicts and records of a study, without training."""

import json
import re

import numpy as np
import pytest

from benchmarks.evidence import effects, train
from benchmarks.evidence import study as study_lib
from benchmarks.evidence.study import Records, Study, pack_bits, read_study, unpack_bits
from u2s_jax.run import config_flags, settings
from u2s_jax.runtime import command_line
from u2s_jax.runtime.errors import UserError


def make_study(**fields):
  defaults = {
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
  return Study(**defaults | fields)


def make_record(variant, seed, hits, **fields):
  bits = {name: pack_bits(np.array(value, bool)) for name, value in hits.items()}
  defaults = {
    "variant": variant,
    "seed": seed,
    "overrides": make_study().fields(variant),
    "digest": "d",
    "clips": 12,
    "top1": bits,
    "top5": {name: pack_bits(np.ones(12, bool)) for name in hits},
    "parameters": 10,
    "flops": 1e12,
    "minutes": 1.0,
    "similarity": {},
  }
  return defaults | fields


@pytest.fixture
def records(tmp_path, monkeypatch):
  monkeypatch.setattr(study_lib, "DOCS", tmp_path)
  records = Records(make_study())
  for seed in (0, 1):
    records.add(make_record("u2s", seed, {"one-pass": [0] * 12, "merged": [1] * 9 + [0] * 3}))
    control = [1] * (6 + seed) + [0] * (6 - seed)
    records.add(
      make_record("control", seed, {"one-pass": [0] * 12, "universal": control, "merged": control})
    )
  return records


def test_pack_bits_round_trip():
  bits = np.random.default_rng(0).random(37) < 0.5
  np.testing.assert_array_equal(unpack_bits(pack_bits(bits), 37), bits)


def test_is_correct_checks_the_k_highest_scores():
  scores, labels = np.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]), np.array([1, 0])
  assert train.is_correct(scores, labels, 1).tolist() == [False, False]
  assert train.is_correct(scores, labels, 2).tolist() == [True, False]


def test_interval_agrees_with_the_normal_approximation():
  # One seed: clips only. The normal approximation of a mean of -1, 0, 1.
  difference = np.repeat([1.0, 0.0, -1.0], [300, 500, 200])
  mean, low, high = effects.bootstrap_interval([difference])
  error = 1.96 * np.sqrt((0.5 - 0.1**2) / 1000)
  assert mean == pytest.approx(10)
  assert low == pytest.approx(10 - 100 * error, abs=0.5)
  assert high == pytest.approx(10 + 100 * error, abs=0.5)


def test_interval_is_wider_if_seeds_differ():
  clips = np.repeat([1.0, 0.0], [200, 800])
  alike = effects.bootstrap_interval([clips, clips, clips])
  apart = effects.bootstrap_interval([clips, 1 - clips, clips])
  assert apart[2] - apart[1] > 3 * (alike[2] - alike[1])


def test_interval_resamples_folds_and_clips():
  mean, low, high = effects.bootstrap_interval([np.ones(4), np.zeros(12)], same_clips=False)
  assert mean == 25 and (low, high) == (0, 100)  # each fold is drawn twice with probability 1/4
  # Equal folds: only the error of the clips, by the normal approximation.
  folds = [np.repeat([1.0, 0.0], [100, 300])] * 3
  mean, low, high = effects.bootstrap_interval(folds, same_clips=False)
  error = 196 * np.sqrt(0.25 * 0.75 / 1200)
  assert mean == 25 and high - low == pytest.approx(2 * error, rel=0.1)


@pytest.mark.parametrize(
  ("low", "high", "paper", "verdict"),
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
def test_judge_interval(low, high, paper, verdict):
  assert effects.judge_interval(low, high, paper) == verdict


def test_compare_pairs_clips_and_seeds(records):
  compared = gain, top5 = effects.compare(make_study(), records)
  assert gain["mean"] == pytest.approx(100 * (3 / 12 + 2 / 12) / 2) and gain["seeds"] == 2
  assert (top5["mean"], top5["low"], top5["high"]) == (0, 0, 0)
  text = effects.format_page(make_study(), records, compared)
  assert "| u2s | 2 | 0.0 |" in text and "| gain | 2 | +2.00 | +20.8 |" in text
  figure = records.path.with_suffix(".svg")
  effects.draw(compared, figure)
  drawn = figure.read_bytes()
  effects.draw(compared, figure)
  assert figure.read_bytes() == drawn  # the same bytes: no commit without a change


def test_draw_a_dose_response(records, tmp_path):
  comparisons = [
    {"name": f"gain {dose}", "series": "gain", "dose": dose, "of": "u2s/merged", "over": over}
    for dose, over in ((0.0, "control/universal"), (0.5, "u2s/one-pass"))
  ]
  compared = effects.compare(make_study(comparisons=comparisons), records)
  effects.draw(compared, tmp_path / "doses.svg")
  assert "dose" in (tmp_path / "doses.svg").read_text()


def test_fusions_are_compared_with_the_paper(records):
  assert effects.format_fusions(make_study(), records) == []  # the records have no bridge
  for seed in (0, 1):
    hits = {
      name: [1] * k + [0] * (12 - k)
      for k, name in enumerate(sorted(effects.PAPER_FUSIONS, key=effects.PAPER_FUSIONS.get), 1)
    }
    records.add(make_record("u2s", seed, {"one-pass": [0] * 12, "merged": [0] * 12} | hits))
  lines = effects.format_fusions(make_study(), records)
  assert "rank correlation with the paper's 1.00" in lines[0]
  assert "| specific | 55.95 | 8.33 |" in lines


def test_records_round_trip(records):
  again = Records(make_study())
  assert again.get("u2s", 1) == json.loads(json.dumps(records.get("u2s", 1)))
  assert again.get("u2s", 7) is None


def test_record_with_other_overrides_raises(records):
  with pytest.raises(UserError, match="overrides of control differ"):
    Records(make_study(variants={"u2s": {}, "control": {"control": True, "seed": 3}}))


def test_compare_raises_if_clips_differ(records):
  records.add(make_record("control", 1, {"merged": [0] * 12, "universal": [0] * 12}, digest="e"))
  with pytest.raises(UserError, match="seed 1: clips of u2s and control differ"):
    effects.compare(make_study(), records)


def test_start_of_a_variant():
  study = make_study(
    variants={"u2s": {}, "two": {"seed": 1}, "far": {"from": ""}, "g": {"from": "far"}}
  )
  assert [study.start(name) for name in study.variants] == ["", "u2s", "", "far"]
  assert study.fields("g") == {"batch_size": 4}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # ml_collections'
@pytest.mark.parametrize("path", sorted(study_lib.STUDIES.glob("*.toml")), ids=lambda p: p.stem)
def test_the_variants_of_a_study_have_valid_configs(path, tmp_path, monkeypatch):
  monkeypatch.chdir(study_lib.ROOT)
  study = read_study(path)
  sides = [c[key] for c in study.comparisons for key in ("of", "over")]
  assert {side.split("/")[0] for side in sides} <= study.variants.keys()
  for variant in study.variants:
    arguments = train.make_arguments(study, variant, study.seeds[0], tmp_path, [])
    config_arguments, _ = command_line.split_arguments(arguments)
    config, *_ = config_flags.read_config(config_arguments)
    stage1, *_ = settings.make_schedule(config)
    assert (stage1.epochs == 0) == (study.start(variant) != "")


def test_a_page_keeps_the_text_above_its_tables(records, tmp_path, capsys):
  page = tmp_path / "x.md"
  effects.write_page(make_study(), records)
  tables = page.read_text().removeprefix("# x\n\n")
  assert tables.startswith(effects.GENERATED) and capsys.readouterr().out == tables + "\n"
  page.write_text("# Letters\n\nWhy.\n\n" + effects.GENERATED + "\n\nold tables")
  effects.write_page(make_study(), records)
  assert page.read_text() == "# Letters\n\nWhy.\n\n" + tables


def test_comparisons_of_another_study_are_added_if_the_variants_exist(tmp_path):
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


def test_claims_with_a_study_without_runs(records):
  lines = effects.format_claims(
    make_study(), {"x": effects.compare(make_study(), records), "y": []}
  ).splitlines()
  gain, lost = (line.split(" | ") for line in lines[-2:])
  assert gain[:2] == ["| gain", "+2.00"] and gain[3] == "not run |"
  assert re.fullmatch(r"\+20.8 \(.* to .*\): (reproduced|undecided), 2 seeds", gain[2])
  assert lost[1:] == ["", "+0.0 (+0.0 to +0.0): undecided, 2 seeds", "not run |"]
