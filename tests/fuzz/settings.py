"""Methods' settings of wrong types and ranges, as Python, JSON and texts give them."""

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any

from transformers import LlamaConfig, LlavaConfig

from foveate import catalogue
from foveate.contract.method import Method
from foveate.errors import SettingError
from foveate.naming import parse
from tests.fuzz.judging import Case, Wrong
from tests.fuzz.mutating import altered, odd_number, odd_text, odd_value, short

DEPTHS, SIZES = (1, 2, 6, 32, 80), ((), (1,), (2,), (576,), (25, 36), (0,), (2880, 1))
MODEL = LlavaConfig(text_config=LlamaConfig(num_hidden_layers=32), image_seq_length=576)
JOINTS = (":", ";", "=", "+", ",", "/", "", " ", "::", ";;", "==", "++")


def case(rng: Random, folder: Path) -> Case:
    """One of the ways to make a method, with something wrong in most of them."""
    kinds = sorted(catalogue.discovered().items())
    name, kind = rng.choice(kinds)
    values = _values(rng, kind)
    way = rng.choice(("python", "python", "dictionary", "json", "text", "text", "budget", "chain"))
    if way == "python":
        return Case(f"{kind.__name__}(**{short(values)})", lambda: _made(kind(**values), rng))
    if way == "budget":
        budget = {rng.choice(("tokens", "retention", "vision_tokens")): odd_number(rng) for _ in range(2)}
        given = budget | values
        return Case(f"{kind.__name__}.for_budget(**{short(given)})", lambda: kind.for_budget(MODEL, **given))
    if way == "dictionary":
        plain = altered(rng, {"method": name, **_defaults(kind), **values})
        return Case(f"from_dict({short(plain)})", lambda: _made(catalogue.from_dict(plain), rng))
    if way == "json":
        written = json.dumps({"method": name, **_jsonable(values)})
        text = rng.choice((written, written[: rng.randrange(len(written))], written + odd_text(rng)))
        return Case(f"parse({short(text)})", lambda: _made(parse(text), rng))
    if way == "chain":
        other, _ = rng.choice(kinds)
        members = [{"method": name, **values}, altered(rng, {"method": other})]
        return Case(f"a chain of {short(members)}", lambda: _made(catalogue.from_dict(_chain(members)), rng))
    text = _text(rng, name, values)
    return Case(f"parse({short(text)})", lambda: _made(parse(text), rng))


def _values(rng: Random, kind: type[Method]) -> dict[str, Any]:
    """Some settings of a method, each odd."""
    usual = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    chosen = rng.sample(sorted(usual), k=min(len(usual), rng.choice((0, 1, 1, 1, 2, 3))))
    return {name: _value(rng, usual[name]) for name in chosen}


def _value(rng: Random, usual: Any) -> Any:
    """An odd value for a setting, or one that is near what it usually has."""
    how = rng.random()
    if how < 0.3:
        return rng.choice(
            (usual, (1, 2), (3, 17, 22), (0.5, 0.3, 0.0), (0.5,), [2, 1], [3.7, 4], 0.5, 12, "l1", "keep")
        )
    if how < 0.5 and isinstance(usual, bool | int | float):
        return usual + rng.choice((0, 1, -1, 0.5, 1e-9))
    if how < 0.5 and isinstance(usual, tuple):
        return tuple(rng.choice((part, part, part + 1, odd_number(rng))) for part in usual)
    return odd_value(rng)


def _defaults(kind: type[Method]) -> dict[str, Any]:
    return kind().to_dict()


def _jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """Values that JSON can write; too deep ones are left out."""
    plain = {}
    for name, value in values.items():
        try:
            json.dumps(value)
        except RecursionError:
            continue
        plain[name] = value
    return plain


def _chain(members: list[Any]) -> dict[str, Any]:
    return {"method": "chain", "members": members}


def _text(rng: Random, name: str, values: dict[str, Any]) -> str:
    """What a command line might have after --method."""
    pairs = ";".join(f"{key}={_written(value)}" for key, value in values.items())
    text = f"{name}:{pairs}"
    if rng.random() < 0.3:
        text = rng.choice((name, text)) + rng.choice(JOINTS) + rng.choice((odd_text(rng), name, text))
    if rng.random() < 0.2:
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(JOINTS) + text[at + rng.randrange(3) :]
    return text


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(f"{short(part)}" for part in value)
    return value if isinstance(value, str) else short(value)


def _made(method: Method, rng: Random) -> None:
    """A method that was made survives its JSON, and plans tokens or says why not."""
    text = json.dumps(method.to_dict())
    again = catalogue.from_dict(json.loads(text))
    if again.to_dict() != method.to_dict():
        raise Wrong(f"{method!r} comes back from its JSON as {again!r}")
    depth, sizes = rng.choice(DEPTHS), rng.choice(SIZES)
    counts = method.plan(depth, sizes)
    if counts is not None and not all(0 <= count <= sum(sizes) for count in counts):
        raise Wrong(f"{method!r} plans {counts} tokens of {sizes}")
    try:
        method.with_budget(retention=0.5)
    except SettingError:
        return
