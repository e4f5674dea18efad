"""Clips a second of the training pipeline, beside the decoder's limit and other loaders.

  python -m benchmarks.input --source=../shared/data/surveillance_fight
  python -m benchmarks.input --source=../shared/data/surveillance_fight --steps=2000

18 frames of a 240-pixel clip, cropped to 224. The source, a tree of video files, is first made into
what Something-Something V2 hands out, VP9 files of 240 pixels (`--codec=h264`: H.264), and these
into what `data.prepare` makes of them. Every row reads the same clips on all cores:

  limit, TensorFlow   the JPEG files of 18 frames, in memory, decoded with nothing around it
  limit, OpenCV       likewise
  pipeline            `data.pipeline.train_batches`, batches of 20
  pipeline, resized   likewise, with `short_edge` 256: crops are enlarged
  evaluation          `data.pipeline.eval_batches` in the views of `10crop`, over and over
  pyav, decord        the video files, decoded as far as the last frame needed, as loaders of whole
                      videos do; a process for each core
  grain               the same ArrayRecord files, OpenCV; a process for each core

Rows take turns, `--repeats` times for `--seconds` each; the median counts. `--steps` measures the
pipeline's memory instead, in this process alone. decord and grain are used where installed.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import av
import cv2
import numpy as np
from absl import flags

import data  # noqa: F401 - sets what TensorFlow reads at its import

NUM_FRAMES, SHORT_EDGE, CROP, BATCH = 18, 240, 224, 20
CODECS = {
  "vp9": (
    "webm",
    "libvpx-vp9",
    {"deadline": "realtime", "cpu-used": "8", "crf": "31", "b": "0", "lag-in-frames": "0"},
  ),
  "h264": ("mp4", "libx264", {"preset": "veryfast", "crf": "23"}),
}
CORES = len(os.sched_getaffinity(0))


def transcode(source: pathlib.Path, folder: pathlib.Path, codec: str) -> None:
  """Writes every video below `source` with a short edge of 240 pixels, in one class."""
  extension, name, options = CODECS[codec]
  (folder / "clip").mkdir(parents=True)
  for path in sorted(source.rglob("*")):
    if path.suffix.lower() not in (".mp4", ".webm", ".avi", ".mkv", ".mov"):
      continue
    with (
      av.open(str(path)) as old,
      av.open(str(folder / "clip" / f"{path.stem}.{extension}"), "w") as new,
    ):
      video = old.streams.video[0]
      scale = SHORT_EDGE / min(video.width, video.height)
      stream = new.add_stream(name, rate=video.average_rate)
      stream.width, stream.height = (2 * round(scale * e / 2) for e in (video.width, video.height))
      stream.pix_fmt, stream.options = "yuv420p", options
      for k, frame in enumerate(old.decode(video)):
        frame = frame.reformat(stream.width, stream.height, "yuv420p")
        frame.pts, frame.time_base = k, 1 / video.average_rate
        new.mux(stream.encode(frame))
      new.mux(stream.encode(None))


def chosen(num_frames: int, draw: float) -> list[int]:
  """`sampling.segment_indices`, without TensorFlow: it runs in the loaders' processes."""
  return np.floor((np.arange(NUM_FRAMES) + draw) * num_frames / NUM_FRAMES).astype(int).tolist()


