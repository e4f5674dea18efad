"""Commands on a trained run.

python -m u2s_jax.serving.cli --mode=predict --workdir=/runs/mine --video=clip.mp4
python -m u2s_jax.serving.cli --mode=export --workdir=/runs/mine
"""

import argparse
import itertools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from u2s_jax.run import settings
from u2s_jax.run.workdir import Workdir, write_npz
from u2s_jax.runtime import command_line, devices, files
from u2s_jax.runtime.errors import (
  INTERRUPTED,
  UserError,
  escape,
  one_line_errors,
)
from u2s_jax.serving import export, formatting, predict, segments
from u2s_jax.serving.flags import MODES, STRIDE, WINDOW_OPTIONS
from u2s_jax.serving.intervals import Gap
from u2s_jax.serving.model import Model, check_windows
from u2s_jax.video import folders, reader


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
  """Runs a command; its exit status is 1 if a file cannot be scored."""
  args = command_line.parse("python -m u2s_jax.serving.cli", __doc__, argv, MODES)
  workdir = Workdir.open(args.workdir)
  if args.mode == "export":
    control = Workdir(files.parse_path(args.control)) if args.control else None
    export.export(predict.load(workdir, args.best, args.backbone), workdir, control)
    print(f"written: {workdir.export}")
    return
  try:
    all_scored = predict_files(args, workdir)
  except KeyboardInterrupt:
    print("interrupted (SIGINT)", file=sys.stderr)
    sys.exit(INTERRUPTED)
  sys.exit(0 if all_scored else 1)


def predict_files(args: argparse.Namespace, workdir: Workdir) -> bool:
  """Prints predictions for `--video`, and returns whether all files could be read."""
  output_format = choose_format(args)
  if args.segments:
    return score_segments(args, workdir, output_format)
  videos = find_videos(args)
  overlay = check_output_path(args.overlay, "--overlay", ".mp4", videos)
  features = check_output_path(args.features, "--features", ".npz", videos)
  model = load_model(args, workdir)
  if overlay and not model.has_masks:
    raise UserError("--overlay: this run has no mask network")
  headers = formatting.HEADERS if args.window is None else formatting.INTERVAL_HEADERS
  if args.window is not None and args.details and output_format == "csv":
    print(formatting.format_row(["path", "start", "end", *model.class_names]), flush=True)
  elif output_format in headers:
    print(headers[output_format], flush=True)
  vectors, all_scored = {}, True
  predictions = model.predict_each(videos) if args.window is None else itertools.repeat(None)
  for file, prediction in zip(videos, predictions, strict=False):
    try:
      if isinstance(prediction, Exception):
        raise prediction
      if prediction is None:
        print_windows(args, model, file, output_format)
      else:
        line = formatting.format_prediction(file, prediction, output_format, args.details)
        print(line, flush=True)
      if overlay:
        formatting.write_video(overlay, model.masked(file))
      if features:
        vectors[file] = model.features(file)
    except BrokenPipeError:  # the reader of the output has enough, like `head`
      silence_stdout()
      all_scored = False
      if not features:
        break
    except (UserError, OSError) as error:
      all_scored = False
      formatting.print_error(file, error, output_format)
  if vectors:
    arrays = {"ids": np.array([*vectors], str), "names": np.array(model.feature_names())}
    write_npz(features, arrays | {"vectors": np.stack([*vectors.values()])})
  return all_scored


def score_segments(args: argparse.Namespace, workdir: Workdir, output_format: str) -> bool:
  """Scores the rows of `--segments`, and returns whether all clips could be read."""
  for name in ("video", "window", "features", "overlay"):
    if getattr(args, name):
      raise UserError(f"--segments and --{name}: choose one")
  path = files.parse_local_path(args.segments)
  if not path.is_file():
    raise UserError(f"--segments {path}: no such file")
  model = load_model(args, workdir)
  try:
    return segments.predict_segments(model, path, output_format, args.details)
  except BrokenPipeError:
    silence_stdout()
    return False


