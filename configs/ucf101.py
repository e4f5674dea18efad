"""U2S on UCF101, RGB or optical flow, ResNet-50: the paper's values where it gives them.

  python -m data.prepare --dataset=ucf101 --split=1 --source=/path/to/ucf101 --out=/data/ucf101
  python main.py --config=configs/ucf101.py --workdir=/runs/ucf101 --config.data.dir=/data/ucf101

  python -m data.prepare --dataset=ucf101 --split=1 --modality=flow --source=/path/to/ucf101 \
      --out=/data/ucf101_flow
  python main.py --config=configs/ucf101.py:flow --workdir=/runs/ucf101_flow \
      --config.data.dir=/data/ucf101_flow --config.init_from=/runs/ucf101

The official test list is the split `validation` here.

Expected, from the paper (Table VI, 10 crops, top-1 / top-5 in percent; it does not say on which
split): RGB one-pass 89.16 / 98.57, U2S 92.31 / 98.38; flow 80.48 / 94.71 and 82.66 / 95.08;
together 92.43 / 98.73 and 94.32 / 98.89. Not run here: those weights start from Kinetics. From
random weights about 40 % is usual (kenshohara/3D-ResNets-PyTorch#85).
"""

import ml_collections


def get_config(modality: str = "rgb") -> ml_collections.ConfigDict:
  """Returns the paper's experiment.

  Args:
    modality: 'rgb' or 'flow', behind a colon in --config.
  """
  config = ml_collections.ConfigDict()
  config.seed = 0  # of the initial weights, the order of the clips and their crops
  config.batch_size = 20  # clips of a global batch (paper: 20); BN sees all of them as one batch
  # Parts of a batch that are computed one after the other, where memory is short: their gradients
  # are added up, BN sees each as a batch. 1: off (paper).
  config.accumulate_steps = 1
  # Another run's workdir, or a file of weights (u2s_jax/pretrained.py), that stage 1 starts from.
  config.init_from = ""

  config.data = ml_collections.ConfigDict()
  config.data.dir = ""  # a data set that `python -m data.prepare` wrote
  config.data.modality = modality  # what it holds: 'rgb' or 'flow'
  config.data.num_frames = 18  # frames of a clip (paper: 18)
  config.data.flow_pairs = 5  # with flow: x/y pairs stacked at each of the frames (TSN's: 5)
  config.data.short_edge = 240  # pixels that frames are resized to (paper: 240)
  config.data.crop_size = 224  # pixels (paper: 224)
  # Training crops of other sizes, resized to crop_size, as shares of the short edge; TSN's are
  # (1.0, 0.875, 0.75, 0.66). Empty: off (paper).
  config.data.multi_scale = ()
  # Largest change of brightness, contrast, saturation (relative) and hue (share of the colour
  # circle, up to 0.5), drawn once for a training clip. 0: off (paper).
  config.data.color_jitter = (0.0, 0.0, 0.0, 0.0)
  # Mirror half of the training clips: no class has a side (the paper does not say).
  config.data.flip = True
  config.data.flip_label_map = ()  # pairs of classes that mirror into each other
  config.data.num_threads = 0  # of the input pipeline; 0: as many as it finds useful

  config.model = ml_collections.ConfigDict()
  config.model.backbone = ml_collections.ConfigDict()
  config.model.backbone.name = "preact_resnet"  # see u2s_jax/models/backbones.py
  config.model.backbone.depth = 50  # 18, 34, 50, 101, 152, or small: 14, 26
  config.model.backbone.width = 64  # channels of the stem
  config.model.backbone.strides = (1, 2, 2, 2)  # spatial, of groups 0-3
  config.model.backbone.stem_pool = True  # 3x3/2 max pool behind the stem
  # Frames seen by the three convolutions and the projection of a bottleneck in groups 2 and 3.
  # These give Table III's parameter column.
  config.model.backbone.temporal = ((3, 3, 3, 3), (3, 3, 3, 1))
  config.model.attention = "mask"  # 'mask' (paper), 'non_local' (Table III e), 'none' (Table III d)
  config.model.mask_activation = "sigmoid"  # 'sigmoid' or 'none', of the combined mask
  config.model.non_local_width = 96  # channels of the non-local embeddings
  # Where the CSN starts: 'universal' (a copy of the UN), 'pretrained' (init_from) or 'random'.
  config.model.specific_init = "universal"
  config.model.dtype = "float32"  # of the computation: 'float32' or 'bfloat16'
  # How convolutions over several frames are computed: 'direct', 'concatenated', 'shifted' (see
  # u2s_jax/models/conv.py), or 'auto', the faster for each.
  config.model.convolution = "auto"
  # Keep the inputs of blocks alone for the backward pass: a third more work, little memory.
  config.model.remat = False
  # Of bytes / 255. RGB: ImageNet's. Flow, for all channels: 128 is no motion; ImageNet's deviation,
  # as TSN takes it.
  is_flow = modality == "flow"
  config.model.pixel_mean = (128 / 255,) if is_flow else (0.485, 0.456, 0.406)
  config.model.pixel_std = (0.226,) if is_flow else (0.229, 0.224, 0.225)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.momentum = 0.9  # paper: 0.9
  config.optimizer.weight_decay = 1e-4  # paper: 1e-4, added to the gradient

  # Stage 1, 2, 3. decay: 'epochs' divides the learning rate by 10 after each of decay_epochs,
  # 'plateau' when the validation error has not fallen for `patience` epochs.
  config.universal = ml_collections.ConfigDict()
  config.universal.learning_rate = 1e-3  # paper: 1e-3
  config.universal.epochs = 15.0  # the paper names the decays only
  config.universal.decay = "epochs"
  config.universal.decay_epochs = (7.0, 12.0)  # paper: 7 and 12
  config.universal.patience = 2  # epochs, for 'plateau'
  config.specific = ml_collections.ConfigDict(config.universal.to_dict())  # paper: as stage 1
  config.joint = ml_collections.ConfigDict(config.universal.to_dict())
  config.joint.learning_rate = 1e-4  # paper: 1e-4
  config.joint.epochs = 5.0  # the paper does not say
  config.joint.decay_epochs = ()
  config.regularizer_weight = 0.5  # lambda of Eq. 3 (paper: 0.5; 0 is Table II's first row)
  # Stages 2 and 3 go on training the one-pass model instead, as long, at the same learning rates:
  # the control that a comparison with U2S has to carry.
  config.control = False

  config.csm = ml_collections.ConfigDict()
  config.csm.target_accuracy = 0.95  # N is the smallest with top-N >= this (paper: 95 % here)
  config.csm.distance = "cosine"  # f_dist of Eq. 2: 'cosine' or 'euclidean'
  config.csm.n = 0  # confusing classes a class on average (Fig. 8); 0: target_accuracy decides
  # Masks that are combined: of the 'confusing' classes (paper), the 'own' one alone (Table III b),
  # or all, weighed by similarity: 'soft' (Table III c).
  config.csm.selection = "confusing"
  # The class whose column of the CSM selects them: the universal network's 'prediction' (paper), or
  # the 'label', in tests too: an upper bound, no result (Table III f).
  config.csm.guide = "prediction"

  config.eval = ml_collections.ConfigDict()
  config.eval.split = "validation"  # with --mode=eval also 'test' or 'train'
  config.eval.views = "10crop"  # at the end (paper: 10 crops): 'center', '3crop', '5crop', '10crop'
  # Most similar pairs of classes whose features and masks are kept for the report; 0: nothing is.
  config.eval.pairs = 4
  # Names of classes whose gain over one-pass is shown apart, as in Table IV.
  config.eval.classes = ()
  config.eval.batch_size = 20  # clips, of all views each

  config.log_every_steps = 50
  # Writes a profile of five steps to <workdir>/profile, which ui.perfetto.dev opens.
  config.profile = False
  config.checkpoint_every_steps = 1000
  return config
