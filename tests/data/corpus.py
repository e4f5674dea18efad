"""Writes small files in many formats: codecs, containers, pixel formats, metadata, images, folders.

`python -m tests.data.corpus <folder>` writes them and prints a line for each with the hash of its
stored frames, to compare two versions of the code.
"""

import hashlib
import pathlib
import sys
from fractions import Fraction

import av
import numpy as np
from av.stream import Disposition
from PIL import Image

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import decode
from u2s_jax.video.decode import Storage

COUNT, HEIGHT, WIDTH = 8, 48, 64
# Display matrices in 16.16: a, b, c, d.
TURNS = {
  "mirrored": (-1, 0, 0, 1),
  "flipped": (1, 0, 0, -1),
  "180": (-1, 0, 0, -1),
  "90": (0, 1, -1, 0),
  "270": (0, -1, 1, 0),
  "transposed": (0, 1, 1, 0),
  "antitransposed": (0, -1, -1, 0),
}


def make_images(count=COUNT, height=HEIGHT, width=WIDTH):
  """Returns smooth images in motion."""
  y, x = np.mgrid[:height, :width] / width
  frames = []
  for k in range(count):
    shift = 0.07 * k
    frame = np.stack([np.sin(5 * (x + shift)), np.cos(4 * y - shift), np.sin(6 * (x + y))], axis=-1)
    frames.append((127 + 120 * frame).astype(np.uint8))
  return frames


def write_video(
  path,
  codec,
  pixel_format="yuv420p",
  *,
  size=(HEIGHT, WIDTH),
  rate=25,
  options=(),
  matrix=None,
  aspect=None,
  b_frames=0,
  times=None,
  seconds_of_sound=0,
  second=None,
):
  """Writes a video; `second` is the size and disposition of another stream before it."""
  with av.open(str(path), "w") as container:
    other = None
    if second:
      other = container.add_stream("ffv1", rate=rate)
      (other.height, other.width), other.disposition = second
      other.pix_fmt = "yuv420p"
    stream = container.add_stream(codec, rate=rate)
    stream.height, stream.width = size
    stream.pix_fmt, stream.options = pixel_format, dict(options)
    stream.codec_context.max_b_frames = b_frames
    if second:
      stream.disposition = Disposition.default
    if aspect:
      stream.codec_context.sample_aspect_ratio = aspect
    if matrix:
      a, b, c, d = (value << 16 for value in matrix)
      stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
    sound = container.add_stream("aac", rate=8000) if seconds_of_sound else None
    for k, image in enumerate(make_images(COUNT, *size)):
      frame = av.VideoFrame.from_ndarray(image, format="rgb24")
      if times:
        frame.pts = times[k]
      container.mux(stream.encode(frame))
      if other:
        dark = np.zeros((other.height, other.width, 3), np.uint8)
        container.mux(other.encode(av.VideoFrame.from_ndarray(dark, format="rgb24")))
    container.mux(stream.encode(None))
    for k in range(8 * seconds_of_sound):
      silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
      silence.sample_rate, silence.pts = 8000, 1024 * k
      container.mux(sound.encode(silence))


