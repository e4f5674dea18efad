"""Trains U2S and looks at what it learned: `python main.py --config=configs/demo.py --workdir=...`.

`--mode=eval`, `report`, `predict` and `export` take the `--workdir` of a run that has trained.
"""

import data  # noqa: F401 - first: it sets what TensorFlow reads at its import

# isort: split

import contextlib
import functools
import glob
import importlib.util
import os
import pathlib
import sys
import traceback

import jax
import tensorflow as tf
from absl import app, flags, logging
from clu import metric_writers
from ml_collections import config_flags
from orbax.checkpoint import multihost

from data import folders, memory, pipeline, rendered, store
from u2s_jax import compiling, predict, settings, train

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment, see configs/; change fields by --config.<field>=<value>."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; started again, it goes on.")
MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "eval", "report", "predict", "export"],
  "'train' ends with the evaluation; 'report' draws the figures of a finished run; 'predict' scores"
  " --video; 'export' writes the networks for other programs. The last three need no --config.",
)
COMPARE = flags.DEFINE_multi_string(
  "compare", [], "Of --mode=report: workdir of a run to put beside this one; may be repeated."
)
VIDEO = flags.DEFINE_string(
  "video", None, "Of --mode=predict: a video or image, a folder of them, or a pattern in quotes."
)
JSON = flags.DEFINE_bool("json", False, "Of --mode=predict: JSON in place of text.")
OVERLAY = flags.DEFINE_string(
  "overlay", None, "Of --mode=predict: .mp4 file for the clip with its mask drawn over it."
)
DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Join the other processes; found out by itself on Slurm and TPU pods."
)
PREPARE_HOURS = 1  # that the other hosts wait while the first one renders

flags.mark_flag_as_required("workdir")


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unknown argument {argv[1]!r}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
  memory.keep_freed()
  workdir = pathlib.Path(WORKDIR.value)
  if "://" in WORKDIR.value:
    raise ValueError(f"--workdir {WORKDIR.value}: no address but a folder; mount the bucket")
  if MODE.value != "train" and not workdir.is_dir():
    raise FileNotFoundError(f"--workdir {workdir}: no such folder; train first")
  if MODE.value in ("train", "eval"):
    train_or_evaluate(workdir)
  elif MODE.value == "report":
    from u2s_jax.report import page  # with what draws, which takes seconds to import

    print(f"written: {page.write(workdir, [pathlib.Path(other) for other in COMPARE.value])}")
  elif MODE.value == "predict":
    sys.exit(0 if predict_files(workdir) else 1)
  else:
    from u2s_jax import export

    export.export(predict.load(workdir), workdir / "export")
    print(f"written: {workdir / 'export'}")


def predict_files(workdir: pathlib.Path) -> bool:
  """Prints what the run says of `--video`; whether all files could be read."""
  if not VIDEO.value:
    raise ValueError("--video: --mode=predict needs a video or image, a folder, or a pattern")
  files = folders.find_files(VIDEO.value)
  trained = predict.load(workdir)
  return predict.answer(
    trained,
    files,
    functools.partial(pipeline.file_clip, **trained.clip()),
    as_json=JSON.value,
    overlay_path=pathlib.Path(OVERLAY.value) if OVERLAY.value else None,
  )


