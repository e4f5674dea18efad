"""A trained run in Python: `u2s_jax.load`. The one module of `u2s_jax` that reads videos."""

import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Float, UInt8

from data import clip_views, clips, decode, footage
from u2s_jax import devices, files, overlay
from u2s_jax.errors import UserError
from u2s_jax.evaluation import inference
from u2s_jax.serving import predict
from u2s_jax.serving.intervals import Gap, Interval, ScoredWindow, merged
from u2s_jax.serving.predict import Prediction, Scorer, Trained
from u2s_jax.workdir import Workdir

WINDOW, STRIDE = 2.0, 0.5  # seconds
THRESHOLD = 0.0  # least score of an interval's windows
SHORTEST = 0.0  # seconds of an interval
NETWORKS = ("universal", "specific")  # in the order of their features

PathLike = str | os.PathLike[str]
T = TypeVar("T")


class Model:
  """What a run has learned, for videos and images.

  Args:
    trained: of `serving.predict.load`.
    views: that scores are averaged over, one of `views.VIEWS`; None: as in the run's evaluation.

  Attributes:
    trained: of `serving.predict.load`.

  Raises:
    UserError: no such views, or mirrored ones of a network that never saw a mirrored clip.
  """

  def __init__(self, trained: Trained, views: str | None = None):
    self.trained = trained
    self._views = trained.config.eval.views if views is None else views
    self._clip, _ = clips.of_config(trained.config.data)
    self._storage = decode.Storage(modality=self._clip.modality, **trained.stored)
    self._score = Scorer(trained, self._views)

  def __reduce__(self):
    return Model, (self.trained, self._views)  # compiled programs do not pickle

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes, in the order of the labels."""
    return self.trained.class_names

  @property
  def has_masks(self) -> bool:
    """Whether there is a mask network."""
    return "mask" in self.trained.state.params

  def predict(self, file: PathLike) -> Prediction:
    """Scores a video or image: its `label`, `score`, five `best` classes, and all `scores`.

    Args:
      file: its path.

    Raises:
      UserError: it does not decode; one line, the reason alone.
      OSError: it cannot be read.
    """
    return self._score(
      [clip_views.read_views(parse_video(file), self._clip, self._storage, self._views)]
    )[0]

  def predict_each(self, files: Iterable[PathLike]) -> Iterator[Prediction | UserError | OSError]:
    """Scores files in order; the next ones are read while the device computes.

    Args:
      files: paths of videos or images.

    Yields:
      For each file what `predict` returns, or the error that it would raise.
    """

    def read(file: PathLike) -> UInt8[np.ndarray, "v t h w c"] | UserError | OSError:
      try:
        return clip_views.read_views(parse_video(file), self._clip, self._storage, self._views)
      except (UserError, OSError) as error:
        return error

    with concurrent.futures.ThreadPoolExecutor(self._score.clips) as pool:
      batches = (list(pool.map(read, batch)) for batch in _batched(files, self._score.clips))
      for batch in _ahead(batches):
        scored = iter(self._score([views for views in batch if isinstance(views, np.ndarray)]))
        for views in batch:
          yield next(scored) if isinstance(views, np.ndarray) else views

  def windows(
    self, file: PathLike, window: float = WINDOW, stride: float = STRIDE
  ) -> Iterator[ScoredWindow | Gap]:
    """Scores windows of a video in one pass: its length does not matter.

    A window's scores are, bit for bit, those of a file that is cut there without loss, but for an
    interlaced one. What does not decode is a `Gap`, and the video goes on after it.

    Args:
      file: the video's path, or a camera: `rtsp://...` or, on Linux, `/dev/video0`.
      window: length, seconds > 0.
      stride: between the starts of two windows, seconds > 0.

    Yields:
      The windows in order; the last ones, and those in front of a gap, have at least half their
      length. Between them gaps, which no window spans, and jumps of the video's clock.

    Raises:
      UserError: the video is none, or cut short, after the windows in front of that; or lengths
        that cannot be.
      OSError: it cannot be read.
    """
    check_windows(window, stride)
    read = clip_views.read_windows(
      parse_video(file), self._clip, self._storage, self._views, length=window, stride=stride
    )
    for batch in _ahead(_batched(read, self._score.clips)):
      clips_of_batch = [part.views for part in batch if isinstance(part, clip_views.Window)]
      predictions = iter(self._score(clips_of_batch) if clips_of_batch else ())
      for part in batch:
        if isinstance(part, clip_views.Window):
          yield ScoredWindow(part.start, part.end, next(predictions))
        else:
          yield Gap(part.start, part.end, part.reason)

  def intervals(
    self,
    file: PathLike,
    window: float = WINDOW,
    stride: float = STRIDE,
    *,
    threshold: float = THRESHOLD,
    shortest: float = SHORTEST,
    told: Callable[[ScoredWindow | Gap], object] = lambda window: None,
  ) -> Iterator[Interval | Gap]:
    """Returns the parts of a video with one class each, and its gaps, see `intervals.merged`.

    Args:
      file: the video's path.
      window: see `windows`.
      stride: see `windows`.
      threshold: least score of a window's best class, in [0, 1].
      shortest: least length of an interval, seconds.
      told: called with every window that is scored, and every gap.

    Raises:
      UserError: as `windows`, after the intervals in front of that.
      OSError: as `windows`.
    """
    check_windows(window, stride, threshold, shortest)

    def windows() -> Iterator[ScoredWindow | Gap]:
      for scored in self.windows(file, window, stride):
        told(scored)
        yield scored

    return merged(windows(), stride=stride, threshold=threshold, shortest=shortest)

  def features(self, file: PathLike) -> Float[np.ndarray, " c"]:
    """Returns what the classifiers read of a file's centre view, averaged over space and time.

    The universal network's channels and, behind stage 1, the specific network's, masked.

    Args:
      file: path of a video or image.

    Raises:
      UserError: it does not decode; one line, the reason alone.
      OSError: it cannot be read.
    """
    pooled = self._feature_program(self.trained.state, self._centre(file)[None])
    return np.concatenate([np.asarray(pooled[name])[0] for name in NETWORKS if name in pooled])

  def feature_names(self) -> tuple[str, ...]:
    """Returns the network of every component of `features`."""
    video = np.zeros((1, *self._clip.shape), np.uint8)
    shapes = jax.eval_shape(self._feature_program, self.trained.state, video)
    return tuple(name for name in NETWORKS if name in shapes for _ in range(shapes[name].shape[1]))

  def masked(self, file: PathLike) -> UInt8[np.ndarray, "t h w 3"]:
    """Returns the frames of a file's centre view with their mask over them, see `overlay.blend`.

    Args:
      file: path of a video or image.

    Raises:
      UserError: it does not decode.
      KeyError: the run has no masks, see `has_masks`.
      OSError: it cannot be read.
    """
    clip = self._centre(file)
    return overlay.blend(clip, np.asarray(self._output_program(clip[None])["mask"])[0])

  def _centre(self, file: PathLike) -> UInt8[np.ndarray, "t h w c"]:
    return clip_views.read_views(parse_video(file), self._clip, self._storage, "center")[0]

  @functools.cached_property
  def _feature_program(self) -> Callable:
    step = inference.make_feature_step(self.trained.network)
    return jax.jit(step, compiler_options=devices.compiler_options())

  @functools.cached_property
  def _output_program(self) -> Callable:
    return jax.jit(self.trained.outputs, compiler_options=devices.compiler_options())


def parse_video(file: PathLike) -> str:
  """Returns the path of a video, absolute and with `~` expanded, or the address of a camera."""
  text = os.fspath(file)
  return text if footage.live(text) else str(files.local_path(text))


def check_windows(
  window: float, stride: float, threshold: float = THRESHOLD, shortest: float = SHORTEST
) -> None:
  """Raises UserError where windows cannot be so, see `Model.intervals`."""
  if not (0 < window < np.inf and 0 < stride < np.inf):
    raise UserError(f"window {window:g}, stride {stride:g}: must be seconds > 0")
  if not 0 <= threshold <= 1:
    raise UserError(f"threshold {threshold:g}: must be in [0, 1]")
  if not 0 <= shortest < np.inf:
    raise UserError(f"shortest {shortest:g}: must be seconds >= 0")


def load(workdir: PathLike, views: str | None = None, best: bool = False) -> Model:
  """Reads a run's newest checkpoint, see `u2s_jax.load`."""
  return Model(predict.load(Workdir(files.named(workdir)), best), views)


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
  """Yields items in lists of `size`, the last one shorter, also where a file breaks off."""
  batch, error = [], None
  try:
    for item in items:
      batch.append(item)
      if len(batch) == size:
        yield batch
        batch = []
  except (UserError, OSError) as broken:
    error = broken
  if batch:
    yield batch
  if error is not None:
    raise error


def _ahead(items: Iterable[T]) -> Iterator[T]:
  """Yields items while the next one is made, in another thread."""
  items = iter(items)
  end = object()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    following = pool.submit(next, items, end)
    while (item := following.result()) is not end:
      following = pool.submit(next, items, end)
      yield item
