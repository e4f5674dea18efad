"""U2S on Stanford Cars, ResNet-50: the paper's values if it gives them.

  python -m data.prepare --dataset=cars196 --source=/path/to/cars --out=/data/cars
  python main.py --config=configs/cars.py --workdir=/runs/cars --config.data.dir=/data/cars

The source is a TFDS folder that holds `cars196`, or class folders below `train/` and `test/`. The
official test split is the split `validation` here. For class folders of other images use
`--dataset=images`.

Expected, from the paper (Table VII, top-1 / top-5 in percent): one-pass 84.98 / 93.97, U2S
87.27 / 96.26. Not run here: the paper's weights are pretrained.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  default.set_images(config)
  config.csm.target_accuracy = 0.95
  return config
