"""The page on the architecture tells the truth: every file and function it names is there, and no file is missing."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = ROOT / "src" / "foveate" / "engine"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PARTS = ("Attach", "Encode", "Begin", "Each layer", "Finish", "Decode")
BESIDE = ("forward.py", "guards.py", "trace.py")
LIVES = ENGINE / "lives"
FILES = sorted(path for folder in (ENGINE, LIVES) for path in folder.glob("*.py") if path.name != "__init__.py")
UNDRAWN = {"_transformers"}
"""Small modules that the drawing leaves out."""
OF_ENGINE = PAGE.split("## The way of one question")[0]
PLACES = sorted(set(re.findall(r"`(\w+\.py):([\w.]+)`", OF_ENGINE)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_of_the_engine_is_on_the_way(path):
    assert path.name in PAGE
    if path.name not in BESIDE:
        first = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
        assert first.split(":")[0].split(",")[0] in PARTS, first


@pytest.mark.parametrize(("file", "function"), PLACES)
def test_every_function_named_is_there(file, function):
    folder = LIVES if (LIVES / file).exists() else ENGINE
    node = ast.parse((folder / file).read_text(encoding="utf-8"))
    for part in function.split("."):
        named = (ast.FunctionDef, ast.ClassDef)
        node = next(child for child in ast.walk(node) if isinstance(child, named) and child.name == part)


def test_the_house_is_drawn_as_the_imports_are_held():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    drawn = PAGE.split("## The house")[1].split("```")[1].splitlines()
    above = 0
    for layer in layers:
        rooms = set(re.split(r"[|:\s]+", layer)) - UNDRAWN
        lines = [line for line, text in enumerate(drawn) for room in rooms if room in text[:37]]
        assert bool(lines) == bool(rooms), layer
        assert min(lines, default=above) >= above, layer
        above = max(lines, default=above)


def test_the_files_that_a_room_s_docstring_lists_are_there():
    listed = []
    for path in (ROOT / "src" / "foveate").rglob("__init__.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        names = re.findall(r"^ *(\w+(?:, \w+)*) {2,}\S", text, re.M)
        files = [path.with_name(f"{name}.py") for line in names for name in line.split(", ")]
        listed += [*files, *(path.with_name(name) for name in re.findall(r"`(\w+\.py)`", text))]
    assert len(listed) > 15
    assert [file for file in listed if not (file.exists() or file.with_suffix("").is_dir())] == []


ROOMS = ("benchmarks", "docs", "examples", "plugins", "spaces", "src", "tests", "training")
NAMED = re.compile(
    rf"(?<![\w./-])(?<!--out )(?:{'|'.join(ROOMS)})/[\w./-]+\.(?:py|md|json|toml|ipynb)\b(?!` at [0-9a-f]{{8}})"
)
"""A path from the root of the repository: not what a command writes, nor a script of an older commit."""
FOR_READERS = ("yours", "NAME")
"""Parts of names that stand for another."""


def test_the_files_that_any_docstring_comment_or_page_names_are_there():
    texts = [path for room in ROOMS for path in (ROOT / room).rglob("*.*") if path.suffix in (".py", ".md", ".ipynb")]
    texts += ROOT.glob("*.md")
    named = {(path, name) for path in texts for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    assert len(named) > 200
    gone = {(path, name) for path, name in named if not ((ROOT / name).exists() or (path.parent / name).exists())}
    assert {(str(path), name) for path, name in gone if not any(word in name for word in FOR_READERS)} == set()


# -- words ------------------------------------------------------------------------------------------------------------


def test_no_two_classes_share_a_name():
    places: dict[str, list[str]] = {}
    for path in (ROOT / "src" / "foveate").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_the_page_has_thirty_words():
    table = PAGE.partition("## Thirty words")[2].partition("\n## ")[0]
    assert len(re.findall(r"^\| \*\*", table, re.M)) == 30


def test_the_root_has_four_modules():
    """What else is small and needs no torch goes to plain."""
    rooms = {path.stem for path in (ROOT / "src" / "foveate").glob("*.py")} - {"__init__"}
    assert rooms == {"_transformers", "errors", "naming", "registry"}
