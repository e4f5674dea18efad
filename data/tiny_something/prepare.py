"""The rendered data set of the demo and of the tests, from nothing to prepared."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data import prepare as preparing
from data import store
from data.decode import Storage
from data.sources import something_something
from data.tiny_something.render import Settings, render


def prepare(
  fields: Mapping[str, Any],
  videos: pathlib.Path,
  out: str | os.PathLike[str],
  short_edge: int,
) -> store.PreparedDataset:
  """Renders videos in Something-Something V2's layout and prepares them.

  Args:
    fields: the config's section `data.render`, see `configs/default.py`.
    videos: folder of the videos.
    out: folder of the prepared data set.
    short_edge: pixels, of the videos and of the stored frames.

  Raises:
    UserError: as `render` and `prepare.prepare`.
  """
  names = ("num_train", "num_validation", "num_test", "difficulty", "clutter", "seed")
  settings = Settings(**{name: fields[name] for name in names}, height=short_edge)
  render(videos, settings, num_workers=fields["workers"])
  return preparing.prepare(
    something_something.listing(videos),
    out,
    Storage(short_edge=short_edge),
    origin={"dataset": "tiny_something", **dataclasses.asdict(settings)},
    num_workers=fields["workers"],
    max_unreadable=0.0,
    compare_files=False,  # rendered again they have other times
  )