def silence_stdout() -> None:
  """Discards further output, whose reader has ended: Python would fail to write it at the end."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load_model(args: argparse.Namespace, workdir: Workdir) -> Model:
  """Loads the run; prints a note if its frames are enlarged."""
  devices.use_compilation_cache(workdir.compiled)
  model = Model(predict.load(workdir, args.best, args.backbone), args.views, args.crop)
  if enlargement := settings.describe_enlargement(model.trained.config, model.trained.stored):
    print(enlargement, file=sys.stderr)
  return model


def find_videos(args: argparse.Namespace) -> list[str]:
  """Returns the files and cameras that `--video` names, each once."""
  if not args.video:
    raise UserError("--video: not set; name a video or image, a directory, or a pattern")
  videos = []
  for name in args.video:
    camera = reader.parse_camera(name)
    if camera and args.window is None:
      raise UserError(f"--video {name}: a live stream requires --window")
    videos += [name] if camera else folders.find_files(name)
  videos = list(dict.fromkeys(videos))  # two patterns may match the same file
  if args.vtt and len(videos) > 1:
    raise UserError(f"--vtt: requires one video, but --video names {len(videos)}")
  return videos


def choose_format(args: argparse.Namespace) -> str:
  """Returns 'text', 'json', 'csv' or 'vtt'; raises UserError if flags exclude each other."""
  formats = [name for name in ("json", "csv", "vtt") if getattr(args, name)]
  if len(formats) > 1:
    raise UserError(f"--{formats[0]} and --{formats[1]}: choose one")
  if args.vtt and args.window is None:
    raise UserError("--vtt: requires --window")
  if args.details and args.csv and args.window is None:
    raise UserError("--details and --csv: choose one; CSV has the best class only")
  if args.window is None:
    for name in WINDOW_OPTIONS:
      if getattr(args, name) is not None:
        raise UserError(f"--{name}: requires --window")
  else:
    if args.details and args.vtt:
      raise UserError("--details and --vtt: choose one; subtitles have intervals only")
    for name in ("features", "overlay"):
      if getattr(args, name):
        raise UserError(f"--{name}: not available with --window")
    check_windows(args.window, **interval_options(args))
  return formats[0] if formats else "text"


def interval_options(args: argparse.Namespace) -> dict[str, Any]:
  """Returns the options of `Model.intervals` that are set."""
  options = {name: getattr(args, name) for name in WINDOW_OPTIONS}
  return {name: value for name, value in options.items() if value is not None}


def print_windows(args: argparse.Namespace, model: Model, file: str, output_format: str) -> None:
  """Prints a video's intervals or, for `--details`, its windows as they are found."""
  if output_format == "text":
    print(escape(file), flush=True)
  seconds = reader.read_duration(file)
  options = interval_options(args)
  with formatting.progress_bar(seconds) as bar:
    if args.details:
      for window in model.windows(file, args.window, options.get("stride", STRIDE)):
        bar.update(window.end - bar.n)
        with bar.external_write_mode():
          print(formatting.format_window(file, window, output_format), flush=True)
      return
    options["on_window"] = lambda window: bar.update(window.end - bar.n)
    for interval in model.intervals(file, args.window, **options):
      with bar.external_write_mode():
        print(formatting.format_interval(file, interval, output_format, seconds), flush=True)
        if output_format == "csv" and isinstance(interval, Gap):  # a row has no reason
          reason = formatting.format_interval(file, interval, "text")
          print(f"{file}:", reason, file=sys.stderr)


def check_output_path(
  name: str | None, flag: str, suffix: str, videos: Sequence[str]
) -> pathlib.Path | None:
  """Returns the path of a new output file, None if no file is asked for."""
  if not name:
    return None
  path = files.parse_local_path(name)
  if flag == "--overlay" and len(videos) > 1:
    raise UserError(f"{flag} {path}: requires one video, but --video names {len(videos)}")
  if path.suffix != suffix:
    raise UserError(f"{flag} {path}: must be an {suffix} file")
  if not path.parent.is_dir():
    raise UserError(f"{flag} {path}: no directory {path.parent}")
  if path.exists():
    raise UserError(f"{flag} {path}: already exists; choose another file")
  return path


if __name__ == "__main__":
  main()
