"""The list of methods, presets and families, readable without torch.

`make index` writes `index.json` from the classes, and a test compares the two. Methods and families of other packages
are not in it, nor is a method's file that is newer: then the classes are asked, which takes some seconds.
"""

import dataclasses
import json
import re
import sys
import types
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["FILE", "contents", "is_complete", "listed", "stored", "summary", "write"]

FILE = Path(__file__).with_name("index.json")
METHODS = FILE.with_name("methods")
GROUPS = ("foveate.methods", "foveate.families")
POSITIONS = 'Whether rows are numbered anew after a cut ("reindex"), or keep their position ids ("keep")'
UNKNOWN_COUNT = 1000  # of vision tokens; a preset that fits any count has its share computed at this one


def listed() -> dict[str, Any]:
    """What there is: methods, presets and families, each as plain values."""
    index = stored()
    return index if is_complete(index) else contents()


def stored() -> dict[str, Any]:
    """What the list says."""
    index: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return index


def is_complete(index: Mapping[str, Any]) -> bool:
    """Whether the list has every method's file, and no other package brings methods or families."""
    files = {path.stem for path in METHODS.glob("*.py") if "\nMETHOD = " in path.read_text(encoding="utf-8")}
    names = {method["name"] for method in index["methods"]}
    return files == names and not any(entry_points(group=group) for group in GROUPS)


# -- from the classes -----------------------------------------------------------------------------------------


def contents() -> dict[str, Any]:
    """What the classes say, as JSON has it: lists in the place of tuples."""
    from foveate.registry import families, methods, presets, support

    table = support()
    values = {
        "methods": [_method(name, kind) for name, kind in sorted(methods().items())],
        "presets": [_preset(preset) for preset in presets().values()],
        "families": [_family(name, kind, table[name]) for name, kind in sorted(families().items())],
    }
    plain: dict[str, Any] = json.loads(json.dumps(values, default=repr))
    return plain


def _method(name: str, kind: Any) -> dict[str, Any]:
    from foveate.contract.catalogue import takes_budget

    hints = get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    usual = {"keep": getattr(kind, "usual_keep", None), "targets": getattr(kind, "usual_targets", None)}
    usual[getattr(kind, "layers_setting", "layers")] = getattr(kind, "usual_layers", None)
    return {
        "name": name,
        "summary": summary(kind),
        "settings": {field.name: _default(field) for field in fields},
        "types": {field.name: _words(hints[field.name]) for field in fields},
        "meanings": _meanings(kind),
        "usual": {field.name: usual[field.name] for field in fields if usual.get(field.name) is not None},
        "takes_budget": takes_budget(kind),
    }


def _meanings(kind: Any) -> dict[str, str]:
    """What each setting means, from the docstrings of its class and of those that it is built on."""
    from docstring_parser import parse

    meanings: dict[str, str] = {}
    for base in kind.__mro__:
        for entry in parse(base.__doc__ or "").params:
            text = " ".join((entry.description or "").split()).replace("See `Positions`", POSITIONS)
            for name in entry.arg_name.split(", "):
                if meanings.get(name, "See `").startswith("See `"):  # of the class that is named there
                    meanings[name] = text
    fields = dataclasses.fields(kind)
    return {field.name: re.sub(r"`|\*\b|\b\*", "", meanings.get(field.name, "")) for field in fields}  # no markup


def _default(field: "dataclasses.Field[Any]") -> Any:
    """What a setting is if nothing is said."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return "must be given"


def _preset(preset: Any) -> dict[str, Any]:
    from foveate.core.rank import mean_tokens

    count = preset.vision_tokens or UNKNOWN_COUNT
    plan = preset.method.plan(preset.depth, (count,))
    mean = None if plan is None else mean_tokens(plan)
    return {
        "name": preset.name,
        "setting": preset.method.to_dict(),
        "depth": preset.depth,
        "vision_tokens": preset.vision_tokens,
        "mean_tokens": None if preset.vision_tokens is None else mean,
        "retention": None if mean is None else mean / count,
        "source": preset.source,
    }


def _family(name: str, kind: Any, methods: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model_type": name,
        "title": kind.title,
        "summary": summary(sys.modules[kind.__module__]),
        "methods": methods,
    }


def summary(documented: object) -> str:
    """The first paragraph of a docstring, on one line; empty where there is none."""
    text = (getattr(documented, "__doc__", None) or "").strip().split("\n\n")[0]
    return " ".join(text.split())


WORDS = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    types.NoneType: "None",
    Any: "method",
}


def _words(hint: Any) -> str:
    """What a setting takes, in words: of `tuple[int, ...] | None` "whole numbers, or None"."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _words(get_args(hint)[0])
    if origin is Literal:
        return _either(map(str, get_args(hint)))
    if origin in (Union, types.UnionType):
        return _either(_words(part) for part in get_args(hint))
    if origin is tuple:
        word = _words(get_args(hint)[0])
        return f"lists of {word}" if word.endswith("s") else f"{word}s"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _either(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}" if others else last


def write() -> None:
    """Write the list, from the classes as they are: a line for each method, preset and family."""
    parts = []
    for name, rows in contents().items():
        lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        parts.append(f'"{name}": [\n{lines}\n]')
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write()
    print(f"wrote {FILE}")
