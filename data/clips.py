"""What a clip is to the networks, and what chance does to it in training.

Imports no TensorFlow: a program that reads frames by itself can ask here which ones.
"""

import dataclasses
from numbers import Real

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from data import sampling
from data.decode import MODALITIES
from u2s_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClipSpec:
  """What a clip has to be; fields as in the config's section `data`.

  Attributes:
    num_frames: frames of a clip, or of flow the number of stacks, at least 1.
    crop_size: edge of the square crops, pixels, at most `short_edge`.
    short_edge: pixels that the frames are resized to before they are cropped.
    modality: 'rgb' or 'flow'.
    flow_pairs: of optical flow, the consecutive pairs of a stack, at least 1.

  Raises:
    UserError: a value outside these.
  """

  num_frames: int
  crop_size: int
  short_edge: int
  modality: str = "rgb"
  flow_pairs: int = 5

  def __post_init__(self):
    if self.num_frames < 1:
      raise UserError(f"data.num_frames: {self.num_frames} is not at least 1")
    if not 1 <= self.crop_size <= self.short_edge:
      raise UserError(
        f"data.crop_size: {self.crop_size} is not between 1 and data.short_edge ({self.short_edge})"
      )
    if self.modality not in MODALITIES:
      raise UserError(f"data.modality: {self.modality!r} is not one of {', '.join(MODALITIES)}")
    if self.flow_pairs < 1:
      raise UserError(f"data.flow_pairs: {self.flow_pairs} is not at least 1")

  @property
  def is_flow(self) -> bool:
    """Whether the clip is of optical flow."""
    return self.modality == "flow"

  @property
  def channels(self) -> int:
    """Channels of a frame: 3, or x and y of each pair of a stack."""
    return 2 * self.flow_pairs if self.is_flow else 3

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """(t, h, w, c) of a view."""
    return self.num_frames, self.crop_size, self.crop_size, self.channels


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """What chance does to training clips, one draw for a whole clip; fields as in the config.

  Attributes:
    multi_scale: shares of the short edge, in (0, 1], for the crop's height and width, which is then
      resized, see `image_ops.crop_edges`; empty: off.
    color_jitter: largest change of brightness, contrast and saturation (relative) and of hue (share
      of the colour circle, up to 0.5); 0: off.
    flip: whether to mirror half of the clips left to right.
    flip_label_map: pairs of classes that mirror into each other, see `views.mirrored_labels`.
    balance: how often clips of rare classes are drawn, in [0, 1], see `sampling.class_shares`.
    offset_per_segment: whether each segment draws its own frame, instead of one offset for all.

  Raises:
    UserError: a value outside these.
  """

  multi_scale: tuple[Real, ...] = ()
  color_jitter: tuple[Real, ...] = (0.0, 0.0, 0.0, 0.0)
  flip: bool = False
  flip_label_map: tuple[tuple[int, int], ...] = ()
  balance: float = 0.0
  offset_per_segment: bool = False

  def __post_init__(self):
    for scale in self.multi_scale:
      if not 0 < scale <= 1:
        raise UserError(f"data.multi_scale: {scale} is no share of the short edge in (0, 1]")
    if not 0 <= self.balance <= 1:
      raise UserError(f"data.balance: {self.balance} is not in [0, 1]")
    jitter = tuple(self.color_jitter)
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
      raise UserError(
        f"data.color_jitter: {jitter} is not four numbers >= 0: brightness, contrast, saturation,"
        " hue (up to 0.5)"
      )


def of_config(fields: ml_collections.ConfigDict) -> tuple[ClipSpec, Augmentation]:
  """Returns what a config's section `data` says of clips.

  Args:
    fields: the section.

  Raises:
    UserError: as the two records; colours of optical flow that are to change.
  """
  clip, augmentation = (
    record(**{field.name: fields[field.name] for field in dataclasses.fields(record)})
    for record in (ClipSpec, Augmentation)
  )
  if clip.is_flow and any(augmentation.color_jitter):
    raise UserError(
      f"data.color_jitter: {augmentation.color_jitter}, but flow has no colours; set it to 0s"
    )
  return clip, augmentation


def choose_frames(
  count: int, clip: ClipSpec, offset: float | Float[np.ndarray, "..."]
) -> tuple[Int[np.ndarray, " f"], Int[np.ndarray, "t p"]]:
  """Chooses the JPEG files of a stored clip that are needed.

  Args:
    count: files of the stored clip: of flow two for each pair of frames.
    clip: what the clip has to be.
    offset: one for all segments or (num_frames,), one each, see `sampling.segment_indices`.

  Returns:
    Indices of the files, of RGB one for each frame; and of flow, which pairs among these files each
    of the t stacks is made of (of RGB an empty array).
  """
  if not clip.is_flow:
    indices = sampling.segment_indices(count, clip.num_frames, offset)
    return indices, np.zeros((0, 0), np.int64)
  count //= 2
  # Stacks start where a whole one fits; a shorter clip repeats its last pair.
  starts = max(count - clip.flow_pairs + 1, 1)
  starts = sampling.segment_indices(starts, clip.num_frames, offset)
  wanted = np.minimum(starts[:, None] + np.arange(clip.flow_pairs), count - 1)
  # Neighbouring stacks overlap: each file is decoded once.
  used, pairs = np.unique(wanted, return_inverse=True)
  return np.stack([2 * used, 2 * used + 1], axis=1).ravel(), pairs.reshape(wanted.shape)
