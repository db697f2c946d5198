"""Each layer: extensions of the engine. This file is the list of them; the engine knows no other name.

borrowing   gives layers without keys of their own a mask over another layer's
cache_cut   cuts caches of earlier layers after a prompt
odd_layers  serves layers with a state, and layers that pick keys
renumbering numbers rows anew, as in a prompt that is that short
tracing     writes the trace: what was dropped where
step_reads  lets decode steps read only some vision tokens of the caches
"""

from collections.abc import Callable
from importlib import import_module

from foveate.engine.extension import Extension
from foveate.engine.program import Program
from foveate.families.base import Family

NEEDED: dict[str, Callable[[Program, Family], bool]] = {
    "borrowing": lambda program, family: bool(family.lenders),
    "cache_cut": lambda program, family: bool(program.cached),
    "odd_layers": lambda program, family: bool(family.recurrent or family.indexed),
    "renumbering": lambda program, family: program.renumbers,
    "tracing": lambda program, family: True,
    "step_reads": lambda program, family: program.reading is not None,
}
"""When a context has each extension, in the order in which they are called."""

ORDERED = {
    ("cache_cut", "tracing"): "the record says how many slots are left, and has the cut of the caches",
    ("cache_cut", "step_reads"): "steps read a part of what is left in the caches",
}
"""Which extension must be called before which other, and why. Any other order gives the same."""


def extensions_for(program: Program, family: Family) -> list[Extension]:
    """Return new extensions for a method on a model."""
    names = [name for name, is_needed in NEEDED.items() if is_needed(program, family)]
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return [module.EXTENSION() for module in modules]
