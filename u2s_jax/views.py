"""The views of a clip at test time: their names, their number, and which of them are mirrored."""

from collections.abc import Iterable

from u2s_jax.runtime.errors import UserError

# By name: for each view, whether it is mirrored left to right. The input holds only the views that
# are not mirrored; the device mirrors the k-th of them to obtain the k-th mirrored view.
VIEWS: dict[str, tuple[bool, ...]] = {
  "center": (False,),
  "3crop": (False,) * 3,
  "5crop": (False,) * 5,
  "10crop": (False,) * 5 + (True,) * 5,
}


def make_mirror_maps(
  views: str, num_classes: int, pairs: Iterable[tuple[int, int]]
) -> tuple[tuple[int, ...] | None, ...]:
  """Returns `make_mirrored_labels` for each view of `VIEWS` that is mirrored, None for others."""
  labels = make_mirrored_labels(num_classes, pairs) if any(VIEWS[views]) else None
  return tuple(labels if mirrored else None for mirrored in VIEWS[views])


def make_mirrored_labels(num_classes: int, pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
  """Returns for each class the label of its mirrored clips.

  Args:
    pairs: classes that turn into each other when mirrored, `data.flip_label_map`; each pair once or
      in both orders. A class in no pair keeps its label.

  Raises:
    UserError: if a class of a pair does not exist or is in two different pairs.
  """
  mirrored = list(range(num_classes))
  for pair in pairs:
    for old, new in (tuple(pair), tuple(pair)[::-1]):
      if not 0 <= old < num_classes:
        raise UserError(
          f"data.flip_label_map: {tuple(pair)} contains the class {old}; classes must be in"
          f" [0, {num_classes})"
        )
      if mirrored[old] not in (old, new):
        raise UserError(
          f"data.flip_label_map: class {old} is paired with both {mirrored[old]} and {new};"
          " remove one of the pairs"
        )
      mirrored[old] = new
  return tuple(mirrored)
