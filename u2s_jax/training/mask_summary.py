"""A TensorBoard image of the masks: the first validation clips, with and without their masks."""

import functools

import numpy as np

from u2s_jax.evaluation import inference, overlay
from u2s_jax.run.run import VALIDATION_SPLIT, Run
from u2s_jax.run.state import TrainState
from u2s_jax.runtime import devices
from u2s_jax.stages import Stage
from u2s_jax.training.meter import MetricWriter

NUM_CLIPS = 4


class MaskSummary:
  """Draws the same clips at validations 1, 2, 4, 8, ... of a stage and at its end.

  Not at every validation, because an image takes a megabyte and masks change more and more slowly.
  """

  def __init__(self, run: Run, writer: MetricWriter):
    self._run, self._writer = run, writer

  def write(self, stage: Stage, state: TrainState, step: int) -> None:
    """Writes an image if one is due and the model has a mask network; called on all hosts.

    Args:
      step: counted over all stages.
    """
    if "mask" not in state.params or not self._is_due(stage, int(state.step)):
      return
    mesh = devices.data_mesh()
    batch = devices.make_global_batch(self._batch, mesh)
    _, clips = inference.jit_analysis_step(self._run.network)(state, batch)
    rows = []
    for i in range(min(NUM_CLIPS, len(clips["video"]))):
      video, mask = (devices.read_row(clips[name], i) for name in ("video", "mask"))
      rows += [overlay.to_rgb(video), overlay.blend(video, mask)]
    self._writer.write_images(
      step, {f"{stage.name}/masks": np.asarray(overlay.draw_strip(rows))[None]}
    )

  def _is_due(self, stage: Stage, step: int) -> bool:
    config, run = self._run.config, self._run
    number = step * config.batch_size // (run.source.num_train * config.eval.every_epochs)
    is_power_of_2 = int(number).bit_count() == 1
    return step == run.count_steps(stage) or is_power_of_2

  @functools.cached_property
  def _batch(self) -> dict[str, np.ndarray]:
    """The first validation batch of this host."""
    batch = next(iter(self._run.source.eval_batches(VALIDATION_SPLIT, "center")))
    return {**batch, "id": inference.encode_ids(batch["id"])}
