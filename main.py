"""Trains U2S and looks at what it learned: `python main.py --config=configs/demo.py --workdir=...`.

`--mode=eval`, `report`, `predict` and `export` take the `--workdir` of a run that has trained.
"""

import data  # noqa: F401 - first: it sets what TensorFlow reads at its import

# isort: split

import contextlib
import itertools
import os
import pathlib
import re
import sys
import tempfile
import traceback
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np
import tensorflow as tf
from absl import app, flags, logging
from clu import metric_writers
from ml_collections import config_flags

import configs
from data import clips, footage, memory, source
from data.sources import folders
from data.tiny_something import prepare as rendered
from u2s_jax import devices, files, interruption, peers, saved_config, settings
from u2s_jax.console import Board, leave_disk_errors_to_the_end, log
from u2s_jax.errors import UserError, check_repeated, disk_error, one_line, printable
from u2s_jax.evaluation import evaluate
from u2s_jax.model import Model, check_windows
from u2s_jax.run import Source, locked
from u2s_jax.serving import answers, export, predict
from u2s_jax.serving.intervals import Gap
from u2s_jax.training import train
from u2s_jax.workdir import Workdir, write_npz

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment, see configs/; change fields by --config.<field>=<value>."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; started again, it goes on.")
MODE = flags.DEFINE_enum(
  "mode",
  "train",
  ["train", "eval", "report", "predict", "export"],
  "'train', with --config, ends with the evaluation; 'eval' evaluates the newest checkpoint again,"
  " with the run's config and what --config.<field>=<value> changes; 'report' draws the figures of"
  " a finished run; 'predict' scores --video; 'export' writes the networks for other programs.",
)
COMPARE = flags.DEFINE_multi_string(
  "compare", [], "Of --mode=report: workdir of a run to put beside this one; may be repeated."
)
CONTROL = flags.DEFINE_string(
  "control",
  None,
  "Of --mode=report and export: workdir of the same run with control=True, trained as long.",
)
VIDEO = flags.DEFINE_multi_string(
  "video",
  [],
  "Of --mode=predict: a video or image, a folder of them, or a pattern in quotes; may be repeated;"
  " with --window also a camera, rtsp://... or /dev/video0.",
)
VIEWS_OF = flags.DEFINE_string(
  "views", None, "Of --mode=predict: center, 3crop, 5crop or 10crop; else those of the evaluation."
)
BEST = flags.DEFINE_bool(
  "best", False, "Of --mode=predict and export: the checkpoint that eval.keep_best kept."
)
DETAILS = flags.DEFINE_bool(
  "details", False, "Of --mode=predict: every prediction and every fusion, not only their mean."
)
JSON = flags.DEFINE_bool("json", False, "Of --mode=predict: a line of JSON for each answer.")
CSV = flags.DEFINE_bool("csv", False, "Of --mode=predict: CSV, which data.prepare reads.")
VTT = flags.DEFINE_bool("vtt", False, "Of --window: WebVTT, subtitles.")
WINDOW = flags.DEFINE_float(
  "window", None, "Of --mode=predict: seconds; a long video becomes intervals, by windows."
)
STRIDE = flags.DEFINE_float("stride", 0.5, "Of --window: seconds between two windows' starts.")
THRESHOLD = flags.DEFINE_float(
  "threshold", 0.0, "Of --window: least score, 0 to 1; below it a window has no class."
)
SHORTEST = flags.DEFINE_float("shortest", 0.0, "Of --window: least seconds of an interval.")
FEATURES = flags.DEFINE_string(
  "features", None, "Of --mode=predict: .npz file for the features that the classifiers read."
)
OVERLAY = flags.DEFINE_string(
  "overlay", None, "Of --mode=predict: .mp4 file for the clip with its mask drawn over it."
)
DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Join the other processes; found out by itself on Slurm and TPU pods."
)
EVENTS_EVERY = 20.0  # seconds after which TensorBoard's files in a bucket are brought up to date
PREPARE_HOURS = 1  # hours the other hosts wait while host 0 renders

flags.mark_flag_as_required("workdir")


