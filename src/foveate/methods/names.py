"""Methods by name: which there are, and one grammar for all commands, lmms-eval and Python.

v2drop                                  a method with its defaults
v2drop/llava-1.5-7b/192                 a preset
v2drop:metric=cosine;layers=3,17,22     settings
visionzip+v2drop:scope=image+finalkv    a chain
tuned.json                              the record of a tuning, or a method's own JSON
{"method": "v2drop", "keep": [0.5]}     JSON, as `Method.to_json` writes it
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from foveate.errors import SettingError, UnknownNameError
from foveate.methods.base import Method, Preset
from foveate.methods.chain import Chain

__all__ = ["discovered", "from_dict", "method", "methods", "parse", "preset", "presets"]

extra: dict[str, type[Method]] = {}
"""Methods that somebody registered."""


@cache
def discovered() -> dict[str, type[Method]]:
    """`METHOD` of every module in `foveate/methods`, and of every entry point in group `foveate.methods`."""
    found: dict[str, type[Method]] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        kind = getattr(importlib.import_module(f"foveate.methods.{module.name}"), "METHOD", None)
        if kind is not None and kind is not Chain:
            found[kind.name] = kind
    for point in entry_points(group="foveate.methods"):
        kind = point.load()
        found.setdefault(kind.name, kind)
    return found


def methods() -> dict[str, type[Method]]:
    """Every method by its name."""
    return {**discovered(), **extra}


def method(name: str) -> type[Method]:
    """The method of this name.

    Raises:
        UnknownNameError: If there is none; the message lists those there are.
    """
    known = methods()
    if name not in known:
        raise UnknownNameError(f"No method {name!r}. There are: {', '.join(sorted(known))}.")
    return known[name]


def presets() -> dict[str, Preset]:
    """Every published or derived setting by its name, `method/model/budget`."""
    return {preset.name: preset for kind in methods().values() for preset in kind.presets}


def preset(name: str) -> Method:
    """The setting of this name, such as `v2drop/llava-1.5-7b/192`.

    Raises:
        UnknownNameError: If there is none; the message lists the nearest.
    """
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.3) or sorted(known)
        raise UnknownNameError(f"No preset {name!r}. Near it: {', '.join(near)}. All: foveate presets.")
    return known[name].method


def from_dict(values: Mapping[str, Any]) -> Method:
    """The method that `Method.to_dict` gave, whichever it is.

    Raises:
        SettingError: If it names no method, or settings do not fit.
        UnknownNameError: If there is no such method.
    """
    if not isinstance(values, Mapping) or not isinstance(name := values.get("method"), str):
        raise SettingError(f"A method's settings name it: {{'method': …}}; got {values!r}.")
    try:
        return (Chain if name == Chain.name else method(name)).from_dict(values)
    except RecursionError:
        raise SettingError(f"The settings of {name} hold methods within methods too deep.") from None


def parse(text: str) -> Method:
    """The method that a text names; see this module's grammar, and `foveate.methods.grammar` for its parts.

    Raises:
        InputError: If it names a file that cannot be read.
        SettingError: If a setting is unknown, given twice, or of the wrong type.
        UnknownNameError: If there is no method or preset of a name.
    """
    from foveate.methods import grammar

    return grammar.read(text).method()
