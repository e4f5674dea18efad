"""Clips per second of the training pipeline, compared with its limit and with other loaders.

  python -m benchmarks.input --source=/data/videos
  python -m benchmarks.input --source=/data/videos --steps=2000

18 frames of a 240-pixel clip, cropped to 224. The source, a directory of videos, is first encoded
as Something-Something V2 is, in VP9 files of 240 pixels (`--codec=h264`: H.264), and prepared by
`data.prepare`. Every row reads the same clips on all cores:

  limit, TensorFlow   decodes the JPEG frames of a clip in memory, and does nothing else
  limit, OpenCV       the same
  pipeline            `data.input.pipeline.train_batches`, batches of 20
  pipeline, resized   the same with `short_edge` 256: crops are enlarged
  evaluation          `data.input.pipeline.eval_batches` in the views of `10crop`, repeatedly
  pyav, decord        decode the video files up to the last frame used, as loaders of full videos
                      do; one process per core
  grain               the same ArrayRecord files, with OpenCV; one process per core

Rows take turns, `--repeats` times for `--seconds` each; the median counts. `--steps` measures the
pipeline's memory instead, in this process only. decord and grain are used if they are installed.
"""

import concurrent.futures
import importlib.util
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
import psutil
from absl import flags

import data  # noqa: F401 - sets environment variables that TensorFlow reads
from benchmarks.timing import make_parser, measure_rate
from u2s_jax.video.sampling import segment_indices

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
  """Encodes every video below `source` with a short edge of 240 pixels, in two classes."""
  extension, name, options = CODECS[codec]
  suffixes = (".mp4", ".webm", ".avi", ".mkv", ".mov")
  videos = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
  for number, path in enumerate(videos):
    target = folder / f"class{number % 2}" / f"{path.stem}.{extension}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path)) as old, av.open(str(target), "w") as new:
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


def random_crop(frames: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
  """Returns the same random crop of all frames."""
  y, x = (rng.integers(edge - CROP + 1) for edge in frames[0].shape[:2])
  return np.stack([frame[y : y + CROP, x : x + CROP] for frame in frames])


def decode_with_pyav(path: str, rng: np.random.Generator) -> np.ndarray:
  """Decodes a video with PyAV up to the last frame used."""
  with av.open(path) as container:
    stream = container.streams.video[0]
    stream.thread_count = 1
    # WebM has no number of frames: counting its packets reads the file.
    count = stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    container.seek(0)
    wanted = segment_indices(count, NUM_FRAMES, rng.random())
    decoded = {}
    for k, frame in enumerate(container.decode(stream)):
      if k in wanted:
        decoded[k] = frame.to_ndarray(format="rgb24")
      if k == wanted[-1]:
        break
  last = max(decoded)
  return random_crop([decoded[min(k, last)] for k in wanted], rng)


def decode_with_decord(path: str, rng: np.random.Generator) -> np.ndarray:
  """Decodes a video with decord."""
  import decord

  reader = decord.VideoReader(path, num_threads=1)
  frames = reader.get_batch(segment_indices(len(reader), NUM_FRAMES, rng.random())).asnumpy()
  return random_crop(list(frames), rng)


def _load_for(loader: Callable, paths: list[str], seed: int, seconds: float) -> float:
  """Returns the clips per second that one process loads."""
  rng = np.random.default_rng(seed)
  loader(paths[0], rng)  # imports packages
  order = itertools.cycle(paths[seed:] + paths[:seed])
  return measure_rate(lambda: loader(next(order), rng), seconds)


def measure_loader(loader: Callable, paths: list[str], seconds: float) -> float:
  """Returns clips per second with one process per core."""
  with concurrent.futures.ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:
    jobs = [pool.submit(_load_for, loader, paths, seed, seconds) for seed in range(CORES)]
    return sum(job.result() for job in jobs)


def measure_decoder(decode: Callable, clips: list[list], seconds: float) -> float:
  """Returns clips per second with one thread per core; decoders release Python's lock."""

  def work(seed: int) -> float:
    order = itertools.cycle(clips[seed:] + clips[:seed])
    return measure_rate(lambda: [decode(jpeg) for jpeg in next(order)], seconds)

  with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
    return sum(pool.map(work, range(CORES)))


def measure_stream(batches: Iterator, seconds: float) -> float:
  """Returns clips per second of a running stream."""
  for _ in range(5):  # prefetched during the turns of others
    next(batches)
  return BATCH * measure_rate(lambda: next(batches), seconds)


def open_grain(shards: list[str]) -> Iterator | None:
  """Returns batches of a grain loader, None if grain is not installed."""
  try:
    import grain.python as grain
  except ImportError:
    return None
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags, which argparse does not parse
  source = grain.ArrayRecordDataSource(shards)

  class Decode(grain.RandomMapTransform):
    def random_map(self, record: bytes, rng: np.random.Generator) -> np.ndarray:
      from data.input import store

      frames = store.parse_record(record)[2]
      chosen = segment_indices(len(frames), NUM_FRAMES, rng.random())
      jpegs = [np.frombuffer(frames[k], np.uint8) for k in chosen]
      return random_crop([cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB) for jpeg in jpegs], rng)

  loader = grain.DataLoader(
    data_source=source,
    sampler=grain.IndexSampler(
      len(source), grain.NoSharding(), shuffle=True, num_epochs=None, seed=0
    ),
    operations=[Decode(), grain.Batch(BATCH, drop_remainder=True)],
    worker_count=CORES,
  )
  return iter(loader)


