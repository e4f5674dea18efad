"""Linear probe on frozen features: checks that weights are loaded correctly, compares starts.

  python -m benchmarks.linear_probe --config=configs/cars_mini.py --data=/data/cars_mini \
      --init_from=resnet50_imagenet_keras.npz --folds=4 --size=224
  python -m benchmarks.linear_probe --config=configs/ucf101_i3d.py --data=/data/fight \
      --init_from=i3d_rgb_kinetics400_flax.npz
  python -m benchmarks.linear_probe --data=/data/fight --all=/weights

`--all` compares the weight files of a directory, each with the config of its network: which start
for my data?

Features of all clips of a prepared data set, of its training and validation split: centre view,
last feature map averaged over frames and pixels, standardised. Multinomial logistic regression,
cross-validated.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import data  # noqa: F401 - sets environment variables that TensorFlow reads
from benchmarks.timing import make_parser
from data.input import pipeline, store
from u2s_jax.evaluation import metrics
from u2s_jax.models.network import build_network
from u2s_jax.pretrained import adapt, read
from u2s_jax.pretrained.names import Pixels
from u2s_jax.run import config_flags, settings
from u2s_jax.run import state as state_lib
from u2s_jax.runtime import files
from u2s_jax.runtime.errors import UserError, one_line_errors
from u2s_jax.training import steps
from u2s_jax.video import clips

# By the end of `read.Weights.kind`.
CONFIGS = {
  "Inception-I3D": "configs/custom.py:i3d",
  "torchvision r2plus1d_18": "configs/custom.py:r2plus1d",
  "torchvision s3d": "configs/custom.py:s3d",
  "VideoPrism encoder": "configs/custom.py:videoprism",
  "Keras ResNet": "configs/cars_mini.py",
  "torchvision ResNet": "configs/custom.py:tsm",
  "a TSM": "configs/custom.py:tsm",
}


def compute_features(
  config, folder: pathlib.Path, weights: pathlib.Path, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns pooled features (n, c) and labels (n,) of all clips."""
  dataset = store.open_dataset(folder)
  clip, _ = clips.read_config(config.data)
  network = build_network(config, len(dataset.class_names))
  stage, tx = settings.make_schedule(config)[0], steps.sgd(0.0, 0.0)
  shape = (1, clip.num_frames, 32, 32, clip.channels)
  (state,) = state_lib.init_stages(network.model, [stage], tx, shape, jax.random.key(0))
  target = adapt.Target(
    config.model.backbone.to_dict(),
    dataset.class_names,
    needs_classifier=False,
    pixels=Pixels(config.model.pixel_mean, config.model.pixel_std),
  )
  params, batch_stats = adapt.load(weights, state.params, state.batch_stats, target, print)

  @jax.jit
  def pooled(video):
    outputs, _ = network(params, batch_stats, state.csm, video)
    return jnp.mean(outputs["universal_features"], axis=(1, 2, 3))

  features, labels, feed = [], [], pipeline.BatchSpec(batch_size)
  for split in ("train", "validation"):
    for batch in pipeline.eval_batches(dataset.split(split), clip, feed, "center"):
      features.append(np.asarray(pooled(batch["video"][:, 0]))[batch["valid"]])
      labels.append(batch["label"][batch["valid"]])
  return np.concatenate(features), np.concatenate(labels)


def choose_config(kind: str) -> str | None:
  """Returns the config of a start by `read.Weights.kind`, None if there is none."""
  return next((config for source, config in CONFIGS.items() if kind.endswith(source)), None)


def measure(
  config: ml_collections.ConfigDict, weights: pathlib.Path, arguments: argparse.Namespace
) -> tuple[str, float]:
  """Prints what a linear classifier reaches; returns the accuracy with its interval, and seconds.

  The accuracy is of all clips, each scored by the classifier of the fold that holds it out.
  """
  started = time.perf_counter()
  if arguments.size:
    config.data.short_edge = config.data.crop_size = arguments.size
  if not config.model.pixel_mean:
    pixels = read.read(weights).pixels
    if pixels is None:
      raise UserError(f"{weights}: pixel statistics are unknown; name a config that has them")
    config.model.pixel_mean, config.model.pixel_std = pixels
  x, y = compute_features(config, arguments.data, weights, arguments.batch_size)
  classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
  folds = StratifiedKFold(arguments.folds, shuffle=True, random_state=0)
  hits = cross_val_predict(classifier, x, y, cv=folds) == y
  by_fold = [100 * hits[held_out].mean() for _, held_out in folds.split(x, y)]
  low, high = metrics.wilson_interval(float(hits.mean()), len(hits))
  accuracy = f"{100 * hits.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"
  print(f"{len(y)} clips, {y.max() + 1} classes, {x.shape[1]} features")
  print(f"top-1 by fold: {', '.join(f'{a:.1f}' for a in by_fold)}; of all clips: {accuracy} %")
  return accuracy, time.perf_counter() - started


@one_line_errors()
def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("--config", help="required with --init_from")
  parser.add_argument("--data", type=pathlib.Path, required=True, help="a prepared data set")
  starts = parser.add_mutually_exclusive_group(required=True)
  starts.add_argument("--init_from", type=files.resolve_weights)
  starts.add_argument("--all", type=pathlib.Path, help="compares all weight files of a directory")
  parser.add_argument("--size", type=int, help="pixels to resize to, without a crop")
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument("--batch_size", type=int, default=8)
  arguments = parser.parse_args()
  if arguments.init_from:
    if not arguments.config:
      parser.error("--config: required with --init_from")
    config, _, _ = config_flags.read_config([f"--config={arguments.config}"])
    measure(config, arguments.init_from, arguments)
    return
  rows = []
  for path in sorted(p for p in arguments.all.iterdir() if p.suffix in read.SUFFIXES):
    try:
      name = arguments.config or choose_config(read.read(path).kind)
      if name is None:
        raise UserError("no config for this network; name one with --config and --init_from")
      config, _, _ = config_flags.read_config([f"--config={name}"])
      accuracy, seconds = measure(config, path, arguments)
      rows.append(f"| {path.name} | {name} | {accuracy} | {seconds:.0f} |")
    except UserError as error:
      rows.append(f"| {path.name} | | {error} | |")
  print(
    "", "| weights | config | top-1 of a linear classifier, 95 % interval | seconds |", sep="\n"
  )
  print("|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
  main()
