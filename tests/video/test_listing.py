"""Checks of listings."""

import pytest

from u2s_jax.runtime.errors import UserError
from u2s_jax.video.listing import Clip, Listing, check_listing


def _clips(*labels, prefix):
  return [Clip(f"{prefix}{i}", label, f"/{prefix}{i}.mp4") for i, label in enumerate(labels)]


def _fails(names, splits, *parts):
  with pytest.raises(UserError) as caught:
    check_listing(Listing(names, splits), "the source")
  message = str(caught.value)
  assert "\n" not in message and message.startswith("the source: ")
  for part in parts:
    assert part in message


def test_accepts_valid_listings():
  splits = {"train": _clips(0, 1, prefix="a"), "validation": _clips(0, prefix="b")}
  check_listing(Listing(["x", "y"], splits), "the source")
  check_listing(Listing(["x", "y"], splits | {"test": _clips(-1, 1, prefix="c")}), "the source")


def test_rejects_invalid_listings():
  train, validation = _clips(0, 1, prefix="a"), _clips(0, prefix="b")
  both = {"train": train, "validation": validation}
  _fails(["x", "x"], both, "'x' occurs twice")
  _fails(["x", "y"], {"train": train}, "'validation'")
  _fails(["x", "y"], {"train": [], "validation": validation}, "'train'")
  _fails(["x", "y", "z"], both, "'z'", "no training clip")
  for name in ("", " x", "x\ny"):
    _fails([name, "y"], both, repr(name), "rename the class")
  again = {"train": train, "validation": [Clip("a1", 1, "/other.mp4")]}
  _fails(["x", "y"], again, "a1 occurs twice", "in train and in validation")
  _fails(["x"], {"train": train, "validation": validation}, "/a1.mp4 in train has no class")
  unknown = {"train": train, "validation": _clips(-1, prefix="b")}
  _fails(["x", "y"], unknown, "/b0.mp4 in validation has no class")
  # 256 bytes are what is left for an id, not 256 letters.
  for name, valid in (("x" * 256, True), ("x" * 257, False), ("\u00e9" * 129, False)):
    long = {"train": train, "validation": [Clip(name, 0, "/v.mp4")]}
    if valid:
      check_listing(Listing(["x", "y"], long), "the source")
    else:
      _fails(["x", "y"], long, "longer than 256 bytes")
  broken = {"train": train, "validation": [Clip("b", 0, "/a\nb.mp4")]}
  _fails(["x", "y"], broken, "line break", "/a\\nb.mp4")


@pytest.mark.parametrize(
  "spelling", ["a/0.mp4", "./a/0.mp4", "b/../a/0.mp4", "to_a/0.mp4", "b/link"]
)
def test_rejects_a_file_in_two_splits(tmp_path, spelling):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "0.mp4").touch()
  (tmp_path / "to_a").symlink_to("a")
  (tmp_path / "b" / "link").symlink_to("../a/0.mp4")
  train = [Clip("0", 0, f"{tmp_path}/a/0.mp4")]
  other = {"train": train, "validation": [Clip("1", 0, f"{tmp_path}/b/0.mp4")]}
  check_listing(Listing(["x"], other), "the source")
  same = {"train": train, "validation": [Clip("1", 0, f"{tmp_path}/{spelling}")]}
  if spelling == "a/0.mp4":
    _fails(["x"], same, f"{tmp_path}/a/0.mp4 is in train and in validation")
  else:
    _fails(["x"], same, f"{tmp_path}/{spelling} in validation", "in train are the same file")
