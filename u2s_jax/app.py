"""Command of the web page that scores videos, see `u2s_jax.serving.app`.

Without arguments it shows the run in `./run`: copied as `app.py`, this file makes a Hugging Face
Space (docs/videos.md).
"""

import sys

from u2s_jax.serving.app import main

if __name__ == "__main__":
  main(sys.argv[1:] or ["--workdir=run"])
