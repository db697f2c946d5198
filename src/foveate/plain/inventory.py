"""Names of methods and families, read off their files: to import them would import torch.

A method's file has its name. Packages that bring methods or families of their own are imported.
"""

import ast
import re
from importlib.metadata import entry_points
from pathlib import Path

HERE = Path(__file__).parents[1]
METHOD = re.compile(r"^METHOD = (\w+)$", re.MULTILINE)
FAMILY = re.compile(r"^(?:FAMILY|FAMILIES) = ", re.MULTILINE)
MODEL_TYPE = re.compile(r'^    model_type: ClassVar\[str\] = "(\w+)"$', re.MULTILINE)
PROVED = re.compile(r'^    "([^"]+)": Proved\(', re.MULTILINE)


def methods() -> dict[str, str]:
    """What each method does, in a sentence, by the method's name."""
    found = {}
    for file in sorted((HERE / "methods").glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if named := METHOD.search(text):
            classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
            found[file.stem] = _first(ast.get_docstring(classes[named[1]]))
    for point in entry_points(group="foveate.methods"):
        method = point.load()
        found.setdefault(method.name, summary(method))
    return found


def families() -> list[str]:
    """Every `model_type` that is served."""
    texts = [file.read_text(encoding="utf-8") for file in (HERE / "families").glob("*.py")]
    found = {name for text in texts if FAMILY.search(text) for name in MODEL_TYPE.findall(text)}
    return sorted(found | {point.load().model_type for point in entry_points(group="foveate.families")})


def proved() -> list[str]:
    """Every `model_type` that is told from its structure, and proved."""
    return PROVED.findall((HERE / "families/proved.py").read_text(encoding="utf-8"))


def summary(documented: object) -> str:
    """The first paragraph of a docstring, on one line; empty where there is none."""
    return _first(documented.__doc__)


def _first(docstring: str | None) -> str:
    return " ".join((docstring or "").strip().partition("\n\n")[0].split())
