"""Specifications of clips, and the stored frames that are chosen."""

import numpy as np
import pytest

from tests.memory_run import make_config
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import clips
from u2s_jax.video.clips import ClipSpec


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"num_frames": 0}, "data.num_frames: must be >= 1, got 0"),
    ({"crop_size": 37}, r"data.crop_size: must be between 1 and data.short_edge \(36\), got 37"),
    ({"crop_size": 0}, "data.crop_size: must be between 1 and .* got 0"),
    ({"short_edge": 0}, "data.crop_size: must be between 1 and data.short_edge .* got 32"),
    ({"modality": "audio"}, "data.modality: 'audio' is not one of rgb, flow"),
    ({"flow_pairs": 0}, "data.flow_pairs: must be >= 1, got 0"),
    ({"multi_scale": (1.0, 1.5)}, "data.multi_scale: must be fractions .* got 1.5"),
    ({"multi_scale": (0.0,)}, "data.multi_scale: must be fractions .* got 0.0"),
    (
      {"color_jitter": (0.1, 0.1)},
      r"data.color_jitter: must be four numbers >= 0 .* got \(0.1, 0.1\)",
    ),
    ({"color_jitter": (0, 0, 0, -0.1)}, "data.color_jitter: must be four numbers >= 0"),
    ({"color_jitter": (0, 0, 0, 0.6)}, "data.color_jitter: must be four numbers >= 0"),
    (
      {"modality": "flow", "color_jitter": (0, 0, 0.1, 0)},
      "data.color_jitter: .* flow has no colours",
    ),
  ],
)
def test_rejects_invalid_fields(fields, message):
  config = make_config(**{f"data.{name}": value for name, value in fields.items()})
  with pytest.raises(UserError, match=f"^{message}"):
    clips.read_config(config.data)


def test_chooses_the_middle_frame_of_each_segment():
  chosen, pairs = clips.choose_frames(10, ClipSpec(4, 24, 32), 0.5)
  assert chosen.tolist() == [1, 3, 6, 8] and pairs.size == 0
  chosen, _ = clips.choose_frames(2, ClipSpec(4, 24, 32), 0.5)
  assert chosen.tolist() == [0, 0, 1, 1]


def test_overlapping_stacks_of_flow_share_files():
  chosen, pairs = clips.choose_frames(2 * 6, ClipSpec(2, 24, 32, "flow", flow_pairs=3), 0.5)
  # Starts 0 to 3: (k + 0.5) 4 / 2 = 1, 3; pairs 1 2 3 and 3 4 5.
  assert chosen.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
  np.testing.assert_array_equal(pairs, [[0, 1, 2], [2, 3, 4]])
  short, pairs = clips.choose_frames(2, ClipSpec(1, 24, 32, "flow", flow_pairs=3), 0.5)
  assert short.tolist() == [0, 1] and pairs.tolist() == [[0, 0, 0]]