def list_processes() -> list[psutil.Process]:
  """Returns this process and all its descendants."""
  process = psutil.Process()
  return [process, *process.children(recursive=True)]


def sum_cpu_seconds() -> float:
  """Returns the CPU time of this process and its descendants, including finished ones."""
  return sum(os.times()[:4]) + sum(sum(p.cpu_times()[:2]) for p in list_processes()[1:])


def print_memory(folder: pathlib.Path, steps: int) -> None:
  """Prints the resident memory while only the pipeline runs."""
  process = psutil.Process()
  print(f"before: {process.memory_info().rss / 2**20:.0f} MiB", flush=True)
  batches = _open_stream(folder)
  for step in range(1, steps + 1):
    next(batches)
    if step in (10, 100) or step % 250 == 0:
      print(f"step {step:5}: {process.memory_info().rss / 2**20:.0f} MiB", flush=True)


def _open_stream(folder: pathlib.Path, short_edge: int = SHORT_EDGE) -> Iterator:
  from data.input import pipeline, store
  from u2s_jax.video import clips

  split = store.open_dataset(folder).split("train")
  clip, batch = clips.ClipSpec(NUM_FRAMES, CROP, short_edge), pipeline.BatchSpec(BATCH)
  augmentation = clips.Augmentation()
  return pipeline.train_batches(split, clip, augmentation, batch, seed=0, stage=0, first_step=0)


def _open_evaluation(folder: pathlib.Path) -> Iterator:
  from data.input import pipeline, store
  from u2s_jax.video import clips

  split = store.open_dataset(folder).split("train")
  clip, batch = clips.ClipSpec(NUM_FRAMES, CROP, SHORT_EDGE), pipeline.BatchSpec(BATCH)
  while True:
    yield from pipeline.eval_batches(split, clip, batch, "10crop")


