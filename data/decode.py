"""Decodes one video into JPEG frames, in a process of its own.

`something_something.prepare` starts this file as a program, several times over. A program of its
own rather than `multiprocessing`: spawned workers import the parent's main module once more, and
with it TensorFlow and JAX; and a worker that is killed shows as a closed pipe, not as a hang. So
this file imports nothing but PyAV (which needs Pillow for `to_image`).
"""

import io
import pickle
import sys

import av


def decode_video(path: str, short_edge: int, jpeg_quality: int) -> list[bytes]:
  """Decodes every frame of a video and encodes it as JPEG.

  Args:
    path: the video file, of any format that FFmpeg reads.
    short_edge: pixels; every frame is resized to it, the long edge keeps the aspect and is even.
    jpeg_quality: 1 to 100.

  Returns:
    The frames in order, all of one size, as JPEG files with three channels.

  Raises:
    ValueError: the file does not decode, is cut short, or has no frame; one line, names the file.
  """
  hint = "replace the file or delete its entry from the label file"
  frames, end, declared = [], 0.0, None
  # One for the whole video: `frame.to_image(width=...)` sets up a scaler for every frame, and that
  # took 0.21 of 0.36 ms a frame at 64 pixels.
  reformatter = av.video.reformatter.VideoReformatter()
  try:
    with av.open(path) as container:
      if not container.streams.video:
        raise ValueError(f"{path}: the file has no video stream: {hint}")
      stream = container.streams.video[0]
      stream.codec_context.thread_count = 1  # There is a process for every core already.
      declared = container.duration and container.duration / av.time_base
      size = None
      for frame in container.decode(stream):
        if frame.is_corrupt:
          raise ValueError(f"{path}: frame {len(frames)} is corrupt: {hint}")
        if size is None:
          long_edge = max(frame.width, frame.height) * short_edge / min(frame.width, frame.height)
          long_edge = max(2 * round(long_edge / 2), short_edge)
          size = (short_edge, long_edge) if frame.width < frame.height else (long_edge, short_edge)
        end = frame.time or 0.0
        jpeg = io.BytesIO()
        # 'AREA' averages the pixels that fall together; bicubic would alias when shrinking.
        frame = reformatter.reformat(frame, size[0], size[1], "rgb24", interpolation="AREA")
        frame.to_image().save(jpeg, "JPEG", quality=jpeg_quality)
        frames.append(jpeg.getvalue())
  except av.error.FFmpegError as error:
    # Some FFmpeg errors are ValueErrors too, so this clause must not come after one for those.
    raise ValueError(f"{path}: the video does not decode ({error.strerror}): {hint}") from error
  if not frames:
    raise ValueError(f"{path}: the video has no frames: {hint}")
  # FFmpeg takes the end of a half-downloaded file for the end of the video. Declared durations are
  # not exact, so only a large difference counts.
  if declared and declared > 1 and end < declared / 2:
    raise ValueError(f"{path}: the file ends after {end:.1f} of {declared:.1f} seconds: {hint}")
  return frames


def main() -> None:
  """Reads paths from stdin, one a line; answers each with a pickle of its frames or its error."""
  short_edge, jpeg_quality = int(sys.argv[1]), int(sys.argv[2])
  for line in sys.stdin:
    try:
      answer = decode_video(line.rstrip("\n"), short_edge, jpeg_quality)
    except ValueError as error:
      answer = str(error)
    pickle.dump(answer, sys.stdout.buffer)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
  main()
