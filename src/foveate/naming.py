"""Methods by name: one grammar for all commands, lmms-eval, vLLM and Python.

v2drop                                  a method; without a budget it keeps a third, see `method_of`
v2drop/llava-1.5-7b/192                 a preset
v2drop:metric=cosine;layers=3,17,22     a method with settings
visionzip+v2drop:scope=image+finalkv    a chain
./mine.py:keep=0.3                      a Python file with your own method, and settings; with a + in its path: ./a+b.py
tuned.json                              a preset file: from `foveate tune`, or a method's own JSON
{"method": "v2drop", "keep": [0.5]}     JSON, from `Method.to_dict`
"""

import types
from ast import literal_eval
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, overload

from foveate import registry
from foveate.contract.method import BUDGET, Chain, Method
from foveate.errors import SettingError
from foveate.plain.spelling import Written, fractions, no_setting, pair_of, parse_text
from foveate.plain.upstream import brief, ignored

RETENTION = 1 / 3
"""The share that a method keeps if only its name is given, without a budget. As a share it fits any model."""


def parse(text: str, settings: Sequence[str] | Mapping[str, Any] = ()) -> Method:
    """Return the method that a text names; see this module's grammar.

    Args:
        text: In this module's grammar.
        settings: More settings, as `key=value` texts or by name. Each goes to the member that has it.

    Raises:
        InputError: If it names a file that cannot be read.
        SettingError: If a setting is unknown, given twice, of the wrong type, or belongs to several members.
        UnknownNameError: If there is no method or preset of a name.
    """
    members = [member.make(**member.values) for member in _members(text, settings)]
    if len(members) == 1:
        return members[0]
    return Chain.of(*members)


def settings_given(text: str, settings: Sequence[str] | Mapping[str, Any] = ()) -> frozenset[str]:
    """The settings given to `parse`. In a chain they have the place of their member: "1.metric"."""
    members = _members(text, settings)
    if len(members) == 1:
        return frozenset(members[0].values)
    return frozenset(f"{place}.{name}" for place, member in enumerate(members) for name in member.values)


def _members(text: str, settings: Sequence[str] | Mapping[str, Any]) -> list["_Member"]:
    members = [_Member.of(part) for part in parse_text(text)]
    named = isinstance(settings, Mapping)
    for name, value in settings.items() if isinstance(settings, Mapping) else map(pair_of, settings):
        owners = [member for member in members if name in settings_of(member.kind)]
        if not owners:
            raise no_setting(text, name, {name for member in members for name in settings_of(member.kind)})
        if len(owners) > 1:
            raise SettingError(
                f"Several methods of {text} have the setting {name}. Write it after the method's name: name:{name}=…."
            )
        owners[0].add(name, value if named else value_of(owners[0].kind, name, value))
    return members


def kinds_of(text: str) -> list[type[Method]]:
    """The classes of the methods that a text names."""
    return [_Member.of(part).kind for part in parse_text(text)]


def refuse_files(text: str) -> None:
    """Refuse a method that names a file, so that a client cannot make a server open, or look for, a file.

    Raises:
        SettingError: If a member is a file.
    """
    if any(part.is_file or part.is_code for part in parse_text(text)):
        raise SettingError(f"{brief(text)} names a file, which is not read here. Write a name, settings or a chain.")


@dataclass(frozen=True)
class _Member:
    """One method of a text: its class, the function that makes it, and the given settings."""

    kind: type[Method]
    make: Callable[..., Method]
    values: dict[str, Any]

    @classmethod
    def of(cls, part: Written) -> "_Member":
        if part.is_file or part.is_preset:
            ready = registry.preset(part.name)
            member = cls(type(ready), partial(replace, ready), {})  # type: ignore[type-var]
        else:
            kind = registry.method_in_file(part.name) if part.is_code else registry.method(part.name)
            member = cls(kind, kind, {})
        for name, value in (part.values or {}).items():
            member.add(name, value)
        for pair in part.pairs:
            name, text = pair_of(pair)
            member.add(name, value_of(member.kind, name, text))
        return member

    def add(self, name: str, value: Any) -> None:
        self.kind._refuse_unknown((name,))
        if name in self.values:
            raise SettingError(f"{name} is given twice.")
        self.values.update(with_lists(self.kind, {name: value}))


# -- what a method is asked for -----------------------------------------------------------------------------------


def members_of(method: Method) -> tuple[Method, ...]:
    """The members of a chain, or the method alone."""
    if isinstance(method, Chain):
        return method.members
    return (method,)


def name_of(method: Method) -> str:
    """The names of a method's members: "thintower+vidcom2"."""
    return "+".join(member.name for member in members_of(method))


def is_bare(text: str, settings: Iterable[str] = ()) -> bool:
    """True if a text has only names: no preset, file, JSON or settings.

    Args:
        text: In this module's grammar.
        settings: The names of settings given in addition. A seed is allowed: it changes which tokens are kept, not how
            many.
    """
    plain = (not (one.is_file or one.is_preset or one.pairs or one.values is not None) for one in parse_text(text))
    return all(plain) and set(settings) <= {"seed"}


