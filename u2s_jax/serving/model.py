"""The Python API of a trained run: `u2s_jax.load` returns a `Model`."""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

import jax
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from u2s_jax.evaluation import inference, overlay
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import devices, files
from u2s_jax.runtime.errors import UserError
from u2s_jax.serving import accuracy, predict
from u2s_jax.serving.flags import HYSTERESIS, STRIDE, THRESHOLD, WINDOW
from u2s_jax.serving.intervals import Gap, Interval, ScoredWindow, merge_windows
from u2s_jax.serving.predict import Prediction, Scorer, TrainedRun
from u2s_jax.video import clip_views, clips, decode, reader
from u2s_jax.video.listing import Entry
from u2s_jax.video.region import parse_region

NETWORKS = ("universal", "specific")  # in the order of their features

PathLike = str | os.PathLike[str]
Clip = PathLike | Shaped[np.ndarray, "..."]  # an array is checked when it is read
T = TypeVar("T")


class Model:
  """Scores videos and images with a trained run.

  Several threads may call it at a time. A pickled copy, for another process, compiles its programs
  again.

  Args:
    trained: from `serving.predict.load`.
    views: views to average scores over, one of `views.VIEWS`; None: those of the run's evaluation.
    crop: region of the frames, `x,y,width,height` as in `data.prepare --crop`; None: that of the
      training data, which must not differ from clip to clip.

  Raises:
    UserError: if the views are unknown, or mirrored and the network was trained without flips; or
      if the region is not valid.
  """

  def __init__(self, trained: TrainedRun, views: str | None = None, crop: str | None = None):
    self.trained: TrainedRun = trained
    self._crop = crop
    self._views = trained.config.eval.views if views is None else views
    self._clip, _ = clips.read_config(trained.config.data)
    stored = trained.stored | ({} if crop is None else {"crop": crop})
    self._storage = decode.Storage(modality=self._clip.modality, **stored)
    if crop is not None:
      try:
        parse_region(crop)
      except UserError as error:
        raise UserError(f"crop: {error}") from error
    self._score = Scorer(trained, self._views)

  def __reduce__(self) -> tuple[Any, ...]:
    return Model, (self.trained, self._views, self._crop)  # compiled programs cannot be pickled

  @property
  def class_names(self) -> tuple[str, ...]:
    """Class names, in the order of the labels."""
    return self.trained.class_names

  @property
  def has_masks(self) -> bool:
    """Whether the run has a mask network."""
    return "mask" in self.trained.state.params

  def __repr__(self) -> str:
    config = self.trained.config
    region = f", region {self._storage.crop}" if self._storage.crop else ""
    kind = "flow of " if self._clip.is_flow else ""
    return (
      f"<u2s_jax model: {config.model.backbone.name}, {'U2S' if self.has_masks else 'no masks'};"
      f" {len(self.class_names)} classes; {kind}{self._clip.num_frames} frames of"
      f" {self._clip.crop_size} pixels{region}; views {self._views}>"
    )

  @overload
  def predict(self, clip: Clip) -> Prediction: ...

  @overload
  def predict(self, clip: Sequence[Clip]) -> list[Prediction]: ...

  def predict(self, clip: Clip | Sequence[Clip]) -> Prediction | list[Prediction]:
    """Scores a clip, or several.

    Args:
      clip: path of a video or image, or RGB frames as an array (t, h, w, 3) uint8, upright and with
        square pixels; or a list of these.

    Returns:
      A prediction with `label`, `score`, the five `best` classes, and all `scores`; a list of them
      for a list.

    Raises:
      UserError: if a file cannot be decoded or an array is not as above; one line, without the
        file's name. For a list, the first error; `predict_each` continues after an error.
      OSError: if a file cannot be read.
    """
    if isinstance(clip, list | tuple):
      predictions = [*self.predict_each(clip)]
      for prediction in predictions:
        if isinstance(prediction, Exception):
          raise prediction
      return predictions
    return self._score([self._read_views(clip, self._views)])[0]

  def evaluate(
    self, batches: Iterable[tuple[Sequence[Clip], Sequence[str | int], Sequence[str]]]
  ) -> dict[str, Any]:
    """Scores labelled clips, and returns their accuracy.

    Args:
      batches: videos (see `predict`), labels (class names, or indices into `class_names`) and ids,
        by which an error names the clip.

    Returns:
      See `accuracy.summarize`, and `predictions` by id.

    Raises:
      UserError: if there are no clips, a label is unknown, an id occurs twice, or a clip cannot be
        decoded.
      OSError: if a clip cannot be read.
    """
    labels, predictions = [], {}
    for videos, batch_labels, ids in batches:
      for clip_id, label, prediction in zip(
        ids, batch_labels, self.predict_each(videos), strict=True
      ):
        name = self.class_names[label] if isinstance(label, int | np.integer) else label
        if name not in self.class_names:
          raise UserError(f"{clip_id}: {name!r} is not one of the run's classes")
        if clip_id in predictions:
          raise UserError(f"{clip_id}: occurs twice; ids must be unique")
        if isinstance(prediction, UserError):
          raise UserError(f"{clip_id}: {prediction}") from prediction
        if isinstance(prediction, OSError):
          raise prediction
        labels.append(name)
        predictions[clip_id] = prediction
    if not labels:
      raise UserError("no clips to evaluate")
    return accuracy.summarize(labels, [*predictions.values()]) | {"predictions": predictions}

  def predict_each(self, clips: Iterable[Clip]) -> Iterator[Prediction | UserError | OSError]:
    """Scores clips in order; the next ones are read while the device computes.

    Yields:
      For each clip the prediction that `predict` returns, or the error that it raises.
    """
    return self._predict_each(clips, lambda clip: self._read_views(clip, self._views))

  def predict_entries(self, entries: Iterable[Entry]) -> Iterator[Prediction | UserError | OSError]:
    """Scores the clips of a CSV file in order, as `predict_each` does files.

    Args:
      entries: from `clips_csv.read_csv`; a clip's own region is used instead of the model's.
    """

    def read(entry: Entry) -> UInt8[np.ndarray, "v t h w c"]:
      storage = self._storage
      if entry.region:
        storage = dataclasses.replace(storage, crop=str(entry.region))
      path = str(files.parse_local_path(entry.file))
      return clip_views.read_views(path, self._clip, storage, self._views, entry.span)

    return self._predict_each(entries, read)

  def _predict_each(
    self, clips: Iterable[T], read_views: Callable[[T], UInt8[np.ndarray, "v t h w c"]]
  ) -> Iterator[Prediction | UserError | OSError]:
    def read(clip: T) -> UInt8[np.ndarray, "v t h w c"] | UserError | OSError:
      try:
        return read_views(clip)
      except (UserError, OSError) as error:
        return error

    with concurrent.futures.ThreadPoolExecutor(self._score.clips) as pool:
      batches = (list(pool.map(read, batch)) for batch in _batch(clips, self._score.clips))
      for batch in _prefetch(batches):
        scored = iter(self._score([views for views in batch if isinstance(views, np.ndarray)]))
        for views in batch:
          yield next(scored) if isinstance(views, np.ndarray) else views

  def windows(
    self, file: PathLike, window: float = WINDOW, stride: float = STRIDE
  ) -> Iterator[ScoredWindow | Gap]:
    """Scores windows of a video in order, in one pass; memory does not grow with its length.

    The bits of a window's scores are those of a file that was cut there without loss, except for
    interlaced video. A place that cannot be decoded is a `Gap`; the windows continue after it.

    Args:
      file: the video's path, or a camera: `rtsp://...` or, on Linux, `/dev/video0`.
      window: length, seconds > 0.
      stride: between the starts of two windows, seconds > 0.

    Yields:
      The windows; the last ones, and those before a gap, have at least half the length. Between
      them gaps, which no window spans, and jumps of the video's clock.

    Raises:
      UserError: if a length is not > 0; or if the file is not a video or is incomplete, after the
        windows before that.
      OSError: if it cannot be read.
    """
    check_windows(window, stride)
    read = clip_views.read_windows(
      parse_video(file), self._clip, self._storage, self._views, length=window, stride=stride
    )
    for batch in _prefetch(_batch(read, self._score.clips)):
      windows = [item.views for item in batch if isinstance(item, clip_views.Window)]
      predictions = iter(self._score(windows))
      for item in batch:
        if isinstance(item, clip_views.Window):
          yield ScoredWindow(item.start, item.end, next(predictions))
        else:
          yield Gap(item.start, item.end, item.reason)

  def intervals(
    self,
    file: PathLike,
    window: float = WINDOW,
    stride: float = STRIDE,
    *,
    threshold: float = THRESHOLD,
    shortest: float | None = None,
    hysteresis: float = HYSTERESIS,
    on_window: Callable[[ScoredWindow | Gap], object] = lambda window: None,
  ) -> Iterator[Interval | Gap]:
    """Yields intervals of a video with one class each, and gaps, see `intervals.merge_windows`.

    Raises like `windows`, after the intervals before the error.

    Args:
      file: see `windows`, as for `window` and `stride`.
      threshold: least score of a window's best class, in [0, 1].
      shortest: least length of an interval, seconds; None: that of a window. Changes that do not
        last as long are ignored.
      hysteresis: least lead of another class's score before an interval ends, in [0, 1].
      on_window: called with every scored window and every gap.
    """
    shortest = window if shortest is None else shortest
    check_windows(window, stride, threshold, shortest, hysteresis)

    def windows() -> Iterator[ScoredWindow | Gap]:
      for scored in self.windows(file, window, stride):
        on_window(scored)
        yield scored

    return merge_windows(
      windows(), stride=stride, threshold=threshold, shortest=shortest, hysteresis=hysteresis
    )

  def features(self, file: PathLike) -> Float[np.ndarray, " c"]:
    """Computes the features before the classifiers for the centre view; raises like `predict`.

    They are the feature maps averaged over space and time: the universal network's channels and,
    after stage 1, the masked ones of the specific network.
    """
    pooled = self._feature_program(self.trained.state, self._read_views(file, "center"))
    return np.concatenate([np.asarray(pooled[name])[0] for name in NETWORKS if name in pooled])

  def feature_names(self) -> tuple[str, ...]:
    """Returns the network of every component of `features`."""
    video = np.zeros((1, *self._clip.shape), np.uint8)
    shapes = jax.eval_shape(self._feature_program, self.trained.state, video)
    return tuple(name for name in NETWORKS if name in shapes for _ in range(shapes[name].shape[1]))

  def masked(self, file: PathLike) -> UInt8[np.ndarray, "t h w 3"]:
    """Returns the centre view overlaid with its mask, see `overlay.blend`; raises like `predict`.

    Raises:
      KeyError: if the run has no mask network, see `has_masks`.
    """
    views = self._read_views(file, "center")
    return overlay.blend(views[0], np.asarray(self._output_program(views)["mask"])[0])

  def _read_views(self, file: Clip, views: str) -> UInt8[np.ndarray, "v t h w c"]:
    if isinstance(file, np.ndarray):
      if file.dtype != np.uint8 or file.ndim != 4 or file.shape[-1] != 3 or not file.size:
        raise UserError(f"frames: {file.dtype} {file.shape}; must be uint8 (t, h, w, 3), RGB")
      frames = decode.encode_array(file, self._storage)
      return clip_views.make_views(frames, self._clip, self._storage.short_edge, views)
    return clip_views.read_views(parse_video(file), self._clip, self._storage, views)

  @functools.cached_property
  def _feature_program(self) -> Callable:
    step = inference.make_feature_step(self.trained.network)
    return jax.jit(step, compiler_options=devices.get_compiler_options())

  @functools.cached_property
  def _output_program(self) -> Callable:
    return jax.jit(self.trained.outputs, compiler_options=devices.get_compiler_options())


