"""Rows of `foveate methods` and `foveate models`, read from the classes, as plain JSON values."""

import dataclasses
import json
import re
import sys
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse

from foveate.plain.inventory import summary
from foveate.plain.spelling import in_words
from foveate.registry import families, method_in_file, methods, support, takes_budget

POSITIONS = 'After a cut, give rows new consecutive position ids ("reindex"), or keep their old ones ("keep")'


def method_rows(path: str = "") -> list[dict[str, Any]]:
    """Return one row per method, or that in a file: its summary, and the default, type and meaning of each setting."""
    kinds = {path: method_in_file(path)} if path else methods()
    return _plain(_method(name, kind) for name, kind in sorted(kinds.items()))


def family_rows() -> list[dict[str, Any]]:
    """Return one row per family: its summary, and where each method drops tokens of images and videos."""
    table = support()
    return _plain(
        {
            "model_type": name,
            "title": kind.title,
            "summary": summary(sys.modules[kind.__module__].__doc__),
            "methods": table[name],
        }
        for name, kind in sorted(families().items())
    )


def _plain(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Convert to JSON values: tuples to lists, and unknown objects to their repr."""
    plain: list[dict[str, Any]] = json.loads(json.dumps(list(rows), default=repr))
    return plain


def _method(name: str, kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    defaults = {field.name: field.default for field in fields}
    for field in fields:
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
        elif field.default is dataclasses.MISSING:
            defaults[field.name] = "must be given"
    unsaid = [field.name for field in fields if field.default is None]
    usual = dict.fromkeys(("keep", "targets"), getattr(kind, "usual_keep", None))
    usual[getattr(kind, "layers_setting", "layers")] = getattr(kind, "usual_layers", None)
    return {
        "name": name,
        "summary": summary(kind.__doc__),
        "settings": defaults,
        "types": {field.name: _words(hints[field.name]) for field in fields},
        "meanings": _meanings(kind),
        "usual": {name: usual[name] for name in unsaid if usual.get(name)},
        "takes_budget": takes_budget(kind),
    }


def _meanings(kind: Any) -> dict[str, str]:
    """Return the description of each setting, from the docstrings of the class and its bases."""
    meanings: dict[str, str] = {}
    for base in kind.__mro__:
        for entry in parse(base.__doc__ or "").params:
            text = " ".join((entry.description or "").split()).replace("See `Positions`", POSITIONS)
            for name in entry.arg_name.split(", "):
                if meanings.get(name, "See `").startswith("See `"):  # refers to a base class
                    meanings[name] = text
    fields = dataclasses.fields(kind)
    return {field.name: re.sub(r"`|\*\b|\b\*", "", meanings.get(field.name, "")) for field in fields}  # strip markup


WORDS = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    types.NoneType: "None",
    Any: "method",
}


def _words(hint: Any) -> str:
    """Describe a type in words: `tuple[int, ...] | None` is "whole numbers or None"."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _words(get_args(hint)[0])
    if origin is Literal:
        return in_words(map(str, get_args(hint)), "or")
    if origin in (Union, types.UnionType):
        return in_words(dict.fromkeys(_words(part) for part in get_args(hint)), "or")
    if origin is tuple:
        word = _words(get_args(hint)[0])
        if word.endswith("s"):
            return f"lists of {word}"
        return f"{word}s"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))
