"""foveate: training-free vision-token dropping for large vision-language models.

    import foveate as fv

    with fv.drop(model, fv.preset("v2drop/llava-1.5-7b/192")) as trace:
        ids = model.generate(**inputs)
    trace.retention

Names and rooms (`fv.embedded`, `fv.viz`) are loaded on first use, so importing the package is fast.
"""

from typing import TYPE_CHECKING, Any

from foveate.plain import inventory
from foveate.plain.version import __version__

_NAMES = {
    "ask": "load Answer Generation Prefix Question SecondLook VLM",
    "contract.method": "Chain Method Preset",
    "core.cut": "Cut",
    "cost": "Cost",
    "engine.ancestry": "StageRecord",
    "engine.extension": "Extension",
    "engine.extensions.replays.recordings": "free_graphs",
    "engine.doors": "apply drop remove",
    "engine.trace": "Trace",
    "errors": "BudgetError FoveateError InputError KeywordError MethodError SessionError SettingError ShapeError "
    "UnknownNameError UnsupportedError",
    "families.base": "Family",
    "hosts.reducer": "Kept",
    "hosts.rows": "drop_rows",
    "registry": "preset presets register_family register_method",
    "tuning": "Tuned tune",
}
_HOMES = {name: f"foveate.{home}" for home, names in _NAMES.items() for name in names.split()}
_HOMES |= {kind: f"foveate.methods.{name}" for name, kind in inventory.method_classes().items()}
_CALLED = ("cost", "families", "methods")
"""Rooms that are functions too: `plain/room.py`."""
_SHOWN = (
    "ask",
    "batch",
    "contract",
    "embedded",
    "errors",
    "integrations",
    "naming",
    "registry",
    "testing",
    "video",
    "viz",
)
"""Rooms that guides and the reference name."""
__all__ = sorted([*_HOMES, *_CALLED, "__version__"])  # pyright: ignore


def __getattr__(name: str) -> Any:
    import importlib

    if name in _rooms():
        return importlib.import_module(f"foveate.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'foveate' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_SHOWN])


def _rooms() -> list[str]:
    import pkgutil

    return [room.name for room in pkgutil.iter_modules(__path__) if not room.name.startswith("_")]


if TYPE_CHECKING:
    from foveate.ask import (
        VLM as VLM,
        Answer as Answer,
        Generation as Generation,
        Prefix as Prefix,
        Question as Question,
        SecondLook as SecondLook,
        load as load,
    )
    from foveate.contract.method import Chain as Chain, Method as Method, Preset as Preset
    from foveate.core.cut import Cut as Cut
    from foveate.cost import Cost as Cost, cost as cost
    from foveate.engine.ancestry import StageRecord as StageRecord
    from foveate.engine.doors import apply as apply, drop as drop, remove as remove
    from foveate.engine.extension import Extension as Extension
    from foveate.engine.extensions.replays.recordings import free_graphs as free_graphs
    from foveate.engine.trace import Trace as Trace
    from foveate.errors import (
        BudgetError as BudgetError,
        FoveateError as FoveateError,
        InputError as InputError,
        KeywordError as KeywordError,
        MethodError as MethodError,
        SessionError as SessionError,
        SettingError as SettingError,
        ShapeError as ShapeError,
        UnknownNameError as UnknownNameError,
        UnsupportedError as UnsupportedError,
    )
    from foveate.families.base import Family as Family
    from foveate.hosts.reducer import Kept as Kept
    from foveate.hosts.rows import drop_rows as drop_rows
    from foveate.methods.averagepool import AveragePool as AveragePool
    from foveate.methods.finalkv import FinalKV as FinalKV
    from foveate.methods.mustdrop import MustDrop as MustDrop
    from foveate.methods.random import Random as Random
    from foveate.methods.resize import Resize as Resize
    from foveate.methods.uniform import Uniform as Uniform
    from foveate.methods.v2drop import V2Drop as V2Drop
    from foveate.methods.visiondrop import VisionDrop as VisionDrop
    from foveate.registry import (
        families as families,
        methods as methods,
        preset as preset,
        presets as presets,
        register_family as register_family,
        register_method as register_method,
    )
    from foveate.tuning import Tuned as Tuned, tune as tune
