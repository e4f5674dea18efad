"""Linear probe on frozen features: do weights loaded through `init_from` mean what they should?

  python -m benchmarks.linear_probe --config=configs/cars_mini.py --data=/data/cars_mini \
      --init_from=../shared/weights/resnet50_imagenet_keras.npz --folds=4 --size=224
  python -m benchmarks.linear_probe --config=configs/ucf101_i3d.py --data=/data/fight \
      --init_from=../shared/weights/i3d_rgb_kinetics400_flax.npz

Features of all clips of a prepared data set, of both its splits: centre view, last feature map
averaged over frames and pixels, standardised. Multinomial logistic regression, cross-validated.
"""

import argparse
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import data  # noqa: F401 - sets what TensorFlow reads at its import
from data import pipeline, store
from u2s_jax import pretrained, settings, steps
from u2s_jax.models.u2s import U2S


def features(
  config, folder: pathlib.Path, weights: pathlib.Path, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pooled features (n, c) and labels (n,) of all clips."""
  dataset = store.open_dataset(folder)
  names = dataset.class_names
  model = settings.build_model(config, len(names))
  size = {key: config.data[key] for key in ("num_frames", "short_edge", "crop_size")}
  video = jnp.zeros((1, size["num_frames"], 32, 32, 3))
  fresh = jax.jit(lambda key: model.init(key, video, method=U2S.one_pass))(jax.random.key(0))
  params, batch_stats = pretrained.load(
    weights,
    fresh["params"],
    fresh["batch_stats"],
    backbone=config.model.backbone.to_dict(),
    stages=settings.STAGES,
    class_names=names,
    needs_classifier=False,
    log=print,
  )
  pixels = [tuple(config.model[field]) for field in settings.PIXEL_FIELDS]

  @jax.jit
  def pooled(pixel_values):
    clips = steps.normalize(pixel_values, *pixels)
    variables = {"params": params, "batch_stats": batch_stats}
    outputs = model.apply(variables, clips, method=U2S.one_pass)
    return jnp.mean(outputs["universal_features"], axis=(1, 2, 3))

  found, labels = [], []
  for split in ("train", "validation"):
    for batch in pipeline.eval_batches(
      dataset, split, batch_size=batch_size, views="center", **size
    ):
      found.append(np.asarray(pooled(batch["video"][:, 0]))[batch["mask"]])
      labels.append(batch["label"][batch["mask"]])
  return np.concatenate(found), np.concatenate(labels)


def main() -> None:
  """Reads the command line, prints the accuracy of every fold and their mean."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--config", type=pathlib.Path, required=True)
  parser.add_argument("--data", type=pathlib.Path, required=True, help="a prepared data set")
  parser.add_argument("--init_from", type=pathlib.Path, required=True)
  parser.add_argument("--size", type=int, help="pixels to resize to, all of them looked at")
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument("--batch_size", type=int, default=8)
  arguments = parser.parse_args()
  spec = importlib.util.spec_from_file_location("config", arguments.config)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  if arguments.size:
    config.data.short_edge = config.data.crop_size = arguments.size
  x, y = features(config, arguments.data, arguments.init_from, arguments.batch_size)
  classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
  folds = StratifiedKFold(arguments.folds, shuffle=True, random_state=0)
  accuracies = 100 * cross_val_score(classifier, x, y, cv=folds)
  print(f"{len(y)} clips, {y.max() + 1} classes, {x.shape[1]} features")
  print(f"top-1 by fold: {', '.join(f'{a:.1f}' for a in accuracies)}")
  print(f"mean: {accuracies.mean():.1f} %")


if __name__ == "__main__":
  main()
