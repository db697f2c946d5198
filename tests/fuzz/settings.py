"""Methods' settings of wrong types and ranges, as Python, JSON and texts give them."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st
from transformers import LlamaConfig, LlavaConfig

from foveate import registry
from foveate.contract.method import Method
from foveate.errors import SettingError
from foveate.naming import parse
from tests.fuzz.judging import Case, Wrong
from tests.fuzz.mutating import NUMBERS, TEXTS, VALUES, altered, short

WAYS = ("python", "dictionary", "json", "text", "budget", "chain")
FIT = st.sampled_from((0.5, 64, float("nan"), float("inf"), 0))
AMOUNTS = st.dictionaries(
    st.sampled_from(("retention", "tokens", "vision_tokens")), FIT | NUMBERS, min_size=1, max_size=2
)
DEPTHS = st.sampled_from((1, 2, 6, 32, 80))
SIZES = st.sampled_from(((), (1,), (2,), (576,), (25, 36), (0,), (2880, 1)))
MODEL = LlavaConfig(text_config=LlamaConfig(num_hidden_layers=32), image_seq_length=576)
JOINTS = st.sampled_from((":", ";", "=", "+", ",", "/", "", " ", "::", ";;", "==", "++"))
NEAR = ((1, 2), (3, 17, 22), (0.5, 0.3, 0.0), (0.5,), [2, 1], [3.7, 4], 0.5, 12, "l1", "keep")


def cases() -> list[st.SearchStrategy[Case]]:
    """A strategy for each way to make a method."""
    return list(map(_cases, WAYS))


@st.composite
def _cases(draw: st.DrawFn, way: str) -> Case:
    """A method with something wrong, mostly."""
    kinds = st.sampled_from(sorted(registry.methods().items()))
    name, kind = draw(kinds)
    values, depth, sizes = _values(draw, kind), draw(DEPTHS), draw(SIZES)

    def made(told: str, make: Callable[[], Method]) -> Case:
        return Case(told, lambda _: _used(make(), depth, sizes))

    match way:
        case "python":
            return made(f"{kind.__name__}(**{short(values)})", lambda: kind(**values))
        case "budget":
            given = draw(AMOUNTS) | draw(st.sampled_from(({}, values)))
            return Case(f"{kind.__name__}.for_budget(**{short(given)})", lambda _: kind.for_budget(MODEL, **given))
        case "dictionary":
            plain = draw(altered({"method": name, **kind().to_dict(), **values}))
        case "chain":
            other, _ = draw(kinds)
            plain = {"method": "chain", "members": [{"method": name, **values}, draw(altered({"method": other}))]}
        case "json":
            written = json.dumps({"method": name, **{key: value for key, value in values.items() if _flat(value)}})
            end = draw(st.integers(0, len(written)))
            text = draw(st.sampled_from((written, written[:end])) | TEXTS.map(written.__add__))
            return made(f"parse({short(text)})", lambda: parse(text))
        case _:
            text = _text(draw, name, values)
            return made(f"parse({short(text)})", lambda: parse(text))
    return made(f"from_dict({short(plain)})", lambda: registry.from_dict(plain))


def _flat(value: Any) -> bool:
    """Whether JSON can write a value: too deep ones it cannot."""
    try:
        json.dumps(value)
    except RecursionError:
        return False
    return True


def _values(draw: st.DrawFn, kind: type[Method]) -> dict[str, Any]:
    """Some settings of a method, each odd or near what it usually has."""
    usual = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    names = draw(st.lists(st.sampled_from(sorted(usual)), max_size=3, unique=True)) if usual else []
    return {name: draw(VALUES | st.sampled_from((usual[name], *NEAR)) | _beside(usual[name])) for name in names}


def _beside(usual: Any) -> st.SearchStrategy[Any]:
    """Values beside the usual one."""
    if isinstance(usual, bool | int | float):
        return st.sampled_from((0, 1, -1, 0.5, 1e-9)).map(lambda step: usual + step)
    if isinstance(usual, tuple):
        return st.tuples(*(st.sampled_from((part, part + 1)) | NUMBERS for part in usual))
    return VALUES


def _text(draw: st.DrawFn, name: str, values: dict[str, Any]) -> str:
    """What a command line might have after --method."""
    text = f"{name}:" + ";".join(f"{key}={_written(value)}" for key, value in values.items())
    if draw(st.integers(0, 2)) == 2:
        text = draw(st.sampled_from((name, text))) + draw(JOINTS) + draw(TEXTS | st.sampled_from((name, text)))
    if draw(st.integers(0, 4)) == 4:
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(JOINTS) + text[at + draw(st.integers(0, 2)) :]
    return text


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(short, value))
    return value if isinstance(value, str) else short(value)


def _used(method: Method, depth: int, sizes: Sequence[int]) -> None:
    """A method that was made survives its JSON, and plans tokens or says why not."""
    again = registry.from_dict(json.loads(json.dumps(method.to_dict())))
    if again.to_dict() != method.to_dict():
        raise Wrong("its JSON gives another method", f"{method!r}, {again!r}")
    counts = method.plan(depth, sizes)
    if counts is not None and not all(0 <= count <= sum(sizes) for count in counts):
        raise Wrong("a plan beyond the tokens", f"{method!r} plans {counts} of {sizes}")
    try:
        method.with_budget(retention=0.5)
    except SettingError:
        return
