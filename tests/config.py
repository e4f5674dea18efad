"""The demo's path in seconds, for the tests: nothing is learned.

python main.py --config=tests/config.py --workdir=/tmp/u2s_tests
"""

import ml_collections

from configs import demo


def get_config() -> ml_collections.ConfigDict:
  """Returns the tests' experiment."""
  config = demo.get_config()
  config.batch_size = config.eval.batch_size = 8
  config.data.num_frames = 4
  config.data.short_edge = 36
  config.data.crop_size = 32
  config.data.render.num_train = 70
  config.data.render.num_validation = 35
  config.data.render.num_test = 0
  config.data.render.difficulty = 0.6
  config.model.backbone.width = 2
  config.model.non_local_width = 4
  for stage in ("universal", "specific", "joint"):
    config[stage].epochs = 1.0
    config[stage].decay_epochs = (0.5,)
  config.joint.learning_rate = 0.005
  config.joint.decay_epochs = ()
  config.eval.views = "center"
  config.eval.every_epochs = 1
  config.log_every_steps = 2
  config.checkpoint_every_steps = 3
  return config
