"""Names of methods and families, read from their source files without importing torch.

A method is named like its file, and a family's name is in its class. Methods and families of other packages are
imported.
"""

import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
MODEL_TYPE = re.compile(r'^    model_type: ClassVar\[str\] = "(\w+)"$', re.MULTILINE)
PROVED = re.compile(r'^    "([^"]+)": Proved\(', re.MULTILINE)


@cache
def method_classes() -> dict[str, str]:
    """Return the class name of each method in `foveate/methods`, by the method's name."""
    kinds = {}
    for file, text in _texts("methods"):
        for part in text.split("\nclass ")[1:]:
            if f'\n    name = "{file.stem}"\n' in part:
                kinds[file.stem] = re.split(r"\W", part, maxsplit=1)[0]
    return kinds


@cache
def family_files() -> dict[str, str]:
    """Return the file of each family in `foveate/families`, by its `model_type`. Families may share a file."""
    files: dict[str, str] = {}
    for file, text in _texts("families"):
        if file.stem != "derived":  # those are found by their structure first
            files |= dict.fromkeys(MODEL_TYPE.findall(text), file.stem)
    return files


@cache
def entry_points_of(group: str) -> tuple[Any, ...]:
    """Load the methods or families of other packages: entry points of `foveate.methods` or `foveate.families`."""
    from importlib.metadata import entry_points  # slow to import, and rarely needed

    return tuple(point.load() for point in entry_points(group=group))


def methods() -> dict[str, str]:
    """Return a one-sentence summary of each method, by its name."""
    texts = {file.stem: text for file, text in _texts("methods")}
    sentences = {}
    for name, kind in method_classes().items():
        docstring = re.search(rf'^class {kind}\b.*?"""(.*?)"""', texts[name], re.MULTILINE | re.DOTALL)
        sentences[name] = summary(docstring and docstring[1])
    for method in entry_points_of("foveate.methods"):
        sentences.setdefault(method.name, summary(method.__doc__))
    return sentences


def families() -> list[str]:
    """Return every `model_type` with a family."""
    return sorted({*family_files(), *(family.model_type for family in entry_points_of("foveate.families"))})


def proved_types() -> list[str]:
    """Return every `model_type` that is recognised by its structure and listed as verified."""
    return PROVED.findall((HERE / "families/proved.py").read_text(encoding="utf-8"))


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Return the lines of `methods/presets.toml` by `method/model/budget`, with the depth and tokens of the model."""
    tables = tomllib.loads((HERE / "methods/presets.toml").read_text(encoding="utf-8"))
    models = tables.pop("models")
    rows = {}
    for method, lines in tables.items():
        for name, line in lines.items():
            rows[f"{method}/{name}"] = {"settings": {}} | models[name.partition("/")[0]] | line
    return rows


def summary(docstring: str | None) -> str:
    """Return the first paragraph of a docstring on one line; empty if there is none."""
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())


def _texts(folder: str) -> list[tuple[Path, str]]:
    return [(file, file.read_text(encoding="utf-8")) for file in sorted((HERE / folder).glob("*.py"))]
