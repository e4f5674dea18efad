"""Time stamps become seconds, worked out by hand."""

import math

import pytest

from data.clock import MAX_STEP, Clock


def place_all(stamps, *, start=0.0, duration=0.5, max_step=MAX_STEP):
  """Places frames whose order of decoding is that of presentation."""
  clock, placed = Clock(start, max_step), []
  for stamp in stamps:
    stamp = stamp if stamp is None else float(stamp)
    clock.read(stamp)
    placed.append(clock.place(stamp, duration))
  return [seconds for seconds, _ in placed], {k: jump for k, (_, jump) in enumerate(placed) if jump}


def test_seconds_are_those_since_the_start():
  assert place_all([5.0, 5.5, 6.0], start=5.0) == ([0, 0.5, 1], {})
  assert place_all([7.0, 7.5], start=None) == ([0, 0.5], {})


@pytest.mark.parametrize(
  ("stamps", "seconds", "jumps"),
  [
    ([0, 0.5, 1, 0, 0.5], [0, 0.5, 1, 1.5, 2], {3: -1.5}),  # two joined recordings
    ([0, 0.5, 1, 0.5, 1], [0, 0.5, 1, 1.5, 2], {3: -1}),
    ([9, 9.5, 2, 2.5], [9, 9.5, 10, 10.5], {2: -8}),  # to a time in front of the start
    ([0, 0.5, 5000, 5000.5], [0, 0.5, 1, 1.5], {2: 4999}),  # a clock that is set
    ([0, 0.5, 0, 0.5, 0, 0.5], [0, 0.5, 1, 1.5, 2, 2.5], {2: -1, 4: -1}),
    ([0, 0.5, 20.5, 21], [0, 0.5, 20.5, 21], {}),  # nothing was sent for a while
    ([0, 0.5, 0.4, 1.5], [0, 0.5, 0.5, 1.5], {}),  # one that is out of order
  ],
)
def test_an_offset_is_carried_over_a_jump(stamps, seconds, jumps):
  found, jumped = place_all(stamps)
  assert found == pytest.approx(seconds) and jumped == pytest.approx(jumps)


def test_frames_without_a_time_stamp_follow_the_last_one():
  assert place_all([0, None, None, 1.5]) == ([0, 0.5, 1, 1.5], {})
  assert place_all([None, None, 1.0]) == ([0, 0.5, 1], {})
  seconds, _ = place_all([None, None], start=None)
  assert all(math.isnan(time) for time in seconds)


def test_a_decoder_that_gives_frames_in_a_wrong_order_is_no_jump():
  clock = Clock(0.0, MAX_STEP)
  for stamp in (0, 1, 2, 3, 4, 5):
    assert not clock.read(float(stamp))
  placed = [clock.place(float(stamp), 1.0) for stamp in (0, 1, 4, 2, 3, 5)]
  assert placed == [(0, 0), (1, 0), (4, 0), (4, 0), (4, 0), (5, 0)]


def test_presentation_order_may_step_back_in_the_order_of_decoding():
  """B frames: I0 P3 B1 B2, by time stamps of decoding, which rise."""
  clock = Clock(0.0, MAX_STEP)
  assert not any(clock.read(stamp) for stamp in (-0.4, 0.0, 0.4, 0.8))
  assert [clock.place(stamp, 0.4)[0] for stamp in (0.0, 0.4, 0.8, 1.2)] == [0, 0.4, 0.8, 1.2]
