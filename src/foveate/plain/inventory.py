"""Names of methods and families, read off their files: to import them would import torch.

A method's name is its file's, and a family's stands in its class, above its title.
Packages that bring some of their own are imported.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
METHOD = re.compile(r'^class (\w+)\((?:(?!^class ).)*?^    name = "(\w+)"$', re.MULTILINE | re.DOTALL)
MODEL_TYPE = re.compile(r'^    model_type: ClassVar\[str\] = "(\w+)"\n    title:', re.MULTILINE)
PROVED = re.compile(r'^    "([^"]+)": Proved\(', re.MULTILINE)


@cache
def method_classes() -> dict[str, str]:
    """The class of each method in `foveate/methods`, by the method's name."""
    classes = [METHOD.search(text) for _, text in _texts("methods")]
    return {found[2]: found[1] for found in classes if found}


@cache
def family_files() -> dict[str, str]:
    """The file of each family in `foveate/families`, by its `model_type`; several may share one."""
    files: dict[str, str] = {}
    for file, text in _texts("families"):
        files |= dict.fromkeys(MODEL_TYPE.findall(text), file.stem)
    return files


@cache
def brought(group: str) -> tuple[Any, ...]:
    """The methods or families that other packages bring: entry points of `foveate.methods` or `foveate.families`."""
    from importlib.metadata import entry_points  # slow to import, and most names need none

    return tuple(point.load() for point in entry_points(group=group))


def methods() -> dict[str, str]:
    """What each method does, in a sentence, by the method's name."""
    texts = {file.stem: text for file, text in _texts("methods")}
    sentences = {}
    for name, kind in method_classes().items():
        docstring = re.search(rf'^class {kind}\b.*?"""(.*?)"""', texts[name], re.MULTILINE | re.DOTALL)
        sentences[name] = _first(docstring and docstring[1])
    for method in brought("foveate.methods"):
        sentences.setdefault(method.name, summary(method))
    return sentences


def families() -> list[str]:
    """Every `model_type` that is served."""
    return sorted({*family_files(), *(family.model_type for family in brought("foveate.families"))})


def proved() -> list[str]:
    """Every `model_type` that is told from its structure, and proved."""
    return PROVED.findall((HERE / "families/proved.py").read_text(encoding="utf-8"))


def summary(documented: object) -> str:
    """The first paragraph of a docstring, on one line; empty where there is none."""
    return _first(documented.__doc__)


def _first(docstring: str | None) -> str:
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())


def _texts(folder: str) -> list[tuple[Path, str]]:
    return [(file, file.read_text(encoding="utf-8")) for file in sorted((HERE / folder).glob("*.py"))]
