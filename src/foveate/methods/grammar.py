"""The grammar of `foveate.methods.names`: what a text says of methods and settings, and who spends a budget."""

import json
import re
import types
import warnings
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from foveate.errors import InputError, SettingError
from foveate.methods import names
from foveate.methods.base import Method
from foveate.methods.chain import Chain
from foveate.methods.schedule import budget_of, decoder_depth

__all__ = [
    "RETENTION",
    "Member",
    "Named",
    "asked_share",
    "listed",
    "parsed",
    "read",
    "read_json",
    "settings_of",
    "unquoted",
    "values_of",
]

RETENTION = 1 / 3
"""What a name alone spends where a program asks for no budget: a share, so that it fits any model."""

BUDGET = ("tokens", "retention")
NEXT = re.compile(r"\+(?!\d)")  # between members of a chain; the sign in 1e+3 is none
SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


# -- what a text says -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Member:
    """One method of a text.

    Attributes:
        kind: Which.
        values: The settings that were given.
        whole: What the name stands for as it is, of a preset or a file; else None.
    """

    kind: type[Method]
    values: Mapping[str, Any] = field(default_factory=dict)
    whole: Method | None = None

    @property
    def scheduled(self) -> bool:
        """Whether it says by itself how much it spends."""
        if self.whole is not None:
            return True
        defaults = {one.name: one.default for one in fields(self.kind)}  # type: ignore[arg-type]
        given = {name for name, value in self.values.items() if value != defaults.get(name)}
        return bool(given & {*self.kind.schedule, *BUDGET})

    @property
    def open(self) -> bool:
        """Whether it takes a budget from outside."""
        if self.scheduled:
            return False
        try:
            self.kind().with_budget(retention=1.0)
        except (SettingError, TypeError):  # it takes none, or cannot be made without settings
            return False
        return True

    def check(self) -> None:
        """Refuse what is no value of a setting, and settings that contradict each other.

        Raises:
            SettingError: If there are such.
        """
        if self.open:
            self.spending(None, 1.0)
        else:
            self.method()

    def method(self) -> Method:
        """It, as it is."""
        if self.whole is not None:
            return replace(self.whole, **self.values)  # type: ignore[type-var]
        return self.kind(**self.values)

    def spending(self, tokens: float | None, retention: float | None) -> Method:
        """It, with a budget that its stages solve for every image they see."""
        usual = self.kind().with_budget(tokens=tokens, retention=retention)
        return replace(usual, **self.values)  # type: ignore[type-var]

    def solved(self, model: Any, **budget: Any) -> Method:
        """It, with its schedule solved for a budget on a model; arguments as of `Method.for_budget`."""
        self.check()
        return self.kind.for_budget(model, **budget, **self.values)


