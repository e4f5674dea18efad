"""TensorBoard's picture of the masks: the first validation clips, plain and under their masks."""

import functools
from collections.abc import Callable

import numpy as np

from u2s_jax import devices, overlay
from u2s_jax.evaluation import inference
from u2s_jax.run import VALIDATION_SPLIT, Run
from u2s_jax.stages import Stage
from u2s_jax.state import TrainState

PICTURED = 4  # clips


class Pictures:
  """Draws the same clips at a stage's first evaluation, its second, fourth, ... and its end.

  Not at every one: a picture is a megabyte, and masks change ever more slowly.

  Args:
    run: the run.
    write_images: takes a step and images (n, h, w, 3) uint8 by name.
  """

  def __init__(self, run: Run, write_images: Callable[[int, dict[str, np.ndarray]], None]):
    self._run, self._write_images = run, write_images

  def write(self, stage: Stage, state: TrainState, step: int) -> None:
    """Writes the picture, where one is due and there is a mask network; on all hosts.

    Args:
      stage: of the state.
      state: the networks.
      step: counted through all stages.
    """
    if "mask" not in state.params or not self._is_due(stage, int(state.step)):
      return
    mesh = devices.data_mesh()
    batch = devices.global_batch(self._batch, mesh)
    _, clips = inference.analysis_step(self._run.network)(state, batch)
    rows = []
    for i in range(min(PICTURED, len(clips["video"]))):
      video, mask = (devices.read_row(clips[name], i) for name in ("video", "mask"))
      rows += [overlay.frames_of(video), overlay.blend(video, mask)]
    self._write_images(step, {f"{stage.name}/masks": np.asarray(overlay.strip(rows))[None]})

  def _is_due(self, stage: Stage, step: int) -> bool:
    config, run = self._run.config, self._run
    number = step * config.batch_size // (run.source.num_train * config.eval.every_epochs)
    return step == run.total_steps(stage) or int(number).bit_count() == 1

  @functools.cached_property
  def _batch(self) -> dict[str, np.ndarray]:
    """The first validation batch, of this host."""
    batch = next(iter(self._run.source.eval_batches(VALIDATION_SPLIT, "center")))
    return {**batch, "id": inference.id_codes(batch["id"])}
