"""The index: which methods, presets and families there are, readable without torch.

`make index` writes `index.json` from the classes themselves, with a SHA-256 of every source file that decides what it
says. Where a file differs, or methods or families come from other packages or were registered, the index is not used
and the classes are asked, so that the answer is always theirs.
"""

import dataclasses
import hashlib
import json
import sys
import types
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["FILE", "contents", "digests", "stored", "summary", "write"]

PACKAGE = Path(__file__).parent
FILE = PACKAGE / "index.json"
SOURCES = ("contract/*.py", "methods/*.py", "families/*.py", "core/*.py", "registry.py", "support.py", "_index.py")
GROUPS = ("foveate.methods", "foveate.families")
UNKNOWN_COUNT = 1000  # of vision tokens; a preset that fits any count has its share computed at this one


def stored() -> dict[str, Any] | None:
    """What the index says; None where it may be wrong: other sources, or methods and families from elsewhere."""
    if _registered():
        return None
    index = _read(FILE)
    if index is None or _from_other_packages():
        return None
    return index


@cache
def _read(file: Path) -> dict[str, Any] | None:
    """The index in a file, if it was made from the sources as they are."""
    try:
        index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if index.pop("sources", None) != digests():
        return None
    return index


def digests() -> dict[str, str]:
    """The SHA-256 of every source file that decides what is in the index, by its path in the package."""
    paths = sorted(path for pattern in SOURCES for path in PACKAGE.glob(pattern))
    return {path.relative_to(PACKAGE).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _registered() -> bool:
    """Whether a method or a family was registered in this process."""
    catalogue = sys.modules.get("foveate.contract.catalogue")
    registry = sys.modules.get("foveate.registry")
    return bool(getattr(catalogue, "extra", None) or getattr(registry, "_extra_families", None))


@cache
def _from_other_packages() -> bool:
    """Whether an installed package brings methods or families."""
    from importlib.metadata import entry_points

    points = entry_points()
    return any(points.select(group=group) for group in GROUPS)


# -- from the classes -----------------------------------------------------------------------------------------


def contents(parts: Iterable[str] = ("methods", "presets", "families")) -> dict[str, Any]:
    """What the classes say, as JSON has it: lists in the place of tuples."""
    makers = {"methods": _methods, "presets": _presets, "families": _families}
    values = {part: makers[part]() for part in parts}
    plain: dict[str, Any] = json.loads(json.dumps(values, default=repr))
    return plain


def _methods() -> list[dict[str, Any]]:
    from foveate.registry import methods

    return [_method(name, kind) for name, kind in sorted(methods().items())]


def _presets() -> list[dict[str, Any]]:
    from foveate.registry import presets

    return [_preset(preset) for preset in presets().values()]


def _families() -> list[dict[str, Any]]:
    from foveate.registry import families, support

    table = support()
    return [_family(name, kind, table[name]) for name, kind in sorted(families().items())]


def _method(name: str, kind: Any) -> dict[str, Any]:
    from foveate.contract.catalogue import takes_budget

    hints = get_type_hints(kind, include_extras=True)
    fields = dataclasses.fields(kind)
    return {
        "name": name,
        "summary": summary(kind),
        "settings": {field.name: _default(field) for field in fields},
        "types": {field.name: _words(hints[field.name]) for field in fields},
        "schedule": list(kind.schedule),
        "takes_budget": takes_budget(kind),
        "presets": len(kind.presets),
    }


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
    mean = retention = None
    if plan is not None:
        mean = mean_tokens(plan)
        retention = mean / count
    if preset.vision_tokens is None:
        mean = None
    return {
        "name": preset.name,
        "setting": preset.method.to_dict(),
        "depth": preset.depth,
        "vision_tokens": preset.vision_tokens,
        "mean_tokens": mean,
        "retention": retention,
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
        return _several(_words(get_args(hint)[0]))
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _several(word: str) -> str:
    if word.endswith("s"):
        return f"lists of {word}"
    return f"{word}s"


def _either(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    if not others:
        return last
    return f"{', '.join(others)} or {last}"


def write() -> None:
    """Write the index, from the classes as they are: a line for each source, method, preset and family."""
    lines = [f'"{name}": [\n{_joined(map(_json, rows))}\n]' for name, rows in contents().items()]
    sources = _joined(f"{_json(path)}: {_json(digest)}" for path, digest in digests().items())
    FILE.write_text(f'{{\n"sources": {{\n{sources}\n}},\n{_joined(lines)}\n}}\n', encoding="utf-8")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _joined(lines: Iterable[str]) -> str:
    return ",\n".join(lines)


if __name__ == "__main__":
    write()
    print(f"wrote {FILE}")
