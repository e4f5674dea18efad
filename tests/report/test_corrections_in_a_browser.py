"""Labels are corrected in the page of a report, in Chromium, and prepared again.

Requires the package `playwright` and the program `chromium`.
"""

import csv
import shutil

import pytest

from data.input import store
from data.preparation import prepare
from tests.memory_run import CLASS_NAMES
from u2s_jax.evaluation import results, scores
from u2s_jax.report import page

SIZES = [(390, "light"), (1440, "dark")]


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
  folder = tmp_path_factory.mktemp("report") / "run"
  shutil.copytree(finished[0], folder)
  return page.write_report(folder), scores.read(folder / "scores/validation.npz")


def test_corrected_label_is_prepared(report, browser, tmp_path, write_video):
  path, final = report
  wrong = results.likely_mislabelled(final, 40)
  assert len(wrong) >= 3
  ids = [str(final.ids[row]) for row in wrong]
  tab = browser.new_page()
  tab.goto(path.as_uri())
  selects = tab.locator(".mistakes select")
  assert [selects.nth(k).get_attribute("data-id") for k in range(len(ids))] == ids
  predicted = CLASS_NAMES[final.merged[wrong[0]].argmax()]
  selects.nth(0).select_option(label=predicted)
  selects.nth(1).select_option("drop")
  selects.nth(2).select_option("keep")
  assert tab.locator("#corrections-count").inner_text() == "3 decisions"
  with tab.expect_download() as download:
    tab.click("#save-corrections")
  assert download.value.suggested_filename == "corrections.csv"
  download.value.save_as(tmp_path / "corrections.csv")
  with open(tmp_path / "corrections.csv", newline="") as file:
    rows = [*csv.reader(file)]
  expected = [["relabel", predicted], ["drop", ""], ["keep", ""]]
  assert rows == [
    ["id", "action", "label"],
    *([i, *e] for i, e in zip(ids, expected, strict=False)),
  ]

  # The source that the run's clips stand for: a file for each id.
  lines = ["path,label,split"]
  for clip_id, label in zip(final.ids.tolist(), final.labels.tolist(), strict=True):
    write_video(tmp_path / f"{clip_id}.webm", 2).rename(tmp_path / clip_id)
    lines.append(f"{clip_id},{CLASS_NAMES[label]},val")
  for name in CLASS_NAMES:
    write_video(tmp_path / f"{name}.webm", 2)
    lines.append(f"{name}.webm,{name},train")
  (tmp_path / "list.csv").write_text("\n".join(lines))
  prepare.main(
    ["--dataset=videos", f"--source={tmp_path}/list.csv", f"--out={tmp_path}/out", "--workers=1"]
    + ["--short_edge=32", f"--corrections={tmp_path}/corrections.csv"]
  )
  records = store.open_dataset(tmp_path / "out").split("validation").records
  labels = {}
  for i in range(len(records)):
    clip_id, label, _ = store.parse_record(records[i])
    labels[clip_id.decode()] = CLASS_NAMES[label]
  before = dict(
    zip(final.ids.tolist(), (CLASS_NAMES[k] for k in final.labels.tolist()), strict=True)
  )
  assert labels.pop(ids[0]) == predicted != before.pop(ids[0])
  before.pop(ids[1])  # dropped
  assert labels == before


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_merged_row_is_in_sight(report, browser, width, scheme):
  tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
  tab.goto(report[0].as_uri())
  marked = tab.locator("tr.marked")
  assert marked.count() == 1 and "universal + bridge + specific" in marked.inner_text()
  table = tab.locator("#summary .scroll").first
  table.scroll_into_view_if_needed()
  outer, inner = table.bounding_box(), marked.bounding_box()
  # Without scrolling inside the table.
  assert outer["y"] <= inner["y"] and inner["y"] + inner["height"] <= outer["y"] + outer["height"]
  assert tab.evaluate("document.documentElement.scrollWidth") <= width
