"""U2S on Something-Something V2 with a TSM ResNet-50, 8 or 16 frames.

  python -m data.prepare --dataset=ssv2 --source=/path/to/sthv2 --out=/data/sthv2
  python main.py --config=configs/sthv2_tsm.py --workdir=/runs/tsm --config.data.dir=/data/sthv2
  python main.py --config=configs/sthv2_tsm.py:16f --workdir=/runs/tsm16 \
      --config.data.dir=/data/sthv2

The U2S of the paper's Table V on another backbone: temporal shift in every block, all 2D.
`--config.init_from=resnet50.pth`, torchvision's, starts from ImageNet, a checkpoint of TSM's
repository from what that was trained on.

Expected, from the paper (Table V, validation, top-1 / top-5 in percent): 8 frames one-pass
56.00 / 83.11, U2S 57.40 / 83.73; 16 frames 58.87 / 84.69 and 60.13 / 85.34. Not run here: no GPU.
"""

import ml_collections

from configs import sthv2


def get_config(frames: str = "8f") -> ml_collections.ConfigDict:
  """Returns the experiment.

  Args:
    frames: '8f' or '16f', behind a colon in --config.
  """
  if frames not in ("8f", "16f"):
    raise ValueError(f"--config=configs/sthv2_tsm.py:{frames}: behind the colon goes 8f or 16f")
  config = sthv2.get_config()
  config.batch_size = 10  # the paper: smaller than 20 here
  config.data.num_frames = int(frames[:-1])  # the paper: 8 and 16
  config.model.backbone.name = "tsm_resnet"
  # All 2D: frames meet by the shift of 1/8 of the channels from either side.
  config.model.backbone.temporal = ((1, 1, 1, 1), (1, 1, 1, 1))
  return config
