"""The notebooks run from top to bottom, in order, without an error."""

from pathlib import Path

import pytest
from hooked import TL3

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
HOOKED = next(
    path for path in NOTEBOOKS if path.stem == "05_hooked_transformer"
)  # the one that needs TransformerLens 3.9: `make test-tl3` runs it, which leaves slow tests out


def _marked(path):
    if path != HOOKED:
        return pytest.param(path, marks=pytest.mark.slow)
    return pytest.param(path, marks=pytest.mark.skipif(not TL3, reason="needs TransformerLens 3.9: make test-tl3"))


@pytest.mark.parametrize("path", [_marked(path) for path in NOTEBOOKS], ids=[path.stem for path in NOTEBOOKS])
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own packages
def test_the_notebook_runs(path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": path.parent}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert sum("image/png" in output.get("data", {}) for cell in outputs for output in cell) >= 2
    assert not any(output.get("name") == "stderr" and "Warning" in output.text for cell in outputs for output in cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_what_a_notebook_shows_needs_no_kernel(path):
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert outputs
    assert "widgets" not in notebook.metadata
    assert not any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    assert not any(output.get("name") == "stderr" or output.output_type == "error" for output in outputs)


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 7