@overload
def method_of(
    method: Method | str,
    tokens: float | None = None,
    retention: float | None = None,
    settings: Sequence[str] | Mapping[str, Any] = (),
) -> Method: ...
@overload
def method_of(
    method: Method | str | None, tokens: float | None = None, retention: float | None = None
) -> Method | None: ...
def method_of(
    method: Method | str | None,
    tokens: float | None = None,
    retention: float | None = None,
    settings: Sequence[str] | Mapping[str, Any] = (),
) -> Method | None:
    """The method to run, for every entry point. None is the unchanged model.

    A given budget is spent by the method, or by the last open member of a chain. Without a budget, a name alone, or a
    chain of names, keeps a third if it can take a budget. Everything else runs as given: a name with settings, a
    preset, a file, JSON, and a method object.

    Args:
        method: A method, or a text in this module's grammar.
        tokens, retention: The budget, one of them.
        settings: More settings of a text; see `parse`.

    Raises:
        SettingError: If the method already has a budget or a schedule, or takes no budget; if both numbers are given,
            or one without a method; or if this is not a method.
        FoveateError: As `parse`.
    """
    if method is None:
        if tokens is not None or retention is not None:
            raise SettingError('A budget was given without a method. Name one, such as method="v2drop".')
        return None
    bare = False
    if isinstance(method, str):
        bare = is_bare(method, settings if isinstance(settings, Mapping) else [pair_of(pair)[0] for pair in settings])
        method = parse(method, settings)
    if not isinstance(method, Method):
        if isinstance(getattr(method, "method", None), Method):
            kind = type(method).__name__
            raise SettingError(
                f"A {kind} is more than a method, so it is not accepted here. To use only its method, give its .method."
            )
        raise SettingError(f"A method must be an object such as foveate.V2Drop(), or its name; got {brief(method)}.")
    if tokens is None and retention is None:
        if bare and method.open:
            return method.with_budget(retention=RETENTION)
        return method
    own = [f"{name}={value:.6g}" for member in members_of(method) for name, value in member._not_none(BUDGET).items()]
    if own and not method.open:
        raise SettingError(
            f"{type(method).__name__} has a budget of its own, {', '.join(own)}. Leave tokens= and retention= out, or "
            "change its own: with_budget(…)."
        )
    return method.with_budget(tokens=tokens, retention=retention)


def asked_share(method: Method, vision_tokens: int) -> float | None:
    """The share of the vision tokens that a method's (in a chain, the last) budget asks for. None without a budget."""
    for member in reversed(members_of(method)):
        if share := getattr(member, "retention", None):
            return float(share)
        if tokens := getattr(member, "tokens", None):
            return min(1.0, float(tokens) / vision_tokens)
    return None


def draws(method: Method) -> bool:
    """True if a member drops at random and has no seed."""
    return any(getattr(member, "seed", 0) is None for member in members_of(method))


def with_seed(method: Method, seed: int) -> Method:
    """Set the seed of a method that has none; in a chain, of every such member."""
    if isinstance(method, Chain):
        return Chain.of(*(with_seed(member, seed) for member in method.members))
    return replace(method, seed=seed) if draws(method) else method  # type: ignore[type-var]


# -- values ---------------------------------------------------------------------------------------------------

OF_PYTHON = ignored(Warning)
"""Python warns about texts such as 0or1."""
SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def settings_of(kind: type[Method]) -> tuple[str, ...]:
    """The names of a method's settings."""
    return tuple(field.name for field in fields(kind))  # type: ignore[arg-type]


def value_of(kind: type[Method], name: str, text: str) -> Any:
    """Parse a text as a value of a setting. A text that does not parse is left to the setting's own check."""
    if bool in _types(kind).get(name, ()):
        return SWITCHES.get(text.lower(), text)
    try:
        with OF_PYTHON:
            value = literal_eval(fractions(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return with_lists(kind, {name: value})[name]


def with_lists(kind: type[Method], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of settings, with a single number as a list of one if the setting takes a list."""
    settings = dict(values)
    for name, value in values.items():
        lone = isinstance(value, int | float) and not isinstance(value, bool)
        if lone and tuple in _types(kind).get(name, ()):
            settings[name] = (value,)
    return settings


@cache
def _types(kind: type[Method]) -> dict[str, frozenset[type]]:
    """The types of values that each setting takes: for `tuple[int, ...] | None`, a tuple and None."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: frozenset(_plain_types(hint)) for name, hint in hints.items()}


def _plain_types(hint: Any) -> list[Any]:
    origin = get_origin(hint)
    if origin is Annotated:
        return _plain_types(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return [plain for part in get_args(hint) for plain in _plain_types(part)]
    return [origin or hint]
