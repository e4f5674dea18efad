"""Tests of weights from a hub, with a local server."""

import http.server
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from u2s_jax.runtime import files
from u2s_jax.runtime.errors import UserError

CONTENT = b"weights" * 1000
COMMIT = "0123456789" * 4


class Hub(http.server.BaseHTTPRequestHandler):
  """Serves one file of one repository, with the headers of a hub."""

  def do_GET(self):
    exists = self.path == "/me/nets/resolve/main/a/w.npz"
    self.send_response(200 if exists else 404)
    if exists:
      self.send_header("ETag", '"abc"')
      self.send_header("X-Repo-Commit", COMMIT)
      self.send_header("Content-Length", str(len(CONTENT)))
    else:
      self.send_header("X-Error-Code", "EntryNotFound")
      self.send_header("Content-Length", "0")
    self.end_headers()
    if exists and self.command == "GET":
      self.wfile.write(CONTENT)

  do_HEAD = do_GET  # noqa: N815 - name given by the base class

  def log_message(self, *args):
    pass


@pytest.fixture
def resolve(tmp_path):
  """Returns a function that resolves weights in a new process: the address is read at import."""
  pytest.importorskip("huggingface_hub", reason="requires huggingface_hub")
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  home = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}

  def run(address):
    program = (
      "import sys; from u2s_jax.runtime import files; print(files.resolve_weights(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, address]
    return subprocess.run(command, env=os.environ | home, capture_output=True, text=True)

  yield run
  server.shutdown()
  server.server_close()


def test_download_from_a_hub(resolve):
  found = resolve("hf://me/nets/a/w.npz")
  assert not found.returncode, found.stderr
  path = found.stdout.strip()
  assert path.endswith("a/w.npz") and pathlib.Path(path).read_bytes() == CONTENT
  missing = resolve("hf://me/nets/other.npz")
  assert "UserError: hf://me/nets/other.npz: " in missing.stderr


@pytest.mark.parametrize("address", ["hf://", "hf://me", "hf://me/nets", "hf://me/nets@main"])
def test_address_without_a_file_is_one_line(address):
  with pytest.raises(UserError, match="must be hf://<owner>/<repository>/<file>"):
    files.resolve_weights(address)


def test_other_paths_are_parsed(tmp_path):
  assert files.resolve_weights(str(tmp_path)) == tmp_path
  with pytest.raises(UserError, match="s3://"):
    files.resolve_weights("s3://bucket/w.npz")
