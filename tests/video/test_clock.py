"""Seconds of time stamps, worked out by hand."""

import math

import pytest

from u2s_jax.video.clock import MAX_STEP, Clock


def place_all(stamps, *, start=0.0, duration=0.5, max_step=MAX_STEP):
  """Places frames whose decoding order is their presentation order."""
  clock, placed = Clock(start, max_step), []
  for stamp in stamps:
    stamp = stamp if stamp is None else float(stamp)
    clock.read(stamp)
    placed.append(clock.place(stamp, duration))
  return [seconds for seconds, _ in placed], {k: jump for k, (_, jump) in enumerate(placed) if jump}


def test_seconds_count_from_the_start():
  assert place_all([5.0, 5.5, 6.0], start=5.0) == ([0, 0.5, 1], {})
  assert place_all([7.0, 7.5], start=None) == ([0, 0.5], {})


@pytest.mark.parametrize(
  ("stamps", "seconds", "jumps"),
  [
    ([0, 0.5, 1, 0, 0.5], [0, 0.5, 1, 1.5, 2], {3: -1.5}),  # two joined recordings
    ([0, 0.5, 1, 0.5, 1], [0, 0.5, 1, 1.5, 2], {3: -1}),
    ([9, 9.5, 2, 2.5], [9, 9.5, 10, 10.5], {2: -8}),  # to a time before the start
    ([0, 0.5, 5000, 5000.5], [0, 0.5, 1, 1.5], {2: 4999}),  # a clock that is set
    ([0, 0.5, 0, 0.5, 0, 0.5], [0, 0.5, 1, 1.5, 2, 2.5], {2: -1, 4: -1}),
    ([0, 0.5, 20.5, 21], [0, 0.5, 20.5, 21], {}),  # a time without frames
    ([0, 0.5, 0.4, 1.5], [0, 0.5, 0.5, 1.5], {}),  # a frame out of order
  ],
)
def test_adds_an_offset_after_a_jump(stamps, seconds, jumps):
  found, jumped = place_all(stamps)
  assert found == pytest.approx(seconds) and jumped == pytest.approx(jumps)


def test_frames_without_a_time_stamp_follow_the_last_one():
  assert place_all([0, None, None, 1.5]) == ([0, 0.5, 1, 1.5], {})
  assert place_all([None, None, 1.0]) == ([0, 0.5, 1], {})
  seconds, _ = place_all([None, None], start=None)
  assert all(math.isnan(time) for time in seconds)


def test_frames_in_a_wrong_order_are_no_jump():
  clock = Clock(0.0, MAX_STEP)
  for stamp in (0, 1, 2, 3, 4, 5):
    assert not clock.read(float(stamp))
  placed = [clock.place(float(stamp), 1.0) for stamp in (0, 1, 4, 2, 3, 5)]
  assert placed == [(0, 0), (1, 0), (4, 0), (4, 0), (4, 0), (5, 0)]


def test_b_frames_are_no_jump():
  """I0 P3 B1 B2, by their decoding time stamps, which increase."""
  clock = Clock(0.0, MAX_STEP)
  assert not any(clock.read(stamp) for stamp in (-0.4, 0.0, 0.4, 0.8))
  assert [clock.place(stamp, 0.4)[0] for stamp in (0.0, 0.4, 0.8, 1.2)] == [0, 0.4, 0.8, 1.2]
