"""Opens the data set of a config; renders it first if `data.render` is set."""

import dataclasses
import pathlib

import jax
import ml_collections

from data.input import source
from data.input.source import PreparedSource
from data.preparation.prepare import prepare
from data.sources import something_something
from data.tiny_something.render import Settings, render
from u2s_jax.runtime import devices, files
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError
from u2s_jax.video.decode import Storage

PREPARE_HOURS = 1  # the other hosts wait this long while host 0 renders


def open_data(
  config: ml_collections.ConfigDict, default_folder: files.Path, default_videos: files.Path
) -> PreparedSource:
  """Opens the data set of a config; host 0 renders it first if `data.render` is set.

  A rendered data set is in `default_folder` if `data.dir` is empty, its videos are in
  `default_videos` if `data.render.dir` is.

  Raises:
    FileNotFoundError: if there is no data set, or it is not finished.
    UserError: if `data.dir` is not set or not on a disk, or a field does not fit the data set.
  """
  render_fields = config.data.get("render")
  paths = {"data.dir": config.data.dir}
  if render_fields is not None:
    paths["data.render.dir"] = render_fields.dir
  elif not config.data.dir:
    raise UserError(
      "data.dir: not set; prepare a data set with `python -m data.prepare`, then set data.dir to"
      " its --out"
    )
  missing = [field for field, path in paths.items() if not path]
  if missing and files.is_in_bucket(default_folder):
    raise UserError(f"{missing[0]}: not set; a --workdir in a bucket requires a local directory")
  parsed = {field: files.parse_data_dir(path, field) for field, path in paths.items() if path}
  folder = parsed.get("data.dir", default_folder)
  if render_fields is not None and jax.process_index() == 0:
    log(f"data set {folder}: rendering and preparing missing files")
    videos = parsed.get("data.render.dir", default_videos)
    _render(render_fields, videos, folder, config.data.short_edge)
  devices.wait_for_host0("prepared", hours=PREPARE_HOURS)
  return source.open_source(config, folder, jax.process_index(), jax.process_count())


def _render(
  fields: ml_collections.ConfigDict, videos: pathlib.Path, out: pathlib.Path, short_edge: int
) -> None:
  """Renders videos in the layout of Something-Something V2 and prepares them."""
  names = ("num_train", "num_validation", "num_test", "difficulty", "clutter", "seed")
  settings = Settings(**{name: fields[name] for name in names}, height=short_edge)
  render(videos, settings, num_workers=fields.workers)
  prepare(
    something_something.list_clips(videos),
    out,
    Storage(short_edge=short_edge),
    origin={"dataset": "tiny_something", **dataclasses.asdict(settings)},
    num_workers=fields.workers,
    max_unreadable=0.0,
    compare_files=False,  # videos that are rendered again have other modification times
  )
