"""The demo over several seeds, each beside the control that trains the one-pass model as long.

  python -m benchmarks.demo_seeds --workdir=/tmp/u2s_seeds --seeds=3

Accuracies in percent, on the rendered validation clips. Started again, it goes on.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MERGED = "universal+bridge+specific"


def run(workdir: pathlib.Path, seed: int, control: bool) -> dict:
  """Runs `main.py` to its end; its summary."""
  folder = workdir / f"seed{seed}_{'control' if control else 'u2s'}"
  command = [
    sys.executable,
    "main.py",
    "--config=configs/demo.py",
    f"--workdir={folder}",
    f"--config.seed={seed}",
    f"--config.control={control}",
    f"--config.data.render.dir={workdir}/videos",
    f"--config.data.dir={workdir}/prepared",
  ]
  with open(folder.with_suffix(".log"), "a") as log:
    subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=log)
  return json.loads((folder / "summary.json").read_text())


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, default=3)
  arguments = parser.parse_args()
  arguments.workdir.mkdir(parents=True, exist_ok=True)
  names = ("one-pass", "universal", "bridge", "specific", "merged", "control", "minutes")
  print("seed  " + "  ".join(f"{name:>9}" for name in names))
  for seed in range(arguments.seeds):
    start = time.monotonic()
    summary = run(arguments.workdir, seed, control=False)
    minutes = (time.monotonic() - start) / 60
    control = run(arguments.workdir, seed, control=True)
    scores = summary["predictions"]
    row = [summary["one_pass"]["top1"]]
    row += [scores[name]["top1"] for name in ("universal", "bridge", "specific", MERGED)]
    row += [control["predictions"]["universal"]["top1"], minutes]
    print(f"{seed:4}  " + "  ".join(f"{value:9.1f}" for value in row), flush=True)


if __name__ == "__main__":
  main()