def parse_video(file: PathLike) -> str:
  """Returns the path of a video, absolute and with `~` expanded, or the address of a camera."""
  text = os.fspath(file)
  return text if reader.parse_camera(text) else str(files.parse_local_path(text))


def check_windows(
  window: float,
  stride: float = STRIDE,
  threshold: float = THRESHOLD,
  shortest: float | None = None,
  hysteresis: float = HYSTERESIS,
) -> None:
  """Raises UserError if an argument of `Model.intervals` is out of range."""
  if not (0 < window < np.inf and 0 < stride < np.inf):
    raise UserError(f"window {window:g}, stride {stride:g}: must be seconds > 0")
  if not 0 <= threshold <= 1:
    raise UserError(f"threshold {threshold:g}: must be in [0, 1]")
  if not 0 <= (shortest or 0) < np.inf:
    raise UserError(f"shortest {shortest:g}: must be seconds >= 0")
  if not 0 <= hysteresis <= 1:
    raise UserError(f"hysteresis {hysteresis:g}: must be in [0, 1]")


def load(
  workdir: PathLike,
  views: str | None = None,
  best: bool = False,
  backbone: str | None = None,
  crop: str | None = None,
) -> Model:
  """Loads a run's newest checkpoint, see `u2s_jax.load`."""
  return Model(predict.load(Workdir(files.parse_path(workdir)), best, backbone), views, crop)


def _batch(items: Iterable[T], size: int) -> Iterator[list[T]]:
  """Yields items in lists of `size`, the last one shorter; the items before an error too."""
  batch, error = [], None
  try:
    for item in items:
      batch.append(item)
      if len(batch) == size:
        yield batch
        batch = []
  except (UserError, OSError) as item_error:
    error = item_error
  if batch:
    yield batch
  if error is not None:
    raise error


def _prefetch(items: Iterable[T]) -> Iterator[T]:
  """Yields items while a thread computes the next one."""
  items = iter(items)
  end = object()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    next_item = pool.submit(next, items, end)
    while (item := next_item.result()) is not end:
      next_item = pool.submit(next, items, end)
      yield item
