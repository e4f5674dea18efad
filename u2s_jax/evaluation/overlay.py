"""Draws masks over their frames, as strips and looping clips (Fig. 5 and 6)."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# Matplotlib's colour map 'inferno' (CC0): 256 colours of RGB bytes, from dark to bright. A copy, so
# that training does not import Matplotlib.
COLOURS = np.frombuffer(
  base64.b64decode(
    "AAAEAQAFAQEGAQEIAgEKAgIMAgIOAwIQBAMSBAMUBQQXBgQZBwUbCAUdCQYfCgciCwckDAgmDQgpDgkrEAktEQowEgoy"
    "FAs0FQs3Fgs5GAw8GQw+GwxBHAxDHgxFHwxIIQxKIwxMJAxPJgxRKAtTKQtVKwtXLQtZLwpbMQpcMgpeNApfNglhOAli"
    "OQljOwlkPQllPglmQApnQgpoRApoRQppRwtqSQtqSgxrTAxrTQ1sTw1sUQ5sUg5tVA9tVQ9tVxBuWRBuWhFuXBJuXRJu"
    "XxNuYRNuYhRuZBVuZRVuZxZuaRZuahdubBhubRhubxlucRluchpudBpudRtudxxteBxteh1tfB1tfR5tfx5sgB9sgiBs"
    "hCBrhSFrhyFriCJqiiJqjCNpjSNpjyRpkCVokiVokyZnlSZnlydmmCdmmihlmylknSlknypjoCpjoitioyxhpSxgpi1g"
    "qC5fqS5eqy9erTBdrjBcsDFbsTJaszJatDNZtjRYtzVXuTVWujZVvDdUvThTvzlSwDpRwTpQwztPxDxOxj1Nxz5MyD9L"
    "ykBKy0FJzEJIzkNHz0RG0EVF0kZE00dD1EhC1UpB10s/2Ew+2U092k4821A73VE63lI431M34FU24VY14lc041kz5Fox"
    "5Vww5l0v514u6GAt6WEr6mMq62Qp62Yo7Gcm7Wkl7mok72wj724h8G8g8XEf8XMd8nQc83Yb83gZ9HkY9XsX9X0V9n4U"
    "9oAT94IS94QQ+IUP+IcO+IkM+YsL+YwK+Y4J+pAI+pIH+pQH+5YG+5cG+5kG+5sG+50H/J8H/KEI/KMJ/KUK/KYM/KgN"
    "/KoP/KwR/K4S/LAU/LIW/LQY+7Ya+7gd+7of+7wh+74j+sAm+sIo+sQq+sYt+ccv+cky+cs1+M03+M8699E999NA9tVD"
    "9tdG9dlJ9dtM9N1P9N9T9OFW8+Na8+Vd8uZh8uhl8upp8ext8e1x8e918fF58vJ98vSC8/WG8/aK9PiO9fmS9vqW+Pua"
    "+fyd+v2h/P+k"
  ),
  np.uint8,
).reshape(256, 3)
OPACITY = 0.5  # of a mask without negative values
# For a mask with negative values: a colour for each sign, and the opacity where it is largest.
POSITIVE, NEGATIVE = np.array([255, 140, 0]), np.array([30, 110, 255])
SIGNED_OPACITY = 0.75
GAP = 2  # pixels between the frames of a strip


def upsample(
  mask: Float[np.ndarray, "t1 h1 w1"], size: tuple[int, int, int]
) -> Float[np.ndarray, "t h w"]:
  """Returns a mask of a feature map resized to `size`: frames, height and width of the clip.

  In space values are interpolated bilinearly between the centres of cells, in time they are
  repeated.
  """
  frames, height, width = size
  steps = [
    np.asarray(
      Image.fromarray(np.asarray(step, np.float32)).resize((width, height), Image.BILINEAR)
    )
    for step in mask
  ]
  return np.stack([steps[k * len(mask) // frames] for k in range(frames)])


def to_rgb(video: UInt8[np.ndarray, "t h w c"]) -> UInt8[np.ndarray, "t h w 3"]:
  """Returns a clip as RGB; optical flow as its speed, from white (0) to black.

  Flow is encoded as in `u2s_jax.video.flow`: 128 is 0, and the first two channels are x and y of
  the first pair of frames.
  """
  if video.shape[-1] == 3:
    return video
  speed = np.linalg.norm(video[..., :2].astype(np.float32) - 128, axis=-1)
  return np.repeat((255 - np.minimum(2 * speed, 255)).astype(np.uint8)[..., None], 3, axis=-1)


def blend(
  video: UInt8[np.ndarray, "t h w c"], mask: Float[np.ndarray, "t1 h1 w1"]
) -> UInt8[np.ndarray, "t h w 3"]:
  """Returns the clip overlaid with its mask, on the mask's own scale, see `scale`.

  A mask without negative values is dark where it is lowest and bright where it is highest. A mask
  with negative values is orange where it is positive and blue where it is negative, with an opacity
  proportional to its magnitude. A constant mask changes nothing, as it weighs all places equally.

  Args:
    video: the network's input before normalisation.
    mask: mask of a feature map.
  """
  frames = to_rgb(video)
  low, high = float(mask.min()), float(mask.max())
  if low == high:
    return frames
  mask = upsample(mask, frames.shape[:3])
  if low < 0:
    shares = mask / max(-low, high)
    opacity = SIGNED_OPACITY * np.abs(shares)[..., None]
    colours = np.where(shares[..., None] > 0, POSITIVE, NEGATIVE)
  else:
    opacity = OPACITY
    shares = (mask - low) / (high - low)
    colours = COLOURS[np.minimum((256 * shares).astype(int), 255)].astype(np.float32)
  return np.round((1 - opacity) * frames + opacity * colours).astype(np.uint8)


def scale(mask: Float[np.ndarray, "t h w"]) -> str:
  """Formats the lowest and the highest value of a mask, the ends of the scale of `blend`."""
  return f"{mask.min():.3g} to {mask.max():.3g}"


def draw_strip(
  rows: Sequence[UInt8[np.ndarray, "t h w 3"]], count: int = 8, height: int = 112
) -> Image.Image:
  """Returns an image with one row per clip, of frames at the middles of equal segments.

  Args:
    rows: clips of equal size and length.
    count: the maximum number of frames in a row.
    height: height of a frame in pixels.
  """
  frames, h, w = rows[0].shape[:3]
  count = min(count, frames)
  indices = [(2 * k + 1) * frames // (2 * count) for k in range(count)]
  width = round(w * height / h)
  sheet = Image.new("RGB", (count * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
  for y, clip in enumerate(rows):
    for x, k in enumerate(indices):
      frame = Image.fromarray(clip[k]).resize((width, height), Image.BICUBIC)
      sheet.paste(frame, (x * (width + GAP), y * (height + GAP)))
  return sheet


def loop(clip: UInt8[np.ndarray, "t h w 3"], height: int = 168, frame_ms: int = 200) -> bytes:
  """Returns the clip as a looping animated WebP; the last frame is shown for a second.

  Args:
    clip: the frames.
    height: height of the image in pixels.
    frame_ms: duration of a frame in milliseconds.
  """
  width = round(clip.shape[2] * height / clip.shape[1])
  images = [Image.fromarray(frame).resize((width, height), Image.BICUBIC) for frame in clip]
  durations = [frame_ms] * (len(images) - 1) + [1000]
  file = io.BytesIO()
  images[0].save(
    file, "WEBP", save_all=True, append_images=images[1:], duration=durations, loop=0, quality=60
  )
  return file.getvalue()
