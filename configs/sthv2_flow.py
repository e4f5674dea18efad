"""U2S on Something-Something V2, optical flow: the second stream of the paper's Table V.

  python -m data.prepare --dataset=ssv2 --modality=flow --source=/path/to/sthv2 \
      --out=/data/sthv2_flow
  python main.py --config=configs/sthv2_flow.py --workdir=/runs/sthv2_flow \
      --config.data.dir=/data/sthv2_flow --config.init_from=/runs/sthv2

`init_from` starts from the RGB run. Its first convolution is averaged over the colours, as in TSN.

Expected, from the paper (Table V, validation, top-1 / top-5 in percent), RGB and flow together:
one-pass 59.37 / 85.48, U2S 61.46 / 87.71; it has no figures for flow alone. Not run here. Cost:
TV-L1 takes half a second per pair of frames and core (`--flow_algorithm=dis`: 2 ms).
"""

import ml_collections

from configs import default, sthv2


def get_config() -> ml_collections.ConfigDict:
  config = sthv2.get_config()
  default.set_flow(config)
  return config
