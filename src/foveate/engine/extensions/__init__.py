"""Each layer: extensions of the engine. This file is the list of them; the engine knows no other name.

cache_cut   cuts caches of earlier layers after a prompt
renumbering   numbers rows anew, as in a prompt that is that short
tracing     writes the trace: what was dropped where
"""

from collections.abc import Callable
from importlib import import_module

from foveate.engine.extension import Extension
from foveate.engine.program import Program

NEEDED: dict[str, Callable[[Program], bool]] = {
    "cache_cut": lambda program: bool(program.cached),
    "renumbering": lambda program: program.renumbers,
    "tracing": lambda program: True,
}
"""When a context has each extension, in the order in which they are called."""


def extensions_for(program: Program) -> list[Extension]:
    """Return new extensions for a method on a model."""
    names = [name for name, is_needed in NEEDED.items() if is_needed(program)]
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return [module.EXTENSION() for module in modules]
