"""Registry: all methods, presets and families, from their folders, from entry points, and registered ones.

A method's name is that of its file, so a name imports only that file. A `model_type` imports only its family's file.
"""

import copyreg
import importlib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import MISSING
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from foveate.contract.method import Chain, Method, Preset
from foveate.core.fields import check_call
from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.plain import inventory
from foveate.plain.own_files import run_file
from foveate.plain.spelling import CHAIN, Written, method_name, settings_in, unknown
from foveate.plain.upstream import brief

if TYPE_CHECKING:
    from foveate.families.base import Family

_extra_methods: dict[str, type[Method]] = {}
_extra_families: dict[str, "type[Family]"] = {}

RETRIEVERS = ("colpali", "colqwen2")
"""The `model_type`s of retrieval models around another, `vlm`. Their vectors are the prompt's columns."""

# -- methods and presets ------------------------------------------------------------------------------------------


def lookup(name: str) -> type[Method] | None:
    """The method of this name. None if there is none."""
    if name in _extra_methods:
        return _extra_methods[name]
    if of_file := inventory.method_classes().get(name):
        kind: type[Method] = getattr(importlib.import_module(f"foveate.methods.{name}"), of_file)
        return kind
    return _bring().get(name)


def method(name: str) -> type[Method]:
    """The method of this name.

    Raises:
        UnknownNameError: If there is none; the message names the nearest.
    """
    kind = lookup(name)
    if kind is None:
        raise unknown("method", name, _names(), "foveate methods")
    return kind


def method_in_file(path: str) -> type[Method]:
    """The method in a Python file: its METHOD, or the only one that it defines. The file is run.

    Raises:
        InputError: If the file cannot be read, or fails.
        SettingError: If there is no method or more than one, or if its name is missing or taken.
    """
    module = run_file(path)
    classes = [value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Method)]
    own = {kind for kind in classes if kind.__module__ == module.__name__ and not inspect.isabstract(kind)}
    kinds = [kind for kind in own if kind is getattr(module, "METHOD", kind)]
    if len(kinds) != 1:
        names = ", ".join(sorted(kind.__name__ for kind in own)) or "none"
        raise SettingError(f"{path} must define one method with stages, or set METHOD; it defines {names}.")
    (kind,) = kinds
    name = getattr(kind, "name", None)
    if not isinstance(name, str) or not name or name in {CHAIN, *inventory.method_classes(), *_bring()}:
        raise SettingError(
            f'{path}: {kind.__name__} needs a name of its own, such as name = "mine"; got {brief(name)}.'
        )
    # Other processes do not have this module, so pickle loads it from the file again.
    copyreg.pickle(kind, lambda method: (_from_file, (module.__file__, module.__name__, method._values())))
    return kind


def _from_file(path: str, module: str, values: Mapping[str, Any]) -> Method:
    """Load a pickled method from its file.

    Raises:
        InputError: If the file has changed.
    """
    kind = method_in_file(path)
    if kind.__module__ != module:
        raise InputError(f"{path} has changed meanwhile. Run again.")
    return kind(**values)


def methods() -> dict[str, type[Method]]:
    """All methods by name."""
    return {name: method(name) for name in _names()}


def _names() -> dict[str, Any]:
    return {**inventory.method_classes(), **_bring(), **_extra_methods}


def _bring() -> dict[str, type[Method]]:
    """The methods of other packages. Of two with the same name, the first."""
    return {kind.name: kind for kind in reversed(inventory.entry_points_of("foveate.methods"))}


def takes_budget(kind: type[Method]) -> bool:
    """True if a method can be made from a budget alone."""
    fields = kind._fields()
    required = [field for field in fields.values() if field.default is MISSING and field.default_factory is MISSING]
    return "retention" in fields and not required


def presets() -> dict[str, Preset]:
    """All published or derived settings by name, `method/model/budget`; those of chains at the end."""
    return {name: _preset(name) for name in inventory.presets()}


def _preset(name: str) -> Preset:
    line = inventory.presets()[name]
    method = from_dict({"method": name.partition("/")[0], **line["settings"]})
    return Preset(name, method, line["depth"], line.get("vision_tokens"), line["source"])


@check_call("A preset")
def preset(name: str) -> Method:
    """The setting of this name, such as `v2drop/llava-1.5-7b/192`, or in a preset file: from `foveate tune`, or JSON.

    Raises:
        InputError: If it names a file that cannot be read.
        UnknownNameError: If there is none; the message names the nearest.
    """
    if Written(name).is_file:
        return from_dict(settings_in(name))
    if name not in inventory.presets():
        raise unknown("preset", name, inventory.presets(), "foveate presets")
    return _preset(name).method


def from_dict(values: Mapping[str, Any]) -> Method:
    """The method of any class that `Method.to_dict` wrote.

    Raises:
        SettingError: If it names no method, or settings do not fit.
        UnknownNameError: If there is no such method.
    """
    name = method_name(values)
    try:
        if name != CHAIN:  # `methods` does not contain it
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
"""A method. In JSON, the result of `Method.to_dict`."""


# -- families -----------------------------------------------------------------------------------------------------


