"""The whole method in under ten minutes on two CPU cores, on rendered video files.

  python main.py --config=configs/demo.py --workdir=/tmp/u2s_demo

Renders "tiny something" (28 classes in confusable families, VP9 files in Something-Something V2's
own layout), prepares it, trains all three stages of a small network, evaluates, prints the table.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """Returns the demo's experiment."""
  config = default.get_config()
  default.set_render(config)
  config.batch_size = 32
  config.data.num_frames = 8
  config.data.short_edge = 64
  config.data.crop_size = 56
  config.data.flip_label_map = ((24, 25), (26, 27))  # pulling and pushing to the right / left
  config.data.num_threads = 2
  config.model.backbone.depth = 14
  config.model.backbone.width = 8
  config.model.backbone.strides = (1, 2, 2, 1)  # no stride in group 3: masks of 4 x 4
  config.model.non_local_width = 16
  config.model.pixel_mean = (0.3, 0.3, 0.3)
  config.model.pixel_std = (0.25, 0.25, 0.25)
  config.universal.learning_rate = 0.05  # from random weights, not from Kinetics
  config.universal.epochs = 24.0
  config.universal.decay_epochs = (15.0, 21.0)
  config.specific.learning_rate = 0.05
  config.specific.epochs = 10.0
  config.specific.decay_epochs = (6.0, 9.0)
  config.joint.learning_rate = 0.002
  config.joint.decay_epochs = (3.0,)
  config.eval.views = "3crop"
  config.eval.batch_size = 32
  config.log_every_steps = 20
  config.checkpoint_every_steps = 100
  return config