def train_or_evaluate(workdir: pathlib.Path) -> None:
  """Prepares or opens the data, then trains, or evaluates what is trained."""
  if CONFIG.value is None:
    raise ValueError(f"--config: --mode={MODE.value} needs an experiment, see configs/")
  config = CONFIG.value
  slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
  # JAX finds out by itself whether a TPU is one host's or a pod's.
  tpu = importlib.util.find_spec("libtpu") and glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
  if DISTRIBUTED.value or slurm or tpu:
    count, index = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    # Where JAX does not find these out: with JAX_COORDINATOR_ADDRESS, which it reads itself.
    jax.distributed.initialize(
      num_processes=int(count) if count else None, process_id=int(index) if index else None
    )
  for kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], kind)  # TensorFlow would take the devices' memory

  workdir.mkdir(parents=True, exist_ok=True)
  trains = MODE.value == "train"
  settings.check(config, workdir, settings.FREE_FIELDS if trains else settings.FREE_IN_EVALUATION)
  if trains and train.is_finished(workdir):
    return
  compiling.use_cache(workdir / "compiled")
  # One host renders; the others wait, at a barrier that knows no time-out of a collective.
  first = jax.process_index() == 0
  folder = pathlib.Path(config.data.dir or workdir / "prepared")
  if "render" in config.data and first:
    train.log(f"data set {folder}: rendering and preparing what is not yet there")
    rendered.prepare(config.data.render.to_dict(), workdir, folder, config.data.short_edge)
  elif "render" not in config.data and not config.data.dir:
    raise ValueError(
      "data.dir: not set; write a data set by `python -m data.prepare` and pass its folder,"
      " --config.data.dir=<--out of that>"
    )
  wait = multihost.get_barrier_sync_fn()
  wait(key="prepared", timeout_ms=PREPARE_HOURS * 3600 * 1000)
  builder = store.open_dataset(folder)
  if builder.info.metadata["modality"] != config.data.modality:
    raise ValueError(
      f"data.modality: {config.data.modality!r}, but {folder} holds"
      f" {builder.info.metadata['modality']!r}"
    )

  hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
  fields = ("num_frames", "flow_pairs", "short_edge", "crop_size")
  size = {field: config.data[field] for field in fields}
  threads = {"num_threads": config.data.num_threads or None}
  batches = functools.partial(
    pipeline.train_batches,
    builder,
    "train",
    batch_size=config.batch_size,
    seed=config.seed,
    multi_scale=config.data.multi_scale,
    color_jitter=config.data.color_jitter,
    flip=config.data.flip,
    flip_label_map=config.data.flip_label_map if config.data.flip else None,
    **size,
    **hosts,
    **threads,
  )
  views = functools.partial(
    pipeline.eval_batches, builder, batch_size=config.eval.batch_size, **size, **hosts, **threads
  )
  source = train.Data(
    class_names=tuple(builder.info.features["label"].names),
    channels=settings.input_channels(config),
    num_train=pipeline.num_examples(builder, "train"),
    train_batches=lambda stage, step: batches(stage=stage, first_step=step),
    eval_batches=lambda split, name: views(split, views=name),
    stored=pipeline.how_stored(builder),
  )
  writers = [metric_writers.SummaryWriter(str(workdir))] if first and trains else []
  name = flags.FLAGS["config"].config_filename
  with contextlib.closing(metric_writers.AsyncMultiWriter(writers)) as writer:
    if trains:
      train.train(config, workdir, source, writer.write_scalars, name, writer.write_images)
    else:
      train.evaluate_latest(config, workdir, source, writer.write_scalars, name)


def parse_flags(argv: list[str]) -> list[str]:
  """absl's parser; a wrong flag, an unknown field of the config, or no such config, is one line."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # Where a config raised, the message is the whole traceback.
    last = str(error).strip().splitlines()[-1]
    sys.exit(f"error: {last.strip().removeprefix('ValueError: ')} (--helpfull shows all flags)")
  except (AttributeError, OSError) as error:
    reason = error
    while isinstance(reason, Exception):  # ml_collections wraps the message in exceptions
      reason = reason.args[-1] if reason.args else type(reason).__name__
    sys.exit(f"error: --config: {' '.join(str(reason).split())}")


def run(argv: list[str]) -> None:
  """`main`, with one line for an error that our own code raised on purpose."""
  try:
    main(argv)
  except OSError as error:
    named = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    sys.exit(f"error: {' '.join(named.split())}")
  except (ValueError, FloatingPointError) as error:
    raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    here = pathlib.Path(__file__).resolve()
    ours = [here.parent / "u2s_jax", here.parent / "data"]
    if raised_in != here and not any(raised_in.is_relative_to(folder) for folder in ours):
      raise  # a bug, with its traceback
    sys.exit(f"error: {error}")


if __name__ == "__main__":
  app.run(run, flags_parser=parse_flags)
