"""Scores clips with an exported model; needs jax, numpy and flatbuffers alone.

  pip install jax flatbuffers
  python predict_exported.py clips.npy

`clips.npy`: uint8 (n, t, h, w, c), as `model.json` next to this file says under "clip": frames
from the middles of equal parts of the video, the short edge resized, the centre cropped.
"""

import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
from jax import export


def load(folder: pathlib.Path):
  """Returns the model as a function of clips, and its class names.

  Raises:
    ImportError: flatbuffers is missing, which `jax.export` reads programs with and jax does not
      install.
  """
  if importlib.util.find_spec("flatbuffers") is None:
    raise ImportError("flatbuffers: not installed; run `pip install flatbuffers`")
  facts = json.loads((folder / "model.json").read_text())
  program = export.deserialize(bytearray((folder / "model.jax").read_bytes()))
  return jax.jit(program.call), facts["class_names"]


def main() -> None:
  try:
    call, class_names = load(pathlib.Path(__file__).parent)
  except ImportError as error:
    sys.exit(f"error: {error}")
  outputs = call(np.load(sys.argv[1]))
  predictions = [np.asarray(outputs[key]) for key in outputs if key != "mask"]
  for i, scores in enumerate(np.mean(predictions, axis=0)):
    best = np.argsort(-scores, kind="stable")[:5]
    print(f"clip {i}: " + ", ".join(f"{class_names[j]} {100 * scores[j]:.1f} %" for j in best))


if __name__ == "__main__":
  main()
