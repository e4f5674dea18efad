"""Specifies clips and their augmentation, and chooses the frames of a clip.

Imports no TensorFlow, so that programs which read frames themselves can use it.
"""

import dataclasses
from numbers import Real

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from u2s_jax.runtime.errors import UserError
from u2s_jax.video import sampling
from u2s_jax.video.listing import MODALITIES


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """Specification of the networks' input clips; fields as in the config's section `data`.

  Raises UserError if a value is outside its range.
  """

  num_frames: int  # at least 1; for flow the number of stacks
  crop_size: int  # edge of the square crops, pixels, at most `short_edge`
  short_edge: int  # pixels of the short edge of the resized frames, which are then cropped
  modality: str = "rgb"  # or 'flow'
  flow_pairs: int = 5  # consecutive pairs of frames in a stack of optical flow, at least 1

  def __post_init__(self) -> None:
    if self.num_frames < 1:
      raise UserError(f"data.num_frames: must be >= 1, got {self.num_frames}")
    if not 1 <= self.crop_size <= self.short_edge:
      raise UserError(
        f"data.crop_size: must be between 1 and data.short_edge ({self.short_edge}), got"
        f" {self.crop_size}"
      )
    if self.modality not in MODALITIES:
      raise UserError(f"data.modality: {self.modality!r} is not one of {', '.join(MODALITIES)}")
    if self.flow_pairs < 1:
      raise UserError(f"data.flow_pairs: must be >= 1, got {self.flow_pairs}")

  @property
  def is_flow(self) -> bool:
    return self.modality == "flow"

  @property
  def channels(self) -> int:
    """Channels of a frame: 3, or x and y of each pair of frames in a stack."""
    return 2 * self.flow_pairs if self.is_flow else 3

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(t, h, w, c) of a view."""
    return self.num_frames, self.crop_size, self.crop_size, self.channels


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Random augmentation of training clips, drawn once a clip; fields as in the config.

  Raises UserError if a value is outside its range.
  """

  # Fractions of the short edge, in (0, 1], for height and width of the crop before it is resized,
  # see `image_ops.crop_edges`; empty: off.
  multi_scale: tuple[Real, ...] = ()
  # Maximum change of brightness, contrast and saturation (relative) and of hue (fraction of the
  # colour circle, up to 0.5); 0: off.
  color_jitter: tuple[Real, ...] = (0.0, 0.0, 0.0, 0.0)
  flip: bool = False  # whether to mirror half of the clips left to right
  # Pairs of classes that mirror into each other, see `views.make_mirrored_labels`.
  flip_label_map: tuple[tuple[int, int], ...] = ()
  balance: float = 0.0  # strength of class balancing, in [0, 1], see `sampling.class_shares`
  offset_per_segment: bool = False  # whether to draw an offset for each segment, not one for all

  def __post_init__(self) -> None:
    for scale in self.multi_scale:
      if not 0 < scale <= 1:
        raise UserError(
          f"data.multi_scale: must be fractions of the short edge in (0, 1], got {scale}"
        )
    if not 0 <= self.balance <= 1:
      raise UserError(f"data.balance: must be in [0, 1], got {self.balance}")
    jitter = tuple(self.color_jitter)
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
      raise UserError(
        "data.color_jitter: must be four numbers >= 0 (brightness, contrast, saturation, and hue of"
        f" at most 0.5), got {jitter}"
      )


def read_config(fields: ml_collections.ConfigDict) -> tuple[ClipSpec, Augmentation]:
  """Reads the specification of clips and their augmentation from a config's section `data`.

  Raises:
    UserError: if a value is outside its range, or colour jitter is set for optical flow.
  """
  clip, augmentation = (
    record(**{field.name: fields[field.name] for field in dataclasses.fields(record)})
    for record in (ClipSpec, Augmentation)
  )
  if clip.is_flow and any(augmentation.color_jitter):
    raise UserError(
      f"data.color_jitter: {augmentation.color_jitter}, but flow has no colours; set all four to 0"
    )
  return clip, augmentation


def choose_frames(
  count: int, clip: ClipSpec, offset: float | Float[np.ndarray, "..."]
) -> tuple[Int[np.ndarray, " f"], Int[np.ndarray, "t p"]]:
  """Chooses the JPEG files of a stored clip that a network's clip needs.

  Args:
    count: number of files of the stored clip; for flow two for each pair of frames.
    offset: for all segments or (num_frames,), one each, see `sampling.segment_indices`.

  Returns:
    Indices of the files, for RGB one for each frame; and the pairs, as indices into these files,
    that each of the t stacks of flow is made of (empty for RGB).
  """
  if not clip.is_flow:
    indices = sampling.segment_indices(count, clip.num_frames, offset)
    return indices, np.zeros((0, 0), np.int64)
  count //= 2
  # A stack starts where all its pairs exist; a clip with fewer pairs repeats its last one.
  starts = max(count - clip.flow_pairs + 1, 1)
  starts = sampling.segment_indices(starts, clip.num_frames, offset)
  wanted = np.minimum(starts[:, None] + np.arange(clip.flow_pairs), count - 1)
  # Stacks may overlap, but each file is decoded once.
  used, pairs = np.unique(wanted, return_inverse=True)
  return np.stack([2 * used, 2 * used + 1], axis=1).ravel(), pairs.reshape(wanted.shape)
