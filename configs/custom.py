"""U2S on your own videos or images.

  python -m data.prepare --dataset=videos --source=/my/videos --out=/data/mine
  python main.py --config=configs/custom.py --workdir=/runs/mine --config.data.dir=/data/mine

  python main.py --config=configs/custom.py:i3d ... --config.init_from=i3d_rgb_kinetics400_flax.npz
  python main.py --config=configs/custom.py:tsm ... --config.init_from=resnet50.pth

After the colon comes the backbone: `resnet50` (the paper's, 3D), `tsm` (2D with temporal shift, for
weights of ImageNet or TSM) or `i3d` (Inception-I3D, for weights of Kinetics). docs/weights.md says
where to get weights. With few clips, add --config.trainable="('universal', 'specific', 'mask')",
which freezes the trunk. With very few, add "('universal/head', 'specific/head', 'mask')", which
trains the classifiers and masks only.

`/my/videos` has one folder per class, optionally below `train/` and `val/`, or is a CSV file with
the columns path, label, split; see docs/videos.md. Copy this file and set what your data require,
above all `data.flip` and `data.flip_label_map`. For images (`--dataset=images`) start from
`configs/cars.py`.

Without a GPU, a small network on small frames:

  python main.py ... --config.data.num_frames=8 --config.data.short_edge=64 \
      --config.data.crop_size=56 --config.model.backbone.depth=14 --config.model.backbone.width=16 \
      --config.model.backbone.strides="(1, 2, 2, 1)" --config.universal.learning_rate=0.02

Expected: depends on your data. From random weights, thousands of clips per class are required: on
48 surveillance clips (fight or no fight) random weights reach little more than chance, Kinetics
weights far more (docs/evidence.md).
"""

import ml_collections

from configs import default, sthv2_tsm, ucf101_i3d

# By backbone: the config whose network is used.
BACKBONES = {"resnet50": default, "tsm": sthv2_tsm, "i3d": ucf101_i3d}


def get_config(backbone: str = "resnet50") -> ml_collections.ConfigDict:
  default.check_variant("configs/custom.py", backbone, BACKBONES)
  config, backbone_config = default.get_config(), BACKBONES[backbone].get_config()
  config.model = backbone_config.model
  config.data.num_frames = backbone_config.data.num_frames
  config.eval.views = "5crop"  # no mirrored view: your classes may depend on left and right
  return config
