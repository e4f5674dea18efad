"""U2S on UCF101, RGB or optical flow, ResNet-50: the paper's values if it gives them.

  python -m data.prepare --dataset=ucf101 --split=1 --source=/path/to/ucf101 --out=/data/ucf101
  python main.py --config=configs/ucf101.py --workdir=/runs/ucf101 --config.data.dir=/data/ucf101

  python -m data.prepare --dataset=ucf101 --split=1 --modality=flow --source=/path/to/ucf101 \
      --out=/data/ucf101_flow
  python main.py --config=configs/ucf101.py:flow --workdir=/runs/ucf101_flow \
      --config.data.dir=/data/ucf101_flow --config.init_from=/runs/ucf101

The official test list is the split `validation` here.

Expected, from the paper (Table VI, 10 crops, top-1 / top-5 in percent; it does not say on which
split): RGB one-pass 89.16 / 98.57, U2S 92.31 / 98.38; flow 80.48 / 94.71 and 82.66 / 95.08;
together 92.43 / 98.73 and 94.32 / 98.89. Not run here: the paper's weights start from Kinetics.
From random weights about 40 % is usual (kenshohara/3D-ResNets-PyTorch#85).
"""

import ml_collections

from configs import default


def get_config(modality: str = "rgb") -> ml_collections.ConfigDict:
  config = default.get_config()
  default.set_modality(config, modality)
  config.data.flip = True  # no class depends on left and right; the paper does not say
  config.csm.target_accuracy = 0.95
  return config