# File name -> arguments of `write_video`. SHAPES has the stored shapes that differ from the input.
VIDEOS = {
  "h264.mp4": {"codec": "libx264"},
  "h264_bframes.mp4": {"codec": "libx264", "b_frames": 2},
  "h264_422.mp4": {"codec": "libx264", "pixel_format": "yuv422p"},
  "h264_444.mkv": {"codec": "libx264", "pixel_format": "yuv444p"},
  "h264_10bit.mkv": {"codec": "libx264", "pixel_format": "yuv420p10le"},
  "h264_full_range.mp4": {"codec": "libx264", "pixel_format": "yuvj420p"},
  "h264.mov": {"codec": "libx264"},
  "h264.ts": {"codec": "libx264"},
  "h264.flv": {"codec": "libx264"},
  "h264.3gp": {"codec": "libx264"},
  "h264.avi": {"codec": "libx264"},
  "h264_bframes.avi": {"codec": "libx264", "b_frames": 2},
  "h264.h264": {"codec": "libx264"},
  "h264_variable_rate.mkv": {"codec": "libx264", "times": [0, 1, 2, 9, 10, 30, 31, 60]},
  "h264_sound.mp4": {"codec": "libx264", "seconds_of_sound": 1},
  "h264_long_sound.mkv": {"codec": "libx264", "seconds_of_sound": 4},
  "h264_long_sound.flv": {"codec": "libx264", "seconds_of_sound": 4},
  "h264_odd.mkv": {"codec": "libx264", "pixel_format": "yuv444p", "size": (47, 61)},
  "h265.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
  "h265.mkv": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
  "vp8.webm": {"codec": "libvpx"},
  "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
  "vp9.ivf": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
  "av1.mkv": {"codec": "libsvtav1", "options": {"preset": "12"}, "size": (96, 128)},
  "mpeg1.mpg": {"codec": "mpeg1video"},
  "mpeg2.ts": {"codec": "mpeg2video"},
  "mpeg2.mpg": {"codec": "mpeg2video", "b_frames": 2},
  "mpeg2.m2v": {"codec": "mpeg2video"},
  "mpeg4.avi": {"codec": "mpeg4"},
  "mpeg4_bframes.avi": {"codec": "mpeg4", "b_frames": 2},
  "mpeg4.mp4": {"codec": "mpeg4"},
  "mjpeg.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p"},
  "mjpeg.mov": {"codec": "mjpeg", "pixel_format": "yuvj422p"},
  "ffv1_grey.mkv": {"codec": "ffv1", "pixel_format": "gray"},
  "ffv1_rgb.mkv": {"codec": "ffv1", "pixel_format": "bgr0"},
  "ffv1_16bit.nut": {"codec": "ffv1", "pixel_format": "yuv444p16le"},
  "huffyuv.avi": {"codec": "huffyuv", "pixel_format": "yuv422p"},
  "raw.avi": {"codec": "rawvideo", "pixel_format": "bgr24"},
  "raw.y4m": {"codec": "wrapped_avframe", "pixel_format": "yuv420p"},
  "prores.mov": {"codec": "prores_ks", "pixel_format": "yuv422p10le"},
  "qtrle.mov": {"codec": "qtrle", "pixel_format": "rgb24"},
  "png.mov": {"codec": "png", "pixel_format": "rgb24"},
  "wmv2.asf": {"codec": "wmv2"},
  "flv1.flv": {"codec": "flv"},
  "animation.gif": {"codec": "gif", "pixel_format": "rgb8"},
  "animation.apng": {"codec": "apng", "pixel_format": "rgb24"},
  "mpeg2.mxf": {"codec": "mpeg2video"},
  "dv.avi": {"codec": "dvvideo", "size": (576, 720), "aspect": Fraction(16, 15)},
  "interlaced.mp4": {"codec": "libx264", "options": {"x264-params": "tff=1"}},
  "anamorphic.mp4": {"codec": "libx264", "aspect": Fraction(3, 2)},
  "anamorphic.mkv": {"codec": "libx264", "aspect": Fraction(1, 2)},
  "second_stream.mkv": {"codec": "libx264", "second": ((HEIGHT, WIDTH), Disposition(0))},
  **{f"turned_{name}.mp4": {"codec": "libx264", "matrix": turn} for name, turn in TURNS.items()},
}
SHAPES = {
  "h264_odd.mkv": (48, 62),
  "dv.avi": (48, 64),
  "anamorphic.mp4": (48, 96),
  "anamorphic.mkv": (72, 48),
  **{f"turned_{name}.mp4": (64, 48) for name in ("90", "270", "transposed", "antitransposed")},
}
IMAGES = {
  "rgb.jpg": lambda image: image,
  "grey.jpg": lambda image: image.convert("L"),
  "cmyk.jpg": lambda image: image.convert("CMYK"),
  "rgb.png": lambda image: image,
  "rgba.png": lambda image: image.convert("RGBA"),
  "grey_alpha.png": lambda image: image.convert("LA"),
  "palette.png": lambda image: image.convert("P"),
  "bits.png": lambda image: image.convert("1"),
  "grey16.png": lambda image: Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257),
  "palette.gif": lambda image: image.convert("P"),
  "rgb.bmp": lambda image: image,
  "rgb.tif": lambda image: image,
  "rgb.webp": lambda image: image,
  "rgb.ppm": lambda image: image,
  "grey.pgm": lambda image: image.convert("L"),
}
FOLDERS = {
  "frames": "img_{:05d}.jpg",
  "frames_unpadded": "frame{}.png",
  "frames_by_seconds": "{:.2f}.png",
}


def write_file(folder, name):
  """Writes a file or folder of the corpus and returns its path."""
  path = folder / name
  if name in VIDEOS:
    write_video(path, **VIDEOS[name])
  elif name in IMAGES:
    IMAGES[name](Image.fromarray(make_images()[0])).save(path)
  else:
    path.mkdir()
    for k, image in enumerate(make_images()):
      number = 9.8 + 0.1 * k if "seconds" in name else k + 5
      Image.fromarray(image).save(path / FOLDERS[name].format(number))
  return path


def main():
  """Prints the hash of the stored frames of each file, RGB and flow."""
  folder = pathlib.Path(sys.argv[1])
  for name in (*VIDEOS, *IMAGES, *FOLDERS):
    path = folder / name
    if not path.exists():
      write_file(folder, name)
    for storage in (Storage("rgb", HEIGHT, 95), Storage("flow", HEIGHT, 95, "dis")):
      if name in IMAGES and storage.modality == "flow":
        continue
      try:
        frames = decode.decode_file(str(path), storage, is_image=name in IMAGES)
        digest = hashlib.sha256(b"".join(frames)).hexdigest()[:16]
      except UserError as error:
        frames, digest = [], str(error)
      print(f"{name}\t{storage.modality}\t{len(frames)}\t{digest}")


if __name__ == "__main__":
  main()
