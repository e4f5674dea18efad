"""The full method in less than ten minutes on two CPU cores, on rendered videos.

  python main.py --config=configs/demo.py --workdir=/tmp/u2s_demo

Renders "tiny something" (35 classes in 8 confusable families, VP9 files in Something-Something V2's
own layout), prepares it, trains the three stages of a small network, evaluates, and prints a table.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
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
  # From random weights, not from Kinetics.
  config.universal.update(learning_rate=0.05, epochs=60.0, decay_epochs=(44.0, 54.0))
  config.specific.update(learning_rate=0.05, epochs=10.0, decay_epochs=())
  # The rate of stage 1: at a tenth of it trunk and UN would hardly change, unlike the control's.
  config.joint.update(learning_rate=0.05, epochs=20.0, decay_epochs=(14.0,))
  config.eval.views = "3crop"
  config.eval.batch_size = 32
  config.eval.every_epochs = 10
  config.log_every_steps = 20
  config.checkpoint_every_steps = 100
  return config
