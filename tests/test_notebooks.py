"""Every notebook runs on the embedded model, and is stored without outputs."""

import ast
import json
import tempfile
from pathlib import Path

import pytest

from foveate import catalogue

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples/notebooks").glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def run(source, name, namespace):
    """Run a cell, and show what it ends in as a notebook does."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
        getattr(shown, "_repr_html_", shown.__repr__)()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(catalogue, "extra", dict(catalogue.extra))
    namespace = {"__name__": "notebook"}
    for cell in code_cells(notebook):
        run("".join(cell["source"]), notebook.name, namespace)


def test_notebooks_are_stored_without_outputs():
    for notebook in NOTEBOOKS:
        assert {(cell["execution_count"], *cell["outputs"]) for cell in code_cells(notebook)} == {(None,)}
