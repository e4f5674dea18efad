"""U2S on your own videos or images, ResNet-50.

  python -m data.prepare --dataset=videos --source=/my/videos --out=/data/mine
  python main.py --config=configs/custom.py --workdir=/runs/mine --config.data.dir=/data/mine

`/my/videos` holds a folder for each class, below `train/` and `val/` or not, or is a CSV file with
the columns path, label, split. Copy this file and add what your data needs: `data.flip` and
`data.flip_label_map` above all. Images (`--dataset=images`): start from `configs/cars.py`.

Without a GPU, a small network on small frames:

  python main.py ... --config.data.num_frames=8 --config.data.short_edge=64 \
      --config.data.crop_size=56 --config.model.backbone.depth=14 --config.model.backbone.width=16 \
      --config.model.backbone.strides="(1, 2, 2, 1)" --config.universal.learning_rate=0.02

Expected: nothing is known of your data. From random weights thousands of clips a class are needed;
`init_from` starts from a run on a larger data set.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = default.get_config()
  config.eval.views = "5crop"  # none is mirrored: your classes may have a side
  return config
