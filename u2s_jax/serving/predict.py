"""What a trained run says of clips, with nothing but its workdir at hand."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, UInt8

from u2s_jax import checkpoint, devices, saved_config, settings
from u2s_jax.csm import CategorySimilarity
from u2s_jax.errors import UserError
from u2s_jax.evaluation import inference
from u2s_jax.evaluation.scores import FUSIONS, fuse
from u2s_jax.models.network import Network
from u2s_jax.stages import BEST, STAGES
from u2s_jax.state import TrainState
from u2s_jax.views import mirrors
from u2s_jax.workdir import Workdir

TOP = 5  # classes that are shown
# Clips that are queued on the device at a time. A CPU gains nothing by more.
CLIPS = {"cpu": 1}
CLIPS_ELSEWHERE = 8


@dataclasses.dataclass(frozen=True)
class Trained:
  """What a run has learned.

  Attributes:
    config: that it began with.
    class_names: in the order of the labels.
    stored: how the data set was prepared that it was trained on.
    network: the networks; the universal network's prediction selects the masks, also where
      `csm.guide` was the label, which a file does not have.
    state: their parameters and statistics, and the CSM.
    best: whether it is the checkpoint that `eval.keep_best` chose, not the last one.
  """

  config: ml_collections.ConfigDict
  class_names: tuple[str, ...]
  stored: dict[str, Any]
  network: Network
  state: TrainState
  best: bool

  @property
  def variables(self) -> dict[str, Any]:
    """Returns `params` and `batch_stats` by subnetwork."""
    return {"params": self.state.params, "batch_stats": self.state.batch_stats}

  @property
  def outputs(self) -> Callable[[UInt8[Array, "n t h w c"]], dict[str, Array]]:
    """Returns (video) -> `inference.make_predict_step`'s, to be jitted."""
    return functools.partial(inference.make_predict_step(self.network), self.state)

  def __reduce__(self):
    # Networks hold functions, which do not pickle: they are built from the config again.
    tree = {**self.variables, "csm": vars(self.state.csm)}
    tree = jax.tree.map(np.asarray, tree)
    return _trained, (self.config, self.class_names, self.stored, self.best, tree)


def load(workdir: Workdir, best: bool = False) -> Trained:
  """Reads a run's newest checkpoint.

  Args:
    workdir: the run's folder.
    best: whether to take the one that `eval.keep_best` chose instead.

  Raises:
    UserError: there is no run, none that has trained, or none that kept its best checkpoint.
  """
  config = saved_config.read(workdir)
  if config:
    try:
      settings.check_values(config)
    except UserError as error:
      raise UserError(f"{workdir.config}: {error}") from error
  kept = (BEST,) if best else STAGES
  newest = checkpoint.read_networks(workdir.checkpoints, kept) if config else None
  if config and best and not newest:
    raise UserError(f"{workdir.root}: kept no best checkpoint; see eval.keep_best")
  if not newest:
    raise UserError(f"{workdir.root}: no run that has trained; train first")
  _, tree, record = newest
  return _trained(config, tuple(record["model"]["class_names"]), record["stored"], best, tree)


def _trained(
  config: ml_collections.ConfigDict,
  class_names: tuple[str, ...],
  stored: dict[str, Any],
  best: bool,
  tree: dict[str, Any],
) -> Trained:
  """Makes networks and state of a checkpoint's tree: `params`, `batch_stats` and `csm`."""
  network = dataclasses.replace(
    settings.build_network(config, len(class_names)), guide="prediction"
  )
  csm = CategorySimilarity(**tree["csm"])
  state = TrainState(
    step=0, momentum=(), csm=csm, params=tree["params"], batch_stats=tree["batch_stats"]
  )
  state = jax.tree.map(jnp.asarray, state)
  return Trained(config, class_names, stored, network, state, best)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a run says of one clip.

  Attributes:
    scores: softmax scores (m,) of each prediction: 'universal' and, behind stage 1, 'bridge' and
      'specific'; averaged over the views.
    class_names: in the order of the labels.
  """

  scores: dict[str, Float[np.ndarray, " m"]]
  class_names: tuple[str, ...]

  @property
  def merged(self) -> Float[np.ndarray, " m"]:
    """Returns the mean of all predictions: the paper's final score."""
    return self.fused(tuple(self.scores))

  @property
  def label(self) -> str:
    """Returns the class that scores best."""
    return self.class_names[int(self.merged.argmax())]

  @property
  def score(self) -> float:
    """Returns its score, in [0, 1]."""
    return float(self.merged.max())

  def fused(self, names: Sequence[str]) -> Float[np.ndarray, " m"]:
    """Returns the mean of some predictions."""
    return fuse({name: self.scores[name][None] for name in names}, names)[0]

  def best(self, names: Sequence[str] = ()) -> list[tuple[str, float]]:
    """Returns the five best classes with their scores, the best first.

    Args:
      names: of the predictions whose mean it is; empty: all.
    """
    scores = self.fused(names or tuple(self.scores))
    order = np.argsort(-scores, kind="stable")[:TOP]
    return [(self.class_names[i], float(scores[i])) for i in order]

  def fusions(self) -> dict[str, list[tuple[str, float]]]:
    """Returns `best` of every fusion of Table I, such as 'universal+specific'."""
    return {
      "+".join(names): self.best(names)
      for names in FUSIONS
      if all(name in self.scores for name in names)
    }


class Scorer:
  """Scores clips, each by the same program: the bits of its scores do not depend on the others.

  Attributes:
    clips: to be scored at a time.

  Args:
    trained: from `load`.
    views: of a clip, one of `views.VIEWS`.

  Raises:
    UserError: no such views, or mirrored ones of a network that never saw a mirrored clip.
  """

  def __init__(self, trained: Trained, views: str):
    data = trained.config.data
    settings.check_views(views, data)
    mirrored = mirrors(views, len(trained.class_names), data.flip_label_map)
    step = inference.make_score_step(trained.network, mirrored)
    self._class_names = trained.class_names

    def score(state, video):
      return step(state, {"video": video, "label": jnp.zeros(len(video), int)})

    compiled = functools.partial(jax.jit, compiler_options=devices.compiler_options())
    if jax.default_backend() == "cpu":
      # As a constant: of arguments XLA rearranges all kernels again for every view, which takes
      # longer than the convolutions of one clip.
      self._program = compiled(functools.partial(score, trained.state))
    else:
      self._program = functools.partial(compiled(score), trained.state)
    self.clips = CLIPS.get(jax.default_backend(), CLIPS_ELSEWHERE)

  def __call__(self, clips: Sequence[UInt8[np.ndarray, "v t h w c"]]) -> list[Prediction]:
    """Returns the predictions for clips, whose mirrored views are made on the device."""
    queued = [self._program(clip[None]) for clip in clips]
    return [
      Prediction({name: values[0] for name, values in scores.items()}, self._class_names)
      for scores in jax.device_get(queued)
    ]
