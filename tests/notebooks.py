"""Run the notebooks in examples/notebooks, and store what their cells print and show.

    python -m tests.notebooks

A kernel of Jupyter runs each in a folder of its own, on the embedded model. Progress on stderr is left out.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook as it is when all of its cells have run in this folder."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    here = str(Path(sys.executable).parent)  # where `foveate` is, as in an environment that is active
    client.execute(env=os.environ | {"PATH": f"{here}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"})
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                output.get("data", {}).pop("image/jpeg", None)  # beside the same as PNG
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    return notebook


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs with what is printed in one piece."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """What each cell prints and ends in, as text: a kernel prints in pieces, of no certain length."""
    stale = []
    for cell in notebook.cells:
        outputs = cell.get("outputs", ())
        stale.append("".join(output.get("text") or output["data"].get("text/plain", "") for output in outputs))
    return stale


def main() -> None:
    """Store the outputs of all, or of those that are named."""
    named = sys.argv[1:]
    for path in sorted(FOLDER.glob("*.ipynb")):
        if named and path.stem not in named:
            continue
        with tempfile.TemporaryDirectory() as folder:
            output = executed(path, Path(folder))
        nbformat.write(output, path)
        print(f"{path.stem}: {path.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    main()
