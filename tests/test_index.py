"""The index says what the classes say, and is not used where it might not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import foveate
from foveate import _index, cli
from foveate.contract import catalogue
from foveate.contract.settings import Share
from foveate.methods.uniform import Uniform

STALE = "src/foveate/index.json is an old one: run make index, and commit it"


@pytest.fixture(autouse=True)
def _read_anew():
    yield
    _index._read.cache_clear()
    _index._from_other_packages.cache_clear()


def test_the_committed_index_is_made_from_the_sources_as_they_are():
    assert json.loads(_index.FILE.read_text(encoding="utf-8"))["sources"] == _index.digests(), STALE


def test_the_committed_index_says_what_the_classes_say():
    assert _index.stored() == _index.contents(), STALE


def test_what_make_index_writes_is_the_committed_file(tmp_path, monkeypatch):
    monkeypatch.setattr(_index, "FILE", tmp_path / "index.json")
    committed = Path(_index.__file__).with_name("index.json")
    _index.write()
    assert _index.FILE.read_text(encoding="utf-8") == committed.read_text(encoding="utf-8"), STALE


@pytest.mark.parametrize("text", [None, "", "{", "{}"])
def test_a_missing_or_damaged_index_is_not_used(text, tmp_path, monkeypatch):
    monkeypatch.setattr(_index, "FILE", tmp_path / "index.json")
    if text is not None:
        _index.FILE.write_text(text)
    assert _index.stored() is None


def test_the_index_is_not_used_where_a_source_has_changed(monkeypatch):
    changed = _index.digests() | {"methods/v2drop.py": "0"}
    monkeypatch.setattr(_index, "digests", lambda: changed)
    _index._read.cache_clear()
    assert _index.stored() is None


def test_the_index_is_not_used_where_a_method_was_registered(monkeypatch):
    monkeypatch.setitem(catalogue.extra, "mine", Uniform)
    assert _index.stored() is None


@pytest.mark.parametrize("group", ["foveate.methods", "foveate.families"])
def test_the_index_is_not_used_where_a_package_brings_methods_or_families(group, monkeypatch):
    points = SimpleNamespace(select=lambda group: [group] * (group == asked))
    asked = group
    monkeypatch.setattr("importlib.metadata.entry_points", lambda: points)
    _index._from_other_packages.cache_clear()
    assert _index.stored() is None


NEW = """
from foveate.methods.uniform import Uniform

class Another(Uniform):
    \"\"\"Found although no index names it.\"\"\"
    name = "another"

METHOD = Another
"""


def test_a_new_method_in_the_folder_is_found_without_make_index(tmp_path):
    package = tmp_path / "foveate"
    shutil.copytree(Path(foveate.__file__).parent, package, ignore=shutil.ignore_patterns("model", "__pycache__"))
    (package / "methods" / "another.py").write_text(NEW)
    done = subprocess.run(
        [sys.executable, "-c", "from foveate.cli import main; main(['methods', 'another'])"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "another: Found although no index names it." in done.stdout


class Odd(Uniform):
    """Has settings that JSON does not know."""

    name = "odd"
    needed: Share
    inner: Any = Uniform(layers=(2,), keep=(0.5,))


def test_a_registered_method_is_listed_whatever_its_defaults_are(capsys, monkeypatch):
    monkeypatch.setitem(catalogue.extra, "odd", Odd)
    assert cli.main(["methods", "odd"]) == 0
    out, _ = capsys.readouterr()
    assert "must be given" in out
    assert "Uniform(" in out


def test_settings_say_in_words_what_they_take():
    (v2drop,) = (method for method in _index.contents()["methods"] if method["name"] == "v2drop")
    assert v2drop["types"]["layers"] == "whole numbers or None"
    assert v2drop["types"]["metric"] == "l2, l1, cosine or relative"
    assert v2drop["types"]["reverse"] == "true or false"
