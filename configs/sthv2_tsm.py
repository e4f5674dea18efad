"""U2S on Something-Something V2 with a TSM ResNet-50, 8 or 16 frames.

  python -m data.prepare --dataset=ssv2 --source=/path/to/sthv2 --out=/data/sthv2
  python main.py --config=configs/sthv2_tsm.py --workdir=/runs/tsm --config.data.dir=/data/sthv2
  python main.py --config=configs/sthv2_tsm.py:16f --workdir=/runs/tsm16 \
      --config.data.dir=/data/sthv2
  python main.py --config=configs/sthv2_tsm.py:authors --workdir=/runs/tsm \
      --config.data.dir=/data/sthv2 --config.init_from=resnet50.pth

The U2S of the paper's Table V on another backbone: temporal shift in every block, all 2D.
torchvision's `resnet50.pth` starts from ImageNet. `init_from` also accepts checkpoints of TSM's
repository.

`:authors` trains stage 1 with 8 frames as TSM's authors do on Something-Something: the command in
the README of https://github.com/mit-han-lab/temporal-shift-module, with the defaults of its
options. The classifier is initialized with a deviation of 0.001 and trained with 5 times the
learning rate, its bias with 10 times, and each segment draws its own frame. Their weight decay of
5e-4 excludes BN and biases; ours does not. Stages 2 and 3 are the paper's, except for batch size,
clips, dropout, weight decay and gradient clipping.

Expected, from the paper (Table V, validation, top-1 / top-5 in percent): 8 frames one-pass
56.00 / 83.11, U2S 57.40 / 83.73; 16 frames 58.87 / 84.69 and 60.13 / 85.34. Not run here: no GPU.
"""

import ml_collections

from configs import default, sthv2


def get_config(variant: str = "8f") -> ml_collections.ConfigDict:
  default.check_variant("configs/sthv2_tsm.py", variant, ("8f", "16f", "authors"))
  config = sthv2.get_config()
  config.batch_size = 10  # paper: smaller than 20
  config.data.num_frames = 16 if variant == "16f" else 8  # paper: 8 and 16
  config.model.backbone.name = "tsm_resnet"
  # All 2D: frames exchange information by shifting 1/8 of the channels in each direction.
  config.model.backbone.temporal = ((1, 1, 1, 1), (1, 1, 1, 1))
  if variant == "authors":
    set_authors_recipe(config)
  return config


def set_authors_recipe(config: ml_collections.ConfigDict) -> None:
  """Sets stage 1 to the recipe of TSM's authors; scales the other learning rates to its batch."""
  for stage in (config.specific, config.joint):
    stage.learning_rate *= 64 / config.batch_size
  config.batch_size = 64
  config.data.offset_per_segment = True
  config.data.multi_scale = (1.0, 0.875, 0.75, 0.66)
  config.model.dropout = 0.5
  config.optimizer.weight_decay = 5e-4
  config.optimizer.clip_norm = 20.0
  config.universal.update(learning_rate=0.01, epochs=50.0, decay_epochs=(20.0, 40.0))
  config.universal.classifier_rates = (5.0, 10.0)
  config.universal.classifier_deviation = 0.001
