"""Weights from a hub, against a server on the loopback address."""

import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from u2s_jax import files
from u2s_jax.errors import UserError

CONTENT = b"weights" * 1000
COMMIT = "0123456789" * 4


class Hub(http.server.BaseHTTPRequestHandler):
  """Has one file in one repository, as a hub answers for it."""

  def do_GET(self):
    there = self.path == "/me/nets/resolve/main/a/w.npz"
    self.send_response(200 if there else 404)
    if there:
      self.send_header("ETag", '"abc"')
      self.send_header("X-Repo-Commit", COMMIT)
      self.send_header("Content-Length", str(len(CONTENT)))
    else:
      self.send_header("X-Error-Code", "EntryNotFound")
      self.send_header("Content-Length", "0")
    self.end_headers()
    if there and self.command == "GET":
      self.wfile.write(CONTENT)

  do_HEAD = do_GET  # noqa: N815 - its base class's name

  def log_message(self, *args):
    pass


@pytest.fixture
def asked(tmp_path):
  """Returns a function that asks a process of its own for a path: addresses are read at import."""
  pytest.importorskip("huggingface_hub", reason="reaches hubs")
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  home = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}

  def ask(address):
    program = "import sys; from u2s_jax import files; print(files.weights(sys.argv[1]))"
    command = [sys.executable, "-c", program, address]
    return subprocess.run(command, env=os.environ | home, capture_output=True, text=True)

  yield ask
  server.shutdown()
  server.server_close()


def test_a_file_of_a_hub_is_fetched_or_a_line_says_why(asked):
  found = asked("hf://me/nets/a/w.npz")
  assert not found.returncode, found.stderr
  path = found.stdout.strip()
  assert path.endswith("a/w.npz") and pathlib.Path(path).read_bytes() == CONTENT
  missing = asked("hf://me/nets/other.npz")
  assert "UserError: hf://me/nets/other.npz: " in missing.stderr


@pytest.mark.parametrize("address", ["hf://", "hf://me", "hf://me/nets", "hf://me/nets@main"])
def test_an_address_without_a_file_is_a_line(address):
  with pytest.raises(UserError, match="it has to be hf://<owner>/<repository>/<file>"):
    files.weights(address)


def test_other_paths_are_as_ever(tmp_path):
  assert files.weights(str(tmp_path)) == tmp_path
  with pytest.raises(UserError, match="s3://"):
    files.weights("s3://bucket/w.npz")
