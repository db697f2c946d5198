"""The index says what the classes say, and is not used where it might not."""

import shutil
from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate import _index
from foveate.contract import catalogue
from foveate.contract.settings import Share
from foveate.methods.uniform import Uniform
from tests.forked import ANEW, said_by

STALE = "src/foveate/index.json is an old one: run make index, and commit it"


def test_the_committed_list_says_what_the_classes_say():
    assert _index.is_complete(_index.stored())
    assert _index.listed() == _index.contents(), STALE


def test_what_make_index_writes_is_the_committed_file(tmp_path, monkeypatch):
    committed = _index.FILE.read_text(encoding="utf-8")
    monkeypatch.setattr(_index, "FILE", tmp_path / "index.json")
    _index.write()
    assert _index.FILE.read_text(encoding="utf-8") == committed, STALE


@pytest.mark.parametrize("group", ["foveate.methods", "foveate.families"])
def test_the_classes_are_asked_where_a_package_brings_methods_or_families(group, monkeypatch):
    monkeypatch.setattr(_index, "entry_points", lambda group: [group] * (group == asked))
    asked = group
    monkeypatch.setattr(_index, "contents", lambda: "the classes")
    assert _index.listed() == "the classes"


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
    program = f"{ANEW}sys.path.insert(0, {str(tmp_path)!r})\nfrom foveate.cli import main; main(['methods', 'another'])"
    said = said_by(program)
    assert "another: Found although no index names it." in said


class Odd(Uniform):
    """Has settings that JSON does not know."""

    name = "odd"
    needed: Share
    inner: Any = Uniform(layers=(2,), keep=(0.5,))


def test_a_method_is_listed_whatever_its_defaults_are(monkeypatch):
    monkeypatch.setitem(catalogue.extra, "odd", Odd)
    (odd,) = (method for method in _index.contents()["methods"] if method["name"] == "odd")
    assert odd["settings"]["needed"] == "must be given"
    assert odd["settings"]["inner"].startswith("Uniform(")


def test_every_setting_has_a_meaning():
    for method in _index.stored()["methods"]:
        assert all(method["meanings"].values()), method["name"]


def test_settings_say_in_words_what_they_take():
    (v2drop,) = (method for method in _index.contents()["methods"] if method["name"] == "v2drop")
    assert v2drop["types"]["layers"] == "whole numbers or None"
    assert v2drop["types"]["metric"] == "l2, l1, cosine or relative"
    assert v2drop["types"]["reverse"] == "true or false"
