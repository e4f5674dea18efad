"""U2S on your own videos or images.

  python -m data.prepare --dataset=videos --source=/my/videos --out=/data/mine
  python main.py --config=configs/custom.py --workdir=/runs/mine --config.data.dir=/data/mine

  python main.py --config=configs/custom.py:i3d ... --config.init_from=i3d_rgb_kinetics400_flax.npz
  python main.py --config=configs/custom.py:tsm ... --config.init_from=resnet50.pth

Behind the colon stands the backbone: `resnet50` (the paper's, 3D), `tsm` (2D with temporal shift,
for ImageNet's or TSM's own weights) or `i3d` (Inception-I3D, for Kinetics'). docs/weights.md says
where weights are had; with few clips add
--config.trainable="('universal', 'specific', 'mask')", which leaves the trunk as it is, or
with very few "('universal/head', 'specific/head', 'mask')": all but classifiers and masks.

`/my/videos` holds a folder for each class, below `train/` and `val/` or not, or is a CSV file with
the columns path, label, split. Copy this file and add what your data needs: `data.flip` and
`data.flip_label_map` above all. Images (`--dataset=images`): start from `configs/cars.py`.

Without a GPU, a small network on small frames:

  python main.py ... --config.data.num_frames=8 --config.data.short_edge=64 \
      --config.data.crop_size=56 --config.model.backbone.depth=14 --config.model.backbone.width=16 \
      --config.model.backbone.strides="(1, 2, 2, 1)" --config.universal.learning_rate=0.02

Expected: nothing is known of your data. From random weights thousands of clips a class are needed:
48 surveillance clips, fight or none, are told apart no better than by chance from there, and far
better from Kinetics' (docs/evidence.md).
"""

import ml_collections

from configs import default, sthv2_tsm, ucf101_i3d

STARTS = {"resnet50": default, "tsm": sthv2_tsm, "i3d": ucf101_i3d}  # whose networks they take


def get_config(start: str = "resnet50") -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    start: one of `STARTS`, behind a colon in --config.
  """
  if start not in STARTS:
    raise ValueError(
      f"--config=configs/custom.py:{start}: behind the colon goes {', '.join(STARTS)}"
    )
  config, theirs = default.get_config(), STARTS[start].get_config()
  config.model = theirs.model
  config.data.num_frames = theirs.data.num_frames
  config.eval.views = "5crop"  # none is mirrored: your classes may have a side
  return config
