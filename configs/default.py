"""Every field of an experiment once: its unit, the paper's value, and why. Not to be run itself.

An experiment is a file beside this one that changes what differs; its fields as a run used them
stand in `<workdir>/config.json`. On the command line: `--config.<field>=<value>`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the paper's values for RGB video, its ResNet-50, and no data set."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # of the initial weights, the order of the clips and their crops
  # Clips of a global batch (paper: 20); BN sees all of them as one batch. Where the devices do not
  # divide it, it is made larger and the learning rates in proportion, which the run says.
  config.batch_size = 20
  # Parts of a batch that are computed one after the other, where memory is short: their gradients
  # are added up, BN sees each as a batch. 1: off (paper).
  config.accumulate_steps = 1
  # Another run's workdir, or a file of weights (docs/weights.md; also gs://... or
  # hf://<owner>/<repository>/<file>), that stage 1 starts from. It is read once, and copied to
  # <workdir>/start.safetensors.
  config.init_from = ""

  config.data = ml_collections.ConfigDict()
  config.data.dir = ""  # a data set that `python -m data.prepare` wrote
  config.data.modality = "rgb"  # what it holds: 'rgb' or 'flow'
  config.data.num_frames = 18  # frames of a clip (paper: 18); an image is a clip of 1
  config.data.flow_pairs = 5  # with flow: x/y pairs stacked at each of the frames (TSN's: 5)
  # Whether each segment of a training clip draws its own frame (TSN's and TSM's authors) instead of
  # one offset for all segments (paper).
  config.data.offset_per_segment = False
  config.data.short_edge = 240  # pixels that frames are resized to (paper: 240)
  config.data.crop_size = 224  # pixels (paper: 224)
  # Training crops of other sizes, resized to crop_size, as shares of the short edge; TSN's are
  # (1.0, 0.875, 0.75, 0.66). Empty: off (paper).
  config.data.multi_scale = ()
  # Largest change of brightness, contrast, saturation (relative) and hue (share of the colour
  # circle, up to 0.5), drawn once for a training clip. 0: off (paper).
  config.data.color_jitter = (0.0, 0.0, 0.0, 0.0)
  # Mirror half of the training clips. Only where no class has a side ("from left to right"), or
  # where flip_label_map says what it turns into (paper: no on Something-Something).
  config.data.flip = False
  # Pairs of labels that mirror into each other, as ((3, 4),): labels of mirrored training clips and
  # scores of 10-crop's mirrored views are swapped.
  config.data.flip_label_map = ()
  # How often clips of rare classes are drawn in training, from 0, as the data are (paper), to 1,
  # every class alike: a class of n clips gets n ** (1 - balance) shares of an epoch.
  config.data.balance = 0.0
  config.data.num_threads = 0  # of the input pipeline; 0: as many as it finds useful

  config.model = ml_collections.ConfigDict()
  config.model.backbone = ml_collections.ConfigDict()
  config.model.backbone.name = "preact_resnet"  # of u2s_jax/models/backbones.py
  config.model.backbone.depth = 50  # 18, 34, 50 (paper), 101, 152, or small: 14, 26
  config.model.backbone.width = 64  # channels of the stem
  config.model.backbone.strides = (1, 2, 2, 2)  # spatial, of groups 0-3
  config.model.backbone.stem_pool = True  # 3x3/2 max pool behind the stem
  # Frames seen by the three convolutions and the projection of a bottleneck in groups 2 and 3.
  # These give Table III's parameter column; all 1: the plain 2D ResNet.
  config.model.backbone.temporal = ((3, 3, 3, 3), (3, 3, 3, 1))
  config.model.attention = "mask"  # 'mask' (paper), 'non_local' (Table III e), 'none' (Table III d)
  # Of the combined mask: 'none' (paper, whose text names none), or 'sigmoid', a variant of ours.
  config.model.mask_activation = "none"
  # Largest root mean square over a clip of a mask without activation; a larger mask is scaled down
  # to it. Ours, and on in the configs of the paper's rows too. Unlimited (0: the paper) it
  # multiplies features by 3 +- 7, and from random weights, at their high learning rates, the CSN
  # dies (docs/evidence.md).
  config.model.mask_limit = 1.0
  # End the gradients of L_C and L_M in front of trunk and UN (paper: no): these then bear the
  # learning rates of the one-pass model, which are higher (docs/evidence.md).
  config.model.detached = False
  # Share of the channels that training drops in front of each network's classifier, [0, 1) (paper:
  # no; TSN's and TSM's authors: 0.5).
  config.model.dropout = 0.0
  config.model.non_local_width = 96  # channels of the non-local embeddings (Table III e)
  # Where the CSN starts: 'pretrained' (paper), the weights that stage 1 started from: init_from's
  # or, where stage 1 is another run's, that run's; without any, as 'universal', a copy of the UN;
  # or 'random'.
  config.model.specific_init = "pretrained"
  # Of the computation: 'float32' or 'bfloat16'. GPUs multiply float32 numbers in TF32, with the ten
  # bits behind the point that JAX's default takes; JAX_DEFAULT_MATMUL_PRECISION=highest takes all.
  config.model.dtype = "float32"
  # How convolutions over several frames are computed: 'direct', 'concatenated', 'shifted' (see
  # u2s_jax/models/conv.py), or 'auto', the faster for each.
  config.model.convolution = "auto"
  # Keep the inputs of blocks alone for the backward pass: a third more work, little memory.
  config.model.remat = False
  # Of bytes / 255, ImageNet's; a single number stands for all channels, () for those that the
  # weights of init_from were trained with. Others than these are an error or a line.
  config.model.pixel_mean = (0.485, 0.456, 0.406)
  config.model.pixel_std = (0.229, 0.224, 0.225)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.momentum = 0.9  # of SGD, in [0, 1) (paper: 0.9)
  config.optimizer.weight_decay = 1e-4  # added to the gradient (paper: 1e-4)
  # Largest norm of the gradient over all that is trained; a larger one is scaled down to it. 0: off
  # (paper; TSM's authors: 20).
  config.optimizer.clip_norm = 0.0
  # Share of the label that goes to all classes alike, [0, 1) (paper: 0).
  config.label_smoothing = 0.0

  # Stage 1, 2, 3.
  config.universal = ml_collections.ConfigDict()
  config.universal.learning_rate = 1e-3  # at the stage's start (paper: 1e-3)
  config.universal.epochs = 15.0  # the paper names the decays only; 0: stage 1 is init_from's
  # 'epochs' divides the learning rate by 10 after each of decay_epochs, 'plateau' when the
  # validation error has not fallen for `patience` validations (paper: either); 'cosine' lets it
  # fall to 0 at the stage's end along half a cosine.
  config.universal.decay = "epochs"
  config.universal.decay_epochs = (7.0, 12.0)  # paper: 7 and 12
  config.universal.patience = 2  # validations, see eval.every_epochs
  # Epochs in which the learning rate first rises from 0, as large batches want it (paper: 0).
  config.universal.warmup_epochs = 0.0
  # Factors of the learning rate, of the classifiers' kernels and biases (paper: none; TSM's
  # authors: 5 and 10).
  config.universal.classifier_rates = (1.0, 1.0)
  # Of the initial kernels of classifiers that begin in this stage, normally distributed (the paper
  # does not say; TSM's authors: 0.001).
  config.universal.classifier_deviation = 0.01
  config.specific = ml_collections.ConfigDict(config.universal.to_dict())  # paper: as stage 1
  config.joint = ml_collections.ConfigDict(config.universal.to_dict())
  config.joint.learning_rate = 1e-4  # paper: 1e-4
  config.joint.epochs = 5.0  # the paper does not say
  config.joint.decay_epochs = ()
  config.regularizer_weight = 0.5  # lambda of Eq. 3 (paper: 0.5; 0 is Table II's first row)
  # Stages 2 and 3 go on training the one-pass model instead, as long, at the same learning rates:
  # the control that a comparison with U2S has to carry.
  config.control = False
  # What learns, in the stages that train it (paper: all): subnetworks, or groups and layers of them
  # by name, as 'universal/group3' or 'universal/head'. All else keeps the weights that it starts
  # from, and its BN statistics: without 'trunk', little data spoil it less; heads alone: a linear
  # probe. Where only parts of a subnetwork learn, its BN keeps its statistics too.
  config.trainable = ("trunk", "universal", "specific", "mask", "non_local")

  config.csm = ml_collections.ConfigDict()
  # N is the smallest with top-N accuracy >= this (paper: 0.85 SSv2, 0.95 UCF101 and Cars, 0.9
  # HMDB51 and Dogs). It is read off the labels of the split `validation`, centre view; the paper
  # does not say. On UCF101, HMDB51, Cars and Dogs that is the official test list: csm.n sets N
  # without it.
  config.csm.target_accuracy = 0.9
  config.csm.distance = "cosine"  # f_dist of Eq. 2: 'cosine' or 'euclidean'
  # Other classes that a class is confused with, on average (Fig. 8); 0: target_accuracy decides.
  config.csm.n = 0
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
  # Keeps beside the last checkpoint stage 3's of the best validation accuracy (centre view), for
  # --best (paper: the last one). Chosen on the validation split it looks better there than it is.
  config.eval.keep_best = False
  # Names of classes whose gain over one-pass is shown apart, as in Table IV.
  config.eval.classes = ()
  config.eval.batch_size = 20  # clips, of all views each
  # Epochs of training from one validation to the next; each stage's end has one in any case. With
  # decay = 'plateau' its `patience` counts validations.
  config.eval.every_epochs = 1

  config.log_every_steps = 50
  # Writes a profile of five steps to <workdir>/profile, which ui.perfetto.dev opens.
  config.profile = False
  config.checkpoint_every_steps = 1000
  # Seconds without a sign of life after which one of several processes counts as dead, and the
  # others end: too few, and one that swaps or waits for its disk ends them all.
  config.dead_process_seconds = 40.0
  return config


def set_flow(config: ml_collections.ConfigDict) -> None:
  """Makes the input optical flow: one mean and deviation for all channels."""
  config.data.modality = "flow"
  config.model.pixel_mean = (128 / 255,)  # the byte that codes no motion
  config.model.pixel_std = (0.226,)  # ImageNet's deviation, as TSN takes it


def set_modality(config: ml_collections.ConfigDict, modality: str) -> None:
  """Makes the input 'rgb', as it is, or 'flow': what stands behind the colon of `--config`."""
  if modality not in ("rgb", "flow"):
    raise ValueError(f"--config=...:{modality}: behind the colon goes rgb or flow")
  if modality == "flow":
    set_flow(config)


def set_images(config: ml_collections.ConfigDict) -> None:
  """Makes the input images, clips of one frame, and the network 2D."""
  config.data.num_frames = 1
  config.data.flip = True  # the paper does not say
  config.model.backbone.temporal = ((1, 1, 1, 1), (1, 1, 1, 1))


def set_render(config: ml_collections.ConfigDict) -> None:
  """Has the data set rendered and prepared first; without `data.dir` in <workdir>/prepared."""
  config.data.render = ml_collections.ConfigDict()
  config.data.render.dir = ""  # of the videos; empty: <workdir>/tiny_something
  config.data.render.num_train = 350  # clips: ten a class, so that networks learn by heart
  config.data.render.num_validation = 560  # clips
  config.data.render.num_test = 35  # clips
  config.data.render.difficulty = 1.0  # 0..1, the larger the subtler the differences in a family
  # 0..1: the action from the whole frame down to half its height, among up to ten other things.
  config.data.render.clutter = 0.0
  config.data.render.seed = 0
  config.data.render.workers = 2  # processes that render and decode
