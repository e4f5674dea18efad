"""The views of a clip in tests: their names, how many there are, which of them are mirrored."""

from collections.abc import Iterable

from u2s_jax.errors import UserError

# Name: for each view, whether its pixels are mirrored left to right. The k-th mirrored view is the
# k-th of the others, mirrored: input has those others alone, and the device makes the rest.
VIEWS = {
  "center": (False,),
  "3crop": (False,) * 3,
  "5crop": (False,) * 5,
  "10crop": (False,) * 5 + (True,) * 5,
}


def mirrors(
  views: str, num_classes: int, pairs: Iterable[tuple[int, int]]
) -> tuple[tuple[int, ...] | None, ...]:
  """Returns for each view None, or for a mirrored one `mirrored_labels`.

  Args:
    views: one of `VIEWS`.
    num_classes: see `mirrored_labels`.
    pairs: see `mirrored_labels`; looked at only where a view is mirrored.
  """
  labels = mirrored_labels(num_classes, pairs) if any(VIEWS[views]) else None
  return tuple(labels if mirrored else None for mirrored in VIEWS[views])


def mirrored_labels(num_classes: int, pairs: Iterable[tuple[int, int]]) -> tuple[int, ...]:
  """Returns for each class the class that its mirrored clips show.

  Args:
    num_classes: M.
    pairs: classes that mirror into each other, `data.flip_label_map`; each once or both ways.

  Returns:
    M labels in [0, M); a class in no pair stands for itself.

  Raises:
    UserError: a pair that names no class, or a class in two different pairs.
  """
  mirrored = list(range(num_classes))
  for pair in pairs:
    for old, new in (tuple(pair), tuple(pair)[::-1]):
      if not 0 <= old < num_classes:
        raise UserError(
          f"data.flip_label_map: {tuple(pair)} names the class {old}, but there are {num_classes}"
        )
      if mirrored[old] not in (old, new):
        raise UserError(
          f"data.flip_label_map: it pairs the class {old} with {mirrored[old]} and with {new};"
          " leave one of the pairs out"
        )
      mirrored[old] = new
  return tuple(mirrored)
