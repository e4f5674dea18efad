"""What a clip can be, and which of its stored frames it takes."""

import numpy as np
import pytest

from data import clips
from data.clips import ClipSpec
from tests.memory_run import config_of
from u2s_jax.errors import UserError


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_frames": 0}, "data.num_frames: 0 is not at least 1"),
    ({"crop_size": 37}, r"data.crop_size: 37 is not between 1 and data.short_edge \(36\)"),
    ({"crop_size": 0}, "data.crop_size: 0 is not between 1"),
    ({"short_edge": 0}, "data.crop_size: 32 is not between 1 and data.short_edge"),
    ({"modality": "audio"}, "data.modality: 'audio' is not one of rgb, flow"),
    ({"flow_pairs": 0}, "data.flow_pairs: 0 is not at least 1"),
    ({"multi_scale": (1.0, 1.5)}, "data.multi_scale: 1.5 is no share of the short edge in"),
    ({"multi_scale": (0.0,)}, "data.multi_scale: 0.0 is no share of the short edge in"),
    ({"color_jitter": (0.1, 0.1)}, r"data.color_jitter: \(0.1, 0.1\) is not four numbers >= 0"),
    ({"color_jitter": (0, 0, 0, -0.1)}, "data.color_jitter: .* is not four numbers >= 0"),
    ({"color_jitter": (0, 0, 0, 0.6)}, "data.color_jitter: .* is not four numbers >= 0"),
    (
      {"modality": "flow", "color_jitter": (0, 0, 0.1, 0)},
      "data.color_jitter: .* flow has no colours",
    ),
  ],
)
def test_what_cannot_be_is_named(fields, message):
  config = config_of(**{f"data.{name}": value for name, value in fields.items()})
  with pytest.raises(UserError, match=f"^{message}"):
    clips.of_config(config.data)


def test_frames_of_rgb_come_from_the_middles_of_segments():
  chosen, pairs = clips.choose_frames(10, ClipSpec(4, 24, 32), 0.5)
  assert chosen.tolist() == [1, 3, 6, 8] and pairs.size == 0
  chosen, _ = clips.choose_frames(2, ClipSpec(4, 24, 32), 0.5)
  assert chosen.tolist() == [0, 0, 1, 1]


def test_stacks_of_flow_share_the_files_that_they_have_in_common():
  chosen, pairs = clips.choose_frames(2 * 6, ClipSpec(2, 24, 32, "flow", flow_pairs=3), 0.5)
  # Starts 0 to 3: (k + 0.5) 4 / 2 = 1, 3; pairs 1 2 3 and 3 4 5.
  assert chosen.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
  np.testing.assert_array_equal(pairs, [[0, 1, 2], [2, 3, 4]])
  short, pairs = clips.choose_frames(2, ClipSpec(1, 24, 32, "flow", flow_pairs=3), 0.5)
  assert short.tolist() == [0, 1] and pairs.tolist() == [[0, 0, 0]]
