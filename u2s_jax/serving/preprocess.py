"""Makes the input of an exported model from RGB frames; requires only numpy and Pillow.

  ffmpeg -i clip.mp4 frames/%06d.png
  python preprocess.py frames/ clips.npy
  python predict_exported.py clips.npy

Frames are images, in the order of their names, upright and with square pixels. The pixels are those
of `u2s_jax.load(...).predict(frames)`. Frames of a video differ by decoder: see docs/videos.md of
u2s_jax.
"""

import io
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")


def choose_frames(frames: Sequence[T], count: int) -> list[T]:
  """Returns the middle frames of `count` equal segments; a short clip repeats frames.

  Raises:
    ValueError: if there are no frames.
  """
  if not frames:
    raise ValueError("no frames")
  return [frames[(2 * k + 1) * len(frames) // (2 * count)] for k in range(count)]


def make_clip(frames: Sequence[Image.Image], spec: dict[str, Any]) -> np.ndarray:
  """Returns a clip for the model, uint8 (t, h, w, 3): the centre view.

  Args:
    frames: all frames of the clip, or those of `choose_frames`.
    spec: `clip` in `model.json`.

  Raises:
    ValueError: if there are no frames, the model takes optical flow, the training clips had
      different regions, or the region exceeds the frames.
  """
  if spec["modality"] != "rgb":
    raise ValueError("the model takes optical flow, which only u2s_jax computes")
  size, clip = spec["crop_size"], []
  for frame in choose_frames(frames, spec["num_frames"]):
    stored = _store(frame.convert("RGB"), spec["stored"])
    resized = _resize_short_edge(stored, spec["short_edge"])
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    clip.append(np.asarray(resized.crop((left, top, left + size, top + size))))
  return np.stack(clip)


def _store(frame: Image.Image, stored: dict[str, Any]) -> Image.Image:
  """Returns a frame as the training data store it: cut out, resized, and compressed as JPEG."""
  crop = stored.get("crop")
  if crop == "by clip":
    raise ValueError('the training clips had different regions: set "crop" in model.json')
  if crop:
    x, y, width, height = map(float, crop.split(","))
    # Pixels; or shares of the frame if all are at most 1.
    scale = frame.size if max(x, y, width, height) <= 1 else (1, 1)
    left, right = round(x * scale[0]), round((x + width) * scale[0])
    top, bottom = round(y * scale[1]), round((y + height) * scale[1])
    if left == right or top == bottom or right > frame.width or bottom > frame.height:
      raise ValueError(f"the region {crop} is not inside the frame of {frame.size} pixels")
    frame = frame.crop((left, top, right, bottom))
  file = io.BytesIO()
  frame = _resize_short_edge(frame, stored["short_edge"])
  frame.save(file, "JPEG", quality=stored["jpeg_quality"])
  return Image.open(file)


def _resize_short_edge(image: Image.Image, edge: int) -> Image.Image:
  scale = edge / min(image.size)
  width, height = (max(edge, round(scale * length)) for length in image.size)
  return image.resize((width, height), Image.Resampling.BILINEAR)


def main() -> None:
  if len(sys.argv) != 3 or not pathlib.Path(sys.argv[1]).is_dir():
    sys.exit(__doc__)
  folder, out = map(pathlib.Path, sys.argv[1:])
  spec = json.loads(pathlib.Path(__file__).with_name("model.json").read_text())["clip"]
  try:
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    # Chosen first: a process may open a limited number of files.
    frames = [Image.open(path) for path in choose_frames(paths, spec["num_frames"])]
    clip = make_clip(frames, spec)
  except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
  np.save(out, clip[None])


if __name__ == "__main__":
  main()
