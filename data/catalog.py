"""Data sets by the name that a config gives them."""

import pathlib
from typing import Any

import tensorflow_datasets as tfds

from data import something_something, tiny_something


def prepare(name: str, fields: dict[str, Any], workdir: pathlib.Path) -> tfds.core.DatasetBuilder:
  """Makes a data set ready to be read; returns at once where that was done before.

  Args:
    name: a key of `DATASETS`.
    fields: the config's `data` section, see `configs/sthv2.py` and, for the rendered one,
      `configs/demo.py`.
    workdir: holds what has no folder of its own in `fields`.

  Returns:
    A builder with the splits `train` and `validation`.

  Raises:
    ValueError: an unknown name, or what the data set's own module raises.
    FileNotFoundError: videos or label files are missing.
  """
  if name not in DATASETS:
    raise ValueError(f"data.name: {name!r} is not one of {', '.join(DATASETS)}")
  source = DATASETS[name](fields, workdir)
  return something_something.prepare(
    source,
    fields["prepared_dir"] or workdir / "prepared",
    short_edge=fields["short_edge"],
    jpeg_quality=fields["jpeg_quality"],
    num_workers=fields["prepare_workers"],
  )


def _something_something_v2(fields: dict[str, Any], workdir: pathlib.Path) -> pathlib.Path:
  del workdir
  if not fields["source_dir"]:
    raise ValueError(
      "data.source_dir: not set; pass --config.data.source_dir=<folder of the downloaded data set>"
    )
  return pathlib.Path(fields["source_dir"])


def _tiny_something(fields: dict[str, Any], workdir: pathlib.Path) -> pathlib.Path:
  source = pathlib.Path(fields["source_dir"] or workdir / "tiny_something")
  tiny_something.render(
    source,
    num_train=fields["num_train"],
    num_validation=fields["num_validation"],
    num_test=fields["num_test"],
    height=fields["short_edge"],
    difficulty=fields["difficulty"],
    seed=fields["render_seed"],
    num_workers=fields["prepare_workers"],
  )
  return source


DATASETS = {
  "something_something_v2": _something_something_v2,
  "tiny_something": _tiny_something,
}
