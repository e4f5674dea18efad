"""What every listing has to hold."""

import pytest

from data.sources.listing import Clip, Listing, check
from u2s_jax.errors import UserError


def _clips(*labels, prefix):
  return [Clip(f"{prefix}{i}", label, f"/{prefix}{i}.mp4") for i, label in enumerate(labels)]


def _fails(names, splits, *parts):
  with pytest.raises(UserError) as caught:
    check(Listing(names, splits), "the source")
  message = str(caught.value)
  assert "\n" not in message and message.startswith("the source: ")
  for part in parts:
    assert part in message


def test_what_a_listing_may_be():
  splits = {"train": _clips(0, 1, prefix="a"), "validation": _clips(0, prefix="b")}
  check(Listing(["x", "y"], splits), "the source")
  check(Listing(["x", "y"], splits | {"test": _clips(-1, 1, prefix="c")}), "the source")


def test_what_it_may_not_be():
  train, validation = _clips(0, 1, prefix="a"), _clips(0, prefix="b")
  both = {"train": train, "validation": validation}
  _fails(["x", "x"], both, "'x' is there twice")
  _fails(["x", "y"], {"train": train}, "'validation'")
  _fails(["x", "y"], {"train": [], "validation": validation}, "'train'")
  _fails(["x", "y", "z"], both, "'z'", "no training clip")
  for name in ("", " x", "x\ny"):
    _fails([name, "y"], both, repr(name), "rename it")
  again = {"train": train, "validation": [Clip("a1", 1, "/other.mp4")]}
  _fails(["x", "y"], again, "a1 occurs twice", "in train and in validation")
  _fails(["x"], {"train": train, "validation": validation}, "/a1.mp4 in train has no class")
  unknown = {"train": train, "validation": _clips(-1, prefix="b")}
  _fails(["x", "y"], unknown, "/b0.mp4 in validation has no class")
  # 256 bytes are what is left for an id, not 256 letters.
  for name, valid in (("x" * 256, True), ("x" * 257, False), ("\u00e9" * 129, False)):
    long = {"train": train, "validation": [Clip(name, 0, "/v.mp4")]}
    if valid:
      check(Listing(["x", "y"], long), "the source")
    else:
      _fails(["x", "y"], long, "longer than 256 bytes")
  broken = {"train": train, "validation": [Clip("b", 0, "/a\nb.mp4")]}
  _fails(["x", "y"], broken, "line break", "/a\\nb.mp4")


@pytest.mark.parametrize(
  "spelling", ["a/0.mp4", "./a/0.mp4", "b/../a/0.mp4", "to_a/0.mp4", "b/link"]
)
def test_one_file_in_two_splits(tmp_path, spelling):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "0.mp4").touch()
  (tmp_path / "to_a").symlink_to("a")
  (tmp_path / "b" / "link").symlink_to("../a/0.mp4")
  train = [Clip("0", 0, f"{tmp_path}/a/0.mp4")]
  other = {"train": train, "validation": [Clip("1", 0, f"{tmp_path}/b/0.mp4")]}
  check(Listing(["x"], other), "the source")
  same = {"train": train, "validation": [Clip("1", 0, f"{tmp_path}/{spelling}")]}
  _fails(["x"], same, f"{tmp_path}/{spelling} is in validation", "in train, one file")
