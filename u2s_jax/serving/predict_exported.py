"""Scores clips with an exported model; requires only jax, numpy and flatbuffers.

  pip install jax flatbuffers
  python predict_exported.py clips.npy
  python predict_exported.py  # scores the example, and compares with the scores at the export

`clips.npy`: uint8 (n, t, h, w, c), from `preprocess.py`, as specified by "clip" in `model.json`.
"""

import importlib.util
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import export

FOLDER = pathlib.Path(__file__).parent


def load(folder: pathlib.Path) -> tuple[Callable[..., Any], list[str]]:
  """Returns the model as a function of clips, and its class names.

  Raises:
    ImportError: if flatbuffers is missing: `jax.export` requires it, but jax does not install it.
  """
  if importlib.util.find_spec("flatbuffers") is None:
    raise ImportError("flatbuffers: not installed; run `pip install flatbuffers`")
  description = json.loads((folder / "model.json").read_text())
  program = export.deserialize(bytearray((folder / "model.jax").read_bytes()))
  return jax.jit(program.call), description["class_names"]


def main() -> None:
  try:
    call, class_names = load(FOLDER)
  except ImportError as error:
    sys.exit(f"error: {error}")
  if any(not name.endswith(".npy") for name in sys.argv[1:]):
    sys.exit(__doc__)
  example = np.load(FOLDER / "example.npz")
  outputs = call(np.load(sys.argv[1]) if sys.argv[1:] else example["clips"])
  if not sys.argv[1:]:
    difference = max(np.abs(np.asarray(outputs[key]) - example[key]).max() for key in outputs)
    print(f"example: scores differ by up to {difference:.1g} from those at the export")
  predictions = [np.asarray(outputs[key]) for key in outputs if key != "mask"]
  for i, scores in enumerate(np.mean(predictions, axis=0)):
    best = np.argsort(-scores, kind="stable")[:5]
    print(f"clip {i}: " + ", ".join(f"{class_names[j]} {100 * scores[j]:.1f} %" for j in best))


if __name__ == "__main__":
  main()
