"""Opens the data set of a config; renders it first if `data.render` is set."""

import jax
import ml_collections

from data.input import source
from data.input.source import PreparedSource
from data.tiny_something import prepare as rendered
from u2s_jax.runtime import devices, files
from u2s_jax.runtime.console import log
from u2s_jax.runtime.errors import UserError

PREPARE_HOURS = 1  # the other hosts wait this long while host 0 renders


def open_data(
  config: ml_collections.ConfigDict, default_folder: files.Path, default_videos: files.Path
) -> PreparedSource:
  """Opens the data set of a config; host 0 renders it first if `data.render` is set.

  Args:
    config: see `u2s_jax/run/default_config.py`.
    default_folder: used for a rendered data set if `data.dir` is empty.
    default_videos: used for rendered videos if `data.render.dir` is empty.

  Raises:
    FileNotFoundError: if there is no data set, or it is not finished.
    UserError: if `data.dir` is not set or not on a disk, or a field does not fit the data set.
  """
  render = config.data.get("render")
  paths = {"data.dir": config.data.dir}
  if render is None and not config.data.dir:
    raise UserError(
      "data.dir: not set; prepare a data set with `python -m data.prepare`, then set data.dir to"
      " its --out"
    )
  if render is not None:
    paths["data.render.dir"] = render.dir
  missing = [field for field, path in paths.items() if not path]
  if missing and files.is_in_bucket(default_folder):
    raise UserError(f"{missing[0]}: not set; a --workdir in a bucket requires a local directory")
  parsed = {field: files.parse_data_dir(path, field) for field, path in paths.items() if path}
  folder = parsed.get("data.dir", default_folder)
  if render is not None and jax.process_index() == 0:
    log(f"data set {folder}: rendering and preparing missing files")
    videos = parsed.get("data.render.dir", default_videos)
    rendered.prepare(render.to_dict(), videos, folder, config.data.short_edge)
  devices.wait_for_host0("prepared", hours=PREPARE_HOURS)
  return source.open_source(config, folder, jax.process_index(), jax.process_count())
