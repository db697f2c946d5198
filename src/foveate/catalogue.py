"""Which methods and presets there are: found in `foveate/methods`, in entry points, or registered.

A method's name is its file's, so a name imports that file and no other.
"""

import importlib
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Annotated, Any

from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from foveate.contract.method import Chain, Method, Preset
from foveate.errors import SettingError
from foveate.plain import inventory
from foveate.plain.spelling import CHAIN, Written, method_name, settings_in, unknown

extra: dict[str, type[Method]] = {}
"""Methods from `foveate.register_method`, by name."""


def lookup(name: str) -> type[Method] | None:
    """The method of this name; None if there is none."""
    if name in extra:
        return extra[name]
    if name in inventory.method_classes():
        kind: type[Method] = importlib.import_module(f"foveate.methods.{name}").METHOD
        return kind
    return _brought().get(name)


def method(name: str) -> type[Method]:
    """The method of this name.

    Raises:
        UnknownNameError: If there is none; the message names the nearest.
    """
    kind = lookup(name)
    if kind is None:
        raise unknown("method", name, _names(), "foveate methods")
    return kind


def methods() -> dict[str, type[Method]]:
    """Every method by its name."""
    return {name: method(name) for name in _names()}


def _names() -> dict[str, Any]:
    return {**inventory.method_classes(), **_brought(), **extra}


def _brought() -> dict[str, type[Method]]:
    """The methods of other packages; of two with one name the first."""
    return {kind.name: kind for kind in reversed(inventory.brought("foveate.methods"))}


def takes_budget(kind: type[Method]) -> bool:
    """Whether a method can be given a budget and nothing else."""
    fields = kind._fields()
    given = [field for field in fields.values() if field.default is MISSING and field.default_factory is MISSING]
    return "retention" in fields and not given


def presets() -> dict[str, Preset]:
    """Every published or derived setting by its name, `method/model/budget`; those of chains at the end."""
    from foveate.methods import chains

    of_methods = [preset for kind in methods().values() for preset in kind.presets]
    return {preset.name: preset for preset in (*of_methods, *chains.PRESETS)}


def preset(name: str) -> Method:
    """The setting of this name, such as `v2drop/llava-1.5-7b/192`, or in a preset file: of `foveate tune`, or JSON.

    Raises:
        InputError: If it names a file that cannot be read.
        UnknownNameError: If there is none; the message names the nearest.
    """
    if Written(name).is_file:
        return from_dict(settings_in(name))
    kind = lookup(name.partition("/")[0])
    by_name = {preset.name: preset for preset in kind.presets} if kind else {}
    if name not in by_name:
        by_name = presets()
    if name not in by_name:
        raise unknown("preset", name, by_name, "foveate presets")
    return by_name[name].method


def from_dict(values: Mapping[str, Any]) -> Method:
    """The method that `Method.to_dict` gave, whichever it is.

    Raises:
        SettingError: If it names no method, or settings do not fit.
        UnknownNameError: If there is no such method.
    """
    name = method_name(values)
    try:
        if name != CHAIN:  # `methods` has it not
            return method(name).from_dict(values)
        members = values.get("members")
        if isinstance(members, list | tuple):
            values = {**values, "members": [from_dict(one) if isinstance(one, Mapping) else one for one in members]}
        return Chain.from_dict(values)
    except RecursionError:
        raise SettingError(f"The settings of {name} nest too many methods inside each other.") from None


PlainMethod = Annotated[
    InstanceOf[Method],
    BeforeValidator(lambda value: value if isinstance(value, Method) else from_dict(value)),
    PlainSerializer(Method.to_dict),
]
"""A method; in JSON, what `Method.to_dict` gives."""
