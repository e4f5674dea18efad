"""The mistakes of several folds in one ranking."""

import dataclasses
import shutil

import numpy as np
import pytest

from u2s_jax.evaluation import results
from u2s_jax.report import mistakes, page
from u2s_jax.report import run as run_lib
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import listing


@pytest.fixture(scope="module")
def run(finished):
  return run_lib.read(finished[0])


def select(run, rows):
  """Returns the run with some of its clips only."""
  final = run.final
  predictions = {name: values[rows] for name, values in final.predictions.items()}
  final = dataclasses.replace(
    final, ids=final.ids[rows], labels=final.labels[rows], predictions=predictions
  )
  return dataclasses.replace(run, final=final)


def test_folds_are_ranked_together(run):
  rows = np.arange(len(run.final.ids))
  whole = mistakes.list_mistakes([run])
  assert len(whole) >= 3
  assert mistakes.list_mistakes([select(run, rows % 2 == 0), select(run, rows % 2 == 1)]) == whole
  confidence = [mistake.label_score for mistake in whole]
  assert confidence == sorted(confidence)
  wrong = results.likely_mislabelled(run.final, 40)
  assert [mistake.id for mistake in whole] == run.final.ids[wrong].tolist()


def test_link_plays_the_segment(run):
  first = mistakes.list_mistakes([run])[0].id
  ids = np.array([f"{name}#1.5-12" if name == first else name for name in run.final.ids.tolist()])
  stored = np.array(
    [f"{n}#1.5-12" if n == first else n for n in run.analysis["mistake_id"].tolist()]
  )
  paths = np.full(len(stored), "/videos/a b.mp4")
  changed = dataclasses.replace(
    run,
    final=dataclasses.replace(run.final, ids=ids),
    analysis=run.analysis | {"mistake_id": stored, "mistake_path": paths},
  )
  assert mistakes.list_mistakes([changed])[0].link == "file:///videos/a%20b.mp4#t=1.5,12.0"


@pytest.mark.parametrize("name", ["v#1.2.3-4", "v#a-b", "v", "v#1-", "a#1-2/b"])
def test_other_names_are_no_segments(name):
  assert listing.parse_span(name) is None


def test_a_fold_must_have_other_clips(finished, tmp_path):
  shutil.copytree(finished[0], tmp_path / "copy")
  with pytest.raises(UserError, match="copy: has clips of another fold"):
    page.write_report(tmp_path / "copy", folds=[tmp_path / "copy"])