@dataclass(frozen=True)
class Named:
    """What a text says: methods, their settings, and which of them takes a budget from outside.

    Attributes:
        text: As it was written.
        members: The methods; several are a chain.
    """

    text: str
    members: tuple[Member, ...]

    @property
    def settled(self) -> bool:
        """Whether no member takes a budget from outside, as of a preset."""
        return not any(member.open for member in self.members)

    @property
    def bare(self) -> bool:
        """Whether nothing but names was given, and which draw."""
        return not any(set(member.values) - {"seed"} for member in self.members)

    @property
    def drawn(self) -> bool:
        """Whether a member draws by lot, and nobody said which draw."""
        return any("seed" in settings_of(member.kind) and "seed" not in member.values for member in self.members)

    def has(self, setting: str) -> bool:
        """Whether a member has such a setting."""
        return any(setting in settings_of(member.kind) for member in self.members)

    def settings(self) -> list[str]:
        """The settings of all members."""
        return sorted({name for member in self.members for name in settings_of(member.kind)})

    def check(self) -> None:
        """Refuse what is no value of a setting, and settings that contradict each other.

        Raises:
            SettingError: If there are such.
        """
        for member in self.members:
            member.check()

    def method(self) -> Method:
        """The method, as it is."""
        return _joined([member.method() for member in self.members])

    def solved(
        self,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
    ) -> Method:
        """The method with a budget from outside, which goes to the last member that takes one.

        Without a budget a name alone spends a third, and what has settings is as it says; a preset always is. Alone, a
        method's schedule is solved here; in a chain, for every image on its way.

        Args:
            model: A model or its config.
            tokens: Mean vision tokens that a decoder layer processes.
            retention: The same as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count, if it is known.

        Raises:
            BudgetError: If the budget cannot be met; the message names the floor.
            SettingError: If settings contradict each other, or the budget.
        """
        given = tokens is not None or retention is not None
        if self.settled or not (given or self.bare):
            method = self.method()
            if vision_tokens is not None and asked_share(method, vision_tokens) is not None:
                method.plan(decoder_depth(model), (vision_tokens,))  # refuses what cannot be met
            return method
        if not given:
            retention = RETENTION
        if len(self.members) == 1:
            budget = {"tokens": tokens, "retention": retention, "vision_tokens": vision_tokens}
            return self.members[0].solved(model, **budget)
        _, count = budget_of(model, tokens, retention, vision_tokens)
        chain = self.spending(tokens, retention)
        if count is not None:
            chain.plan(decoder_depth(model), (count,))  # refuses what cannot be met
        return chain

    def asked(
        self, method: Method, vision_tokens: int, *, tokens: float | None = None, retention: float | None = None
    ) -> float | None:
        """The share that `solved` was to spend of so many vision tokens, if there was one; `method` is what it gave."""
        given = tokens is not None or retention is not None
        if self.settled or not (given or self.bare):
            return asked_share(method, vision_tokens)
        if tokens is not None:
            return tokens / vision_tokens
        return RETENTION if retention is None else retention

    def spending(self, tokens: float | None, retention: float | None) -> Method:
        """The method with a budget from outside, which its last member that takes one solves for every image.

        Raises:
            SettingError: If no member takes one, or not exactly one of both is given.
        """
        if self.settled:
            raise SettingError(
                f"{self.text} says by itself how much it spends, or takes no budget: leave tokens= and retention= out."
            )
        last = max(index for index, member in enumerate(self.members) if member.open)
        before = [member.method() for member in self.members[:last]]
        behind = [member.method() for member in self.members[last + 1 :]]
        return _joined([*before, self.members[last].spending(tokens, retention), *behind])

    def with_values(self, values: Mapping[str, Any]) -> "Named":
        """The same with these settings besides, each of the member that has it.

        Raises:
            SettingError: If no member has a setting, several have, or it is given already.
        """
        members = list(self.members)
        for name, value in values.items():
            index = self._owner(name)
            member = members[index]
            if name in member.values:
                raise SettingError(f"{name} is given twice.")
            members[index] = replace(member, values={**member.values, **listed(member.kind, {name: value})})
        return replace(self, members=tuple(members))

    def with_pairs(self, pairs: Sequence[str]) -> "Named":
        """The same with these `key=value` texts besides; see `with_values`."""
        values: dict[str, Any] = {}
        for pair in pairs:
            name, text = _pair(pair)
            if name in values:
                raise SettingError(f"{name} is given twice.")
            values[name] = _value(self.members[self._owner(name)].kind, name, text)
        return self.with_values(values)

    def _owner(self, name: str) -> int:
        """The member that has a setting."""
        owners = [index for index, member in enumerate(self.members) if name in settings_of(member.kind)]
        if not owners:
            raise SettingError(f"{self.text} has no setting {name}. It has: {', '.join(self.settings())}.")
        if len(owners) > 1:
            raise SettingError(f"Several of {self.text} have {name}: write it behind one's name, as name:{name}=….")
        return owners[0]


def read(text: str) -> Named:
    """What a text says; the grammar is that of `foveate.methods.names`.

    Raises:
        InputError: If it names a file that cannot be read.
        SettingError: If a setting is unknown or given twice.
        UnknownNameError: If there is no method or preset of a name.
    """
    if not isinstance(text, str):
        raise SettingError(f"A method is named by a text, such as v2drop; got {text!r}.")
    text = unquoted(text.strip())
    if text.startswith("{"):
        return Named(text, _from_dict(parsed(text)))
    if _is_file(text):
        return Named(text, (_member(text, []),))
    return Named(text, tuple(_member(*_split(part)) for part in NEXT.split(text)))


def _member(name: str, pairs: Sequence[str]) -> Member:
    whole = None
    if _is_file(name):
        whole = _from_file(name)
    elif "/" in name:
        whole = names.preset(name)
    kind = names.method(name) if whole is None else type(whole)
    return Member(kind, values_of(kind, pairs), whole)


def _split(text: str) -> tuple[str, list[str]]:
    """A name, and its `key=value` pairs; these may also stand behind colons."""
    name, _, rest = (part.strip() for part in text.partition(":"))
    if not name:
        raise SettingError(f"A method has a name: name:key=value;key=value+other; got {text!r}.")
    return name, [pair for pair in rest.replace(":", ";").split(";") if pair.strip()]


