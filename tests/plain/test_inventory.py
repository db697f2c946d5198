"""Names are read off the files, and are those of the classes."""

import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import foveate
from foveate import registry
from foveate.families.proved import PROVED
from foveate.methods.uniform import Uniform
from foveate.plain import inventory
from tests.forked import ANEW, said_by


def test_the_files_have_the_names_of_their_methods():
    kinds = registry.methods()
    assert inventory.methods() == {name: inventory.summary(kinds[name].__doc__) for name in kinds}
    assert all(inventory.methods().values())


def test_the_files_have_the_names_of_their_families():
    assert inventory.families() == sorted(registry.families())
    assert inventory.proved_types() == [*PROVED]


@pytest.mark.parametrize(
    ("group", "kind", "names"),
    [
        ("foveate.methods", type("Brought", (Uniform,), {"name": "brought"}), inventory.methods),
        ("foveate.methods", type("Brought", (Uniform,), {"name": "brought"}), registry.methods),
        ("foveate.families", SimpleNamespace(model_type="brought"), inventory.families),
        ("foveate.families", SimpleNamespace(model_type="brought"), registry.families),
    ],
)
def test_what_a_package_brings_is_named_too(group, kind, names, monkeypatch):
    point = SimpleNamespace(load=lambda: kind)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] * (group == asked))
    asked = group
    inventory.entry_points_of.cache_clear()
    assert "brought" in names()
    inventory.entry_points_of.cache_clear()


def test_a_summary_is_the_first_paragraph_on_one_line():
    assert inventory.summary("\n  Keeps\n  some.\n\n  More.\n") == "Keeps some."
    assert inventory.summary(None) == ""


NEW = """
from foveate.methods.uniform import Uniform

class Another(Uniform):
    \"\"\"Found by its file.\"\"\"
    name = "another"

METHOD = Another
"""


def test_a_new_method_in_the_folder_is_found(tmp_path):
    package = tmp_path / "foveate"
    shutil.copytree(Path(foveate.__file__).parent, package, ignore=shutil.ignore_patterns("model", "__pycache__"))
    (package / "methods" / "another.py").write_text(NEW)
    program = f"{ANEW}sys.path.insert(0, {str(tmp_path)!r})\nfrom foveate.cli import main; main(['methods', 'another'])"
    assert "another: Found by its file." in said_by(program)
