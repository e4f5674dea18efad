"""U2S on your own videos or images.

  python -m data.prepare --dataset=videos --source=/my/videos --out=/data/mine
  python main.py --config=configs/custom.py --workdir=/runs/mine --config.data.dir=/data/mine

  python main.py --config=configs/custom.py:i3d ... --config.init_from=i3d_rgb_kinetics400_flax.npz
  python main.py --config=configs/custom.py:r2plus1d ... --config.init_from=r2plus1d_18.safetensors
  python main.py --config=configs/custom.py:videoprism ... \
      --config.init_from=hf://google/videoprism-base-f16r288/flax_base_f16r288_repeated.npz

After the colon comes the start. docs/weights.md says where to get weights, and compares them.

- `resnet50`: the paper's network and recipe, for thousands of clips a class and a GPU.
- `small`: the demo's network, twice as wide, on frames of 56 pixels: from scratch without a GPU.
- `tsm`: a 2D ResNet-50 with temporal shift, for weights of ImageNet or TSM.
- `i3d`, `s3d`, `r2plus1d`: for weights of Kinetics-400.
- `videoprism`, `videoprism_large`: Google's foundation model, its encoder frozen.

The others have a recipe for few clips, that of benchmarks/studies/fights.toml: a frozen trunk, a
learning rate of 0.01, 10 + 3 + 5 epochs, batches of 8. With very few clips, train the classifiers
and masks only: --config.trainable="('universal/head', 'specific/head', 'mask')". Decays are shares
of a stage, so --config.universal.epochs=20 alone makes it longer.

`/my/videos` has one folder per class, optionally below `train/` and `val/`, or is a CSV file with
the columns path, label, split; see docs/videos.md. Copy this file and set what your data require,
above all `data.flip` and `data.flip_label_map`. For images (`--dataset=images`) start from
`configs/cars.py`.

Expected: depends on your data. From random weights, thousands of clips per class are required: on
48 surveillance clips (fight or no fight) random weights reach little more than chance, Kinetics
weights far more (docs/evidence.md).
"""

import ml_collections

from configs import default, sthv2_tsm, ucf101_i3d

# By start: backbone, frames of a clip, crop size and short edge in pixels. Sizes are those that the
# weights were trained or evaluated with.
PUBLISHED = {
  "r2plus1d": ({"name": "r2plus1d_18"}, 16, 112, 128),
  "s3d": ({"name": "s3d"}, 32, 224, 256),
  # Both networks share the frozen temporal encoder: each has a projection of its own.
  "videoprism": ({"name": "videoprism", "temporal": "shared"}, 16, 288, 288),
  "videoprism_large": (
    {
      "name": "videoprism",
      "temporal": "shared",
      "width": 1024,
      "heads": 16,
      "spatial_blocks": 24,
      "frames": 8,
    },
    8,
    288,
    288,
  ),
}
OTHERS = {"resnet50": default, "tsm": sthv2_tsm, "i3d": ucf101_i3d}  # configs with the network
STARTS = ("resnet50", "small", *(name for name in OTHERS if name != "resnet50"), *PUBLISHED)


def get_config(start: str = "resnet50") -> ml_collections.ConfigDict:
  default.check_variant("configs/custom.py", start, STARTS)
  config = default.get_config()
  config.eval.views = "5crop"  # no mirrored view: your classes may depend on left and right
  if start == "small":
    set_small(config)
    return config
  if start in PUBLISHED:
    backbone, frames, crop_size, short_edge = PUBLISHED[start]
    config.data.update(num_frames=frames, crop_size=crop_size, short_edge=short_edge)
    config.model.backbone = ml_collections.ConfigDict(backbone)
    config.model.pixel_mean = config.model.pixel_std = ()  # those of the weights
  else:
    other = OTHERS[start].get_config()
    config.model, config.data.num_frames = other.model, other.data.num_frames
  if start != "resnet50":
    set_few_clips(config)
  return config


def set_small(config: ml_collections.ConfigDict) -> None:
  """Sets a network and a recipe for training from scratch on CPUs."""
  config.batch_size, config.eval.batch_size = 16, 32
  config.data.update(num_frames=8, short_edge=64, crop_size=56, multi_scale=(1.0, 0.875))
  # No stride in group 3: masks of 4 x 4.
  config.model.backbone.update(depth=14, width=16, strides=(1, 2, 2, 1))
  # Stages 2 and 3 have the rate of stage 1: at the paper's tenth of it, networks from scratch would
  # hardly change any more.
  config.universal.update(learning_rate=0.02, epochs=40.0, decay_epochs=(0.7, 0.9))
  config.specific.update(learning_rate=0.02, epochs=8.0, decay_epochs=())
  config.joint.update(learning_rate=0.02, epochs=16.0, decay_epochs=(0.7,))
  config.eval.views, config.eval.every_epochs = "center", 5


def set_few_clips(config: ml_collections.ConfigDict) -> None:
  """Sets the recipe of benchmarks/studies/fights.toml."""
  config.trainable = ("universal", "specific", "mask")
  config.eval.views = "center"  # as in training from cached features
  # A validation draws the masks of four clips, for which it runs one batch of this size.
  config.batch_size, config.eval.batch_size = 8, 4
  config.universal.update(learning_rate=0.01, epochs=10.0, decay_epochs=(0.7,))
  config.specific.update(learning_rate=0.01, epochs=3.0, decay_epochs=())
  config.joint.update(learning_rate=0.01, epochs=5.0, decay_epochs=(0.6,))
