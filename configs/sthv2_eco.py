"""U2S on Something-Something V2 with ECO-Lite: BN-Inception per frame, then a 3D ResNet-18.

  python -m data.prepare --dataset=ssv2 --source=/path/to/sthv2 --out=/data/sthv2
  python main.py --config=configs/sthv2_eco.py --workdir=/runs/eco --config.data.dir=/data/sthv2

Expected, from the paper (Table V, validation, top-1 / top-5 in percent): one-pass 52.73 / 81.30;
the paper has no figures with U2S. Not run here: no GPU, and no pretrained weights.
"""

import ml_collections

from configs import sthv2


def get_config() -> ml_collections.ConfigDict:
  config = sthv2.get_config()
  config.data.num_frames = 16  # as in ECO-Lite
  config.model.backbone = ml_collections.ConfigDict({"name": "eco_lite"})
  return config
