"""U2S on Something-Something V2 with MultiScale TRN (BN-Inception), RGB.

  python -m data.prepare --dataset=ssv2 --source=/path/to/sthv2 --out=/data/sthv2
  python main.py --config=configs/sthv2_trn.py --workdir=/runs/trn --config.data.dir=/data/sthv2

Masks multiply the feature maps of the frames, which the relations then classify.

Expected, from the paper (Table V, validation, top-1 / top-5 in percent): one-pass 48.80 / 77.64,
which starts from ImageNet; the paper has no figures with U2S. Not run here: no GPU, and no
pretrained weights.
"""

import ml_collections

from configs import sthv2


def get_config() -> ml_collections.ConfigDict:
  config = sthv2.get_config()
  config.data.num_frames = 8  # as in the authors' command for Something-Something
  config.model.backbone = ml_collections.ConfigDict({"name": "trn"})
  return config
