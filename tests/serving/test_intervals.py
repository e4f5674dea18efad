"""Intervals of windows, with boundaries worked out by hand, and their output formats."""

import numpy as np
import pytest

from u2s_jax.runtime.errors import UserError
from u2s_jax.serving import formatting
from u2s_jax.serving.intervals import Gap, Interval, ScoredWindow, merge_windows
from u2s_jax.serving.predict import Prediction
from u2s_jax.video import folders

NAMES = ("a", "b")


def make_windows(*scores):
  """Returns windows of 2 s every half second, by the score of 'a'."""
  return [
    ScoredWindow(k / 2, k / 2 + 2, Prediction({"universal": np.array([s, 1 - s])}, NAMES))
    for k, s in enumerate(scores)
  ]


def merge(*scores, threshold=0.0, **options):
  options = {"stride": 0.5, "threshold": threshold, "shortest": 0.0} | options
  found = merge_windows(make_windows(*scores), **options)
  return [(i.start, i.end, i.label, round(i.score, 6)) for i in found]


def test_boundaries_are_half_way_between_the_middles_of_windows():
  # The middles are 1, 1.5, 2, 2.5: 'b' begins half-way between the second and the third.
  assert merge(0.75, 1.0, 0.25, 0.0) == [(0, 1.75, "a", 0.875), (1.75, 3.5, "b", 0.875)]


def test_a_single_window_is_an_interval():
  assert merge(0.75) == [(0, 2, "a", 0.75)]
  assert merge() == []


def test_yields_the_last_interval_before_an_error():
  def fail():
    yield from make_windows(0.75, 0.75, 0.25)
    raise UserError("cut short")

  found = merge_windows(fail(), stride=0.5, threshold=0.0, shortest=0.0)
  assert [(next(found).end, next(found).end) for _ in range(1)] == [(1.75, 3)]
  with pytest.raises(UserError, match="cut short"):
    next(found)


def test_no_interval_spans_a_gap():
  """Windows from 0 and 0.5 to 2.5, a gap to 3.25, windows from 3.25 (cut short), 4 and 4.5."""
  one, two = make_windows(0.75, 0.75)
  later = [
    ScoredWindow(start, end, one.prediction) for start, end in ((3.25, 5.5), (4.0, 6.0), (4.5, 6.5))
  ]
  gap = Gap(2.5, 3.25, "damaged")
  found = list(merge_windows([one, two, gap, *later], stride=0.5, threshold=0.0, shortest=0.0))
  assert found == [Interval(0.0, 2.5, "a", 0.75), gap, Interval(3.25, 6.5, "a", 0.75)]


def test_merges_gaps_without_a_window_between_them():
  (one,) = make_windows(0.75)
  gaps = [Gap(2.0, 2.2, "damaged"), Gap(2.9, 3.0, "no frames"), Gap(3.5, 4.0, "damaged")]
  assert list(merge_windows([one, *gaps], stride=0.5, threshold=0.0, shortest=0.0)) == [
    Interval(0.0, 2.0, "a", 0.75),
    Gap(2.0, 4.0, "damaged"),
  ]


def test_a_jump_of_the_clock_ends_no_interval():
  one, two, three = make_windows(0.75, 0.75, 0.75)
  jump = Gap(2.0, 2.0, "the clock jumps back by 9.0 s")
  found = list(merge_windows([one, two, jump, three], stride=0.5, threshold=0.0, shortest=0.0))
  assert found == [jump, Interval(0.0, 3.0, "a", 0.75)]


def test_windows_below_the_threshold_have_no_class():
  assert merge(0.9, 0.55, 0.9, threshold=0.6) == [(0, 1.25, "a", 0.9), (1.75, 3, "a", 0.9)]
  assert merge(0.5, threshold=0.6) == []


def test_a_change_that_does_not_last_is_none():
  # One window of 'b' covers half a second.
  assert merge(0.9, 0.9, 0.1, 0.9, shortest=0.6) == [(0, 3.5, "a", 0.7)]
  assert merge(0.9, 0.9, 0.1, 0.9, shortest=0.5)[1] == (1.75, 2.25, "b", 0.9)
  # Two of 'b' cover a second, from 1.75 on.
  assert merge(0.9, 0.9, 0.1, 0.1, 0.9, shortest=1.0) == [
    (0, 1.75, "a", 0.9),
    (1.75, 2.75, "b", 0.9),
    (2.75, 4, "a", 0.9),
  ]
  # At the end half a second more, and a video that is shorter than the shortest interval.
  assert merge(0.9, 0.9, 0.9, 0.1, shortest=2.0) == [(0, 3.5, "a", 0.7)]
  assert merge(0.9, 0.1, 0.1, shortest=9.0) == [(0, 3, "b", pytest.approx(1.9 / 3, abs=1e-6))]
  # A dip below the threshold is a part of the interval too.
  assert merge(0.9, 0.9, 0.55, 0.9, shortest=1.0, threshold=0.6) == [(0, 3.5, "a", 0.8125)]


