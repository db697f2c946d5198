"""Names of methods and families, read off their files: to import them would import torch.

A method's name is its file's, and a family's stands in its class. Packages that bring some of their own are imported.
"""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
METHOD = re.compile(r"^METHOD = (\w+)$", re.MULTILINE)
MODEL_TYPE = re.compile(r'^    model_type: ClassVar\[str\] = "(\w+)"$', re.MULTILINE)
PROVED = re.compile(r'^    "([^"]+)": Proved\(', re.MULTILINE)


@cache
def method_classes() -> dict[str, str]:
    """The class of each method in `foveate/methods`, by the method's name."""
    last_lines = {file.stem: METHOD.search(text) for file, text in _texts("methods")}
    return {name: line[1] for name, line in last_lines.items() if line}


@cache
def family_files() -> dict[str, str]:
    """The file of each family in `foveate/families`, by its `model_type`; several may share one."""
    files: dict[str, str] = {}
    for file, text in _texts("families"):
        if "\nFAMILIES = (" in text:
            files |= dict.fromkeys(MODEL_TYPE.findall(text), file.stem)
    return files


@cache
def entry_points_of(group: str) -> tuple[Any, ...]:
    """The methods or families that other packages bring: entry points of `foveate.methods` or `foveate.families`."""
    from importlib.metadata import entry_points  # slow to import, and most names need none

    return tuple(point.load() for point in entry_points(group=group))


def methods() -> dict[str, str]:
    """What each method does, in a sentence, by the method's name."""
    texts = {file.stem: text for file, text in _texts("methods")}
    sentences = {}
    for name, kind in method_classes().items():
        docstring = re.search(rf'^class {kind}\b.*?"""(.*?)"""', texts[name], re.MULTILINE | re.DOTALL)
        sentences[name] = summary(docstring and docstring[1])
    for method in entry_points_of("foveate.methods"):
        sentences.setdefault(method.name, summary(method.__doc__))
    return sentences


def families() -> list[str]:
    """Every `model_type` that is served."""
    return sorted({*family_files(), *(family.model_type for family in entry_points_of("foveate.families"))})


def proved_types() -> list[str]:
    """Every `model_type` that is told from its structure, and proved."""
    return PROVED.findall((HERE / "families/proved.py").read_text(encoding="utf-8"))


@cache
def presets() -> dict[str, dict[str, Any]]:
    """The lines of `methods/presets.toml` by `method/model/budget`, each with the depth and tokens of its model."""
    tables = tomllib.loads((HERE / "methods/presets.toml").read_text(encoding="utf-8"))
    models = tables.pop("models")
    rows = {}
    for method, lines in tables.items():
        for name, line in lines.items():
            rows[f"{method}/{name}"] = {"settings": {}} | models[name.partition("/")[0]] | line
    return rows


def summary(docstring: str | None) -> str:
    """The first paragraph of a docstring, on one line; empty where there is none."""
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())


def _texts(folder: str) -> list[tuple[Path, str]]:
    return [(file, file.read_text(encoding="utf-8")) for file in sorted((HERE / folder).glob("*.py"))]
