"""What there is: methods, presets and families, found in their folders, in entry points, or registered."""

import importlib
import json
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from foveate.errors import SettingError, UnknownNameError, UnsupportedError
from foveate.families._unserved import UNSERVED

if TYPE_CHECKING:
    from foveate.families.base import Family
    from foveate.methods.base import Method, Preset

__all__ = [
    "families",
    "family_for",
    "inside",
    "method",
    "methods",
    "no_family",
    "preset",
    "presets",
    "register_family",
    "register_method",
    "support",
]

SUPPORT = Path(__file__).parent / "families" / "support.json"
"""What works on which family, as the tests have found it (tests/support.py writes it)."""

T = TypeVar("T", bound=type[Any])

_extra_methods: dict[str, "type[Method]"] = {}
_extra_families: dict[str, "type[Family]"] = {}


def methods() -> "dict[str, type[Method]]":
    """Every method by its name."""
    return {**_discover("methods", "METHOD"), **_extra_methods}


def method(name: str) -> "type[Method]":
    """The method of this name.

    Raises:
        UnknownNameError: If there is none; the message lists those there are.
    """
    known = methods()
    if name not in known:
        raise UnknownNameError(f"No method {name!r}. There are: {', '.join(sorted(known))}.")
    return known[name]


def presets() -> "dict[str, Preset]":
    """Every published or derived setting by its name, `method/model/budget`."""
    return {preset.name: preset for kind in methods().values() for preset in kind.presets}


def preset(name: str) -> "Method":
    """The setting of this name, such as `v2drop/llava-1.5-7b/192`.

    Raises:
        UnknownNameError: If there is none; the message lists the nearest.
    """
    known = presets()
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=4, cutoff=0.3) or sorted(known)
        raise UnknownNameError(f"No preset {name!r}. Near it: {', '.join(near)}. All: foveate presets.")
    return known[name].method


def families() -> "dict[str, type[Family]]":
    """Every model family by the `model_type` it serves."""
    found = _discover("families", "FAMILY")
    return {**{kind.model_type: kind for kind in found.values()}, **_extra_families}


def support() -> dict[str, dict[str, dict[str, Any]]]:
    """What works on the families that ship with foveate, as its tests have found it.

    For each `model_type`, modality ("image", "video") and method: the stages at which tokens left, or why it is
    refused.
    """
    found: dict[str, dict[str, dict[str, Any]]] = json.loads(SUPPORT.read_text())
    return found


def family_for(model: Any, family: Literal["generic"] | None = None) -> "Family":
    """The family object of a model, or of the transformers model inside a wrapper (PEFT, torch.compile, a pipeline).

    Args:
        model: A vision-language model of transformers.
        family: "generic" for a model without a family of its own, whose decoder is of the usual kind.

    Raises:
        SettingError: If "generic" is asked for where there is a family.
        UnsupportedError: If no family serves its `model_type`; the message lists those served, and says whether the
            generic adapter would.
    """
    from foveate.families.generic import Generic

    model = inside(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    known = families()
    if family is not None and (family != "generic" or model_type in known):
        raise SettingError(
            f"family is left out, or 'generic' for a model without one; got {family!r} for {model_type!r}, which "
            f"{'has' if model_type in known else 'has not'}."
        )
    if model_type in known:
        return known[model_type](model)
    if family is None or model_type in UNSERVED:
        raise no_family(model_type, type(model).__name__, model)
    return Generic(model)


def no_family(model_type: Any, name: str = "", model: Any = None) -> "UnsupportedError":
    """The error for a model without a family: what there is, and what can be done.

    Args:
        model_type: What its config says.
        name: Of its class.
        model: The model itself, if there is one to look at.
    """
    reason = f" It cannot be served: {UNSERVED[model_type]}." if model_type in UNSERVED else ""
    if model is None and not reason:
        reason = (
            " If its decoder is of the usual kind, foveate.drop(model, method, family='generic') serves it in Python, "
            "without knowing its pictures."
        )
    elif model is not None and not reason:
        from foveate.families.generic import lacking

        found = lacking(model)
        reason = (
            f" The generic adapter cannot serve it either: {'; '.join(found)}."
            if found
            else " Its decoder is of the usual kind: foveate.drop(model, method, family='generic') serves it, without "
            "knowing its pictures."
        )
    return UnsupportedError(
        f"No family for model_type {model_type!r}{name and f' ({name})'}. Supported: {', '.join(sorted(families()))}."
        f"{reason} To add one: docs/guides/new-family.md."
    )


def inside(model: Any) -> Any:
    """The outermost transformers model of a pipeline or of a module; what was given where there is none.

    Raises:
        UnsupportedError: If copies of the model would run in several threads.
    """
    from torch import nn
    from transformers import PreTrainedModel

    if not isinstance(model, nn.Module):
        model = getattr(model, "model", model)
    if isinstance(model, nn.DataParallel):
        raise UnsupportedError(
            "nn.DataParallel runs copies of a model in several threads, and a model serves one thread at a time. "
            "Spread it with device_map, or run a process for each device."
        )
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((module for module in modules if isinstance(module, PreTrainedModel)), model)


def register_method(kind: "type[Method]") -> "type[Method]":
    """Add a method of your own; works as a decorator.

    Raises:
        SettingError: If another method already has its name.
    """
    return _register(_extra_methods, methods(), kind.name, kind)


def register_family(kind: "type[Family]") -> "type[Family]":
    """Add a family of your own; works as a decorator.

    Raises:
        SettingError: If another family already serves its `model_type`.
    """
    return _register(_extra_families, families(), kind.model_type, kind)


def _register(extra: "dict[str, T]", known: "dict[str, T]", name: str, kind: T) -> T:
    if known.get(name, kind) is not kind:
        raise SettingError(f"{name!r} is taken by {known[name].__module__}.{known[name].__qualname__}; rename yours.")
    extra[name] = kind
    return kind


@cache
def _discover(room: str, attribute: str) -> dict[str, Any]:
    """The `attribute` of every module in foveate/`room` and of every entry point in group foveate.`room`."""
    package = importlib.import_module(f"foveate.{room}")
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(package.__path__):
        kind = getattr(importlib.import_module(f"foveate.{room}.{module.name}"), attribute, None)
        for one in kind if isinstance(kind, tuple) else (kind,):
            if one is not None:
                found[getattr(one, "name", None) or one.model_type] = one
    for point in entry_points(group=f"foveate.{room}"):
        one = point.load()
        found.setdefault(getattr(one, "name", None) or one.model_type, one)
    return found
