"""U2S on HMDB51, RGB or optical flow, ResNet-50: the paper's values if it gives them.

  python -m data.prepare --dataset=hmdb51 --split=1 --source=/path/to/hmdb51 --out=/data/hmdb51
  python main.py --config=configs/hmdb51.py --workdir=/runs/hmdb51 --config.data.dir=/data/hmdb51

  python -m data.prepare --dataset=hmdb51 --split=1 --modality=flow --source=/path/to/hmdb51 \
      --out=/data/hmdb51_flow
  python main.py --config=configs/hmdb51.py:flow --workdir=/runs/hmdb51_flow \
      --config.data.dir=/data/hmdb51_flow --config.init_from=/runs/hmdb51

Splits and conditions as in `configs/ucf101.py`. Expected, from the paper (Table VI, top-1 / top-5
in percent): RGB one-pass 63.27 / 87.65, U2S 65.49 / 89.80; flow 53.40 / 80.13 and 56.34 / 81.50;
together 70.24 / 91.01 and 73.99 / 92.61. Not run here: the paper's weights start from Kinetics.
"""

import ml_collections

from configs import ucf101


def get_config(modality: str = "rgb") -> ml_collections.ConfigDict:
  config = ucf101.get_config(modality)
  config.csm.target_accuracy = 0.9
  return config
