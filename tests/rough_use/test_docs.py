"""Names of modules and functions in code and docs."""

import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@cache
def text_of(pattern):
    """What the files that a pattern names hold."""
    return "\n".join(path.read_text() for path in ROOT.glob(pattern) if path.suffix in (".md", ".yml", ".py", ".json"))


def is_there(dotted):
    """Whether a dotted name is a module's, or of something in one."""
    module, names = dotted, []
    while True:
        try:
            at = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
    for name in names:
        if name in getattr(at, "__dataclass_fields__", ()):
            return True
        at = getattr(at, name, None)
    return at is not None


@pytest.mark.parametrize("files", ["src/**/*.py", "docs/**/*.md", "README.md", "plugins/**/*.py"])
def test_names_in_backquotes_are_there(files):
    named = set(re.findall(r"`(foveate(?:\.\w+)+)`", text_of(files)))
    assert {name for name in named if not is_there(name)} == set()
