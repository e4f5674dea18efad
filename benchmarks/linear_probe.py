"""Linear probe on frozen features: checks that the weights of `init_from` are loaded correctly.

  python -m benchmarks.linear_probe --config=configs/cars_mini.py --data=/data/cars_mini \
      --init_from=resnet50_imagenet_keras.npz --folds=4 --size=224
  python -m benchmarks.linear_probe --config=configs/ucf101_i3d.py --data=/data/fight \
      --init_from=i3d_rgb_kinetics400_flax.npz

Features of all clips of a prepared data set, of its training and validation split: centre view,
last feature map averaged over frames and pixels, standardised. Multinomial logistic regression,
cross-validated.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import data  # noqa: F401 - sets environment variables that TensorFlow reads
from benchmarks.timing import make_parser
from data.input import pipeline, store
from u2s_jax.models.network import build_network
from u2s_jax.pretrained import adapt
from u2s_jax.pretrained.names import Pixels
from u2s_jax.run import config_flags, settings
from u2s_jax.run import state as state_lib
from u2s_jax.training import steps
from u2s_jax.video import clips


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


def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("--config", required=True)
  parser.add_argument("--data", type=pathlib.Path, required=True, help="a prepared data set")
  parser.add_argument("--init_from", type=pathlib.Path, required=True)
  parser.add_argument("--size", type=int, help="pixels to resize to, without a crop")
  parser.add_argument("--folds", type=int, default=5)
  parser.add_argument("--batch_size", type=int, default=8)
  arguments = parser.parse_args()
  config, _, _ = config_flags.read_config([f"--config={arguments.config}"])
  if arguments.size:
    config.data.short_edge = config.data.crop_size = arguments.size
  x, y = compute_features(config, arguments.data, arguments.init_from, arguments.batch_size)
  classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
  folds = StratifiedKFold(arguments.folds, shuffle=True, random_state=0)
  accuracies = 100 * cross_val_score(classifier, x, y, cv=folds)
  print(f"{len(y)} clips, {y.max() + 1} classes, {x.shape[1]} features")
  print(f"top-1 by fold: {', '.join(f'{a:.1f}' for a in accuracies)}")
  print(f"mean: {accuracies.mean():.1f} %")


if __name__ == "__main__":
  main()
