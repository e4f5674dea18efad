"""A config over several seeds, each beside the control that trains the one-pass model as long.

  python -m benchmarks.seeds --config=configs/demo.py --workdir=/tmp/u2s_seeds --seeds=3
  python -m benchmarks.seeds --config=configs/cars_mini.py --workdir=/runs/cars_mini_seeds \
      --config.data.dir=/data/cars_mini --config.init_from=resnet50_imagenet_keras.npz

The control goes on from the end of the U2S run's stage 1 for as many epochs at the same learning
rates. Accuracies in percent on the validation split, with the config's views. Further arguments go
to `main.py`. Started again, it goes on.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MERGED = "universal+bridge+specific"
NAMES = ("one-pass", "universal", "bridge", "specific", "merged", "control")


def run(folder: pathlib.Path, *arguments: str) -> tuple[dict, float]:
  """Runs `main.py` to its end; its summary, and the minutes it took now."""
  start = time.monotonic()
  command = [sys.executable, "main.py", f"--workdir={folder}", *arguments]
  with open(folder.with_suffix(".log"), "a") as log:
    subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
  return json.loads((folder / "summary.json").read_text()), (time.monotonic() - start) / 60


def main() -> None:
  """Reads the command line, prints a row for each seed, and their mean."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--config", required=True)
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  known, more = parser.parse_known_args()
  workdir = known.workdir.absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  if known.config == "configs/demo.py":  # rendered once for all
    more += [f"--config.data.render.dir={workdir}/videos", f"--config.data.dir={workdir}/prepared"]
  print("seed  " + "  ".join(f"{name:>9}" for name in NAMES) + "    minutes")
  rows = []
  for seed in range(known.seeds):
    common = (f"--config={known.config}", *more, f"--config.seed={seed}")
    u2s = workdir / f"seed{seed}_u2s"
    summary, minutes = run(u2s, *common)
    control, control_minutes = run(
      workdir / f"seed{seed}_control",
      *common,
      "--config.control=True",
      "--config.universal.epochs=0.0",
      f"--config.init_from={u2s}/checkpoints/universal",
    )
    scores = summary["predictions"]
    row = [summary["one_pass"]["top1"]]
    row += [scores[name]["top1"] for name in ("universal", "bridge", "specific", MERGED)]
    rows.append(row + [control["predictions"]["universal"]["top1"]])
    figures = "  ".join(f"{value:9.1f}" for value in rows[-1])
    print(f"{seed:4}  {figures}  {minutes:5.1f} + {control_minutes:.1f}", flush=True)
  means = (statistics.mean(column) for column in zip(*rows, strict=True))
  print("mean  " + "  ".join(f"{value:9.1f}" for value in means))


if __name__ == "__main__":
  main()
