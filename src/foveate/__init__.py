"""foveate: training-free vision-token dropping for large vision-language models.

    import foveate as fv

    with fv.drop(model, fv.preset("v2drop/llava-1.5-7b/192")) as trace:
        ids = model.generate(**inputs)
    trace.retention

Names load on first use, so importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "apply": "foveate.engine.session",
    "drop": "foveate.engine.session",
    "remove": "foveate.engine.session",
    "Trace": "foveate.engine.trace",
    "Stage": "foveate.engine.trace",
    "Cost": "foveate.cost",
    "cost": "foveate.cost",
    "Cut": "foveate.methods.base",
    "Method": "foveate.methods.base",
    "Preset": "foveate.methods.base",
    "View": "foveate.methods.base",
    "StagedMethod": "foveate.methods.staged",
    "AveragePool": "foveate.methods.averagepool",
    "FinalKV": "foveate.methods.final_kv",
    "MustDrop": "foveate.methods.mustdrop",
    "Random": "foveate.methods.random",
    "Resize": "foveate.methods.resize",
    "Uniform": "foveate.methods.uniform",
    "V2Drop": "foveate.methods.v2drop",
    "VisionDrop": "foveate.methods.visiondrop",
    "Family": "foveate.families.base",
    "Record": "foveate.tune",
    "tune": "foveate.tune",
    "families": "foveate.registry",
    "methods": "foveate.registry",
    "preset": "foveate.registry",
    "presets": "foveate.registry",
    "register_family": "foveate.registry",
    "register_method": "foveate.registry",
    "BudgetError": "foveate.errors",
    "FoveateError": "foveate.errors",
    "InputError": "foveate.errors",
    "SessionError": "foveate.errors",
    "SettingError": "foveate.errors",
    "ShapeError": "foveate.errors",
    "UnknownNameError": "foveate.errors",
    "UnsupportedError": "foveate.errors",
}

__all__ = [
    "AveragePool",
    "BudgetError",
    "Cost",
    "Cut",
    "Family",
    "FinalKV",
    "FoveateError",
    "InputError",
    "Method",
    "MustDrop",
    "Preset",
    "Random",
    "Record",
    "Resize",
    "SessionError",
    "SettingError",
    "ShapeError",
    "Stage",
    "StagedMethod",
    "Trace",
    "Uniform",
    "UnknownNameError",
    "UnsupportedError",
    "V2Drop",
    "View",
    "VisionDrop",
    "__version__",
    "apply",
    "cost",
    "drop",
    "families",
    "methods",
    "preset",
    "presets",
    "register_family",
    "register_method",
    "remove",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foveate' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from foveate.cost import Cost, cost
    from foveate.engine.session import apply, drop, remove
    from foveate.engine.trace import Stage, Trace
    from foveate.errors import (
        BudgetError,
        FoveateError,
        InputError,
        SessionError,
        SettingError,
        ShapeError,
        UnknownNameError,
        UnsupportedError,
    )
    from foveate.families.base import Family
    from foveate.methods.averagepool import AveragePool
    from foveate.methods.base import Cut, Method, Preset, View
    from foveate.methods.final_kv import FinalKV
    from foveate.methods.mustdrop import MustDrop
    from foveate.methods.random import Random
    from foveate.methods.resize import Resize
    from foveate.methods.staged import StagedMethod
    from foveate.methods.uniform import Uniform
    from foveate.methods.v2drop import V2Drop
    from foveate.methods.visiondrop import VisionDrop
    from foveate.registry import families, methods, preset, presets, register_family, register_method
    from foveate.tune import Record, tune
