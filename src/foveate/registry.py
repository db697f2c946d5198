"""All methods, presets and families: those in their folders, of entry points, and registered ones."""

import importlib
import pkgutil
import warnings
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from foveate import catalogue
from foveate.catalogue import methods as methods, preset as preset, presets as presets
from foveate.errors import SettingError, UnsupportedError
from foveate.families.unserved import UNSERVED

if TYPE_CHECKING:
    from foveate.contract.method import Method
    from foveate.families.base import Family

T = TypeVar("T", bound=type[Any])

_extra_families: dict[str, "type[Family]"] = {}


def families() -> "dict[str, type[Family]]":
    """Every model family by the `model_type` it serves."""
    kinds = {kind.model_type: kind for kind in _discover().values()}
    return {**kinds, **_extra_families}


def support() -> dict[str, dict[str, dict[str, Any]]]:
    """What works on which family, derived from the stages of each method's defaults.

    For each `model_type`, modality ("image", "video") and method: where tokens are dropped or can be, as a trace names
    it ("pixels", "tower", "projector", "layer", "kv"), or where they are cached and not read ("read"); or why the
    method is refused. The tests check it for each method on each family.
    """
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for model_type, family in sorted(families().items()):
        modalities = ("image", "video") if family.videos else ("image",)
        table[model_type] = {modality: _support_of(family, modality) for modality in modalities}
    return table


def _support_of(family: "type[Family]", modality: str) -> dict[str, Any]:
    """What each method does with a family's images or videos."""
    from foveate.families.support import reach, usual_input

    answers: dict[str, Any] = {}
    for name, kind in sorted(methods().items()):
        try:
            usual = kind()
        except (SettingError, TypeError):  # it cannot be made without settings
            answers[name] = f"{name} has no defaults: what works depends on its settings."
            continue
        where = reach(usual, family, arriving=usual_input(family, modality))
        answers[name] = where.refused or where.places
    return answers


def family_for(model: Any, family: Literal["generic"] | None = None) -> "Family":
    """The family object of a model, or of the transformers model inside a wrapper (PEFT, torch.compile, a pipeline).

    Args:
        model: A vision-language model of transformers.
        family: Not needed any more: "generic" warns, and anything else is refused.

    Raises:
        SettingError: If another family is asked for.
        UnsupportedError: If its parts are not found, or dropping would be wrong there; the message says why.
    """
    model = inside(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if family not in (None, "generic"):
        raise SettingError(f"family must be left out; got {family!r}.")
    if family is not None:
        warnings.warn(
            "family='generic' is not needed any more: leave it out. foveate tells a model's parts from its structure.",
            DeprecationWarning,
            stacklevel=3,
        )
    return family_kind(model_type, type(model).__name__)(model)


def family_kind(model_type: Any, name: str = "") -> "type[Family]":
    """The family of a `model_type`: written by hand, or derived from the model.

    Args:
        model_type: What a config says.
        name: What has that config, in a message.

    Raises:
        UnsupportedError: If it is known that no family can serve it.
    """
    from foveate.families.derived import Derived
    from foveate.families.overrides import OVERRIDES

    if model_type in UNSERVED or model_type is None:
        raise _no_family(model_type, name)
    return families().get(model_type) or OVERRIDES.get(model_type, Derived)


def _no_family(model_type: Any, name: str) -> "UnsupportedError":
    """The error for a model that none serves: which families there are, and why."""
    of_class = ""
    if name:
        of_class = f" ({name})"
    reason = "It is no vision-language model of transformers: its config has no model_type."
    if model_type in UNSERVED:
        reason = f"It cannot be served: {UNSERVED[model_type]}."
    return UnsupportedError(
        f"No family for model_type {model_type!r}{of_class}. Supported: {', '.join(sorted(families()))}, and others "
        f"whose structure is known. {reason}"
    )


def inside(model: Any) -> Any:
    """The outermost transformers model of a pipeline or module, of one that speaks its thinker; the argument itself
    where there is none.

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
    thinker = getattr(outermost, "thinker", None)  # of a model that speaks too, what reads and answers
    if isinstance(thinker, PreTrainedModel):
        return thinker
    return outermost


def register_method(kind: "type[Method]") -> "type[Method]":
    """Add a method of your own; works as a decorator.

    Raises:
        SettingError: If another method already has its name.
    """
    return _register(catalogue.extra, methods(), kind.name, kind)


def register_family(kind: "type[Family]") -> "type[Family]":
    """Add a family of your own; works as a decorator.

    Raises:
        SettingError: If another family already serves its `model_type`.
    """
    return _register(_extra_families, families(), kind.model_type, kind)


def _register(extra: "dict[str, T]", taken: "dict[str, T]", name: str, kind: T) -> T:
    other = taken.get(name, kind)
    if other is not kind:
        raise SettingError(f"{name!r} is already the name of {other.__module__}.{other.__qualname__}. Rename yours.")
    extra[name] = kind
    return kind


@cache
def _discover() -> "dict[str, type[Family]]":
    """The families of every module in `foveate/families`, and of every entry point in group `foveate.families`."""
    package = importlib.import_module("foveate.families")
    kinds: dict[str, type[Family]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        for family in _families_of(importlib.import_module(f"foveate.families.{module.name}")):
            kinds[family.model_type] = family
    for point in entry_points(group="foveate.families"):
        family = point.load()
        kinds.setdefault(family.model_type, family)
    return kinds


def _families_of(module: ModuleType) -> "tuple[type[Family], ...]":
    """The families of a module: `FAMILIES = (Llava, VipLlava)`, or `FAMILY = InternVL`."""
    if hasattr(module, "FAMILIES"):
        return tuple(module.FAMILIES)
    if hasattr(module, "FAMILY"):
        return (module.FAMILY,)
    return ()