def print_rates(folder: pathlib.Path, videos: pathlib.Path, seconds: float, repeats: int) -> None:
  """Measures all rows in turns and prints the table."""
  import tensorflow as tf

  from data.input import store

  cv2.setNumThreads(1)
  stored = [store.parse_record(r)[2] for r in store.open_dataset(folder).split("train").records]
  in_memory = [
    [frames[k] for k in segment_indices(len(frames), NUM_FRAMES, 0.5)] for frames in stored
  ]
  as_tensors = [[tf.constant(jpeg) for jpeg in clip] for clip in in_memory]
  as_arrays = [[np.frombuffer(jpeg, np.uint8) for jpeg in clip] for clip in in_memory]
  size = np.mean([len(jpeg) for clip in in_memory for jpeg in clip]) / 1e3
  paths = sorted(str(path) for path in videos.rglob("*.*"))
  print(f"{len(in_memory)} clips, {size:.1f} kB per frame, {CORES} cores")
  stream, resized = _open_stream(folder), _open_stream(folder, 256)
  evaluation = _open_evaluation(folder)
  grain = open_grain(sorted(map(str, folder.glob("clips-train*"))))
  rows = {
    "limit, TensorFlow": lambda: measure_decoder(
      lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3, dct_method="INTEGER_ACCURATE"),
      as_tensors,
      seconds,
    ),
    "limit, OpenCV": lambda: measure_decoder(
      lambda jpeg: cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB), as_arrays, seconds
    ),
    "pipeline": lambda: measure_stream(stream, seconds),
    "pipeline, resized": lambda: measure_stream(resized, seconds),
    "evaluation": lambda: measure_stream(evaluation, seconds),
    "pyav": lambda: measure_loader(decode_with_pyav, paths, seconds),
  }
  if importlib.util.find_spec("decord"):
    rows["decord"] = lambda: measure_loader(decode_with_decord, paths, seconds)
  else:
    print("decord is not installed")
  if grain is None:
    print("grain is not installed")
  else:
    rows["grain"] = lambda: measure_stream(grain, seconds)
  rates, busy = ({name: [] for name in rows} for _ in range(2))
  for _ in range(repeats):
    for name, row in rows.items():
      before, start = sum_cpu_seconds(), time.perf_counter()
      rates[name].append(row())
      busy[name].append((sum_cpu_seconds() - before) / (time.perf_counter() - start))
  rate, cores = ({k: statistics.median(v) for k, v in of.items()} for of in (rates, busy))
  print(
    f"{'':20} clips/s  (lowest to highest)  of TF's  of OpenCV's  pipeline/this  cores busy"
    "  core ms/clip"
  )
  for name, values in rates.items():
    print(
      f"{name:20} {rate[name]:7.1f}  ({min(values):5.1f} to {max(values):5.1f})"
      f"{'':7}{rate[name] / rate['limit, TensorFlow']:8.2f}"
      f" {rate[name] / rate['limit, OpenCV']:12.2f} {rate['pipeline'] / rate[name]:14.2f}"
      f" {cores[name]:11.2f} {1e3 * cores[name] / rate[name]:13.1f}"
    )
  rss = sum(process.memory_info().rss for process in list_processes()) / 2**20
  print(f"memory of all processes: {rss:.0f} MiB; --steps measures the pipeline only")


def main() -> None:
  parser = make_parser(__doc__)
  parser.add_argument("--source", type=pathlib.Path, required=True, help="directory of videos")
  parser.add_argument("--codec", choices=CODECS, default="vp9")
  parser.add_argument("--seconds", type=float, default=5.0)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--steps", type=int, default=0, help="batches to measure memory for")
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as work:
    videos, folder = pathlib.Path(work) / "videos", pathlib.Path(work) / "prepared"
    transcode(arguments.source, videos, arguments.codec)
    # In another process, so that its memory does not count.
    subprocess.run(
      [sys.executable, "-m", "data.prepare", "--dataset=videos"]
      + [f"--source={videos}", f"--out={folder}", f"--short_edge={SHORT_EDGE}"],
      check=True,
      stdout=subprocess.DEVNULL,
    )
    if arguments.steps:
      print_memory(folder, arguments.steps)
    else:
      print_rates(folder, videos, arguments.seconds, arguments.repeats)


if __name__ == "__main__":
  main()
