"""Images as addresses that hold them, for a page that makes no requests."""

import base64
import io

from PIL import Image


def encode_uri(content: bytes, image_type: str) -> str:
  """Returns the address of an image file's content; `image_type` is such as 'webp'."""
  return f"data:image/{image_type};base64,{base64.b64encode(content).decode()}"


def encode_jpeg(image: Image.Image) -> str:
  """Returns the address of an image, compressed as JPEG."""
  file = io.BytesIO()
  image.save(file, "JPEG", quality=80)
  return encode_uri(file.getvalue(), "jpeg")
