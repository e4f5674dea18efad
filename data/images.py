"""Images as JPEG: files of any kind, and folders of frames that were extracted from a video."""

import contextlib
import io
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fractions import Fraction

from PIL import Image, ImageOps

from data import workers
from u2s_jax.errors import UserError

MAX_PIXELS = 2**26  # of a frame; 8K has half of it
MAX_EDGE = 65_500  # pixels, JPEG's
FRAME_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # of extracted frames
FLOW_PREFIXES = ("flow_", "x_", "y_")  # that names of extracted flow begin with
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is another one


def opened(file: str | io.BytesIO) -> contextlib.AbstractContextManager[io.BufferedIOBase]:
  """Opens a file that is really one: a pipe or a device may never end.

  Raises:
    UserError: it is none.
    OSError: it cannot be opened.
  """
  if not isinstance(file, str):
    return contextlib.nullcontext(file)
  if not stat.S_ISREG(os.stat(file).st_mode):
    raise UserError("it is no regular file")
  return open(file, "rb")


def jpeg_of(file: str | io.BytesIO, short_edge: int, jpeg_quality: int) -> bytes:
  """Makes a JPEG of an image.

  Args:
    file: path or open file, of any format that Pillow reads, whatever its extension.
    short_edge: pixels; the image is resized to it, the long edge keeps the aspect.
    jpeg_quality: 1 to 100.

  Returns:
    An RGB JPEG, turned as EXIF asks for; the first frame of several; transparent parts on white. An
    RGB JPEG of that size that needs no turning is kept as it is.

  Raises:
    UserError: the file is no image, or damaged, too large, or of a kind whose range of values is
      not known; one line, the reason alone.
    OSError: it cannot be opened.
  """
  with opened(file) as content:
    return _jpeg_of_open(content, short_edge, jpeg_quality)


def _jpeg_of_open(content: io.BufferedIOBase, short_edge: int, jpeg_quality: int) -> bytes:
  """Makes a JPEG of an open image, see `jpeg_of`."""
  try:
    with Image.open(content) as picture:
      check_pixels(*picture.size)
      picture.load()
      image = ImageOps.exif_transpose(picture)
      if (
        picture.format == "JPEG"
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
    # Pillow names the file in some messages; the caller does in all.
    reason = "cannot identify it" if isinstance(error, Image.UnidentifiedImageError) else error
    raise UserError(f"it does not decode ({reason})") from error
  if picture.format == "PPM" and image.mode == "I":  # PGM of 16 bits, which Pillow widens
    image = image.point(lambda value: value * (1 / 256)).convert("L")
  if image.mode in ("I", "F"):
    raise UserError(f"its pixels have 32 bits (mode {image.mode}): save it with 8")
  if image.mode.startswith("I;16"):
    image = image.point(lambda value: value * (1 / 256)).convert("L")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  image = image.convert("RGB")
  scale = short_edge / min(image.size)
  size = tuple(max(short_edge, round(scale * edge)) for edge in image.size)
  check_edge(max(size))
  if size != image.size:
    image = image.resize(size, Image.Resampling.BILINEAR)  # averages over pixels when shrinking
  return jpeg(image, jpeg_quality)


def folder_frames(folder: str, short_edge: int, jpeg_quality: int) -> Iterator[bytes]:
  """Yields the frames in a folder, in the order of `sort_by_number`, as `jpeg_of` does images.

  Args:
    folder: of images such as `img_00001.jpg`; those of optical flow (`flow_x_00001.jpg`) are left
      out.
    short_edge: as of `jpeg_of`.
    jpeg_quality: as of `jpeg_of`.

  Raises:
    UserError: there is none, their names say no order, one has another size than the first, or does
      not decode.
    OSError: one cannot be read.
  """
  names = []
  for name in os.listdir(folder):
    stem, extension = os.path.splitext(name)
    if extension.lower() in FRAME_EXTENSIONS and not stem.startswith((".", *FLOW_PREFIXES)):
      names.append(name)
  if not names:
    raise UserError("the folder holds no frames")
  size = None
  for name in sort_by_number(names):
    try:
      frame = jpeg_of(os.path.join(folder, name), short_edge, jpeg_quality)
    except UserError as error:
      raise UserError(f"{name}: {error}") from error
    with Image.open(io.BytesIO(frame)) as picture:
      size = size or picture.size
      if picture.size != size:
        raise UserError(f"{name} is of another size than the frames in front of it")
    workers.progress()
    yield frame


def sort_by_number(names: Sequence[str]) -> list[str]:
  """Returns the names of frames in the order of their numbers, the first number first.

  `12.5` is a decimal number: frames may be named by seconds. Where such names would be no decimal
  numbers (`1.9`, `1.10`: those end in no zero unless all have as many digits), the point separates
  two numbers.

  Args:
    names: of files, with their extensions.

  Raises:
    UserError: one has no number, two have the same, or a running number at the end says another
      order than the numbers in front of it.
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
      raise UserError(f"{name} has no number, by which frames are put in order")
    if numbers in numbered:
      raise UserError(f"{name} and {numbered[numbers]} have one number: keep one of them")
    numbered[numbers] = name
  order = sorted(numbered)
  last = sorted(numbers[-1] for numbers in order)
  if last == [last[0] + k for k in range(len(last))] != [numbers[-1] for numbers in order]:
    if (last[0], len(last)) != (0, 60):  # as 7_0001, 3_0002: a number of something else in front
      return [numbered[numbers] for numbers in sorted(order, key=lambda numbers: numbers[-1])]
    # The frames' own numbers, or the seconds of times such as 12-30-59?
    one, other = next(
      (numbered[a], numbered[b]) for a, b in itertools.pairwise(order) if a[-1] > b[-1]
    )
    raise UserError(
      f"{one} and {other}: their first and last numbers order them differently; rename the frames"
      " by one number"
    )
  return [numbered[numbers] for numbers in order]


def jpeg(image: Image.Image, quality: int) -> bytes:
  """Returns an image as a JPEG file."""
  file = io.BytesIO()
  image.save(file, "JPEG", quality=quality)
  return file.getvalue()


def check_pixels(width: int, height: int) -> None:
  """Raises UserError for a frame of too many pixels."""
  if width * height > MAX_PIXELS:
    raise UserError(f"it has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} million")


def check_edge(pixels: int) -> None:
  """Raises UserError for an edge longer than JPEG's."""
  if pixels > MAX_EDGE:
    raise UserError(
      f"with its short edge resized its long edge would have {pixels} pixels, more than JPEG's"
      f" {MAX_EDGE}"
    )
