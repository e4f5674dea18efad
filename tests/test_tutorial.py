"""The notebook of the documentation runs, at a smaller size."""

import pathlib
import re

import nbclient
import nbformat
import pytest

from tests.test_main import environment

NOTEBOOK = pathlib.Path(__file__).resolve().parent.parent / "docs/tutorial.ipynb"


# Of the sockets and processes of Jupyter.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_tutorial(tmp_path, monkeypatch):
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
  parameters.source = "CLASSES, CLIPS, EPOCHS = 2, 12, 1.0"
  client = nbclient.NotebookClient(
    notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
  )
  client.execute(env=environment(TMPDIR=str(tmp_path)))
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  text = "".join(output.text for output in outputs if output.output_type == "stream")
  assert "corrections: 2 relabel, 0 drop, 0 keep" in text
  assert "<u2s_jax model: preact_resnet, U2S; 2 classes" in text
  assert "predict_exported.py\npreprocess.py" in text
  difference = re.search(r"example: scores differ by up to (\S+) from", text)
  assert float(difference[1]) < 1e-5
  shown = [output for output in outputs if output.output_type == "display_data"]
  assert "image/jpeg" in shown[0].data and "<iframe srcdoc" in shown[1].data["text/html"]
