"""The task of a decoding process: decodes files or segments of videos, with fingerprints."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

from data.preparation import fingerprints, workers
from data.preparation.workers import Decoded, Skipped
from u2s_jax.runtime.errors import UserError
from u2s_jax.video import decode
from u2s_jax.video.decode import Storage


def decode_spans(
  file: str | io.BytesIO, storage: Storage, spans: Sequence[tuple[float, float]]
) -> list[Decoded | Skipped]:
  """Decodes segments of a video in one pass.

  `spans` are start and end of each segment in seconds, sorted by the start. The result of a span is
  `Skipped` if more than 15 % of the segment lie after the video's end, or if decoding fails before
  the segment is complete.
  """
  segments, reason = {}, None
  try:
    for segment in decode.decode_segments(file, storage, spans, strict=True):
      segments[segment.start, segment.planned] = segment
  except UserError as error:
    reason = " ".join(str(error).split())
  results = []
  for span in spans:
    segment = segments.get(tuple(span), decode.Segment(*span))
    try:
      segment.check_complete()
      results.append(_add_fingerprint(segment.frames, storage))
    except UserError as error:
      results.append(Skipped(reason if reason and not segment.frames else str(error)))
  return results


def make_decoder(
  storage: dict[str, Any], is_image: bool
) -> Callable[[tuple[str, bytes | None, Sequence | None, str | None]], Decoded | Skipped | list]:
  """Returns the function of a worker process: a request to its results.

  A request is the path, the content or None, the spans or None, and the clip's own region or None.
  """
  data_set_storage = Storage(**storage)
  if data_set_storage.modality == "rgb":
    fingerprints.import_imagehash()  # else the first clip's time would include it

  def answer(request):
    path, content, spans, crop = request
    storage_settings = data_set_storage
    if data_set_storage.crop == decode.BY_CLIP:
      storage_settings = dataclasses.replace(data_set_storage, crop=crop)
    file = path if content is None else io.BytesIO(content)
    try:
      if spans:
        return decode_spans(file, storage_settings, [tuple(span) for span in spans])
      frames = decode.decode_file(file, storage_settings, is_image=is_image)
      return _add_fingerprint(frames, storage_settings)
    except UserError as error:
      return Skipped(" ".join(str(error).split()))
    except MemoryError:
      return Skipped(f"decoding takes more than {workers.MAX_MEMORY >> 30} GiB of memory")
    except OSError as error:
      return skip_unreadable(error)

  return answer


def _add_fingerprint(frames: list[bytes], storage: Storage) -> Decoded:
  fingerprint = fingerprints.compute_fingerprint(frames) if storage.modality == "rgb" else ""
  return Decoded(frames, fingerprint)


def skip_unreadable(error: OSError) -> Skipped:
  """Returns the result for a file that could not be read; a retry may succeed."""
  return Skipped(f"it cannot be read ({error.strerror or error})", retry=True)
