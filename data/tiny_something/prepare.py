"""Renders and prepares the synthetic data set of the demo and the tests."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from data.input import store
from data.preparation import prepare as preparation
from data.sources import something_something
from data.tiny_something.render import Settings, render
from u2s_jax.video.decode import Storage


def prepare(
  fields: Mapping[str, Any],
  videos: pathlib.Path,
  out: str | os.PathLike[str],
  short_edge: int,
) -> store.PreparedDataset:
  """Renders videos in the layout of Something-Something V2 and prepares them.

  Args:
    fields: the config's section `data.render`, see `configs/default.py`.
    videos: folder of the rendered videos.
    out: folder of the prepared data set.
    short_edge: pixels, of the videos and of the stored frames.

  Raises:
    UserError: see `render` and `data.preparation.prepare.prepare`.
  """
  names = ("num_train", "num_validation", "num_test", "difficulty", "clutter", "seed")
  settings = Settings(**{name: fields[name] for name in names}, height=short_edge)
  render(videos, settings, num_workers=fields["workers"])
  return preparation.prepare(
    something_something.list_clips(videos),
    out,
    Storage(short_edge=short_edge),
    origin={"dataset": "tiny_something", **dataclasses.asdict(settings)},
    num_workers=fields["workers"],
    max_unreadable=0.0,
    compare_files=False,  # videos that are rendered again have other modification times
  )
