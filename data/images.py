"""Images as JPEG: files of any kind, and folders of frames that were extracted from a video."""

import contextlib
import io
import os
import re
import stat
from collections.abc import Iterator

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
  """Yields the frames in a folder, in the order of their numbers, as `jpeg_of` does images.

  Args:
    folder: of images such as `img_00001.jpg`; those of optical flow (`flow_x_00001.jpg`) are left
      out.
    short_edge: as of `jpeg_of`.
    jpeg_quality: as of `jpeg_of`.

  Raises:
    UserError: there is none, one has no number or another size than the first, or does not decode.
    OSError: one cannot be read.
  """
  numbered = {}
  for name in os.listdir(folder):
    stem, extension = os.path.splitext(name)
    if extension.lower() not in FRAME_EXTENSIONS or stem.startswith((".", *FLOW_PREFIXES)):
      continue
    numbers = re.findall(r"[0-9]+", stem)
    if not numbers:
      raise UserError(f"{name} has no number, by which frames are put in order")
    if (number := int(numbers[-1])) in numbered:
      raise UserError(f"{name} and {numbered[number]} have one number: keep one of them")
    numbered[number] = name
  if not numbered:
    raise UserError("the folder holds no frames")
  size = None
  for _, name in sorted(numbered.items()):
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
