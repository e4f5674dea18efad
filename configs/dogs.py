"""U2S on Stanford Dogs, ResNet-50: the paper's values if it gives them.

  python -m data.prepare --dataset=stanford_dogs --source=/path/to/dogs --out=/data/dogs
  python main.py --config=configs/dogs.py --workdir=/runs/dogs --config.data.dir=/data/dogs

The source is a TFDS folder that holds `stanford_dogs`, or class folders as in `configs/cars.py`.

Expected, from the paper (Table VII, top-1 / top-5 in percent): one-pass 75.40 / 89.17, U2S
81.49 / 95.47. Not run here: the paper's weights are pretrained.
"""

import ml_collections

from configs import cars


def get_config() -> ml_collections.ConfigDict:
  config = cars.get_config()
  config.csm.target_accuracy = 0.9
  return config
