"""Writes folders and CSV files of clips, and reads what was listed; for the tests."""

import hashlib

import pytest

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import folders


def touch(root, *paths):
  for path in paths:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).touch()


def write_csv(folder, text, encoding="utf-8"):
  path = folder / "list.csv"
  path.write_bytes(text.encode(encoding))
  return path


def get_ids(listing, split):
  return [clip.id for clip in listing.splits[split]]


def get_labels(listing, split):
  return {clip.id: listing.names[clip.label] for clip in listing.splits[split]}


def check_error(source, *parts, kind=UserError, read=folders.list_videos):
  """Checks that a source is refused with one line that holds these parts."""
  with pytest.raises(kind) as caught:
    read(source)
  message = str(caught.value)
  assert "\n" not in message
  for part in parts:
    assert part in message


def sort_by_hash(ids):
  """Returns ids in the order of the SHA-256 of a line break and the id."""
  return sorted(ids, key=lambda name: hashlib.sha256(f"\n{name}".encode()).hexdigest())