def crop(frames: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
  """One random crop for all frames."""
  y, x = (rng.integers(edge - CROP + 1) for edge in frames[0].shape[:2])
  return np.stack([frame[y : y + CROP, x : x + CROP] for frame in frames])


def pyav_clip(path: str, rng: np.random.Generator) -> np.ndarray:
  """Decodes a video as far as the last frame needed."""
  with av.open(path) as container:
    stream = container.streams.video[0]
    stream.thread_count = 1
    # WebM does not say how many frames it has; the packets do, at the cost of reading the file.
    count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    container.seek(0)
    wanted = chosen(count, rng.random())
    decoded = {}
    for k, frame in enumerate(container.decode(stream)):
      if k in wanted:
        decoded[k] = frame.to_ndarray(format="rgb24")
      if k == wanted[-1]:
        break
  last = max(decoded)
  return crop([decoded[min(k, last)] for k in wanted], rng)


def decord_clip(path: str, rng: np.random.Generator) -> np.ndarray:
  """Decodes a video with decord."""
  import decord

  reader = decord.VideoReader(path, num_threads=1)
  frames = reader.get_batch(chosen(len(reader), rng.random())).asnumpy()
  return crop(list(frames), rng)


def _load_videos(
  loader: Callable, paths: list[str], seed: int, seconds: float
) -> tuple[int, float]:
  """Clips and seconds of one process."""
  rng = np.random.default_rng(seed)
  loader(paths[0], rng)  # imports
  start, count = time.perf_counter(), 0
  for path in itertools.cycle(paths[seed:] + paths[:seed]):
    loader(path, rng)
    count += 1
    if time.perf_counter() - start > seconds:
      return count, time.perf_counter() - start


def video_rate(loader: Callable, paths: list[str], seconds: float) -> float:
  """Clips a second of as many processes as there are cores."""
  with concurrent.futures.ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:
    jobs = [pool.submit(_load_videos, loader, paths, seed, seconds) for seed in range(CORES)]
    return sum(count / spent for count, spent in (job.result() for job in jobs))


def decode_rate(decode: Callable, clips: list[list], seconds: float) -> float:
  """Clips a second of as many threads as there are cores; decoders let go of Python's lock."""

  def work(seed: int) -> tuple[int, float]:
    start, count = time.perf_counter(), 0
    for clip in itertools.cycle(clips[seed:] + clips[:seed]):
      for jpeg in clip:
        decode(jpeg)
      count += 1
      if time.perf_counter() - start > seconds:
        return count, time.perf_counter() - start

  with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
    return sum(count / spent for count, spent in pool.map(work, range(CORES)))


def stream_rate(batches: Iterator, seconds: float) -> float:
  """Clips a second of a running stream."""
  for _ in range(5):  # what it has made ahead, while others had their turn, does not count
    next(batches)
  start, count = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    next(batches)
    count += BATCH
  return count / (time.perf_counter() - start)


class GrainClip:
  """A record to a clip, for grain's workers."""

  def random_map(self, record: bytes, rng: np.random.Generator) -> np.ndarray:
    from data import store

    frames = store.parse(record)[2]
    jpegs = [np.frombuffer(frames[k], np.uint8) for k in chosen(len(frames), rng.random())]
    return crop([cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB) for jpeg in jpegs], rng)


def grain_stream(shards: list[str]) -> Iterator | None:
  """Batches of a grain loader; None where grain is not installed."""
  try:
    import grain.python as grain
  except ImportError:
    return None
  flags.FLAGS.mark_as_parsed()  # grain has absl flags, and we argparse
  source = grain.ArrayRecordDataSource(shards)

  class Transform(GrainClip, grain.RandomMapTransform):
    pass

  sampler = grain.IndexSampler(
    len(source), grain.NoSharding(), shuffle=True, num_epochs=None, seed=0
  )
  return iter(
    grain.DataLoader(
      data_source=source,
      sampler=sampler,
      operations=[Transform(), grain.Batch(BATCH, drop_remainder=True)],
      worker_count=CORES,
    )
  )


def tree() -> list:
  """This process and all below it."""
  import psutil

  process = psutil.Process()
  return [process, *process.children(recursive=True)]


def cpu_seconds() -> float:
  """Of this process, of those below it, and of those that have ended."""
  total = sum(os.times()[:4])
  for process in tree()[1:]:
    times = process.cpu_times()
    total += times.user + times.system
  return total


def memory(folder: pathlib.Path, steps: int) -> None:
  """Prints the resident memory while the pipeline runs on its own."""
  import psutil

  process = psutil.Process()
  print(f"before: {process.memory_info().rss / 2**20:.0f} MiB", flush=True)
  batches = _stream(folder)
  for step in range(1, steps + 1):
    next(batches)
    if step in (10, 100) or step % 250 == 0:
      rss = process.memory_info().rss / 2**20
      print(f"step {step:5}: {rss:.0f} MiB", flush=True)


def _stream(folder: pathlib.Path, short_edge: int = SHORT_EDGE) -> Iterator:
  from data import clips, pipeline, store

  return pipeline.train_batches(
    store.open_dataset(folder).split("train"),
    clips.ClipSpec(NUM_FRAMES, CROP, short_edge),
    clips.Augmentation(),
    pipeline.Feed(BATCH),
    seed=0,
    stage=0,
    first_step=0,
  )


