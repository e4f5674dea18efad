"""Loads a trained run from its workdir, and scores clips."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, UInt8

from u2s_jax.csm import CategorySimilarity
from u2s_jax.evaluation import inference
from u2s_jax.evaluation.calibration import apply_temperature
from u2s_jax.evaluation.scores import FUSIONS, fuse
from u2s_jax.models.backbones import check_trusted
from u2s_jax.models.network import Network, build_network
from u2s_jax.run import checkpoint, saved_config, validation
from u2s_jax.run.state import TrainState
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices
from u2s_jax.runtime.errors import UserError
from u2s_jax.stages import BEST, STAGES
from u2s_jax.views import make_mirror_maps

TOP = 5  # number of best classes
CLIPS = 8  # queued on a device at a time; more than one would not make a CPU faster


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """The networks of a run, with its config and what is needed to score files.

  Attributes:
    class_names: in the order of the labels.
    stored: fields of `decode.Storage` of the training data, other than the modality.
    network: the networks; the universal network's prediction selects the masks, even if
      `csm.guide` was the label, which a file does not have.
    best: whether this is the checkpoint of `eval.keep_best`, not the last one.
    temperature: of the merged scores, see `Prediction`; 1 unless the run was calibrated.
  """

  config: ml_collections.ConfigDict
  class_names: tuple[str, ...]
  stored: dict[str, Any]
  network: Network
  state: TrainState
  best: bool
  temperature: float = 1.0

  @property
  def variables(self) -> dict[str, Any]:
    """`params` and `batch_stats`, by subnetwork."""
    return {"params": self.state.params, "batch_stats": self.state.batch_stats}

  @property
  def outputs(self) -> Callable[[UInt8[Array, "n t h w c"]], dict[str, Array]]:
    """The function of `inference.make_predict_step` with this state, not jitted."""
    return functools.partial(inference.make_predict_step(self.network), self.state)

  def __reduce__(self) -> tuple[Any, ...]:
    # Networks hold functions, which cannot be pickled, so they are rebuilt from the config.
    tree = jax.tree.map(np.asarray, {**self.variables, "csm": vars(self.state.csm)})
    fields = self.config, self.class_names, self.stored, self.best, self.temperature, tree
    return _build, fields


def load(workdir: Workdir, best: bool = False, backbone: str | None = None) -> TrainedRun:
  """Loads a run's newest checkpoint, or that of `eval.keep_best`.

  Args:
    backbone: see `u2s_jax.load`.

  Raises:
    UserError: if there is no run, it has no checkpoint, or no best one; or if its backbone is
      another package's and not `backbone`.
  """
  config, newest = saved_config.read(workdir), None
  if config:
    check_trusted(config.model.backbone.get("name", ""), backbone)
    try:
      validation.check_values(config)
    except UserError as error:
      raise UserError(f"{workdir.config}: {error}") from error
    newest = checkpoint.read_networks(workdir.checkpoints, (BEST,) if best else STAGES)
  if config and best and not newest:
    raise UserError(f"{workdir.root}: no best checkpoint; train with eval.keep_best=True")
  if not newest:
    raise UserError(f"{workdir.root}: no checkpoint of a run; train first")
  _, tree, record = newest
  names, temperature = tuple(record["model"]["class_names"]), _read_temperature(workdir, best)
  return _build(config, names, record["stored"], best, temperature, tree)


def _read_temperature(workdir: Workdir, best: bool) -> float:
  """Returns the temperature that a calibrated run has fitted for its last checkpoint."""
  if best or not workdir.summary.exists():
    return 1.0
  return json.loads(workdir.summary.read_text()).get("calibration", {}).get("temperature", 1.0)


def _build(
  config: ml_collections.ConfigDict,
  class_names: tuple[str, ...],
  stored: dict[str, Any],
  best: bool,
  temperature: float,
  tree: dict[str, Any],
) -> TrainedRun:
  """Builds the networks and their state from a checkpoint's `params`, `batch_stats` and `csm`."""
  network = dataclasses.replace(build_network(config, len(class_names)), guide="prediction")
  csm = CategorySimilarity(**tree["csm"])
  state = TrainState(
    step=0, momentum=(), csm=csm, params=tree["params"], batch_stats=tree["batch_stats"]
  )
  state = jax.device_put(state)  # `jnp.asarray` would compile a program for every shape
  return TrainedRun(config, class_names, stored, network, state, best, temperature)


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The scores of one clip.

  Attributes:
    scores: softmax scores by prediction: 'universal' and, after stage 1, 'bridge' and 'specific';
      averaged over the views.
    class_names: in the order of the labels.
    temperature: of the mean of all predictions, see `calibration.apply_temperature`.
  """

  scores: dict[str, Float[np.ndarray, " m"]]
  class_names: tuple[str, ...]
  temperature: float = 1.0

  @property
  def merged(self) -> Float[np.ndarray, " m"]:
    """Mean of all predictions, the paper's final scores, with the run's temperature."""
    return self.fused(tuple(self.scores))

  @property
  def label(self) -> str:
    """Name of the class with the highest score."""
    return self.class_names[int(self.merged.argmax())]

  @property
  def score(self) -> float:
    """Score of `label`, in [0, 1]."""
    return float(self.merged.max())

  def fused(self, names: Sequence[str]) -> Float[np.ndarray, " m"]:
    """Returns the mean of the named predictions."""
    mean = fuse({name: self.scores[name][None] for name in names}, names)
    is_of_all = len(names) == len(self.scores)  # the temperature was fitted for this mean
    return apply_temperature(mean, self.temperature if is_of_all else 1.0)[0]

  def best(self, names: Sequence[str] = ()) -> list[tuple[str, float]]:
    """Returns the five best classes of the mean of predictions, of all if none is named."""
    scores = self.fused(names or tuple(self.scores))
    order = np.argsort(-scores, kind="stable")[:TOP]
    return [(self.class_names[i], float(scores[i])) for i in order]

  def fusions(self) -> dict[str, list[tuple[str, float]]]:
    """Returns `best` for every fusion of Table I, such as 'universal+specific'."""
    return {
      "+".join(names): self.best(names)
      for names in FUSIONS
      if all(name in self.scores for name in names)
    }


class Scorer:
  """Scores clips one by one, so that the bits of a score do not depend on other clips.

  Attributes:
    clips: number of clips to score at a time.

  Raises:
    UserError: if the views are unknown, or mirrored and the network was trained without flips.
  """

  def __init__(self, trained: TrainedRun, views: str):
    data = trained.config.data
    validation.check_views(views, data)
    mirrored = make_mirror_maps(views, len(trained.class_names), data.flip_label_map)
    step = inference.make_score_step(trained.network, mirrored)
    self._class_names, self._temperature = trained.class_names, trained.temperature

    def score(state, video):
      return step(state, {"video": video, "label": jnp.zeros(len(video), int)})

    compiled = functools.partial(jax.jit, compiler_options=devices.get_compiler_options())
    if jax.default_backend() == "cpu":
      self.clips = 1
      # The state is a constant of the program: XLA would change the layout of argument kernels for
      # every view, which takes longer than the convolutions of one clip.
      self._program = compiled(functools.partial(score, trained.state))
    else:
      self.clips: int = CLIPS
      self._program = functools.partial(compiled(score), trained.state)

  def __call__(self, clips: Sequence[UInt8[np.ndarray, "v t h w c"]]) -> list[Prediction]:
    """Returns the predictions for clips; the device makes the mirrored views."""
    queued = [self._program(clip[None]) for clip in clips]
    return [
      Prediction(
        {name: values[0] for name, values in scores.items()}, self._class_names, self._temperature
      )
      for scores in jax.device_get(queued)
    ]