def main(argv: list[str]) -> None:
  """Does what `--mode` says."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown argument {argv[1]!r}")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file it writes
  if BEST.value and MODE.value not in ("predict", "export"):
    raise UserError(f"--best: of --mode=predict and export, not of {MODE.value}")
  memory.keep_freed()
  workdir = Workdir(files.named(WORKDIR.value))
  if MODE.value != "train" and not workdir.root.is_dir():
    raise FileNotFoundError(f"--workdir {workdir.root}: no such folder; train first")
  if MODE.value in ("train", "eval"):
    train_or_evaluate(workdir)
  elif MODE.value == "predict":
    sys.exit(0 if predict_files(workdir) else 1)
  elif MODE.value == "export":
    export.export(predict.load(workdir, BEST.value), workdir, control_of())
    print(f"written: {workdir.export}")
  else:
    from u2s_jax.report import page  # with what draws, which takes seconds to import

    control, others = control_of(), [files.named(other) for other in COMPARE.value]
    print(f"written: {page.write(workdir.root, others, control and control.root)}")


def control_of() -> Workdir | None:
  """Returns the run that `--control` names."""
  return Workdir(files.named(CONTROL.value)) if CONTROL.value else None


def train_or_evaluate(workdir: Workdir) -> None:
  """Joins the other processes, then prepares or opens the data, and trains or evaluates."""
  config = CONFIG.value
  if config is None:
    raise UserError("--config: training requires an experiment, see configs/")
  for kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], kind)  # TensorFlow would take the devices' memory
  with contextlib.ExitStack() as stack:
    logs = workdir.root
    if files.in_bucket(logs):
      logs = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="u2s_jax_")))
    patience = config.dead_process_seconds
    if stack.enter_context(peers.joined(DISTRIBUTED.value, logs, patience)):
      interruption.share_with_jax()
    free = settings.FREE_FIELDS if MODE.value == "train" else settings.FREE_IN_EVALUATION
    files.make_folder(workdir.root)
    if MODE.value == "train":
      changed = config_flags.get_override_values(flags.FLAGS["config"])
      config = settings.drop_late_decays(config, changed)
    config = fitted(config, workdir, free)
    if MODE.value == "eval":
      evaluate.evaluate_latest(config, workdir, opened(config, workdir), str(workdir.config))
    elif not train.is_finished(workdir):  # a finished one may lie where nobody can write
      with locked(workdir):
        train_run(config, workdir)


def train_run(config: ml_collections.ConfigDict, workdir: Workdir) -> None:
  """Trains what is not yet trained."""
  batches, name = opened(config, workdir), flags.FLAGS["config"].config_filename
  with contextlib.ExitStack() as stack:
    writers = []
    if jax.process_index() == 0:
      events = stack.enter_context(files.copied(workdir.root, EVENTS_EVERY))
      writers = [metric_writers.SummaryWriter(str(events))]
    writer = stack.enter_context(contextlib.closing(metric_writers.AsyncMultiWriter(writers)))
    board = Board(writer.write_scalars, writer.write_images)
    train.train(config, workdir, batches, board, name)


def fitted(
  config: ml_collections.ConfigDict, workdir: Workdir, free: Sequence[str]
) -> ml_collections.ConfigDict:
  """Returns the config for the devices at hand, checked, also against the run's own."""
  config = settings.fit_pixels(settings.fit_devices(config, workdir), workdir)
  clips.of_config(config.data)  # raises here, not after hours of preparation
  settings.check(config, workdir, free)
  return config


def opened(config: ml_collections.ConfigDict, workdir: Workdir) -> Source:
  """Opens the data set, which is prepared first where the config says so."""
  devices.use_compilation_cache(workdir.compiled)
  folder = prepared_data(config, workdir)
  clip_source = source.open_source(config, folder, jax.process_index(), jax.process_count())
  return Source(**clip_source.fields())


def prepared_data(config: ml_collections.ConfigDict, workdir: Workdir) -> pathlib.Path:
  """Returns the data set's folder; where the config says so, host 0 renders it first."""
  places = {"data.dir": config.data.dir}
  if "render" in config.data:
    places["data.render.dir"] = config.data.render.dir
  missing = [field for field, place in places.items() if not place]
  if files.in_bucket(workdir.root) and missing:
    raise UserError(f"{missing[0]}: with a --workdir in a bucket name a folder on a disk")
  named = {field: files.data_folder(place, field) for field, place in places.items() if place}
  folder = named.get("data.dir", workdir.prepared)
  if "render" in config.data and jax.process_index() == 0:
    log(f"data set {folder}: rendering and preparing what is not yet there")
    videos = named.get("data.render.dir", workdir.videos)
    rendered.prepare(config.data.render.to_dict(), videos, folder, config.data.short_edge)
  elif "render" not in config.data and not config.data.dir:
    raise UserError(
      "data.dir: not set; write a data set by `python -m data.prepare` and pass its folder,"
      " --config.data.dir=<--out of that>"
    )
  devices.wait_for_host0("prepared", hours=PREPARE_HOURS)
  return folder


