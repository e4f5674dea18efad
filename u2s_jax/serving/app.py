"""A web page that scores a video: its five best classes, its mask and, if it is long, a timeline.

python -m u2s_jax.app --workdir=/runs/mine

Requires the package `gradio`. Only this machine can open the page, unless --host says otherwise.
"""

import html
import importlib.util
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from u2s_jax.evaluation import overlay
from u2s_jax.run.workdir import Workdir
from u2s_jax.runtime import command_line, devices
from u2s_jax.runtime.errors import UserError, escape_line, one_line_errors
from u2s_jax.serving import flags, predict
from u2s_jax.serving.intervals import Gap, Interval
from u2s_jax.serving.model import Model
from u2s_jax.video import folders, reader

if TYPE_CHECKING:
  import gradio as gr

LOOP_HEIGHT = 240  # pixels
MASK = "Where the mask network looks"
# A video gets a timeline from LONG seconds on, and up to MAX_CLIP classes and a mask.
LONG, MAX_CLIP = 2 * flags.WINDOW, 60.0
MODES = {
  "app": {
    "--best": flags.BEST,
    **flags.TRUSTED,
    "--crop": flags.MODES["predict"]["--crop"],
    "--max_seconds": dict(type=float, default=600.0, help="longest video (default: 600)"),
    "--max_megabytes": dict(type=int, default=200, help="largest upload (default: 200)"),
    "--host": dict(help="address to listen at; default: this machine alone; 0.0.0.0: all"),
    "--port": dict(type=int, help="default: the first free one from 7860"),
  }
}


@one_line_errors()
def main(argv: Sequence[str] | None = None) -> None:
  """Loads a run and serves the page until it is interrupted."""
  args = command_line.parse("python -m u2s_jax.app", __doc__, argv, MODES)
  workdir = Workdir.open(args.workdir)
  if importlib.util.find_spec("gradio") is None:
    raise UserError("gradio: not installed; run `pip install 'gradio>=6.31,<7'`")
  devices.use_compilation_cache(workdir.compiled)
  model = Model(predict.load(workdir, args.best, args.backbone), crop=args.crop)
  page = make_page(model, workdir.root.name, args.max_seconds)
  options = {"server_name": args.host, "server_port": args.port, "footer_links": ["api"]}
  try:
    page.launch(max_file_size=f"{args.max_megabytes}mb", **options)
  except OSError as error:  # gradio's message says which ports are in use
    raise UserError(f"--port: {error}") from error


def make_page(model: Model, title: str, max_seconds: float) -> "gr.Blocks":
  """Returns the page.

  Args:
    max_seconds: length of the longest video that is scored.
  """
  os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio sends no reports
  import gradio as gr  # optional

  def score(file: str | None) -> tuple[dict[str, float], str, str]:
    if file is None:
      return {}, "", ""
    is_image = folders.is_image(file)
    seconds = 0.0 if is_image else reader.read_duration(file)
    if seconds is None:
      message = "The file is not a video, is damaged, or does not declare its length"
      raise gr.Error(message, print_exception=False)
    if seconds > max_seconds:
      message = f"The video has {seconds:.0f} s; the maximum is {max_seconds:.0f} s"
      raise gr.Error(message, print_exception=False)
    try:
      timeline = format_timeline(model.intervals(file)) if seconds > LONG else ""
      if seconds > MAX_CLIP:  # whose frames would fill the memory
        return {}, "", timeline
      best = {escape_line(name): value for name, value in model.predict(file).best()}
      mask = format_loop(model.masked(file), MASK) if model.has_masks else ""
    except UserError as error:  # names no file
      raise gr.Error(str(error), print_exception=False) from error
    except OSError as error:
      raise gr.Error("The file cannot be read", print_exception=False) from error
    return best, mask, timeline

  # Uploads are deleted after an hour.
  with gr.Blocks(title=title, delete_cache=(600, 3600)) as page:
    gr.Markdown(f"# {html.escape(escape_line(title))}")
    with gr.Row():
      if model.trained.config.data.num_frames == 1:
        # Without a mode, which would make gradio convert the file.
        video = gr.Image(label="Image", sources=["upload"], type="filepath", image_mode=None)
      else:
        video = gr.Video(label="Video", sources=["upload"])
      with gr.Column():
        classes = gr.Label(label="Classes", num_top_classes=predict.TOP)
        mask = gr.HTML(label=MASK, show_label=model.has_masks, container=model.has_masks)
    timeline = gr.HTML()
    video.change(score, video, [classes, mask, timeline], api_name="score")
  return page


def format_loop(frames: UInt8[np.ndarray, "t h w 3"], description: str) -> str:
  """Returns a looping clip as HTML that contains its frames."""
  source = overlay.encode_uri(overlay.loop(frames, height=LOOP_HEIGHT), "webp")
  return f'<img src="{source}" alt="{html.escape(description)}">'


def format_timeline(intervals: Iterable[Interval | Gap]) -> str:
  """Returns the intervals of a video as HTML: a bar of colours, and a table."""
  bar, rows, hues = [], [], {}
  for interval in intervals:
    label = escape_line(interval.label or interval.reason)
    times = f"{interval.start:.1f} to {interval.end:.1f} s"
    score, colour = "", "#8886"
    if isinstance(interval, Interval):
      score = f"{100 * interval.score:.0f} %"
      # Hues of consecutive classes differ by the golden angle.
      colour = f"hsl({hues.setdefault(label, 137.5 * len(hues)) % 360:.0f} 60% 55%)"
    text = html.escape(label)
    width = interval.end - interval.start
    bar.append(
      f'<span title="{text}, {times}" style="flex:{width:.3f} 0 0;background:{colour}"></span>'
    )
    rows.append(
      f'<tr><td style="border-left:1rem solid {colour}">{times}</td><td>{text}</td>'
      f"<td>{score}</td></tr>"
    )
  return (
    f'<div style="display:flex;height:2rem">{"".join(bar)}</div>'
    f"<table><thead><tr><th>Time</th><th>Class</th><th>Score</th></tr></thead>"
    f"<tbody>{''.join(rows)}</tbody></table>"
  )
