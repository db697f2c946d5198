"""Every notebook runs on the embedded model, and prints what is stored in it."""

import re

import pytest

from tests import notebooks

nbformat = pytest.importorskip("nbformat")


@pytest.mark.parametrize("path", sorted(notebooks.FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_prints_what_is_stored(path, tmp_path):
    stored = nbformat.read(path, as_version=4)
    shown = notebooks.texts(stored)
    assert any(shown), "stored without outputs: make notebooks"
    assert notebooks.texts(notebooks.executed(path, tmp_path)) == shown, "run make notebooks, and look at what changed"


def test_nothing_is_stored_that_changes_from_run_to_run_or_names_a_machine():
    for path in notebooks.FOLDER.glob("*.ipynb"):
        for text in notebooks.texts(nbformat.read(path, as_version=4)):
            assert not re.search(r"\d (s|ms)\b|/\w+/", text), path.name
