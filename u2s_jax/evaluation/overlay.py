"""Draws masks over their frames, as strips and looping clips (Fig. 5 and 6)."""

import base64
import io
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

# Matplotlib's colour map 'inferno', from dark to bright, without importing Matplotlib.
COLOURS = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_INFERNO)[0, :, ::-1]
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
  images = map(Image.fromarray, np.asarray(mask, np.float32))
  steps = [np.asarray(image.resize((width, height), Image.BILINEAR)) for image in images]
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
    height: of a frame, pixels.
  """
  frames, h, w = rows[0].shape[:3]
  indices = _choose_middles(frames, count)
  count = len(indices)
  width = round(w * height / h)
  sheet = Image.new("RGB", (count * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
  for y, clip in enumerate(rows):
    for x, k in enumerate(indices):
      frame = Image.fromarray(clip[k]).resize((width, height), Image.BICUBIC)
      sheet.paste(frame, (x * (width + GAP), y * (height + GAP)))
  return sheet


def shrink(
  clip: UInt8[np.ndarray, "t h w 3"], count: int, height: int
) -> UInt8[np.ndarray, "t2 h2 w2 3"]:
  """Returns at most `count` frames of at most `height` pixels, at the middles of segments."""
  frames = clip[_choose_middles(len(clip), count)]
  h, w = frames.shape[1:3]
  if h <= height:
    return frames
  size = round(w * height / h), height
  return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])


def _choose_middles(frames: int, count: int) -> list[int]:
  count = min(count, frames)
  return [(2 * k + 1) * frames // (2 * count) for k in range(count)]


def loop(clip: UInt8[np.ndarray, "t h w 3"], height: int = 168, frame_ms: int = 200) -> bytes:
  """Returns the clip as a looping animated WebP of `height` pixels, the last frame for a second."""
  width = round(clip.shape[2] * height / clip.shape[1])
  images = [Image.fromarray(frame).resize((width, height), Image.BICUBIC) for frame in clip]
  durations = [frame_ms] * (len(images) - 1) + [1000]
  file = io.BytesIO()
  images[0].save(
    file, "WEBP", save_all=True, append_images=images[1:], duration=durations, loop=0, quality=60
  )
  return file.getvalue()


def encode_uri(content: bytes, image_type: str) -> str:
  """Returns a `data:` URI with the content of an image file; `image_type` is such as 'webp'."""
  return f"data:image/{image_type};base64,{base64.b64encode(content).decode()}"


def encode_jpeg(image: Image.Image) -> str:
  """Returns a `data:` URI with an image, compressed as JPEG."""
  file = io.BytesIO()
  image.save(file, "JPEG", quality=80)
  return encode_uri(file.getvalue(), "jpeg")
