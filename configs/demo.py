"""The whole method in under ten minutes on two CPU cores, on rendered video files.

  python main.py --config=configs/demo.py --workdir=/tmp/u2s_demo

Renders "tiny something" (28 classes in confusable families, VP9 files in Something-Something V2's
own layout), prepares it, trains all three stages of a small network, evaluates, prints the table.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the demo's experiment; fields as explained in `configs/sthv2.py`."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.batch_size = 32
  config.accumulate_steps = 1
  config.init_from = ""

  config.data = ml_collections.ConfigDict()
  config.data.dir = ""  # empty: <workdir>/prepared
  config.data.modality = "rgb"
  config.data.num_frames = 8
  config.data.flow_pairs = 5
  config.data.short_edge = 64
  config.data.crop_size = 56
  config.data.multi_scale = ()
  config.data.color_jitter = (0.0, 0.0, 0.0, 0.0)
  config.data.flip = False
  config.data.flip_label_map = ((17, 18),)  # pushing from left to right / from right to left
  config.data.num_threads = 2
  # The data set is rendered and prepared first.
  config.data.render = ml_collections.ConfigDict()
  config.data.render.dir = ""  # of the videos; empty: <workdir>/tiny_something
  config.data.render.num_train = 1400  # clips
  config.data.render.num_validation = 560
  config.data.render.num_test = 28
  config.data.render.difficulty = 1.0  # 0..1, the larger the subtler the pairs
  config.data.render.seed = 0
  config.data.render.workers = 2  # processes that render and decode

  config.model = ml_collections.ConfigDict()
  config.model.backbone = ml_collections.ConfigDict()
  config.model.backbone.name = "preact_resnet"  # see u2s_jax/models/backbones.py
  config.model.backbone.depth = 14  # 18, 34, 50, 101, 152, or small: 14, 26
  config.model.backbone.width = 8
  config.model.backbone.strides = (1, 2, 2, 1)  # no stride in group 3: masks of 4 x 4
  config.model.backbone.stem_pool = True
  config.model.backbone.temporal = ((3, 3, 3, 3), (3, 3, 3, 1))
  config.model.attention = "mask"
  config.model.mask_activation = "sigmoid"
  config.model.non_local_width = 16
  config.model.specific_init = "universal"
  config.model.dtype = "float32"
  config.model.convolution = "auto"
  config.model.remat = False
  config.model.pixel_mean = (0.3, 0.3, 0.3)
  config.model.pixel_std = (0.25, 0.25, 0.25)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.momentum = 0.9
  config.optimizer.weight_decay = 1e-4

  config.universal = ml_collections.ConfigDict()
  config.universal.learning_rate = 0.05  # from random weights, not from Kinetics
  config.universal.epochs = 24.0
  config.universal.decay = "epochs"
  config.universal.decay_epochs = (15.0, 21.0)
  config.universal.patience = 2
  config.specific = ml_collections.ConfigDict(config.universal.to_dict())
  config.specific.epochs = 10.0
  config.specific.decay_epochs = (6.0, 9.0)
  config.joint = ml_collections.ConfigDict(config.universal.to_dict())
  config.joint.learning_rate = 0.002
  config.joint.epochs = 5.0
  config.joint.decay_epochs = (3.0,)
  config.regularizer_weight = 0.5
  config.control = False

  config.csm = ml_collections.ConfigDict()
  config.csm.target_accuracy = 0.9
  config.csm.distance = "cosine"
  config.csm.n = 0  # confusing classes a class on average (Fig. 8); 0: target_accuracy decides
  # Masks that are combined: of the 'confusing' classes (paper), the 'own' one alone (Table III b),
  # or all, weighed by similarity: 'soft' (Table III c).
  config.csm.selection = "confusing"
  # The class whose column of the CSM selects them: the universal network's 'prediction' (paper), or
  # the 'label', in tests too: an upper bound, no result (Table III f).
  config.csm.guide = "prediction"

  config.eval = ml_collections.ConfigDict()
  config.eval.split = "validation"
  config.eval.views = "3crop"
  # Most similar pairs of classes whose features and masks are kept for the report; 0: nothing is.
  config.eval.pairs = 4
  # Names of classes whose gain over one-pass is shown apart, as in Table IV.
  config.eval.classes = ()
  config.eval.batch_size = 32

  config.log_every_steps = 20
  # Writes a profile of five steps to <workdir>/profile, which ui.perfetto.dev opens.
  config.profile = False
  config.checkpoint_every_steps = 100
  return config
