"""All methods, presets and families: those in their folders, of entry points, and registered ones."""

import importlib
from typing import TYPE_CHECKING, Any

from foveate import catalogue
from foveate.catalogue import methods as methods, preset as preset, presets as presets
from foveate.errors import SettingError, UnsupportedError
from foveate.families.unserved import UNSERVED
from foveate.plain import inventory

if TYPE_CHECKING:
    from foveate.contract.method import Method
    from foveate.families.base import Family

_extra_families: dict[str, "type[Family]"] = {}


def families() -> "dict[str, type[Family]]":
    """Every model family by the `model_type` it serves."""
    named = {model_type: _family(model_type) for model_type in (*inventory.families(), *_extra_families)}
    return {model_type: family for model_type, family in named.items() if family}


def _family(model_type: str) -> "type[Family] | None":
    """The family of a `model_type`; None where none is written by hand."""
    if model_type in _extra_families:
        return _extra_families[model_type]
    candidates = inventory.brought("foveate.families")
    if file := inventory.family_files().get(model_type):
        candidates = importlib.import_module(f"foveate.families.{file}").FAMILIES
    return next((family for family in candidates if family.model_type == model_type), None)


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


def family_for(model: Any) -> "Family":
    """The family object of a model, or of the transformers model inside a wrapper (PEFT, torch.compile, a pipeline).

    Args:
        model: A vision-language model of transformers.

    Raises:
        UnsupportedError: If its parts are not found, or dropping would be wrong there; the message says why.
    """
    model = inside(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    return family_kind(model_type, type(model).__name__)(model)


def family_kind(model_type: Any, name: str = "") -> "type[Family]":
    """The family of a `model_type`: written by hand, or derived from the model.

    Args:
        model_type: What a config says.
        name: What has that config, in a message.

    Raises:
        UnsupportedError: If it is known that no family can serve it.
    """
    if model_type in UNSERVED or model_type is None:
        raise _no_family(model_type, name)
    family = _family(model_type)
    if family is not None:
        return family
    from foveate.families.derived import Derived
    from foveate.families.overrides import OVERRIDES

    return OVERRIDES.get(model_type, Derived)


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
    _refuse_taken(kind.name, kind, catalogue.lookup(kind.name))
    catalogue.extra[kind.name] = kind
    return kind


def register_family(kind: "type[Family]") -> "type[Family]":
    """Add a family of your own; works as a decorator.

    Raises:
        SettingError: If another family already serves its `model_type`.
    """
    _refuse_taken(kind.model_type, kind, _family(kind.model_type))
    _extra_families[kind.model_type] = kind
    return kind


def _refuse_taken(name: str, kind: type[Any], other: type[Any] | None) -> None:
    if other not in (None, kind):
        raise SettingError(f"{name!r} is already the name of {other.__module__}.{other.__qualname__}. Rename yours.")
