"""U2S on Something-Something V2 with the VGG-style 3D-CNN of 11 layers, RGB.

  python -m data.prepare --dataset=ssv2 --source=/path/to/sthv2 --out=/data/sthv2
  python main.py --config=configs/sthv2_cnn3d.py --workdir=/runs/cnn3d --config.data.dir=/data/sthv2

Expected, from the paper (Table V, validation, top-1 / top-5 in percent): one-pass 51.33 / 80.46;
the paper has no figures with U2S. Not run here: no GPU.
"""

import ml_collections

from configs import sthv2


def get_config() -> ml_collections.ConfigDict:
  config = sthv2.get_config()
  config.model.backbone = ml_collections.ConfigDict({"name": "cnn3d"})
  return config