def unquoted(text: str) -> str:
    """A text without the quotes that a shell or a list of arguments has left around it."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _joined(parts: Sequence[Method]) -> Method:
    return parts[0] if len(parts) == 1 else Chain.of(*parts)


# -- JSON and files -------------------------------------------------------------------------------------------


def _from_dict(values: Any) -> tuple[Member, ...]:
    """The members of what `Method.to_dict` gave."""
    if not isinstance(values, Mapping) or not isinstance(name := values.get("method"), str):
        raise SettingError(f"A method's settings name it: {{'method': …}}; got {values!r}.")
    if name == Chain.name:
        parts = values.get("members")
        if not isinstance(parts, list) or set(values) != {"method", "members"}:
            raise SettingError(f"A chain has members, a list of methods, and nothing else; got {values!r}.")
        return tuple(member for part in parts for member in _from_dict(part))
    kind = names.method(name)
    given = {key: value for key, value in values.items() if key != "method"}
    if unknown := sorted(set(given) - set(settings_of(kind))):
        raise SettingError(f"{name} has no setting {unknown[0]}. It has: {', '.join(sorted(settings_of(kind)))}.")
    return (Member(kind, listed(kind, given)),)


def _is_file(name: str) -> bool:
    return name.endswith(".json")


def _from_file(path: str) -> Method:
    """The method of a tuning's record, or of what `Method.to_json` wrote."""
    values = read_json(path)
    settings = values if isinstance(values.get("method"), str) else values.get("method")
    if not isinstance(settings, Mapping):
        raise InputError(f"{path} is no record of a tuning, nor a method's own JSON: it names no method.")
    return names.from_dict(settings)


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: If there is no such file, or it holds none.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object.")
    return values


def parsed(text: str) -> Any:
    """What a JSON text says.

    Raises:
        SettingError: If it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"This is no JSON: {error}; got {text[:80]!r}.") from error


# -- settings -------------------------------------------------------------------------------------------------


def settings_of(kind: type[Method]) -> tuple[str, ...]:
    """The settings that a method has."""
    return tuple(one.name for one in fields(kind))  # type: ignore[arg-type]


def values_of(kind: type[Method], pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as settings of a method: `layers=3,17,22` a tuple, `reverse=true` a switch, `metric=l1` a word.

    Raises:
        SettingError: If a pair has no `=`, a key comes twice, or the method has no such setting.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, text = _pair(pair)
        if name not in settings_of(kind):
            raise SettingError(f"{kind.name} has no setting {name}. It has: {', '.join(sorted(settings_of(kind)))}.")
        if name in values:
            raise SettingError(f"{name} is given twice.")
        values[name] = _value(kind, name, text)
    return values


def listed(kind: type[Method], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of settings, one number where a list is wanted as a list of one."""
    found = dict(values)
    for name, value in values.items():
        lone = isinstance(value, int | float) and not isinstance(value, bool)
        if lone and tuple in _types(kind).get(name, ()):
            found[name] = (value,)
    return found


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise SettingError(f"{text!r}: write key=value, such as metric=cosine.")
    return name, value


def _value(kind: type[Method], name: str, text: str) -> Any:
    """A text as its setting wants it; what does not fit is left to the setting's own check."""
    if bool in _types(kind).get(name, ()):
        return SWITCHES.get(text.lower(), text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python on texts such as 0or1
            value = literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return listed(kind, {name: value})[name]


@cache
def _types(kind: type[Method]) -> dict[str, frozenset[type]]:
    """What kinds of values each setting takes: of `tuple[int, ...] | None` a tuple and None."""
    return {name: frozenset(_plain_types(hint)) for name, hint in get_type_hints(kind, include_extras=True).items()}


def _plain_types(hint: Any) -> list[Any]:
    origin = get_origin(hint)
    if origin is Annotated:
        return _plain_types(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return [plain for part in get_args(hint) for plain in _plain_types(part)]
    return [origin or hint]


# -- what was asked -------------------------------------------------------------------------------------------


def asked_share(method: Method, vision_tokens: int) -> float | None:
    """The share of so many vision tokens that a method (of a chain the last) itself says it spends; else None."""
    for member in reversed(method.members if isinstance(method, Chain) else (method,)):
        member = getattr(member, "inner", None) or member
        if share := getattr(member, "retention", None):
            return float(share)
        if tokens := getattr(member, "tokens", None):
            return min(1.0, float(tokens) / vision_tokens)
    return None
