"""Masks drawn over frames, by hand."""

import io

import matplotlib
import numpy as np
from PIL import Image

from u2s_jax.evaluation import overlay


def one_hot(shape, cell):
  mask = np.zeros(shape, np.float32)
  mask[cell] = 1
  return mask


def test_upsampled_cell_covers_its_frames_and_pixels():
  up = overlay.upsample(one_hot((4, 7, 7), (2, 3, 5)), (8, 56, 56))
  assert up.shape == (8, 56, 56)
  # Step 2 of 4 stands for frames 4 and 5 of 8, cell (3, 5) for rows 24-31 and columns 40-47.
  assert np.all(up[[0, 1, 2, 3, 6, 7]] == 0)
  inside = up[4:6, 24:32, 40:48]
  assert inside.min() > 0.25 and up.max() == inside.max()
  rows, columns = (np.flatnonzero(up[4].max(axis) > 0) for axis in (1, 0))
  # Interpolated to the centres of the neighbours, symmetrically.
  assert rows.tolist() == list(range(20, 36)) and columns.tolist() == list(range(36, 52))
  np.testing.assert_array_equal(up[4], up[5])


def test_upsample_one_cell_with_fewer_steps_than_frames():
  up = overlay.upsample(np.array([[[1.0]], [[2.0]]]), (5, 3, 4))
  np.testing.assert_array_equal(up, np.repeat([1, 1, 1, 2, 2], 12).reshape(5, 3, 4))


def test_blend_is_bright_where_the_mask_is_high():
  video = np.full((2, 16, 16, 3), 100, np.uint8)
  blended = overlay.blend(video, one_hot((2, 2, 2), (1, 0, 1)))
  # The colour map's ends are near black and pale yellow; half of each over 100.
  assert np.all(blended[0] <= 60)
  assert np.all(blended[1, 0, -1] >= [170, 170, 120]) and np.all(blended[1, -1, 0] <= 60)


def test_signed_mask_has_a_colour_for_each_sign():
  video = np.full((1, 16, 16, 3), 100, np.uint8)
  mask = np.array([[[4.0, 0.0], [0.0, -2.0]]], np.float32)
  blended = overlay.blend(video, mask)[0].astype(int)
  # Orange and blue by 3/4 and 3/8 over 100; the frame itself where the mask is 0.
  np.testing.assert_array_equal(blended[0, 0], np.round([216.25, 130, 25]))
  np.testing.assert_array_equal(blended[-1, -1], np.round([73.75, 103.75, 158.125]))
  np.testing.assert_array_equal(blended[0, -1], [100] * 3)
  assert overlay.scale(mask) == "-2 to 4"


def test_constant_mask_changes_nothing():
  video = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
  np.testing.assert_array_equal(overlay.blend(video, np.full((2, 2, 2), 0.7, np.float32)), video)


def test_flow_is_drawn_as_speed():
  flow = np.full((1, 1, 3, 10), 128, np.uint8)
  flow[0, 0, 1, :2] = 128 + 30, 128 - 40  # a speed of 50
  flow[0, 0, 2, 2:] = 0  # later pairs are not shown
  np.testing.assert_array_equal(overlay.to_rgb(flow)[0, 0], [[255] * 3, [155] * 3, [255] * 3])


def test_strip_shows_the_middles_of_equal_segments():
  clip = np.stack([np.full((10, 20, 3), 10 * k, np.uint8) for k in range(8)])
  sheet = np.asarray(overlay.draw_strip([clip, 255 - clip], count=4, height=10))
  assert sheet.shape == (2 * 10 + overlay.GAP, 4 * 20 + 3 * overlay.GAP, 3)
  shown = [sheet[5, 10 + k * (20 + overlay.GAP), 0] for k in range(4)]
  assert shown == [10, 30, 50, 70]
  assert sheet[-1, 0, 0] == 255 - 10


def test_loop_has_all_frames_and_repeats():
  clip = np.stack([np.full((12, 12, 3), 60 * k, np.uint8) for k in range(4)])
  with Image.open(io.BytesIO(overlay.loop(clip, height=24))) as image:
    assert image.n_frames == 4 and image.size == (24, 24) and image.info["loop"] == 0
    image.seek(3)
    assert abs(np.asarray(image.convert("RGB")).mean() - 180) < 6


def test_colours_are_those_of_matplotlib():
  colours = matplotlib.colormaps["inferno"](np.arange(256))[:, :3]
  np.testing.assert_array_equal(overlay.COLOURS, np.round(255 * colours))
