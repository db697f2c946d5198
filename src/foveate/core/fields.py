"""Fields: the one rule by which values given to methods, stages, signals and the like are checked.

Scalars are strict: a string is not a number, 3.7 is not a layer, and infinity is always refused. Lists become tuples.
"""

import dataclasses
import functools
import inspect
import operator
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from foveate.errors import KeywordError, SettingError
from foveate.plain.inventory import method_classes
from foveate.plain.spelling import nearest, no_setting
from foveate.plain.upstream import brief

F = TypeVar("F", bound=Callable[..., Any])


def check(values: Any, owner: str = "") -> None:
    """Check the fields of a new instance of a dataclass by their annotations, and convert them.

    Fields that do not take part in comparisons are left out.

    Args:
        values: The instance; it may be frozen.
        owner: What the fields belong to, for the error. By default the name of the class.

    Raises:
        SettingError: If a value is of the wrong type or out of range.
    """
    kind: type = type(values)
    fields = {name: getattr(values, name) for name in _adapters(kind)}
    for name, value in _convert(owner or kind.__name__, kind, fields).items():
        object.__setattr__(values, name, value)


def check_call(owner: str) -> Callable[[F], F]:
    """Check a call's arguments by their annotations before it runs: numbers, flags, texts, and values of one class.

        @check_call("A picture")
        def see(self, medium: Medium, *, at: float | None = None, **showing: Unpack[Showing]) -> Prefix: ...

    Keywords of an unpacked TypedDict are checked too. Models, processors and pictures are checked where they are read.

    Args:
        owner: Subject of the error: "A picture: at should be a finite number; got nan."

    Raises:
        KeywordError: By the call, if a keyword is unknown.
        SettingError: By the call, if a value is of the wrong type or out of range.
    """

    def decorate(call: F) -> F:
        signature = inspect.signature(call)
        *names, last = signature.parameters
        options: Any = None
        known = (*names, last)
        if signature.parameters[last].kind is inspect.Parameter.VAR_KEYWORD:
            (options,) = typing.get_args(signature.parameters[last].annotation)
            known = (*names, *options.__annotations__)

        @functools.wraps(call)
        def checking(*args: Any, **kwargs: Any) -> Any:
            for name in kwargs:
                if name not in known:
                    raise _no_keyword(owner, name, known, dict(zip(names, args, strict=False)) | kwargs)
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{call.__qualname__}: {error}") from None
            if options is not None:
                keywords = bound.arguments.get(last, {})
                keywords.update(_convert(owner, options, keywords))
            bound.arguments.update(_convert(owner, call, bound.arguments))
            return call(*bound.args, **bound.kwargs)

        return cast(F, checking)

    return decorate


def _no_keyword(owner: str, name: str, known: Sequence[str], values: Mapping[str, Any]) -> KeywordError:
    """Return the error for an unknown keyword, with a similar one, or where a setting of the method goes."""
    advice, method = nearest(name, known), values.get("method")
    if not advice and "method" in known and method is not None:
        kind, classes = type(method).__name__, method_classes()
        if isinstance(method, str):
            kind = classes.get(method.partition(":")[0].strip(), "Method")
        kind = f"fv.{kind}" if kind in classes.values() else kind
        advice = f" A setting of the method goes into it: {kind}({name}={brief(values[name])})."
    return KeywordError(f"{no_setting(owner, name, set(known) - {'self'})}{advice}")


def _convert(owner: str, hinted: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check and convert the values that have an adapter."""
    adapters, converted = _adapters(hinted), {}
    for name, value in values.items():
        try:
            if name in adapters:
                converted[name] = adapters[name].validate_python(_plain(value))
        except ValidationError as error:
            within = error.errors(include_url=False)[0].get("ctx", {}).get("error")
            if isinstance(within, SettingError):  # raised by a method nested in the settings
                raise within from None
            raise SettingError(_sentence(owner, name, value, error)) from None
        except RecursionError:
            deep = f"{owner}: {name} nests too many values inside each other; got {brief(value)}."
            raise SettingError(deep) from None
    return converted


@cache
def _adapters(hinted: Any) -> dict[str, TypeAdapter[Any]]:
    """Return the adapter of each field of a dataclass, or those that `_hint_of` gives of arguments or keywords."""
    hints = inspect.get_annotations(hinted)
    if isinstance(hinted, type):  # with those of its bases
        hints = typing.get_type_hints(hinted, include_extras=True)
    if dataclasses.is_dataclass(hinted):
        hints = {field.name: hints[field.name] for field in dataclasses.fields(hinted) if field.init and field.compare}
    for name, hint in hints.items():
        bare = getattr(hint, "__origin__", hint)  # of Annotated: the type itself
        if dataclasses.is_dataclass(bare):
            hints[name] = _hint_of(bare)
        elif not dataclasses.is_dataclass(hinted):
            hints[name] = _hint_of(hint)
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return {name: TypeAdapter(hint, config=config) for name, hint in hints.items() if hint is not None}


def _hint_of(hint: Any) -> Any:
    """Return a type for pydantic, which is to look at a value's class only. None for models, and for other types."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Literal or hint in (int, float, bool, str, Path, NoneType, ...):
        return hint
    if kind in (Annotated, Union, UnionType, tuple, Sequence):
        inner = tuple(_hint_of(part) for part in parts[: 1 if kind is Annotated else None])
        more = getattr(hint, "__metadata__", (...,) if kind is Sequence else ())
        outer: Any = {UnionType: Union, Sequence: tuple}.get(kind, kind)
        return None if None in inner else outer[inner + more]
    is_class = isinstance(hint, type) and not hint.__module__.startswith(("torch.nn", "transformers", "typing"))
    if is_class or kind in (Callable, Collection, Iterable, Mapping):
        return Annotated[Any, AfterValidator(functools.partial(_instance, kind or hint))]
    return None


def _instance(kind: type, value: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, str):  # a text is no collection
        raise ValueError("several values, not one text" if isinstance(value, kind) else f"a {kind.__name__}")
    return value


def _plain(value: Any) -> Any:
    """Convert lists to tuples, and numpy or torch numbers to Python's: `np.int64(3)` gives 3."""
    if isinstance(value, list | tuple | range):
        return tuple(_plain(part) for part in value)
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a numpy or torch scalar
        return value.item()
    if hasattr(value, "__index__") and not hasattr(value, "ndim"):
        return operator.index(value)
    return value


def _sentence(owner: str, name: str, value: Any, error: ValidationError) -> str:
    """Format the error's message: what was wrong with a setting, and its value."""
    errors = error.errors(include_url=False)
    # What is wrong with an item says more than that a tuple is not the other kind of a union.
    worst, *others = sorted(errors, key=lambda each: not any(isinstance(at, int) for at in each["loc"]))
    place = name + "".join(f"[{at}]" for at in worst["loc"] if isinstance(at, int))
    said = worst["msg"].removeprefix("Value error, ").removeprefix("Input should ")
    if worst["type"] == "tuple_type" and isinstance(value, int | float):
        said = f"a tuple, such as ({brief(value)},)"
    for other in others if place == name else ():  # of a union: a valid string or a Method
        if not any(isinstance(at, int) for at in other["loc"]):
            said += f" or {other['msg'].removeprefix('Value error, ').removeprefix('Input should be ')}"
    counts = {"missing": "is missing", "too_long": "has too many values", "too_short": "has too few values"}
    if worst["type"] in counts:
        said = f"{place} {counts[worst['type']]}"
    elif not said.startswith("layers"):
        said = f"{place} should be {said.removeprefix('be ')}"
    return f"{owner}: {said}; got {brief(value)}."
