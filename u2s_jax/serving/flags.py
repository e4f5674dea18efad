"""Flags of the commands on a trained run; imports nothing that takes time, for `--help`."""

from typing import Any

WINDOW, STRIDE = 2.0, 0.5  # seconds
THRESHOLD = 0.0  # least score of an interval's windows
# Least lead of another class, so that a tie does not end an interval.
HYSTERESIS = 0.1

BACKBONE = "--config.model.backbone.name"
TRUSTED: dict[str, dict[str, Any]] = {
  BACKBONE: dict(
    dest="backbone", help="the run's backbone, if it is code of another package that you trust"
  )
}
WINDOW_OPTIONS = ("stride", "threshold", "shortest", "hysteresis")
BEST = dict(action="store_true", help="the checkpoint that eval.keep_best kept, not the last one")
MODES: dict[str, dict[str, dict[str, Any]]] = {
  "predict": {
    "--video": dict(
      action="append",
      default=[],
      help="a video or image, a directory of them, or a pattern in quotes; with --window also a"
      " camera, rtsp://... or /dev/video0; repeatable",
    ),
    "--segments": dict(
      help="CSV file with the columns of data.prepare: scores its rows instead of --video and, with"
      " labels, prints the accuracy"
    ),
    "--views": dict(help="center, 3crop, 5crop or 10crop; default: those of the evaluation"),
    "--crop": dict(
      help="X,Y,W,H: region of every frame, see data.prepare; default: that of the training data"
    ),
    "--best": BEST,
    **TRUSTED,
    "--details": dict(
      action="store_true",
      help="every prediction and fusion, not only the mean; with --window the scores of windows",
    ),
    "--json": dict(action="store_true", help="a line of JSON per result"),
    "--csv": dict(action="store_true", help="CSV, which data.prepare reads"),
    "--vtt": dict(action="store_true", help="WebVTT subtitles; requires --window"),
    "--window": dict(type=float, help="seconds; scores windows of a long video"),
    "--stride": dict(type=float, help=f"seconds from window to window ({STRIDE}); with --window"),
    "--threshold": dict(
      type=float, help=f"score, 0 to 1, below which a window has no class ({THRESHOLD})"
    ),
    "--shortest": dict(type=float, help="least seconds of an interval (those of a window)"),
    "--hysteresis": dict(
      type=float, help=f"lead of another class's score that ends an interval ({HYSTERESIS})"
    ),
    "--features": dict(help=".npz file for the features that the classifiers read"),
    "--overlay": dict(help=".mp4 file for the clip with its mask"),
  },
  "export": {
    "--best": BEST,
    **TRUSTED,
    "--control": dict(help="workdir of the same run with control=True, trained as long"),
  },
}
