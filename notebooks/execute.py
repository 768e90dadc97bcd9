"""Execute notebooks in place: `python notebooks/execute.py 01 04`, or all of them without a name (`make notebooks`).

Outputs that a page cannot show are left out: progress bars, which are widgets or go to standard error, and timestamps. Notebook
05 needs TransformerLens 3.9 (`.venv-tl3`).
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> None:
    """Run a notebook from top to bottom, and keep what it shows."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=3600,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        resources={"metadata": {"path": FOLDER}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [
                output
                for output in cell.outputs
                if WIDGET not in output.get("data", {}) and output.get("name") != "stderr"
            ]
    notebook.metadata.pop("widgets", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    chosen = sys.argv[1:] or [""]
    for notebook_path in sorted(FOLDER.glob("*.ipynb")):
        if any(notebook_path.name.startswith(f"{name}_" if name else "") for name in chosen):
            print(notebook_path.name, flush=True)
            execute(notebook_path)
