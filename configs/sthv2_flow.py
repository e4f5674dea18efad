"""U2S on Something-Something V2, optical flow: the second stream of the paper's Table V.

  python -m data.prepare --dataset=ssv2 --modality=flow --source=/path/to/sthv2 \
      --out=/data/sthv2_flow
  python main.py --config=configs/sthv2_flow.py --workdir=/runs/sthv2_flow \
      --config.data.dir=/data/sthv2_flow --config.init_from=/runs/sthv2

`init_from` starts from the RGB run, its first convolution averaged over the colours, as in TSN.

Expected, from the paper (Table V, validation, top-1 / top-5 in percent), RGB and flow together:
one-pass 59.37 / 85.48, U2S 61.46 / 87.71; it does not give flow alone. Not run here. Cost:
TV-L1 takes half a second a pair of frames and core (`--flow_algorithm=dis` 2 ms).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the paper's experiment."""
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
  config.data.modality = "flow"  # what it holds: 'rgb' or 'flow'
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
  # Mirror half of the training clips (paper: no, some classes have a side).
  config.data.flip = False
  # Classes that mirror into each other (pulling, pushing, turning the camera left / right): labels
  # of mirrored training clips and scores of 10-crop's mirrored views are swapped.
  config.data.flip_label_map = ((86, 87), (93, 94), (166, 167))
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
  # Of bytes / 255, for all channels: 128 is no motion; ImageNet's deviation, as TSN takes it.
  config.model.pixel_mean = (128 / 255,)
  config.model.pixel_std = (0.226,)

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
  config.csm.target_accuracy = 0.85  # N is the smallest with top-N >= this (paper: 85 % here)
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
  config.eval.classes = (
    "Bending something so that it deforms",
    "Bending something until it breaks",
    "Pretending to throw something",
    "Throwing something",
    "Putting something into something",
    "Taking something out of something",
    "Digging something out of something",
    "Pouring something out of something",
  )
  config.eval.batch_size = 20  # clips, of all views each

  config.log_every_steps = 50
  # Writes a profile of five steps to <workdir>/profile, which ui.perfetto.dev opens.
  config.profile = False
  config.checkpoint_every_steps = 1000
  return config
