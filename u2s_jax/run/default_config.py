"""Defines every config field, with its unit, the paper's value and the reason for the default.

This is not an experiment: those are files in `configs/` that override fields of this config. On the
command line use `--config.<field>=<value>`. `<workdir>/config.json` has the config of a run.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Returns the paper's config for RGB video with ResNet-50, without a data set."""
  config = ml_collections.ConfigDict()
  config.seed = 0  # random seed of the initial weights, the order of clips and the crops
  # Global batch size in clips (paper: 20); batch normalization uses the global batch. If it is not
  # divisible by the devices, a run increases it, scales the learning rates in proportion, and
  # prints both.
  config.batch_size = 20
  # Number of parts that a batch is computed in, to save memory. Gradients of the parts are added;
  # batch normalization uses each part alone. 1: off (paper).
  config.accumulate_steps = 1
  # Pretrained weights of stage 1: the workdir of another run, or a file (docs/weights.md), also
  # gs://... or hf://<owner>/<repository>/<file>. Read once and copied to
  # <workdir>/start.safetensors.
  config.init_from = ""

  config.data = ml_collections.ConfigDict()
  config.data.dir = ""  # directory of a data set written by `python -m data.prepare`
  config.data.modality = "rgb"  # of the data set: 'rgb' or 'flow'
  config.data.num_frames = 18  # frames per clip (paper: 18); an image is a clip of 1 frame
  config.data.flow_pairs = 5  # for 'flow': x/y pairs stacked at each frame (TSN: 5)
  # Whether to sample a frame from each segment of a training clip independently (TSN's and TSM's
  # authors) instead of with one offset for all segments (paper).
  config.data.offset_per_segment = False
  config.data.short_edge = 240  # pixels; frames are resized to this short edge (paper: 240)
  config.data.crop_size = 224  # pixels (paper: 224)
  # Sizes of training crops as fractions of the short edge, each resized to crop_size. TSN uses
  # (1.0, 0.875, 0.75, 0.66). Empty: off (paper).
  config.data.multi_scale = ()
  # Maximum change of brightness, contrast, saturation (relative) and hue (fraction of the colour
  # circle, at most 0.5), sampled once per training clip. 0: off (paper).
  config.data.color_jitter = (0.0, 0.0, 0.0, 0.0)
  # Whether to mirror half of the training clips. Use it only if no class depends on left and right
  # ("from left to right"), or with flip_label_map (paper: no on Something-Something).
  config.data.flip = False
  # Pairs of labels that mirror into each other, for example ((3, 4),). The labels of mirrored
  # training clips and the scores of mirrored views in 10-crop evaluation are swapped.
  config.data.flip_label_map = ()
  # Class balancing of the training clips, from 0 (none, paper) to 1 (all classes equally often): a
  # class of n clips has the weight n ** (1 - balance) in an epoch.
  config.data.balance = 0.0
  # Whether to compute the features of a trunk that is not trained once, store them next to the data
  # set, and train the branches from there (paper: the trunk is trained).
  config.data.cache_features = False
  # Augmented views of a training clip in this cache, which take turns by epoch. 0: the centre view.
  config.data.cache_views = 0
  config.data.num_threads = 0  # threads of the input pipeline; 0: chosen automatically

  config.model = ml_collections.ConfigDict()
  config.model.backbone = ml_collections.ConfigDict()
  config.model.backbone.name = "preact_resnet"  # see u2s_jax/models/backbones.py
  config.model.backbone.depth = 50  # 18, 34, 50 (paper), 101, 152, or small: 14, 26
  config.model.backbone.width = 64  # channels of the stem
  config.model.backbone.strides = (1, 2, 2, 2)  # spatial strides of groups 0-3
  config.model.backbone.stem_pool = True  # whether a 3x3/2 max pool follows the stem
  # Temporal kernel sizes of the three convolutions and the projection of a bottleneck, in groups 2
  # and 3. These values give the parameter counts of Table III; all 1: a 2D ResNet.
  config.model.backbone.temporal = ((3, 3, 3, 3), (3, 3, 3, 1))
  config.model.attention = "mask"  # 'mask' (paper), 'non_local' (Table III e), 'none' (Table III d)
  # Activation of the combined mask: 'none' (paper, whose text names no activation) or 'sigmoid', an
  # extension.
  config.model.mask_activation = "none"
  # Maximum root mean square over a clip of a mask without activation; larger masks are scaled down.
  # An extension, also used in the configs that reproduce the paper's results. Without a limit (0,
  # paper) the mask multiplies features by 3 +- 7: trained from scratch, with its high learning
  # rates, the CSN does not recover (docs/evidence/rendered.md).
  config.model.mask_limit = 1.0
  # Whether to stop the gradients of L_C and L_M before the trunk and the UN (paper: no). They then
  # tolerate the higher learning rates of the one-pass model (docs/evidence/rendered.md).
  config.model.detached = False
  # Dropout rate before the classifier of each network, in [0, 1) (paper: 0; TSN's and TSM's
  # authors: 0.5).
  config.model.dropout = 0.0
  config.model.non_local_width = 96  # channels of the non-local embeddings (Table III e)
  # Initialization of the CSN: 'pretrained' (paper), 'universal' or 'random'. 'pretrained': the
  # weights that stage 1 started from, in this run or in the run whose stage 1 init_from provides;
  # without pretrained weights, as 'universal'. 'universal': a copy of the UN.
  config.model.specific_init = "pretrained"
  # Dtype of the computation: 'float32' or 'bfloat16'. GPUs multiply float32 matrices in TF32, with
  # a 10-bit mantissa, which is JAX's default; JAX_DEFAULT_MATMUL_PRECISION=highest uses all bits.
  config.model.dtype = "float32"
  # Algorithm of convolutions over several frames: 'direct', 'concatenated', 'shifted' (see
  # u2s_jax/models/conv.py), or 'auto', the fastest for each shape.
  config.model.convolution = "auto"
  # Rematerialization: keep only the inputs of blocks for the backward pass. Saves most of the
  # memory for a third more computation.
  config.model.remat = False
  # Mean and deviation of pixels / 255; the default is ImageNet's. A single value applies to all
  # channels; () uses the values of init_from's weights. Other values than those of the weights
  # cause an error or a note.
  config.model.pixel_mean = (0.485, 0.456, 0.406)
  config.model.pixel_std = (0.229, 0.224, 0.225)

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.momentum = 0.9  # SGD momentum, in [0, 1) (paper: 0.9)
  config.optimizer.weight_decay = 1e-4  # added to the gradient (paper: 1e-4)
  # Maximum global norm of the gradient; larger gradients are scaled down. 0: off (paper; TSM's
  # authors: 20).
  config.optimizer.clip_norm = 0.0
  # Label smoothing: probability spread evenly over all classes, in [0, 1) (paper: 0).
  config.label_smoothing = 0.0

  # Stages 1, 2 and 3.
  config.universal = ml_collections.ConfigDict()
  config.universal.learning_rate = 1e-3  # initial learning rate of the stage (paper: 1e-3)
  # Epochs of the stage (the paper gives only the decays). 0: take stage 1 from init_from.
  config.universal.epochs = 15.0
  # Learning rate schedule. 'epochs' divides it by 10 after each of decay_epochs; 'plateau' when the
  # validation error has not decreased for `patience` validations (paper: either); 'cosine' decays
  # it to 0 at the end of the stage along half a cosine.
  config.universal.decay = "epochs"
  config.universal.decay_epochs = (7.0, 12.0)  # paper: 7 and 12; below 1: shares of the stage
  config.universal.patience = 2  # validations, see eval.every_epochs
  # Early stopping: the stage ends after so many validations without a lower error. 0: off (paper).
  config.universal.stop_patience = 0
  # Epochs of linear warm-up from 0, for large batches (paper: 0).
  config.universal.warmup_epochs = 0.0
  # Factors of the learning rate for kernels and biases of the classifiers (paper: none; TSM's
  # authors: 5 and 10).
  config.universal.classifier_rates = (1.0, 1.0)
  # Standard deviation of the normal distribution that initializes the kernels of classifiers added
  # in this stage (unspecified in the paper; TSM's authors: 0.001).
  config.universal.classifier_deviation = 0.01
  config.specific = ml_collections.ConfigDict(config.universal.to_dict())  # paper: as stage 1
  config.joint = ml_collections.ConfigDict(config.universal.to_dict())
  config.joint.learning_rate = 1e-4  # paper: 1e-4
  config.joint.epochs = 5.0  # unspecified in the paper
  config.joint.decay_epochs = ()
  config.regularizer_weight = 0.5  # lambda of Eq. 3 (paper: 0.5; first row of Table II: 0)
  # Whether stages 2 and 3 continue to train the one-pass model instead, for as many epochs and with
  # the same learning rates: the control for any comparison with U2S.
  config.control = False
  # Parameters that are trained, in the stages that train them (paper: all): subnetworks, or their
  # groups and layers, for example 'universal/group3' or 'universal/head'. Everything else keeps its
  # initial weights and BN statistics; so does batch normalization in a subnetwork that is trained
  # only in part. Omit 'trunk' to overfit less on small data sets; train only heads for a linear
  # probe.
  config.trainable = ("trunk", "universal", "specific", "mask", "non_local")

  config.csm = ml_collections.ConfigDict()
  # N is the smallest number with top-N accuracy >= this value (paper: 0.85 for SSv2, 0.95 for
  # UCF101 and Cars, 0.9 for HMDB51 and Dogs), measured on the split `validation` with the centre
  # view (unspecified in the paper). On UCF101, HMDB51, Cars and Dogs that split is the official
  # test list; set csm.n to choose N without it.
  config.csm.target_accuracy = 0.9
  config.csm.distance = "cosine"  # f_dist of Eq. 2: 'cosine' or 'euclidean'
  # Average number of confusing classes per class (Fig. 8); 0: determined by target_accuracy.
  config.csm.n = 0
  # Masks to combine: of the 'confusing' classes (paper), of the class itself ('own', Table III b),
  # or of all classes weighted by similarity ('soft', Table III c).
  config.csm.selection = "confusing"
  # Class whose column of the CSM selects the masks: the 'prediction' of the universal network
  # (paper), or the 'label', also in evaluations: an upper bound, not a result (Table III f).
  config.csm.guide = "prediction"

  config.eval = ml_collections.ConfigDict()
  config.eval.split = "validation"  # with --mode=eval also 'test' or 'train'
  # Views of the final evaluation: 'center', '3crop', '5crop' or '10crop' (paper: 10 crops).
  config.eval.views = "10crop"
  # Number of most similar class pairs whose features and masks are saved for the report; 0: none.
  config.eval.pairs = 4
  # Whether to also keep the checkpoint of stage 3 with the best validation accuracy (centre view),
  # for --best (paper: the last checkpoint is used). Its accuracy on the validation split is biased,
  # since it was selected on that split.
  config.eval.keep_best = False
  # Whether to fit a temperature to the merged scores of the validation split at the end, so that
  # scores of predictions are probabilities of being correct. Accuracies do not change (paper: no).
  config.eval.calibrate = False
  # Names of classes whose gain over the one-pass model is reported separately, as in Table IV.
  config.eval.classes = ()
  config.eval.batch_size = 20  # clips, each with all its views
  # Epochs between validations; every stage also ends with one. For decay = 'plateau', `patience`
  # counts these validations.
  config.eval.every_epochs = 1

  config.log_every_steps = 50
  # Whether to write a profile of five steps to <workdir>/profile, for ui.perfetto.dev.
  config.profile = False
  config.checkpoint_every_steps = 1000
  # Heartbeat timeout in seconds: if a process sends no heartbeat for this long, all others stop. If
  # it is too short, a process that swaps or waits for its disk stops the run.
  config.dead_process_seconds = 40.0
  return config