def test_windows_that_change_all_the_time_are_one_interval():
  flicker = merge(*[0.55, 0.4] * 20, shortest=1.5)
  assert [interval[2] for interval in flicker] == ["b"] and flicker[0][:2] == (0, 21.5)


@pytest.mark.parametrize(("lead", "labels"), [(0.0, "abab"), (0.1, "a"), (0.5, "a")])
def test_hysteresis_ignores_a_small_lead(lead, labels):
  found = merge(0.6, 0.46, 0.6, 0.46, hysteresis=lead)  # 'b' leads by 0.08
  assert "".join(interval[2] for interval in found) == labels
  assert [i[2] for i in merge(0.6, 0.2, hysteresis=lead)] == ["a", "b"] if lead < 0.5 else ["a"]


@pytest.mark.parametrize("seed", range(20))
def test_no_interval_is_too_short(seed):
  """Random scores of 60 s; the intervals cover the video without gaps."""
  scores = np.random.default_rng(seed).uniform(size=117)
  found = merge(*scores, shortest=1.0, hysteresis=0.1)
  assert found[0][0] == 0 and found[-1][1] == 60
  for one, other in zip(found, found[1:], strict=False):
    assert one[1] == other[0] and one[2] != other[2]
  assert all(end - start >= 1 - 1e-9 for start, end, *_ in found)


@pytest.mark.parametrize(
  ("output_format", "line"),
  [
    ("csv", '/v.mp4,1.500,3723.250,"a, <b>",0.8750,"/v.mp4, block 0"'),
    ("json", '{"path": "/v.mp4", "start": 1.5, "end": 3723.25, "label": "a, <b>", "score": 0.875}'),
    ("vtt", "00:00:01.500 --> 01:02:03.250\na, &lt;b&gt; (88 %)\n"),
    ("text", "  00:00:01.500 --> 01:02:03.250   87.5 %  a, <b>"),
  ],
)
def test_formats_intervals(output_format, line):
  assert (
    formatting.format_interval("/v.mp4", Interval(1.5, 3723.25, "a, <b>", 0.875), output_format)
    == line
  )


@pytest.mark.parametrize(
  ("seconds", "start", "block"),
  [
    (None, 59.9, 0),
    (None, 60.0, 1),
    (7200.0, 3599.0, 59),
    (40.0, 3.9, 0),
    (40.0, 38.0, 9),
    (0.0, 61.0, 1),
  ],
)
def test_groups_by_blocks_of_a_video(seconds, start, block):
  """Blocks are a minute, or a tenth of a short video."""
  line = formatting.format_interval("/v.mp4", Interval(start, 9999.0, "a", 0.5), "csv", seconds)
  assert line.endswith(f'"/v.mp4, block {block}"')


@pytest.mark.parametrize("seconds", [8.0, 40.0, 600.0, 7200.0, None])
def test_prepares_predicted_intervals(tmp_path, seconds):
  """The CSV of a video's intervals of 2 s is a source; no block is in both splits."""
  found = [
    Interval(2.0 * k, 2.0 * k + 2, "ab-"[k // 2 % 3], 0.5) for k in range(int((seconds or 900) / 2))
  ]
  lines = [formatting.format_interval(str(tmp_path / "v.mp4"), i, "csv", seconds) for i in found]
  source = tmp_path / "found.csv"
  source.write_text("\n".join([formatting.INTERVAL_HEADERS["csv"], *lines]))
  listing = folders.list_videos(source)
  if seconds != 8.0:  # which has four intervals of two classes
    assert list(listing.names) == ["-", "a", "b"]
  train, validation = (
    [clip.span[0] for clip in listing.splits[s]] for s in ("train", "validation")
  )
  assert sorted(train + validation) == [i.start for i in found] and len(listing.notes) == 1
  block = min(60.0, (seconds or 600) / 10)
  assert not {start // block for start in train} & {start // block for start in validation}


@pytest.mark.parametrize(
  ("output_format", "line"),
  [
    ("csv", '/v.mp4,1.500,3723.250,,,"/v.mp4, block 0"'),
    ("json", '{"path": "/v.mp4", "start": 1.5, "end": 3723.25, "gap": "damaged"}'),
    ("vtt", "NOTE 00:00:01.500 to 01:02:03.250: damaged\n"),
    ("text", "  00:00:01.500 --> 01:02:03.250           (damaged)"),
  ],
)
def test_formats_gaps(output_format, line):
  assert formatting.format_interval("/v.mp4", Gap(1.5, 3723.25, "damaged"), output_format) == line