def families() -> "dict[str, type[Family]]":
    """All model families by the `model_type` they serve."""
    named = {model_type: _in_files(model_type) for model_type in inventory.families()}
    return {model_type: family for model_type, family in named.items() if family} | _extra_families


@cache
def _in_files(model_type: str) -> "type[Family] | None":
    """The hand-written family of a `model_type`, in its file or in another package. None if there is none."""
    if file := inventory.family_files().get(model_type):
        candidates: Iterable[Any] = vars(importlib.import_module(f"foveate.families.{file}")).values()
    else:
        candidates = inventory.entry_points_of("foveate.families")
    return next((family for family in candidates if getattr(family, "model_type", None) == model_type), None)


def support() -> dict[str, dict[str, dict[str, Any]]]:
    """The table of what works on which family, derived from the stages of each method's defaults.

    For each `model_type`, modality ("image", "video") and method: the places where tokens are or may be dropped, as
    named in a trace ("pixels", "tower", "projector", "layer", "kv"), or where they are cached but not read ("read"); or
    why the method is refused. The tests check it for each method on each family.
    """
    from foveate.families.support import reach, usual_input

    table: dict[str, dict[str, dict[str, Any]]] = {}
    for model_type, family in sorted(families().items()):
        modalities = ("image", "video") if family.videos else ("image",)
        table[model_type] = {modality: {} for modality in modalities}
        for (name, kind), modality in product(sorted(methods().items()), modalities):
            try:
                usual = kind()
            except (SettingError, TypeError):  # it cannot be made without settings
                table[model_type][modality][name] = f"{name} has no defaults: what works depends on its settings."
                continue
            table[model_type][modality][name] = reach(usual, family, arriving=usual_input(family, modality))
    return table


def family_for(model: Any) -> "Family":
    """The family object of a model, or of the transformers model inside a wrapper (PEFT, torch.compile, a pipeline).

    Args:
        model: A vision-language model of transformers.

    Raises:
        UnsupportedError: If its parts are not found, or dropping would be wrong there; the message says why.
    """
    model, retriever = inside(model), None
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in RETRIEVERS:
        model, retriever = model.vlm, model
        model_type = model.config.model_type
    family = family_kind(model_type, type(model).__name__)(model)
    family.retriever = retriever
    return family


def family_kind(model_type: Any, name: str = "") -> "type[Family]":
    """The family of a `model_type`: hand-written, or derived from the model.

    Args:
        model_type: The `model_type` of a config.
        name: The class with that config, for the message.

    Raises:
        UnsupportedError: If no family can serve it.
    """
    from foveate.families.proved import UNSERVED

    reason = f"It cannot be served: {UNSERVED.get(model_type)}."
    if model_type is None:
        reason = "It is no vision-language model of transformers: its config has no model_type."
    if model_type is None or model_type in UNSERVED:
        of_class = f" ({name})" * bool(name)
        raise UnsupportedError(
            f"No family for model_type {model_type!r}{of_class}. Supported: {', '.join(sorted(families()))}, and "
            f"others whose structure is known. {reason}"
        )
    family = _extra_families.get(model_type) or _in_files(model_type)
    if family is not None:
        return family
    from foveate.families.derived import OVERRIDES, Derived

    return OVERRIDES.get(model_type, Derived)


def inside(model: Any) -> Any:
    """The outermost transformers model of a pipeline or module; for a model that also speaks, its thinker.

    The argument itself if there is none.

    Raises:
        UnsupportedError: If copies of the model would run in several threads.
    """
    from torch import nn
    from transformers import PreTrainedModel

    if not isinstance(model, nn.Module):
        model = getattr(model, "model", model)
    if not isinstance(model, nn.Module):
        return model
    if isinstance(model, nn.DataParallel):
        raise UnsupportedError(
            "nn.DataParallel runs copies of a model in several threads, and foveate allows one thread per model. "
            "Use device_map, or one process per device."
        )
    of_transformers = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    outermost = next(of_transformers, model)
    thinker = getattr(outermost, "thinker", None)  # the part of a speaking model that reads and answers
    if isinstance(thinker, PreTrainedModel):
        return thinker
    return outermost


def register_method(kind: type[Method]) -> type[Method]:
    """Add your own method; works as a decorator.

    Raises:
        SettingError: If another method already has its name.
    """
    if not isinstance(kind, type):
        raise SettingError(f"A method of your own must be a class; got {brief(kind)}.")
    _refuse_taken(kind.name, kind, lookup(kind.name))
    _extra_methods[kind.name] = kind
    return kind


def register_family(kind: "type[Family]") -> "type[Family]":
    """Add your own family; works as a decorator.

    Raises:
        SettingError: If another family already serves its `model_type`.
    """
    if not isinstance(kind, type):
        raise SettingError(f"A family of your own must be a class; got {brief(kind)}.")
    _refuse_taken(kind.model_type, kind, families().get(kind.model_type))
    _extra_families[kind.model_type] = kind
    return kind


def _refuse_taken(name: str, kind: type[Any], other: type[Any] | None) -> None:
    if other not in (None, kind):
        raise SettingError(f"{name!r} is already the name of {other.__module__}.{other.__qualname__}. Rename yours.")