def predict_files(workdir: Workdir) -> bool:
  """Prints what the run says of `--video`, and returns whether all files could be read."""
  if not VIDEO.value:
    raise UserError("--video: --mode=predict needs a video or image, a folder, or a pattern")
  videos = []
  for name in VIDEO.value:
    camera = footage.live(name)
    if camera and WINDOW.value is None:
      raise UserError(f"--video {name}: a live stream requires --window")
    videos += [name] if camera else folders.find_files(name)
  videos = list(dict.fromkeys(videos))  # a file that two patterns match is scored once
  overlay, features = (written(flag, videos) for flag in (OVERLAY, FEATURES))
  form = form_of_answers(videos)
  devices.use_compilation_cache(workdir.compiled)
  model = Model(predict.load(workdir, BEST.value), VIEWS_OF.value)
  if enlargement := settings.enlargement(model.trained.config, model.trained.stored):
    print(enlargement, file=sys.stderr)
  if overlay and not model.has_masks:
    raise UserError("--overlay: this run has no mask network's masks")
  heads = answers.HEADS if WINDOW.value is None else answers.INTERVAL_HEADS
  if form in heads:
    print(heads[form], flush=True)
  vectors, good = {}, True
  predictions = model.predict_each(videos) if WINDOW.value is None else itertools.repeat(None)
  for file, prediction in zip(videos, predictions, strict=False):
    try:
      if isinstance(prediction, Exception):
        raise prediction
      answer(model, file, prediction, form)
      if overlay:
        answers.write_video(overlay, model.masked(file))
      if features:
        vectors[file] = model.features(file)
    except BrokenPipeError:  # who reads the lines has enough of them, as `head`
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      good = False
      if not features:
        break
    except (UserError, OSError) as error:
      if disk_error(error):
        raise
      good = False
      reason = getattr(error, "strerror", None) or " ".join(str(error).split())
      said = answers.of_file(file, reason, form, DETAILS.value)
      print(said, file=sys.stdout if form == "json" else sys.stderr, flush=True)
  if vectors:
    arrays = {"ids": np.array([*vectors], str), "names": np.array(model.feature_names())}
    write_npz(features, arrays | {"vectors": np.stack([*vectors.values()])})
  return good


def form_of_answers(videos: Sequence[str]) -> str:
  """Returns 'text', 'json', 'csv' or 'vtt'; flags that do not go together are an error."""
  forms = [flag.name for flag in (JSON, CSV, VTT) if flag.value]
  if len(forms) > 1:
    raise UserError(f"--{forms[0]} and --{forms[1]}: choose one")
  if VTT.value and (WINDOW.value is None or len(videos) > 1):
    raise UserError("--vtt: subtitles are of one video, with --window")
  if WINDOW.value is not None:
    check_windows(WINDOW.value, STRIDE.value, THRESHOLD.value, SHORTEST.value)
  whole, windowed = (FEATURES, OVERLAY, DETAILS), (STRIDE, THRESHOLD, SHORTEST)
  goes, others = ("with", windowed) if WINDOW.value is None else ("without", whole)
  for flag in others:
    if flag.present:
      raise UserError(f"--{flag.name}: goes {goes} --window")
  return forms[0] if forms else "text"


def answer(model: Model, file: str, prediction: predict.Prediction | None, form: str) -> None:
  """Prints a file's prediction, or with `--window` its intervals as they come, with a bar."""
  if prediction is not None:
    print(answers.of_file(file, prediction, form, DETAILS.value), flush=True)
    return
  if form == "text":
    print(printable(file), flush=True)
  seconds = footage.duration(file)
  with answers.progress(seconds) as bar:
    intervals = model.intervals(
      file,
      WINDOW.value,
      STRIDE.value,
      threshold=THRESHOLD.value,
      shortest=SHORTEST.value,
      told=lambda window: bar.update(window.end - bar.n),
    )
    for interval in intervals:
      with bar.external_write_mode():
        print(answers.of_interval(file, interval, form, seconds), flush=True)
        if form == "csv" and isinstance(interval, Gap):  # whose row has no place for the reason
          print(f"{file}:", answers.of_interval(file, interval, "text"), file=sys.stderr)


def written(flag: flags.FlagHolder[str | None], videos: Sequence[str]) -> pathlib.Path | None:
  """Returns the file that a flag of `--mode=predict` names, None where it names none.

  Raises:
    UserError: it cannot be written, or would overwrite something.
  """
  if not flag.value:
    return None
  path, suffix = files.local_path(flag.value), {"overlay": ".mp4", "features": ".npz"}[flag.name]
  said = f"--{flag.name} {path}"
  if flag.name == "overlay" and len(videos) > 1:
    raise UserError(f"{said}: for one file only, and --video names {len(videos)}")
  if path.suffix != suffix:
    raise UserError(f"{said}: name an {suffix} file")
  if not path.parent.is_dir():
    raise UserError(f"{said}: no folder {path.parent}")
  if path.exists():
    raise UserError(f"{said}: it is there already; name another file")
  return path


def parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a wrong one, an unknown field of the config, or no such config, is one line."""
  check_config_file(argv)
  try:
    if not asks_for_evaluation(argv):
      rest = flags.FLAGS(argv)
      check_repeated(argv, lists_of(flags.FLAGS))
      return rest
    own, fields = split_config(argv)
    rest = flags.FLAGS(own)
    check_repeated(own, lists_of(flags.FLAGS))
    workdir = Workdir(files.named(WORKDIR.value))
    if workdir.root.is_dir():  # else `main` says so
      flags.FLAGS.config = config_of_run(workdir, fields)
    return rest
  except (UserError, OSError) as error:
    sys.exit(f"error: {one_line(error)}")
  except flags.Error as error:
    # Where a config raised, the message is the whole traceback.
    last = str(error).strip().splitlines()[-1]
    sys.exit(f"error: {last.strip().removeprefix('ValueError: ')} (--helpfull shows all flags)")
  except (AttributeError, KeyError) as error:  # no such field, or no such section
    reason = error
    while isinstance(reason, Exception):  # ml_collections wraps the message in exceptions
      reason = reason.args[-1] if reason.args else type(reason).__name__
    sys.exit(f"error: --config: {' '.join(str(reason).split())}")


def asks_for_evaluation(argv: list[str]) -> bool:
  """Tells whether a command line has `--mode=eval`."""
  return any(
    argument.lstrip("-") == "mode=eval" or (argument.lstrip("-"), following) == ("mode", "eval")
    for argument, following in itertools.pairwise([*argv, ""])
  )


def lists_of(values: flags.FlagValues) -> set[str]:
  """Returns the names of flags that may be repeated: every one adds to a list or a tuple."""
  return {name for name in values if isinstance(values[name], flags.MultiFlag)}


def split_config(argv: list[str]) -> tuple[list[str], list[str]]:
  """Returns a command line without `--config...`, and its `--config.<field>=<value>`."""
  own, fields, arguments = [], [], itertools.pairwise([*argv, ""])
  for argument, following in arguments:
    name, equals, _ = argument.partition("=")
    if not re.match(r"--?(no)?config(\.|$)", name):
      own.append(argument)
      continue
    value = []
    if not equals and not following.startswith("-"):
      value = [following]
      next(arguments, None)
    if "." in name:
      fields += [argument, *value]
    else:
      print("note: --config: an evaluation takes the run's own; fields set here count")
  return own, fields


def config_of_run(workdir: Workdir, fields: list[str]) -> ml_collections.ConfigDict:
  """Returns the config that a run was trained with, with some fields changed.

  Args:
    workdir: of the run.
    fields: arguments `--config.<field>=<value>`.
  """
  config = saved_config.read(workdir)
  if config is None:
    raise UserError(f"--workdir {workdir.root}: no {workdir.config.name}; train first")
  trained_on, values = config.data.dir, flags.FlagValues()
  holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=fields)
  values(["main.py", *fields])
  check_repeated(["main.py", *fields], lists_of(values))
  changed = holder.value
  if "render" in changed.data and changed.data.dir != trained_on:
    with changed.unlocked():
      del changed.data.render  # another data set is not to be rendered
  return changed


def check_config_file(argv: list[str]) -> None:
  """Ends with one line where `--config` names no file; ml_collections says so late."""
  for argument, following in itertools.pairwise([*argv, ""]):
    name, equals, value = argument.partition("=")
    if name in ("--config", "-config"):
      path = pathlib.Path((value if equals else following).partition(":")[0])
      if not path.is_file():
        names = {other.stem for other in pathlib.Path(configs.__file__).parent.glob("[!_]*.py")}
        known = ", ".join(sorted(names - {"default"}))
        sys.exit(f"error: --config: {path}: no such file; in configs/ there are {known}")


def run(argv: list[str]) -> None:
  """Runs `main`; what a user can cause is one line, a bug keeps its traceback."""
  try:
    with interruption.handled():
      main(argv)
  except interruption.Interrupted as interrupted:
    goes_on = "; the same command goes on" if MODE.value == "train" else ""
    interruption.leave(f"{interrupted}{goes_on}")
  except Exception as error:
    line = one_line(error)
    if jax.distributed.is_initialized():  # or Python's end would wait for the other processes
      interruption.leave(traceback.format_exc() if line is None else f"error: {line}", status=1)
    if line is None:
      raise
    sys.exit(f"error: {line}")


if __name__ == "__main__":
  leave_disk_errors_to_the_end()
  app.run(run, flags_parser=parse_flags)
