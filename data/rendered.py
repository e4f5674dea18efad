"""The rendered data set of the demo and of the tests, from nothing to prepared."""

import os
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from data import prepare as preparing
from data import something_something, tiny_something


def prepare(
  fields: dict[str, Any],
  workdir: pathlib.Path,
  out: str | os.PathLike[str],
  short_edge: int,
) -> tfds.core.DatasetBuilder:
  """Renders videos in Something-Something V2's layout and prepares them; returns where it is done.

  Args:
    fields: the config's section `data.render`, see `configs/demo.py`.
    workdir: holds the videos where `fields["dir"]` is empty.
    out: folder of the prepared data set.
    short_edge: pixels, of the videos and of the stored frames.

  Raises:
    ValueError: as `tiny_something.render` and `prepare.prepare`.
  """
  videos = pathlib.Path(fields["dir"] or workdir / "tiny_something")
  settings = {
    "num_train": fields["num_train"],
    "num_validation": fields["num_validation"],
    "num_test": fields["num_test"],
    "height": short_edge,
    "difficulty": fields["difficulty"],
    "seed": fields["seed"],
  }
  tiny_something.render(videos, num_workers=fields["workers"], **settings)
  return preparing.prepare(
    something_something.listing(videos),
    out,
    origin={"dataset": "tiny_something", **settings},
    short_edge=short_edge,
    workers=fields["workers"],
    max_unreadable=0.0,
  )