def _evaluation(folder: pathlib.Path) -> Iterator:
  from data import clips, pipeline, store

  split = store.open_dataset(folder).split("train")
  clip = clips.ClipSpec(NUM_FRAMES, CROP, SHORT_EDGE)
  while True:
    yield from pipeline.eval_batches(split, clip, pipeline.Feed(BATCH), "10crop")


def compare(folder: pathlib.Path, videos: pathlib.Path, seconds: float, repeats: int) -> None:
  """Prints the table."""
  import tensorflow as tf

  from data import store

  cv2.setNumThreads(1)
  stored = [store.parse(r)[2] for r in store.open_dataset(folder).split("train").records]
  in_memory = [[frames[k] for k in chosen(len(frames), 0.5)] for frames in stored]
  as_tensors = [[tf.constant(jpeg) for jpeg in clip] for clip in in_memory]
  as_arrays = [[np.frombuffer(jpeg, np.uint8) for jpeg in clip] for clip in in_memory]
  size = np.mean([len(jpeg) for clip in in_memory for jpeg in clip]) / 1e3
  paths = sorted(str(path) for path in videos.rglob("*.*"))
  print(f"{len(in_memory)} clips, {size:.1f} kB a frame, {CORES} cores")
  stream, resized, evaluation = _stream(folder), _stream(folder, 256), _evaluation(folder)
  grain = grain_stream(sorted(map(str, folder.glob("clips-train*"))))
  rows = {
    "limit, TensorFlow": lambda: decode_rate(
      lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE"),
      as_tensors,
      seconds,
    ),
    "limit, OpenCV": lambda: decode_rate(
      lambda jpeg: cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB), as_arrays, seconds
    ),
    "pipeline": lambda: stream_rate(stream, seconds),
    "pipeline, resized": lambda: stream_rate(resized, seconds),
    "evaluation": lambda: stream_rate(evaluation, seconds),
    "pyav": lambda: video_rate(pyav_clip, paths, seconds),
  }
  try:
    import decord  # noqa: F401

    rows["decord"] = lambda: video_rate(decord_clip, paths, seconds)
  except ImportError:
    print("decord is not installed")
  if grain is None:
    print("grain is not installed")
  else:
    rows["grain"] = lambda: stream_rate(grain, seconds)
  rates, busy = ({name: [] for name in rows} for _ in range(2))
  for _ in range(repeats):
    for name, row in rows.items():
      before, start = cpu_seconds(), time.perf_counter()
      rates[name].append(row())
      busy[name].append((cpu_seconds() - before) / (time.perf_counter() - start))
  ours = statistics.median(rates["pipeline"])
  limits = [statistics.median(rates[name]) for name in list(rows)[:2]]
  print(
    f"{'':20} clips/s  (lowest to highest)  of TF's  of OpenCV's  pipeline/this  cores busy"
    "  core ms/clip"
  )
  for name in rows:
    rate = statistics.median(rates[name])
    print(
      f"{name:20} {rate:7.1f}  ({min(rates[name]):5.1f} to {max(rates[name]):5.1f})"
      f"{'':7}{rate / limits[0]:8.2f} {rate / limits[1]:12.2f} {ours / rate:14.2f}"
      f" {statistics.median(busy[name]):11.2f} {1e3 * statistics.median(busy[name]) / rate:13.1f}"
    )
  rss = sum(process.memory_info().rss for process in tree()) / 2**20
  print(f"memory of all processes: {rss:.0f} MiB; of the pipeline alone: --steps")


def main() -> None:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--source", type=pathlib.Path, required=True, help="folder of videos")
  parser.add_argument("--codec", choices=CODECS, default="vp9")
  parser.add_argument("--seconds", type=float, default=5.0)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--steps", type=int, default=0, help="batches to measure the memory over")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as work:
    videos, folder = pathlib.Path(work) / "videos", pathlib.Path(work) / "prepared"
    transcode(arguments.source, videos, arguments.codec)
    # In a process of its own, so that none of its memory counts.
    subprocess.run(
      [sys.executable, "-m", "data.prepare", "--dataset=videos"]
      + [f"--source={videos}", f"--out={folder}", f"--short_edge={SHORT_EDGE}"],
      check=True,
      stdout=subprocess.DEVNULL,
    )
    if arguments.steps:
      memory(folder, arguments.steps)
    else:
      compare(folder, videos, arguments.seconds, arguments.repeats)


if __name__ == "__main__":
  main()
