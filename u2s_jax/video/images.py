"""Encodes images, and folders of frames that were extracted from a video, as JPEG."""

import contextlib
import io
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fractions import Fraction

from PIL import Image, ImageOps

from u2s_jax.runtime import watchdog
from u2s_jax.runtime.errors import UserError
from u2s_jax.video.region import Region

MAX_PIXELS = 2**26  # of a frame; 8K has half as many
MAX_EDGE = 65_500  # pixels; the limit of JPEG
FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of extracted frames
FLOW_PREFIXES = ("flow_", "x_", "y_")  # of the names of extracted flow
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS replaces Pillow's own limit


def open_regular_file(
  file: str | io.BytesIO,
) -> contextlib.AbstractContextManager[io.BufferedIOBase]:
  """Opens a regular file; raises UserError for a pipe or a device, as it may never end."""
  if not isinstance(file, str):
    return contextlib.nullcontext(file)
  if not stat.S_ISREG(os.stat(file).st_mode):
    raise UserError("is not a regular file")
  return open(file, "rb")


def encode_image(
  file: str | io.BytesIO, short_edge: int, jpeg_quality: int, region: Region | None = None
) -> bytes:
  """Encodes an image as JPEG.

  Args:
    file: path or open file, in any format that Pillow reads, whatever its extension.
    short_edge: pixels of the resized short edge; the long edge keeps the aspect.
    region: cut out of the upright image before the resize; None: the whole image.

  Returns:
    An RGB JPEG of the first frame, turned upright by EXIF, on white where transparent. An upright
    RGB JPEG of that `short_edge` is returned unchanged, unless a region is cut out.

  Raises:
    UserError: if the file is not an image, is damaged or too large, or has 32-bit pixels
      (value range unknown), or the region is not inside it; its message is one line, without the
      file's name.
    OSError: if it cannot be opened.
  """
  with open_regular_file(file) as content:
    try:
      with Image.open(content) as picture:
        check_pixels(*picture.size)
        picture.load()
        image = ImageOps.exif_transpose(picture)
        if (
          region is None
          and picture.format == "JPEG"
          and picture.mode == "RGB"
          and image.size == picture.size
          and picture.getexif().get(0x0112, 1) == 1  # Orientation: upright
          and min(image.size) == short_edge
        ):
          content.seek(0)
          return content.read()
    except UserError:
      raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
      # Pillow's message would name the file, as all callers do.
      is_unknown = isinstance(error, Image.UnidentifiedImageError)
      reason = "unknown image format" if is_unknown else error
      raise UserError(f"cannot be decoded ({reason})") from error
  if region:
    image = image.crop(region.to_box(*image.size))
  # Pillow reads a PGM of 16 bits as 32.
  if image.mode.startswith("I;16") or (picture.format == "PPM" and image.mode == "I"):
    image = image.point(lambda value: value * (1 / 256)).convert("L")
  if image.mode in ("I", "F"):
    raise UserError(f"has pixels of 32 bits (mode {image.mode}); save it with 8 bits")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return encode_pixels(image.convert("RGB"), short_edge, jpeg_quality)


def encode_pixels(image: Image.Image, short_edge: int, jpeg_quality: int) -> bytes:
  """Resizes an RGB image to a short edge in pixels, and encodes it as JPEG."""
  scale = short_edge / min(image.size)
  size = tuple(max(short_edge, round(scale * edge)) for edge in image.size)
  check_edge(max(size))
  if size != image.size:
    image = image.resize(size, Image.Resampling.BILINEAR)  # averages over pixels when shrinking
  return encode_jpeg(image, jpeg_quality)


def encode_frame_folder(
  folder: str, short_edge: int, jpeg_quality: int, region: Region | None = None
) -> Iterator[bytes]:
  """Encodes the frames in a folder, in the order of `sort_by_number`, as `encode_image` does.

  Frames are images such as `img_00001.jpg`; optical flow (`flow_x_00001.jpg`) is ignored.

  Raises:
    UserError: if there are no frames, their names define no order, their sizes differ, or one
      cannot be decoded.
    OSError: if one cannot be read.
  """
  names = [
    name
    for name in os.listdir(folder)
    if name.lower().endswith(FRAME_EXTENSIONS) and not name.startswith((".", *FLOW_PREFIXES))
  ]
  if not names:
    raise UserError("contains no frames")
  size = None
  for name in sort_by_number(names):
    try:
      frame = encode_image(os.path.join(folder, name), short_edge, jpeg_quality, region)
    except UserError as error:
      raise UserError(f"{name}: {error}") from error
    with Image.open(io.BytesIO(frame)) as picture:
      size = size or picture.size
      if picture.size != size:
        raise UserError(
          f"{name}: has {picture.width} x {picture.height} pixels after resizing, but the frames"
          f" before it {size[0]} x {size[1]}; all frames of a clip must have the same size"
        )
    watchdog.report_progress()
    yield frame


def sort_by_number(names: Sequence[str]) -> list[str]:
  """Sorts the names of frames by the numbers in them, the first number first.

  `12.5` is a decimal number, because frames may be named by seconds. But if some names end in zero
  and not all have the same number of digits after the point (`1.9`, `1.10`), the point separates
  two numbers.

  Raises:
    UserError: if a name has no number, two have the same, or consecutive numbers at the end define
      another order than the numbers before them.
  """
  stems = [os.path.splitext(name)[0] for name in names]
  fractions = [digits for stem in stems for digits in re.findall(r"[0-9]\.([0-9]+)", stem)]
  same_length = len({len(digits) for digits in fractions}) < 2
  is_decimal = same_length or not any(re.search(r".0$", digits) for digits in fractions)
  pattern = r"[0-9]+(?:\.[0-9]+)?" if is_decimal else r"[0-9]+"
  numbered = {}
  for name, stem in zip(names, stems, strict=True):
    numbers = tuple(map(Fraction, re.findall(pattern, stem)))
    if not numbers:
      raise UserError(f"{name}: the name has no number to sort frames by; rename the frames")
    if numbers in numbered:
      raise UserError(f"{name} and {numbered[numbers]}: same number; keep one of the two")
    numbered[numbers] = name
  order = sorted(numbered)
  last = sorted(numbers[-1] for numbers in order)
  if last == [last[0] + k for k in range(len(last))] != [numbers[-1] for numbers in order]:
    # Such as 7_0001, 3_0002: consecutive numbers at the end are the frames'. But 0 to 59 may be the
    # seconds of times such as 12-30-59.
    if (last[0], len(last)) != (0, 60):
      return [numbered[numbers] for numbers in sorted(order, key=lambda numbers: numbers[-1])]
    one, other = next(
      (numbered[a], numbered[b]) for a, b in itertools.pairwise(order) if a[-1] > b[-1]
    )
    raise UserError(
      f"{one} and {other}: their first and last numbers order them differently; rename the frames"
      " with one number each"
    )
  return [numbered[numbers] for numbers in order]


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
  file = io.BytesIO()
  image.save(file, "JPEG", quality=quality)
  return file.getvalue()


def check_pixels(width: int, height: int) -> None:
  """Raises UserError if a frame has too many pixels."""
  if width * height > MAX_PIXELS:
    raise UserError(
      f"has {width} x {height} pixels; the maximum is {MAX_PIXELS // 10**6} million pixels"
    )


def check_edge(pixels: int) -> None:
  """Raises UserError if an edge is longer than JPEG allows."""
  if pixels > MAX_EDGE:
    raise UserError(
      f"after resizing its long edge has {pixels} pixels; JPEG's maximum is {MAX_EDGE}"
    )
